# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces with a wire between them, for the tests of one process.

A socket belongs to the namespace of the thread that makes it, and so do the threads of a core that is made there:

    with wired() as (here, there):
        core = there.run(mtls.Core)
        there.nft("table inet t { ... }")
        here.run(socket.create_connection, (there.v4, 80))
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tests.waiting import PATIENCE

P = ParamSpec("P")
T = TypeVar("T")

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    for name, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(name, path=PATH) is None:
            return f"{name} is not installed: apt-get install {package}"
    name = f"fdn-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    rules = "table inet probe { chain c { type nat hook output priority 0; tcp dport 1 redirect to :2; }; }"
    words = ["ip", "netns", "exec", name, "nft", "-f", "-"]
    asked = subprocess.run(words, input=rules, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"nftables cannot redirect here: {asked.stderr.strip()}" if asked.returncode else ""


class Place:
    """One namespace."""

    def __init__(self, name: str, v4: str, v6: str) -> None:
        self.name, self.v4, self.v6 = name, v4, v6
        # Threads that end leave the namespace; this one stays.
        self._thread = ThreadPoolExecutor(1, initializer=enter, initargs=(f"/run/netns/{name}",))

    def run(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call something in the namespace."""
        return self._thread.submit(call, *arguments, **options).result(timeout=PATIENCE)

    def nft(self, rules: str) -> None:
        """Load a ruleset."""
        self._command("nft", "-f", "-", text=rules)

    def ip(self, *words: str) -> None:
        """Call iproute2."""
        self._command("ip", *words)

    def python(self, source: str, *words: str, uid: int) -> str:
        """Run a program as another user and return what it prints."""
        return self._command(sys.executable, "-I", "-c", source, *words, uid=uid).strip()

    def _command(self, *words: str, text: str = "", uid: int = 0) -> str:
        user = [f"--setuid={uid}", f"--setgid={uid}"] if uid else []
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *user, *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Let go of the namespace."""
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def enter(path: str) -> None:
    """Put the calling thread into a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:  # noqa: PTH123  (a file of the kernel's, for its number alone)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def wired() -> Iterator[tuple[Place, Place]]:
    """Yield two namespaces that reach each other and nobody else."""
    with contextlib.ExitStack() as stack:
        made = []
        for number, word in ((1, "here"), (2, "there")):
            name = f"fdn-{os.getpid()}-{word}"
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(Place(name, f"10.99.0.{number}", f"fd99::{number}"))
            stack.callback(made[-1].close)
        here, there = made
        here.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", there.name)
        for place in made:
            place.ip("link", "set", "lo", "up")
            place.ip("address", "add", f"{place.v4}/24", "dev", "wire")
            place.ip("address", "add", f"{place.v6}/64", "dev", "wire", "nodad")
            place.ip("link", "set", "wire", "up")
        yield here, there
