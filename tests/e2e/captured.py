# SPDX-License-Identifier: Apache-2.0
"""A broker in the midst of network namespaces whose programs know of no sidecar.

    hub      the broker, the way between the others, and whoever has no identity
    client   an identity and flows: programs of `APP_UID`
    outcast  an identity that no flow names, in a segment in audit mode: what its own end would refuse, it lets pass
    server   the apps, on every address

In each but `hub` the rules are those that `firedoor capture apply` wrote, and a sidecar runs as a user without any
capability.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from signal import SIGHUP
from typing import Any

from firedoor.cli.demo import users
from firedoor.cli.demo.processes import Child, Children
from firedoor.cli.demo.records import Record
from tests import netns
from tests.e2e import namespaces
from tests.e2e.conftest import Program, World
from tests.e2e.namespaces import APP_UID, SIDECAR_UID, Namespace
from tests.waiting import until

HUB_V4, HUB_V6 = "10.88.1.1", "fd88:1::1"
V4 = {"client": "10.88.1.2", "outcast": "10.88.2.2", "server": "10.88.3.2"}
V6 = {"client": "fd88:1::2", "outcast": "fd88:2::2", "server": "fd88:3::2"}
SEGMENTS = {"client": "inference", "outcast": "batch", "server": "registry"}
IDS = {name: f"/segment/{segment}/host/{name}/svc/app" for name, segment in SEGMENTS.items()}
# The sidecar's ports (docs/capture.md), and a listener that has a name.
INBOUND, OUTBOUND, PROBE, DNS, NAMED = 14006, 14032, 14020, 14053, 19000
PROGRAMS = resources.files("firedoor.cli.demo.programs")
# Every address, by a socket each.
EVERYWHERE = ("0.0.0.0", "::")


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    return netns.missing() or users.obstacle(SIDECAR_UID, Path("/var/tmp")) or ""


def segment(name: str, *, mode: str = "enforce", trust: str = "medium") -> str:
    return f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: {name}}}
spec:
  function: {name}
  trust: {trust}
  mode: {mode}
  members: ["spiffe://{{td}}/segment/{name}/**"]
  admission: {{entry: ["unix:uid:{APP_UID}"], node: []}}
---
"""


def flow(port: int, action: str) -> str:
    return f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: to-{port}}}
spec:
  owner: ml-platform
  reason: what the apps are there for
  from: {{segment: inference}}
  to: {{segment: registry, port: {port}}}
  allow: [{action}]
---
"""


def service(name: str, addresses: Sequence[str], ports: Mapping[int, str]) -> str:
    """Say that the server is expected there; `ports` are these with their protocols."""
    expect = f"spiffe://example.org{IDS['server']}"
    rows = "\n".join(f'    - {{port: {port}, protocol: {one}, expect: ["{expect}"]}}' for port, one in ports.items())
    return f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  addresses: {json.dumps(list(addresses))}
  ports:
{rows}
---
"""


class Node:
    """A namespace with rules and a sidecar."""

    def __init__(self, name: str, space: Namespace, folder: Path) -> None:
        self.name, self.space, self.folder = name, space, folder
        self.v4, self.v6 = V4[name], V6[name]
        self.config = folder / "sidecar.yaml"
        # What anybody could see there before the rules were written.
        self.before = ""
        self._read = 0
        folder.mkdir(mode=0o700)
        os.chown(folder, SIDECAR_UID, SIDECAR_UID)

    def write(self, capture: str, more: str) -> None:
        """Write the sidecar's configuration: what follows `uid` and `as` in `capture`, and more sections."""
        folder = self.folder
        self.config.write_text(
            f"""\
trust_domain: example.org
broker: ["{HUB_V4}:8081"]
bootstrap_bundle: {folder}/bundle.json
join_token_file: {folder}/token
auth_socket: {folder}/auth.sock
admin_socket: {folder}/admin.sock
data_dir: {folder}/data
keep_workload_keys: disk
records: {{path: {folder}/records}}
metrics: "off"
{more}
capture:
  uid: {SIDECAR_UID}
  as: "spiffe://example.org{IDS[self.name]}"
{capture}
"""
        )

    def apply(self) -> str:
        return self.space.firedoor("capture", "apply", "--config", str(self.config), "--app-uid", str(APP_UID))

    def records(self) -> list[Record]:
        """Return what was recorded since the last time."""
        path = self.folder / "records"
        text = path.read_bytes() if path.exists() else b""
        lines = text[self._read : text.rfind(b"\n") + 1]
        self._read += len(lines)
        return [json.loads(line) for line in lines.splitlines()]

    def recorded(self, **wanted: object) -> Record:
        """Return the next record, which comes in its time, that says all this."""
        return self.recorded_until(**wanted)[-1]

    def recorded_until(self, **wanted: object) -> list[Record]:
        """Return that one after all that came before it."""
        seen: list[Record] = []

        def found() -> list[Record]:
            seen.extend(self.records())
            place = next((n for n, one in enumerate(seen) if wanted.items() <= one.items()), None)
            return [] if place is None else seen[: place + 1]

        return until(found, f"a record: {wanted}", state=lambda: seen)


class Captured(World):
    """A trust domain over captured namespaces."""

    def __init__(self, folder: Path, hub: Namespace, spaces: Mapping[str, Namespace], children: Children) -> None:
        super().__init__(folder, prefix=tuple(hub.entering()))
        self.hub, self.children = hub, children
        self.nodes = {name: Node(name, space, folder / name) for name, space in spaces.items()}
        self.client, self.outcast, self.server = (self.nodes[name] for name in SEGMENTS)
        self.address = "0.0.0.0:8081"

    def admin_socket(self, name: str = "s") -> Path:
        return self.folder / name / "admin.sock"

    def begin(self, policy: str, server: str = "", more: str = "") -> None:
        """Start everything; `server` is the rest of `capture` there, `more` what else is in its configuration."""
        self.write_policy(policy)
        self.start_broker()
        for node in self.nodes.values():
            self.create_entry(self.enrol(), IDS[node.name], f"uid:{APP_UID}")
            for name in ("bundle.json", "token"):
                (self.folder / name).replace(node.folder / name)
                os.chown(node.folder / name, SIDECAR_UID, SIDECAR_UID)
            node.write(*((server, more) if node is self.server else ("", "")))
            node.before = node.space.rules()
            assert "are written" in node.apply()
        for program in [self.start_node(node) for node in self.nodes.values()]:
            program.ready()

    def start_node(self, node: Node) -> Program:
        """Start a node's sidecar."""
        words = ("sidecar", "run", "--config", str(node.config))
        program = Program(self.folder / f"{node.name}.log", *words, prefix=node.space.entering(SIDECAR_UID))
        self.programs.append(program)
        return program

    def kill_node(self, node: Node) -> None:
        next(one for one in reversed(self.programs) if one.log.name == f"{node.name}.log").kill()

    def change(self, policy: str) -> None:
        """Make this the policy, and wait until every sidecar runs on it."""
        before = {name: self.generation(name) for name in self.nodes}
        self.write_policy(policy)
        self.programs[0].process.send_signal(SIGHUP)
        until(lambda: all(self.generation(name) > old for name, old in before.items()), "another generation")

    def generation(self, name: str) -> tuple[int, int]:
        status = until(lambda: self.status(name), f"the status of {name}")
        assert status
        return status.generation.epoch, status.generation.number

    def program(self, name: str, space: Namespace, *words: object, uid: int = APP_UID, talks: bool = False) -> Child:
        """Start a program that somebody else wrote."""
        home = self.folder / f"home-{uid}"
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
        command = [*space.entering(uid), sys.executable, "-I", *map(str, words)]
        environment = {"AWS_EC2_METADATA_DISABLED": "true"}
        return self.children.start(name, command, uid=None, home=home, env=environment, talks=talks)

    def asker(self, name: str, space: Namespace, uid: int = APP_UID) -> Child:
        """Start the demo's clients: boto3, the MCP SDK and grpcio."""
        found = self.program(name, space, PROGRAMS / "client.py", uid=uid, talks=True)
        found.answer()
        return found


class Counter:
    """Counts in a namespace, by the kernel, who begins a connection: what arrives at a port, and what is let to it."""

    def __init__(self, space: Namespace, ports: Sequence[int]) -> None:
        self._space = space
        rules = "".join(f"tcp dport {port} tcp flags & (syn | ack) == syn counter\n" for port in ports)
        # Before everything, and after the rules of capture.
        hooks = {"arrived": "prerouting priority -300", "reached": "input priority 300"}
        chains = "".join(f"chain {name} {{ type filter hook {hook}; {rules} }}\n" for name, hook in hooks.items())
        space.run("nft", "-f", "-", given=f"table inet counting {{ {chains} }}")

    def arrived(self, port: int) -> int:
        """Return how many were sent to a port, whatever became of them."""
        return self._count("arrived", port)

    def reached(self, port: int) -> int:
        """Return how many came to whoever listens there: accept() returns no more often."""
        return self._count("reached", port)

    def _count(self, chain: str, port: int) -> int:
        listed = json.loads(self._space.run("nft", "-j", "list", "chain", "inet", "counting", chain))
        rules: list[list[dict[str, Any]]] = [one["rule"]["expr"] for one in listed["nftables"] if "rule" in one]
        (found,) = (
            one["counter"]["packets"] for rule in rules if rule[0]["match"]["right"] == port for one in rule[-1:]
        )
        return int(found)


@contextmanager
def captured() -> Iterator[Captured]:
    """Make the namespaces, the wires and what the processes need; nothing is started."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        # Programs of other users go through it.
        folder.chmod(0o755)
        hub = stack.enter_context(namespaces.namespace("hub"))
        hub.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        spaces = {name: stack.enter_context(namespaces.namespace(name)) for name in SEGMENTS}
        for number, (name, space) in enumerate(spaces.items(), 1):
            wire(hub, name, space, number)
        children = stack.enter_context(Children(folder / "logs"))
        world = Captured(folder, hub, spaces, children)
        stack.callback(world.close)
        yield world


def wire(hub: Namespace, name: str, space: Namespace, number: int) -> None:
    """Lay a wire between the hub and a namespace, with addresses at both ends."""
    hub.run(*f"ip link add {name} type veth peer name eth0 netns {space.name}".split())
    for one, device, last in ((hub, name, 1), (space, "eth0", 2)):
        one.run(*f"ip address add 10.88.{number}.{last}/24 dev {device}".split())
        one.run(*f"ip address add fd88:{number}::{last}/64 dev {device} nodad".split())
        one.run("ip", "link", "set", device, "up")
    space.run(*f"ip route add default via 10.88.{number}.1".split())
    space.run(*f"ip -6 route add default via fd88:{number}::1".split())
    # The first question for a neighbour on a new wire is lost, and asked again after a second.
    space.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 65535")
    assert space.actor().call("ping", f"fd88:{number}::1") == "answered"
