# SPDX-License-Identifier: Apache-2.0
"""Who and what is in the demo: four segments with a workload each, their users, ports, folders and files.

    inference  --GET, HEAD-->       registry:9000  flow inference-pulls-models, of /models/** in an S3 store
    inference  --opaque TCP-->      registry:9002  flow inference-mirrors-models, the same store
    training   --PUT-->             registry:9001  flow training-publishes-models, the same store
    inference  --POST /mcp-->       mcp-tools      flow inference-calls-tools
    mcp-tools  --Health/Check-->    inference      flow tools-ask-the-model
    mcp-tools  --Health/Watch-->    inference      flow tools-watch-the-model

Nothing else is allowed.
"""

import socket
from dataclasses import dataclass, field
from pathlib import Path

TRUST_DOMAIN = "demo.example"

# Segment name to the service that runs in it.
SERVICES = {"registry": "models", "mcp-tools": "tools", "inference": "llm", "training": "trainer"}
# A second identity of inference, whose SVIDs live for seconds: one of them is kept until it has expired.
BRIEF = "brief"
BRIEF_SECONDS = 8

# What each service is called in flows, whatever port it gets on this machine.
MODELS_PORT, UPLOAD_PORT, MIRROR_PORT, TOOLS_PORT, LLM_PORT = 9000, 9001, 9002, 9200, 8001

# sizeof(sockaddr_un.sun_path) less its NUL (unix(7)); the longest socket below a sidecar's folder needs so many bytes.
MAX_FOLDER_BYTES = 107 - len("/sidecar-mcp-tools/data/run/server-agent.sock")

_PORT_NAMES = (
    "broker",
    "app-models",
    "app-tools",
    "app-llm",
    "in-models",
    "in-upload",
    "in-mirror",
    "in-tools",
    "in-llm",
    "inference-models",
    "inference-upload",
    "inference-mirror",
    "inference-tools",
    "inference-astray",
    "mcp-tools-models",
    "training-models",
    "training-upload",
    "training-mirror",
    "training-tools",
)


def identity(segment: str, service: str | None = None) -> str:
    """Return the SPIFFE ID of a segment's workload."""
    return f"spiffe://{TRUST_DOMAIN}/segment/{segment}/host/demo/svc/{service or SERVICES[segment]}"


def node(segment: str) -> str:
    """Return the node alias that a segment's join token gives to its sidecar."""
    return f"spiffe://{TRUST_DOMAIN}/node/{segment}"


@dataclass(frozen=True)
class World:
    """One run's places. `users` has a uid for each segment; all are ours unless `separate`."""

    folder: Path
    users: dict[str, int]
    separate: bool
    ports: dict[str, int] = field(default_factory=lambda: free_ports(_PORT_NAMES))

    def at(self, port: str) -> str:
        """Return a named port's address."""
        return f"127.0.0.1:{self.ports[port]}"

    @property
    def policy(self) -> Path:
        """The folder of the segments and flows in force; the broker reads it again when it changes."""
        return self.folder / "policy"

    @property
    def admin_socket(self) -> Path:
        """The broker's admin socket."""
        return self.folder / "broker/admin.sock"

    @property
    def bundle(self) -> Path:
        """The trust bundle that sidecars start with."""
        return self.folder / "bundle.json"

    def sidecar(self, segment: str) -> Path:
        """Return the folder of a segment's sidecar."""
        return self.folder / f"sidecar-{segment}"

    def auth_socket(self, segment: str) -> Path:
        """Return the socket where a segment's programs ask for their identity."""
        return self.sidecar(segment) / "auth.sock"

    def records(self, segment: str) -> Path:
        """Return the file of a segment's decision records."""
        return self.sidecar(segment) / "decisions.jsonl"

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / "logs" / f"{name}.log"


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Find a free loopback port for each name, all different."""
    held = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: listener.getsockname()[1] for name, listener in held.items()}
    for listener in held.values():
        listener.close()
    return ports
