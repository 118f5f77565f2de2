# SPDX-License-Identifier: Apache-2.0
"""SPIRE's own programs, and a workload on go-spiffe, as processes on loopback.

    server = SpireServer(folder); server.start()
    agent = SpireAgent(folder / "a", server.address, server.bundle_pem(), join_token=server.token()); agent.start()
    server.cli("entry", "create", ...)

They come from `make peers`; without them `needed()` skips and says so.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.peers.build import Missing, binary
from tests.ports import own_port
from tests.waiting import PATIENCE, NotInTime, until

# What SPIRE has, but shows only when it is asked to.
FLAGS = {"SPIRE_SERVER_FFLAGS": "wit-svid"}


def needed(module: str, name: str) -> str:
    """Return the path of a program, or skip the test."""
    try:
        return str(binary(module, name))
    except Missing as missing:
        pytest.skip(str(missing))


class Daemon:
    """One process whose output goes to a log file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        # Beside what this process has.
        self.more_environment: dict[str, str] = {}

    def launch(self, *command: str) -> None:
        """Start it; what it logged before stays."""
        env = {**os.environ, **FLAGS, **self.more_environment}
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env)

    @property
    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def logged(self, text: str) -> None:
        """Wait for a text in the log; fail with the log's end when the process ends first."""

        def said() -> bool:
            assert self.process is not None
            code, found = self.process.poll(), text in self.text
            assert found or code is None, f"it has ended with {code}:\n{self.text[-3000:]}"
            return found

        until(said, f"it says {text!r}", state=lambda: self.text[-3000:])

    def alive(self) -> bool:
        """Say whether it runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> int:
        """Ask it to end and return its exit code."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def ended(self) -> int:
        """Return the exit code when it ends by itself."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def run(command: Sequence[str], *, given: str = "", env: Mapping[str, str] | None = None) -> Answer:
    """Run a command to its end."""
    env = {**os.environ, **FLAGS, **(env or {})}
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


class Answer:
    """What a command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def text(self) -> str:
        return self.out + self.err

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}{self.err}"

    __repr__ = __str__


class Cli:
    """The stock `spire-server` command line, pointed at somebody's admin socket."""

    def __init__(self, admin_socket: Path) -> None:
        self._program, self.socket = needed("spire", "spire-server"), admin_socket

    def __call__(self, *words: str, given: str = "") -> Answer:
        """Run a subcommand: `cli("entry", "show")`."""
        return run([self._program, *words, "-socketPath", str(self.socket)], given=given)

    def subcommands(self, *words: str) -> list[str]:
        """Return every subcommand below one, down to those that do something."""
        listed = re.findall(r"^    ([a-z0-9]+)( .*)?$", run([self._program, *words, "-h"]).text, re.M)
        if not listed:
            return [" ".join(words)]
        return [found for name, _ in listed for found in self.subcommands(*words, name)]

    def ok(self, *words: str, given: str = "") -> str:
        """Run a subcommand that must succeed and return what it printed."""
        answer = self(*words, given=given)
        assert answer.code == 0, f"{' '.join(words)}: {answer}"
        return answer.out

    def json(self, *words: str, given: str = "") -> Any:
        """Run a subcommand with JSON output and return that."""
        return json.loads(self.ok(*words, "-output", "json", given=given))


class SpireServer(Daemon):
    """A real spire-server with SQLite and join tokens."""

    def __init__(self, folder: Path, trust_domain: str = "example.org", more: str = "") -> None:
        super().__init__(folder / "server.log")
        self._program = needed("spire", "spire-server")
        self.folder, self.trust_domain, self.more = folder, trust_domain, more
        # It refuses port 0.
        self.port = own_port()
        self.socket = folder / "api.sock"
        self.cli = Cli(self.socket)
        self.plugins = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it serves."""
        (self.folder / "server.conf").write_text(self._config())
        said = self.text.count("Starting Server APIs")
        self.launch(self._program, "run", "-config", str(self.folder / "server.conf"))
        until(lambda: self.text.count("Starting Server APIs") >= said + 2 or not self.alive(), "the server's start")
        assert self.alive(), self.text[-3000:]

    def _config(self) -> str:
        return f"""
server {{
  bind_address = "127.0.0.1"
  bind_port = "{self.port}"
  socket_path = "{self.socket}"
  trust_domain = "{self.trust_domain}"
  data_dir = "{self.folder}"
  log_level = "DEBUG"
  experimental {{ feature_flags = ["wit-svid"] }}
  {self.more}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{self.folder}/server.db" }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{self.folder}/server-keys.json" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  {self.plugins}
}}
"""

    def token(self, *words: str) -> str:
        """Make a join token."""
        return self.cli.ok("token", "generate", *words).splitlines()[0].removeprefix("Token: ").strip()

    def bundle_pem(self) -> str:
        """Return its roots."""
        return self.cli.ok("bundle", "show")


class SpireAgent(Daemon):
    """A real spire-agent with the attestors join_token and unix."""

    def __init__(
        self, folder: Path, address: str, bundle_pem: str, join_token: str = "", trust_domain: str = "example.org"
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder / "agent.log")
        self._program = needed("spire", "spire-agent")
        self.folder, self.trust_domain, self.join_token = folder, trust_domain, join_token
        self._host, _, self._port = address.rpartition(":")
        (folder / "bundle.pem").write_text(bundle_pem)
        self.socket = folder / "p" / "a.sock"
        self.node_attestor = 'NodeAttestor "join_token" { plugin_data {} }'
        self.workload_attestor = 'WorkloadAttestor "unix" { plugin_data {} }'
        self.more = ""

    @property
    def environment(self) -> dict[str, str]:
        """Where a workload finds it."""
        return {"SPIFFE_ENDPOINT_SOCKET": f"unix://{self.socket}"}

    def start(self) -> None:
        """Start it and wait until it serves workloads."""
        said = self.text.count("Starting agent APIs")
        self.begin()
        serving = lambda: self.text.count("Starting agent APIs") > said  # noqa: E731
        until(lambda: serving() or not self.alive(), "the agent's start")
        assert self.alive(), self.text[-3000:]

    def begin(self) -> None:
        """Start it, whatever comes of that."""
        (self.folder / "agent.conf").write_text(self._config())
        self.launch(self._program, "run", "-config", str(self.folder / "agent.conf"))

    def _config(self) -> str:
        # Its polls are five seconds apart otherwise, and every test would wait for them.
        return f"""
agent {{
  data_dir = "{self.folder}/data"
  log_level = "DEBUG"
  server_address = "{self._host}"
  server_port = "{self._port}"
  socket_path = "{self.socket}"
  admin_socket_path = "{self.folder}/adm/admin.sock"
  trust_bundle_path = "{self.folder}/bundle.pem"
  trust_domain = "{self.trust_domain}"
  join_token = "{self.join_token}"
  experimental {{ sync_interval = "1s" }}
  {self.more}
}}
plugins {{
  {self.node_attestor}
  KeyManager "disk" {{ plugin_data {{ directory = "{self.folder}/data" }} }}
  {self.workload_attestor}
}}
"""


class Workload:
    """The go-spiffe program as a workload of one Workload API socket."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._program, self._environment = needed("gospiffe", "gospiffe"), environment
        self._running: list[subprocess.Popen[str]] = []

    def ask(self, *words: str, given: str = "") -> dict[str, Any]:
        """Run a command to its end; its last line."""
        done = run([self._program, *words], given=given, env=self._environment)
        answer: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        return answer

    def follow(self, *words: str) -> Lines:
        """Start a command that goes on."""
        process = subprocess.Popen(
            [self._program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env={**os.environ, **self._environment},
        )
        self._running.append(process)
        return Lines(process)

    def close(self) -> None:
        """End what goes on."""
        for process in self._running:
            process.kill()
            process.wait()
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            process.stdout.close()


class Lines:
    """The JSON lines of a program that goes on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._rest = b""

    def next(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Return the next line."""
        assert self._process.stdout
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise NotInTime(f"not within {seconds:.0f} s: a line")
            data = os.read(descriptor, 65536)
            assert data, "it has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def until(self, condition: Callable[[dict[str, Any]], object], seconds: float = PATIENCE) -> dict[str, Any]:
        """Return the next line for which a condition holds."""
        end = time.monotonic() + seconds
        while not condition(line := self.next(max(0.0, end - time.monotonic()))):
            pass
        return line

    def end(self) -> dict[str, Any]:
        """End its input and return the next line."""
        assert self._process.stdin
        self._process.stdin.close()
        return self.next()
