# SPDX-License-Identifier: Apache-2.0
"""Network namespaces with a wire between them, and programs in them as users of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

INSIDE_V4, OUTSIDE_V4 = "10.77.0.2", "10.77.0.1"
INSIDE_V6, OUTSIDE_V6 = "fd77::2", "fd77::1"
SIDECAR_UID, APP_UID = 63990, 63991
ACTOR = Path(__file__).with_name("actor.py")
# How long nothing comes where nothing is to come; everything else is waited for patiently.
BRIEF = 0.5


class Actor:
    """The program of tests/e2e/actor.py in one namespace, as one user."""

    def __init__(self, namespace: "Namespace", uid: int) -> None:
        self.namespace, self.uid = namespace, uid
        # The interpreter of the system: that of a virtual environment may be out of other users' reach.
        program = [getattr(sys, "_base_executable", sys.executable), "-I", "-c", ACTOR.read_text()]
        self.process = subprocess.Popen(
            [*namespace.entering(uid), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def call(self, name: str, *words: object, **options: object) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([name, words, options]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    def listen(self, host: str, port: int, *, udp: bool = False) -> None:
        self.call("listen", host, port, udp=udp)

    def met(self, host: str, port: int) -> list[str]:
        found: list[str] = self.call("met", host, port)
        return found

    def ask(self, host: str, port: int, *, udp: bool = False, source: int = 0, **options: float) -> str:
        """Connect or send, and return what is answered; `seconds` until nobody is there."""
        found: str = self.call("ask", host, port, udp=udp, source=source, **options)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


class Namespace:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = f"fdt-{os.getpid()}-{name}"
        self._actors: list[Actor] = []

    def entering(self, uid: int = 0) -> list[str]:
        """Return the words before a command of this namespace and user."""
        user = [f"--setuid={uid}", f"--setgid={uid}"] if uid else []
        return ["nsenter", f"--net=/run/netns/{self.name}", *user]

    def run(self, *words: str, uid: int = 0, code: int = 0, given: str = "") -> str:
        """Run a command and return what it prints on both streams."""
        done = subprocess.run(
            [*self.entering(uid), *words],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def firedoor(self, *words: str, code: int = 0) -> str:
        """Run a command of ours."""
        return self.run(sys.executable, "-m", "firedoor.cli", *words, code=code)

    def rules(self) -> str:
        """Return the whole ruleset, without what it has counted."""
        return self.run("nft", "--stateless", "list", "ruleset")

    def actor(self, uid: int = 0) -> Actor:
        """Start a program."""
        self._actors.append(Actor(self, uid))
        return self._actors[-1]

    def close(self) -> None:
        for actor in self._actors:
            actor.end()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """Make a namespace whose loopback is up."""
    found = Namespace(name)
    subprocess.run(["ip", "netns", "add", found.name], check=True)
    try:
        found.run("ip", "link", "set", "lo", "up")
        yield found
    finally:
        found.close()


@contextmanager
def wired() -> Iterator[tuple[Namespace, Namespace]]:
    """Make an inside and an outside with a wire, an IPv4 and an IPv6 address at both ends."""
    with ExitStack() as stack:
        inside, outside = (stack.enter_context(namespace(name)) for name in ("in", "out"))
        inside.run(*f"ip link add eth0 type veth peer name eth0 netns {outside.name}".split())
        for one, four, six in ((inside, INSIDE_V4, INSIDE_V6), (outside, OUTSIDE_V4, OUTSIDE_V6)):
            one.run(*f"ip address add {four}/24 dev eth0".split())
            one.run(*f"ip address add {six}/64 dev eth0 nodad".split())
            one.run(*["ip", "link", "set", "eth0", "up"])
            one.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 65535")
        inside.run(*f"ip route add default via {OUTSIDE_V4}".split())
        inside.run(*f"ip -6 route add default via {OUTSIDE_V6}".split())
        yield inside, outside
