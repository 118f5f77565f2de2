# SPDX-License-Identifier: Apache-2.0
"""The real spire-server and spire-agent, when they are there (`make peers` builds them); recorded figures when not."""

import importlib
import os
import socket
from pathlib import Path
from typing import Any

from bench.processes import Program, until
from bench.world import TRUST_DOMAIN, Server

RECORDED = "580-640"
RECORDED_ORIGIN = (
    "SPIRE 1.15.3, Go 1.26, MintX509SVID on the admin socket, P-256, memory keys, SQLite, 8 callers: 580-640 µs of "
    "server CPU each, 2,100-2,300/s, p50 3.3 ms; recorded on a machine of the class that these tables are from "
    "(2 cores). `make peers` builds spire-server, and it is then measured side by side."
)
CONFIG = """\
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{folder}/api.sock"
  trust_domain = "{trust_domain}"
  data_dir = "{folder}"
  log_level = "WARN"
  ca_ttl = "72h"
  default_x509_svid_ttl = "12h"
  audit_log_enabled = true
  ratelimit {{ attestation = false signing = false }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{folder}/spire.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"""


AGENT_CONFIG = """\
agent {{
  data_dir = "{folder}"
  log_level = "WARN"
  server_address = "{host}"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_bundle_path = "{folder}/bundle.pem"
  trust_domain = "{trust_domain}"
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


def binary(name: str = "spire-server") -> Path | None:
    """Return a program, from $SPIRE_SERVER or $SPIRE_AGENT, or as the tests of the peers build it."""
    if given := os.environ.get(name.upper().replace("-", "_")):
        return Path(given)
    try:
        peers: Any = importlib.import_module("tests.peers.build")
        return Path(peers.binary("spire", name))
    except ImportError:
        return None
    except peers.Missing:
        return None


class SpireServer(Server):
    """One server, with what an operator would configure and no limits of rates."""

    def __init__(self, program: Path, folder: Path) -> None:
        # It refuses a folder that others can write to.
        folder.mkdir(mode=0o700)
        self.admin_socket = folder / "api.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        (folder / "server.conf").write_text(CONFIG.format(folder=folder, trust_domain=TRUST_DOMAIN, port=port))
        words = [str(program), "run", "-config", str(folder / "server.conf")]
        self.program = Program(folder / "server.log", words)
        until(lambda: self.admin_socket.exists() or self.program.check(), "spire-server listens")

    def stop(self) -> None:
        """End it."""
        self.program.stop()


class SpireAgent:
    """One agent, which asks its server every five seconds, as it does by default."""

    def __init__(self, program: Path, folder: Path, server: SpireServer, token: str) -> None:
        folder.mkdir(mode=0o700)
        self.socket = folder / "agent.sock"
        (folder / "bundle.pem").write_text(server.bundle().to_pem())
        host, _, port = server.address.rpartition(":")
        text = AGENT_CONFIG.format(folder=folder, host=host, port=port, trust_domain=TRUST_DOMAIN, token=token)
        (folder / "agent.conf").write_text(text)
        self.program = Program(folder / "agent.log", [str(program), "run", "-config", str(folder / "agent.conf")])
        until(lambda: self.socket.exists() or self.program.check(), "spire-agent listens")

    def stop(self) -> None:
        """End it."""
        self.program.stop()
