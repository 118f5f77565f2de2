# SPDX-License-Identifier: Apache-2.0
"""A stock resolver (dnsmasq) in a network namespace, with names of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import netns
from tests.e2e.namespaces import Namespace
from tests.waiting import until

NAME, V4, V6 = "s3.example.org", "192.0.2.7", "2001:db8::7"


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    for name, package in (("dnsmasq", "dnsmasq-base"), ("dig", "bind9-dnsutils")):
        if shutil.which(name, path=netns.PATH) is None:
            return f"{name} is not installed: apt-get install {package}"
    return netns.missing()


class Resolver:
    """What it logs of those who ask."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def asked(self, name: str) -> int:
        """Return how often it was asked for a name."""
        return self.log.read_text().count(f"] {name} from ")


@contextmanager
def dnsmasq(where: Namespace, log: Path, *words: str) -> Iterator[Resolver]:
    """Have one that knows `NAME`, and nothing else below example.org but what is given."""
    command = [
        *("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="),
        *("--log-queries", f"--log-facility={log}", "--edns-packet-max=4096", "--local=/example.org/"),
        *(f"--host-record={NAME},{V4},{V6}", *words),
    ]
    with subprocess.Popen([*where.entering(), *command], env={"PATH": netns.PATH}) as process:
        try:
            until(lambda: log.exists() and "started" in log.read_text(), "dnsmasq")
            yield Resolver(log)
        finally:
            process.kill()
