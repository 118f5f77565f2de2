# SPDX-License-Identifier: Apache-2.0
"""The real spire-server, when its program is there (`make peers` builds it); the figures that it gave, when not."""

import importlib
import os
from pathlib import Path
from typing import Any

from bench.processes import Program, until
from bench.world import TRUST_DOMAIN

RECORDED = "580-640"
RECORDED_ORIGIN = (
    "SPIRE 1.15.3, Go 1.26, MintX509SVID on the admin socket, P-256, memory keys, SQLite, 8 callers: 580-640 µs of "
    "server CPU each, 2,100-2,300/s, p50 3.3 ms; recorded on a machine of the class that these tables are from "
    "(2 cores). `make peers` builds spire-server, and it is then measured side by side."
)
CONFIG = """\
server {{
  bind_address = "127.0.0.1"
  bind_port = "0"
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


def binary() -> Path | None:
    """Return the program, from $SPIRE_SERVER or as the tests of the peers build it."""
    if given := os.environ.get("SPIRE_SERVER"):
        return Path(given)
    try:
        peers: Any = importlib.import_module("tests.peers.build")
        return Path(peers.binary("spire", "spire-server"))
    except ImportError:
        return None
    except peers.Missing:
        return None


class SpireServer:
    """One server. `socket` takes the same calls as our broker's admin socket."""

    def __init__(self, program: Path, folder: Path) -> None:
        # It refuses a folder that others can write to.
        folder.mkdir(mode=0o700)
        self.socket = folder / "api.sock"
        (folder / "server.conf").write_text(CONFIG.format(folder=folder, trust_domain=TRUST_DOMAIN))
        words = [str(program), "run", "-config", str(folder / "server.conf")]
        self.program = Program(folder / "server.log", words)
        until(lambda: self.socket.exists() or self.program.check(), "spire-server listens")

    def stop(self) -> None:
        """End it."""
        self.program.stop()
