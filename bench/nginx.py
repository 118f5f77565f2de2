# SPDX-License-Identifier: Apache-2.0
"""The server behind the proxies: nginx with a short answer at `/` and 1 MiB at `/mib`."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from bench.processes import Program, until

BODY = "x" * 128
CONFIG = """\
daemon off;
{user}
worker_processes 1;
error_log {folder}/nginx-errors.log;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  # Ten times what the longest measurement asks on one connection: closing is not what is measured.
  keepalive_requests 100000000;
  keepalive_timeout 1h;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    {listen}
    default_type application/octet-stream;
    location = / {{ return 200 "{body}"; }}
    location = /mib {{ alias {folder}/mib; }}
  }}
}}
"""


class Nginx:
    """One nginx on a port of the system's choice; or at these addresses, run by `prefix` (such as nsenter)."""

    def __init__(self, folder: Path, addresses: Sequence[str] = (), prefix: Sequence[str] = ()) -> None:
        self.address, *others = addresses or [f"127.0.0.1:{free_port()}"]
        listen = " ".join(f"listen {one} backlog=4096;" for one in (self.address, *others))
        (folder / "mib").write_bytes(os.urandom(1 << 20))
        user = "user root;" if os.geteuid() == 0 else ""
        config = CONFIG.format(folder=folder, user=user, listen=listen, body=BODY)
        (folder / "nginx.conf").write_text(config)
        words = ["nginx", "-p", str(folder), "-e", str(folder / "nginx-errors.log"), "-c", str(folder / "nginx.conf")]
        self._program = Program(folder / "nginx.log", [*prefix, *words])
        # It writes its number when it listens.
        number = folder / "nginx.pid"
        until(lambda: number.exists() or self._program.check(), "nginx listens")

    def stop(self) -> None:
        """End it."""
        self._program.stop()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def answers(address: str) -> bool:
    """Say whether somebody accepts connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
