# SPDX-License-Identifier: Apache-2.0
"""The real spire-server and spire-agent, when they are there (`make peers` builds them); recorded figures when not."""

import importlib
import os
import socket
from pathlib import Path
from typing import Any

from bench import spire_rows
from bench.processes import PATIENCE, Failed, Program, until
from bench.world import TRUST_DOMAIN, Server, spiffe_id
from firedoor.wire import entry_grpc, entry_pb2

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
  KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/keys.json" }} }}
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
        self._folder, self._binary = folder, program
        self.admin_socket = folder / "api.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        (folder / "server.conf").write_text(CONFIG.format(folder=folder, trust_domain=TRUST_DOMAIN, port=port))
        self.program = self._started()

    def _started(self, seconds: float = PATIENCE) -> Program:
        words = [str(self._binary), "run", "-config", str(self._folder / "server.conf")]
        program = Program(self._folder / "server.log", words)
        until(lambda: self.admin_socket.exists() or program.check(), "spire-server listens", seconds)
        return program

    def put_entries(self, like: str, *paths: str, seconds: float) -> list[str]:
        """Make entries for these paths that are as one that it has, in its database; return their IDs.

        It is ended for it and started again; before it listens it reads all of its entries. Raise Late if that takes
        more than so many seconds, Failed if it shows the last of them as anything but that entry under another ID.
        """
        self.stop()
        self.admin_socket.unlink(missing_ok=True)
        made = spire_rows.copy(self._folder / "spire.sqlite3", like, [spiffe_id(path) for path in paths])
        self.program = self._started(seconds)
        with self.admin() as channel:
            stub = entry_grpc.EntryStub(channel)
            one, other = (stub.GetEntry(entry_pb2.GetEntryRequest(id=each), timeout=60) for each in (like, made[-1]))
        one.id, one.spiffe_id.path = made[-1], paths[-1]
        if one != other:
            raise Failed(f"spire-server shows an entry that was put into its database as {other}, not as {one}")
        return made

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
