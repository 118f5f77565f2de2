# SPDX-License-Identifier: Apache-2.0
"""An MCP server on the official SDK, Streamable HTTP: `mcp_tools.py PORT`."""

import sys

from mcp.server import MCPServer

server = MCPServer("demo-tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
