# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own: in a folder for the time being, on a Unix socket, as a user without rights.

with running_server() as server:
    url, password_file = server.database()
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.ports import own_port
from tests.waiting import PATIENCE, until

MISSING = "PostgreSQL is not installed: apt-get install postgresql"
# Data outlives a killed process, not a power cut; nothing here waits for a disk.
SETTINGS = {"fsync": "off", "listen_addresses": "", "max_connections": "100", "log_min_messages": "fatal"}


def binaries() -> Path | None:
    """Return the folder with the server's programs, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _unprivileged() -> dict[str, Any]:
    """Return how to start a program that refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _lives(pid: int) -> bool:
    """Say whether a process is there and holds something: one that nobody has waited for holds nothing."""
    try:
        # The state follows the name, which is in brackets (proc_pid_stat(5)).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Server:
    """One server. `start` and `stop` as often as needed."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._settings: dict[str, str] = dict(SETTINGS)
        # Names the Unix socket too.
        self.port = 5432
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        self.password = secrets.token_hex(12)
        self.password_file = folder.with_name(f"{folder.name}.password")
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(self.password + "\n")

    def make(self) -> None:
        """Make the data and the role that owns the tests' databases."""
        as_user = _unprivileged()
        if as_user:
            os.chown(self.folder, as_user["user"], as_user["group"])
        words = ["initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        self._run(words, check=True)
        # The administrator of the tests needs no password, brokers do.
        (self.folder / "data/pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        self.start()
        with self.admin() as connection:
            role = sql.SQL("CREATE ROLE firedoor LOGIN PASSWORD {}")
            connection.execute(role.format(sql.Literal(self.password)))

    def _run(self, words: Sequence[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
        command = [str(self._programs / words[0]), *words[1:]]
        return subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, **how, **_unprivileged())

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", "data", "-k", str(self.folder), *options]
        self._process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.DEVNULL, **_unprivileged())
        until(self._answers, "the server answers")

    def _answers(self) -> bool:
        try:
            self.admin().close()
        except psycopg.OperationalError:
            assert self._process.poll() is None, "the server ended"
            return False
        return True

    def listen(self, certificate: Path, key: Path) -> None:
        """Start anew, at a port of 127.0.0.1 too, where it speaks nothing but TLS and asks for the password."""
        self.stop()
        for name, path in (("server.crt", certificate), ("server.key", key)):
            placed = self.folder / "data" / name
            placed.write_bytes(path.read_bytes())
            placed.chmod(0o600)
            if as_user := _unprivileged():
                os.chown(placed, as_user["user"], as_user["group"])
        with (self.folder / "data/pg_hba.conf").open("a") as rules:
            rules.write("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        self.port = own_port()
        self._settings |= {"listen_addresses": "127.0.0.1", "port": str(self.port), "ssl": "on"}
        self.start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: at once with every connection ended, or by SIGQUIT without a word, as in a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None

    def crash(self) -> None:
        """Kill it with all its processes."""
        assert self._process is not None
        number = self._process.pid
        # Held, it makes no more of them meanwhile.
        self._process.send_signal(signal.SIGSTOP)
        children = [int(one) for one in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
        for one in (number, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None
        # As long as one of them is left to hold the shared memory, no server starts on the data.
        until(lambda: not any(map(_lives, children)), "the end of the server's processes")

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Connect as the administrator."""
        return psycopg.connect(host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True)

    def database(self) -> tuple[str, Path]:
        """Make an empty database; return its URL and the file with the password."""
        name = f"t{next(self._names)}"
        with self.admin() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER firedoor").format(sql.Identifier(name)))
        return f"postgresql://firedoor@/{name}?host={self.folder}", self.password_file

    def sessions(self, where: str = "true") -> int:
        """Return how many of brokers' sessions a condition on pg_stat_activity picks."""
        with self.admin() as connection:
            found = "SELECT 1 FROM pg_stat_activity WHERE usename = 'firedoor' AND "
            return len(connection.execute(found + where).fetchall())  # type: ignore[arg-type]

    def end_sessions(self, where: str = "true") -> int:
        """End brokers' sessions that a condition on pg_stat_activity picks; return how many there were."""
        with self.admin() as connection:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'firedoor' AND "
            return len(connection.execute(ended + where).fetchall())  # type: ignore[arg-type]


@contextlib.contextmanager
def running_server() -> Iterator[Server | None]:
    """Run a server; None where there is none to run."""
    programs = binaries()
    if programs is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="fd-pg-"))
    server = Server(programs, folder)
    try:
        server.make()
        yield server
    finally:
        # The data is thrown away: nothing is worth a checkpoint.
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)
        server.password_file.unlink()
