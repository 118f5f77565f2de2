# SPDX-License-Identifier: Apache-2.0
"""`firedoor run` on a machine (a network namespace stands for it) with a broker: nothing is reached past the sidecar,
and whatever is killed, nothing is left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.e2e import namespaces
from tests.e2e.conftest import DEADLINE, World, until
from tests.e2e.namespaces import Namespace

MISSING = netns.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

NAME = f"t{os.getpid() % 1000000}"
# Nobody else's, nor those of tests that run at the same time: what is left behind is told by them.
SIDECAR_UID, APP_UID = (200_000 + 2 * (os.getpid() % 1_000_000) + n for n in (0, 1))
TABLE = f"firedoor_run_{NAME}"
MACHINE, WORKLOAD, WORKLOAD_V6 = "10.201.7.1", "10.201.7.2", "fd01:7::2"
ID = "spiffe://example.org/segment/registry/host/h1/svc/web"
CLIENT = "spiffe://example.org/segment/inference/host/h1/svc/client"
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
  to: {{segment: registry, port: 9000}}
  allow: [{{http: {{methods: [GET], paths: ["/**"]}}}}]
"""
SERVER = (
    "import http.server, sys\n"
    "class H(http.server.SimpleHTTPRequestHandler):\n"
    "    def log_message(self, *a): print('request', flush=True)\n"
    "s = http.server.ThreadingHTTPServer(('0.0.0.0', 8080), H)\n"
    "print('serving', flush=True); s.serve_forever()\n"
)


class Machine:
    """A machine with a broker, and what is run on it."""

    def __init__(self, machine: Namespace, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.runs: list[subprocess.Popen[str]] = []
        machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.world = World(folder, prefix=tuple(machine.entering()))
        (folder / "policy.yaml").write_text(POLICY)
        self.world.address = "0.0.0.0:8081"
        self.world.start_broker()
        agent = self.world.enrol()
        self.world.create_entry(agent, "/segment/registry/host/h1/svc/web", f"uid:{APP_UID}")
        self.config = folder / "sidecar.yaml"
        self.write()

    def write(self, more: str = "") -> None:
        folder = self.folder
        self.config.write_text(
            f"""\
trust_domain: example.org
broker: ["{MACHINE}:8081"]
bootstrap_bundle: {folder}/bundle.json
join_token_file: {folder}/token
data_dir: {folder}/web
keep_workload_keys: disk
inbound:
  - {{name: web, as: "{ID}", listen: "[::]:19000", service_port: 9000, protocol: http,
     app: {{address: "127.0.0.1:8080", uid: {APP_UID}}}}}
capture: {{uid: {SIDECAR_UID}}}
run: {{name: {NAME}, network: 10.201.7.0/30, network6: "fd01:7::/126"{more}}}
"""
        )

    def start(self, *command: str, uid: int = APP_UID) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "firedoor.cli", "run", "--config", str(self.config), "--uid", str(uid), "--"]
        with (self.folder / "run.log").open("a") as log:
            process = subprocess.Popen(
                [*self.machine.entering(), *words, *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
            )
        self.runs.append(process)
        return process

    def line(self, process: subprocess.Popen[str]) -> str:
        """Return the next line that the command prints."""
        assert process.stdout
        found = process.stdout.readline().strip()
        assert found, self.log
        return found

    def serve(self) -> subprocess.Popen[str]:
        """Run a web server that listens on every address."""
        process = self.start(base_python(), "-c", SERVER)
        assert self.line(process) == "serving"
        return process

    @property
    def log(self) -> str:
        return (self.folder / "run.log").read_text()

    def left(self) -> list[str]:
        """Return what there is of a run."""
        found = [f"process {pid}" for pid in self.processes()]
        found += ["table"] if TABLE in self.machine.rules() else []
        found += ["interface"] if f"fd-{NAME}" in self.machine.run("ip", "link") else []
        return found + [str(path) for path in Path("/run/firedoor/run").glob(f"{NAME}*")]

    def processes(self) -> list[int]:
        """Return the processes of the sidecar's user and of the app's."""
        return [*of_user(SIDECAR_UID), *of_user(APP_UID)]

    def sidecar(self) -> int:
        """Return the sidecar's pid."""
        (found,) = of_user(SIDECAR_UID)
        return found

    def nothing_is_left(self) -> None:
        until(lambda: not self.left(), f"nothing left behind, but {self.left()}")

    def close(self) -> None:
        for process in self.runs:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout
            process.stdout.close()
        self.world.close()


def of_user(uid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            one = re.search(r"^Uid:\t(\d+)", status.read_text(), re.M)
            if one and int(one[1]) == uid:
                found.append(int(status.parent.name))
    return found


def base_python() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Other users read it.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, namespaces.namespace("host") as one:
        folder = Path(name)
        folder.chmod(0o755)
        found = Machine(one, folder)
        try:
            yield found
        finally:
            found.close()


def test_a_stock_server_is_reached_through_its_sidecar_alone(machine: Machine) -> None:
    machine.serve()
    with neighbour(machine) as far:
        outside = far.actor()
        for host in (WORKLOAD, WORKLOAD_V6):
            for actor in (outside, machine.machine.actor()):
                assert actor.ask(host, 8080) == "TimeoutError", "only published ports are reached"
        # By the machine's addresses and by its own: a sidecar that asks for a certificate.
        for host in ("10.78.0.1", "[fd78::1]", WORKLOAD, f"[{WORKLOAD_V6}]"):
            said = far.run("sh", "-c", f"openssl s_client -connect {host}:19000 </dev/null 2>&1; true")
            assert "BEGIN CERTIFICATE" in said
            assert "Acceptable client certificate CA names" in said or "No client certificate CA names" in said
    client = client_of(machine, "127.0.0.1:18000")
    until(lambda: (found := machine.world.status("c")) and not found.missing, "the client's sidecar")
    assert asked(machine, client) == "200"
    assert asked(machine, client, "-X", "PUT") == "403"


def asked(machine: Machine, address: str, *words: str) -> str:
    """Return the status that curl gets."""
    return machine.machine.run(
        "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *words, f"http://{address}/policy.yaml"
    )


@contextlib.contextmanager
def neighbour(machine: Machine) -> Iterator[Namespace]:
    """Another machine, with a wire to the first, which is its way to everywhere."""
    with namespaces.namespace("far") as far:
        machine.machine.run(*f"ip link add far type veth peer name eth0 netns {far.name}".split())
        for one, device, last in ((machine.machine, "far", 1), (far, "eth0", 2)):
            one.run(*f"ip address add 10.78.0.{last}/24 dev {device}".split())
            one.run(*f"ip address add fd78::{last}/64 dev {device} nodad".split())
            one.run("ip", "link", "set", device, "up")
        far.run("ip", "route", "add", "default", "via", "10.78.0.1")
        far.run("ip", "-6", "route", "add", "default", "via", "fd78::1")
        far.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 65535")
        assert far.actor().call("ping", "fd78::1", seconds=10) == "answered"
        yield far


def client_of(machine: Machine, listen: str) -> str:
    world = machine.world
    config = machine.folder / "client.yaml"
    config.write_text(
        f"""\
outbound:
  - {{name: web, as: "{CLIENT}", listen: "{listen}", protocol: http, expect: ["{ID}"], service_port: 9000,
     addresses: ["{WORKLOAD}:19000"]}}
"""
    )
    world.address = f"{MACHINE}:8081"
    world.create_entry(world.enrol(), "/segment/inference/host/h1/svc/client", "uid:0")
    world.start_sidecar("--config", str(config), name="c")
    return listen


def test_what_the_command_is(machine: Machine) -> None:
    script = "import os; print(open('/proc/self/status').read()); print('groups', os.getgroups(), 'pid', os.getpid())"
    process = machine.start(base_python(), "-c", script)
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, machine.log
    assert re.search(rf"^Uid:\t{APP_UID}\t{APP_UID}\t{APP_UID}\t{APP_UID}$", said, re.M)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{name}:\t0{{16}}$", said, re.M)
    assert "NoNewPrivs:\t1" in said
    assert "groups [] pid 2" in said
    machine.nothing_is_left()


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("sleep 1000 & exit 0", 0)])
def test_its_exit_code_is_the_commands(machine: Machine, script: str, code: int) -> None:
    process = machine.start("sh", "-c", script)
    assert process.wait(DEADLINE) == code, machine.log
    machine.nothing_is_left()


def test_signals_are_handed_on(machine: Machine) -> None:
    process = machine.start(
        "sh", "-c", "trap 'echo one' USR1; trap 'echo end; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    )
    assert machine.line(process) == "up"
    process.send_signal(signal.SIGUSR1)
    assert machine.line(process) == "one"
    process.send_signal(signal.SIGTERM)
    assert machine.line(process) == "end"
    assert process.wait(DEADLINE) == 5
    machine.nothing_is_left()


def test_when_the_sidecar_is_killed_the_command_ends(machine: Machine) -> None:
    process = machine.serve()
    os.kill(machine.sidecar(), signal.SIGKILL)
    assert process.wait(DEADLINE) == 3
    assert "the sidecar ended with 137: the command is ended" in machine.log
    machine.nothing_is_left()


def test_when_the_command_is_killed_all_ends(machine: Machine) -> None:
    process = machine.serve()
    # The first of the two is the one that started the other.
    _, command = sorted(of_user(APP_UID))
    os.kill(command, signal.SIGKILL)
    assert process.wait(DEADLINE) == 137
    machine.nothing_is_left()


def test_when_it_is_killed_itself_the_next_start_cleans_up(machine: Machine) -> None:
    process = machine.serve()
    process.kill()
    process.wait()
    until(lambda: not machine.processes(), "the end of all its processes")
    assert machine.left()
    again = machine.start("true")
    assert again.wait(DEADLINE) == 0, machine.log
    assert "the run of that name before this one was killed; removed: rules" in machine.log
    machine.nothing_is_left()


def test_a_name_is_taken_once(machine: Machine) -> None:
    machine.serve()
    other = machine.start("true")
    assert other.wait(DEADLINE) == 2
    assert f"another `firedoor run` has the name {NAME}" in machine.log
    assert len(machine.processes()) >= 3


@pytest.mark.parametrize(
    ("uid", "sentence"), [(0, "it is root"), (SIDECAR_UID, "the sidecar's uid")], ids=["root", "sidecar"]
)
def test_a_user_that_could_go_round_is_refused(machine: Machine, uid: int, sentence: str) -> None:
    process = machine.start("true", uid=uid)
    assert process.wait(DEADLINE) == 2
    assert sentence in machine.log
    assert not machine.left()


def test_without_forwarding_it_says_what_to_do(machine: Machine) -> None:
    machine.machine.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    process = machine.start("true")
    assert process.wait(DEADLINE) == 2
    assert "`sysctl -w net.ipv6.conf.all.forwarding=1`, or `run.forwarding: set`" in machine.log
    machine.write(", forwarding: set")
    process = machine.start("true")
    assert process.wait(DEADLINE) == 0, machine.log
    machine.nothing_is_left()
