# SPDX-License-Identifier: Apache-2.0
"""An MCP server on the official SDK, Streamable HTTP: `mcp_tools.py PORT [HOST]`; an empty host is every address."""

import sys

from mcp.server import MCPServer

server = MCPServer("demo-tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


if __name__ == "__main__":
    server.run("streamable-http", host=sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1", port=int(sys.argv[1]))
