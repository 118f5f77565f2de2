# SPDX-License-Identifier: Apache-2.0
"""A machine (a network namespace stands for it) with a broker, on which tests start `firedoor run`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e import namespaces
from tests.e2e.conftest import World
from tests.e2e.namespaces import Namespace
from tests.waiting import PATIENCE, until

NAME = f"t{os.getpid() % 1000000}"
# Nobody else's, nor those of tests that run at the same time: what is left behind is told by them.
SIDECAR_UID, APP_UID = (200_000 + 2 * (os.getpid() % 1_000_000) + n for n in (0, 1))
MACHINE, WORKLOAD, WORKLOAD_V6 = "10.201.7.1", "10.201.7.2", "fd01:7::2"
ID = "spiffe://example.org/segment/registry/host/h1/svc/web"
CLIENT = "spiffe://example.org/segment/inference/host/h1/svc/client"
PORT = 8080
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/registry/**"]
  admission: {{entry: ["unix:uid:{APP_UID}"], node: []}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: inference}}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/inference/**"]
  admission: {{entry: ["unix:uid:0"], node: []}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-reads}}
spec:
  owner: ml-platform
  reason: model weights
  from: {{segment: inference}}
  to: {{segment: registry, port: {PORT}}}
  allow: [{{http: {{methods: [GET], paths: ["/**"]}}}}]
"""


class Machine:
    """A machine with a broker, and what is run on it."""

    def __init__(self, machine: Namespace, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.config = folder / "sidecar.yaml"
        self.runs: list[subprocess.Popen[Any]] = []
        self.world = World(folder, prefix=tuple(machine.entering()))
        (folder / "policy.yaml").write_text(POLICY)
        self.world.address = "0.0.0.0:8081"
        self.world.start_broker()
        agent = self.world.enrol()
        self.world.create_entry(agent, "/segment/registry/host/h1/svc/web", f"uid:{APP_UID}")
        self.restore()
        self.before = self.state()

    def restore(self) -> None:
        """Have things as every test finds them."""
        self.machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        (self.folder / "run.log").write_text("")
        self.write()

    def write(self, more: str = "", broker: str = f"{MACHINE}:8081", data_dir: str = "web") -> None:
        """Write the sidecar's configuration; `more` goes to its section `run`."""
        folder = self.folder
        self.config.write_text(
            f"""\
trust_domain: example.org
broker: ["{broker}"]
bootstrap_bundle: {folder}/bundle.json
join_token_file: {folder}/token
data_dir: {folder}/{data_dir}
keep_workload_keys: disk
capture:
  uid: {SIDECAR_UID}
  as: "{ID}"
  ports: [{{port: {PORT}, protocol: http}}]
run: {{name: {NAME}, network: 10.201.7.0/30, network6: "fd01:7::/126"{more}}}
"""
        )

    def start(self, *command: str, uid: int = APP_UID, **options: Any) -> subprocess.Popen[Any]:
        """Start a run; `options` are those of Popen."""
        words = [sys.executable, "-m", "firedoor.cli", "run", "--config", str(self.config), "--uid", str(uid), "--"]
        with (self.folder / "run.log").open("a") as log:
            given = {"stdout": subprocess.PIPE, "stderr": log, "text": True, "cwd": self.folder, **options}
            process = subprocess.Popen([*self.machine.entering(), *words, *command], **given)
        self.runs.append(process)
        return process

    def line(self, process: subprocess.Popen[Any]) -> str:
        """Return the next line that the command prints."""
        assert process.stdout
        found = str(process.stdout.readline()).strip()
        assert found, self.log
        return found

    def serve(self) -> subprocess.Popen[Any]:
        """Run a stock web server, on every address of both families."""
        words = ("-u", "-m", "http.server", str(PORT), "--bind", "::")
        process = self.start(base_python(), *words)
        assert "Serving HTTP" in self.line(process)
        return process

    @property
    def log(self) -> str:
        """What was said since this test began."""
        return (self.folder / "run.log").read_text()

    def state(self) -> dict[str, str]:
        """Return what a run may change of the machine: all of it, whoever made it."""
        commands = ("nft --stateless list ruleset", "ip -o link", "ip -o address", "ip route", "ip -6 route")
        found = {command: self.machine.run(*command.split()) for command in commands}
        kept = re.findall(r"^.* - (?:proc|nsfs) .*$", Path("/proc/self/mountinfo").read_text(), re.M)
        # Namespaces that tests make have a name there.
        return {**found, "mounts": "\n".join(line for line in kept if "/netns" not in line)}

    def left(self) -> list[str]:
        """Return what there is of a run."""
        found = [f"process {pid}" for pid in self.processes()]
        now = self.state()
        found += [what for what, text in self.before.items() if now[what] != text]
        number = Path(f"/run/netns/{self.machine.name}").stat().st_ino
        kept = [*Path("/run/firedoor/run").glob(f"{NAME}*"), *Path("/run/firedoor/run-ports").glob(f"*-{number}")]
        return found + [str(path) for path in kept]

    def processes(self) -> list[int]:
        """Return the processes of the sidecar's user and of the app's."""
        return [*of_user(SIDECAR_UID), *of_user(APP_UID)]

    def sidecar(self) -> int:
        """Return the sidecar's pid."""
        (found,) = of_user(SIDECAR_UID)
        return found

    def nothing_is_left(self) -> None:
        """Wait until the machine is as it was before the first run."""
        until(lambda: not self.left(), f"nothing left behind, but {self.left()}")

    def end_runs(self) -> None:
        """End what a test has started."""
        for process in self.runs:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        self.runs.clear()


def of_user(uid: int) -> list[int]:
    """Return the processes of a user."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            one = re.search(r"^Uid:\t(\d+)", status.read_text(), re.M)
            if one and int(one[1]) == uid:
                found.append(int(status.parent.name))
    return found


def base_python() -> str:
    """Return an interpreter that other users can start."""
    return str(getattr(sys, "_base_executable", sys.executable))


@contextlib.contextmanager
def machine_with_broker() -> Iterator[Machine]:
    """Make one, for the tests of a file."""
    # Other users read it.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, namespaces.namespace("host") as one:
        folder = Path(name)
        folder.chmod(0o755)
        found = Machine(one, folder)
        try:
            yield found
        finally:
            found.end_runs()
            found.world.close()
