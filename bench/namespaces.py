# SPDX-License-Identifier: Apache-2.0
"""Network namespaces on one wire, with programs in them: what is captured is nobody's but the measurement's."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.processes import Failed

# Connections a second are many, from few addresses: ports are used again at once, and what has ended is forgotten.
SETTINGS = ("net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1")
FORGETTING = ("net.netfilter.nf_conntrack_tcp_timeout_time_wait=2", "net.netfilter.nf_conntrack_tcp_timeout_close=1")


def missing() -> list[str]:
    """Say what is needed for them, and is not here."""
    found = ["run it as root"] if os.geteuid() else []
    programs = (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux"))
    packages = [package for program, package in programs if not shutil.which(program)]
    return [*found, f"apt-get install {' '.join(packages)}"] if packages else found


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace with an address on the wire."""

    name: str
    address: str

    def prefix(self, uid: int = 0) -> list[str]:
        """Return the words before a command that is run here, as a user."""
        user = [f"--setuid={uid}", f"--setgid={uid}"] if uid else []
        return ["nsenter", f"--net=/run/netns/{self.name}", *user]

    def run(self, *words: str) -> None:
        """Run a command. Raise Failed."""
        _run(*self.prefix(), *words)


@contextmanager
def on_one_wire(names: Sequence[str]) -> Iterator[list[Place]]:
    """Make them, the first with a bridge for all; they reach each other and nobody else."""
    with ExitStack() as stack:
        places = [Place(f"fdb-{os.getpid()}-{name}", f"10.98.0.{at + 1}") for at, name in enumerate(names)]
        for place in places:
            _run("ip", "netns", "add", place.name)
            stack.callback(_run, "ip", "netns", "del", place.name)
            place.run("ip", "link", "set", "lo", "up")
            place.run("sysctl", "-qw", *SETTINGS)
        first, *others = places
        first.run(*["ip", "link", "add", "wire", "type", "bridge"])
        for at, place in enumerate(others):
            first.run(*f"ip link add port{at} type veth peer name wire netns {place.name}".split())
            first.run(*f"ip link set port{at} master wire up".split())
        for place in places:
            place.run(*f"ip address add {place.address}/24 dev wire".split())
            place.run(*["ip", "link", "set", "wire", "up"])
        yield places


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
