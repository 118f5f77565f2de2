# SPDX-License-Identifier: Apache-2.0
"""docs/recovery.md: every command on the page is typed where the page says so, and says what the page shows."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import faketime
from tests.e2e.conftest import Program, World
from tests.e2e.test_identity import PATH
from tests.faketime import Clock
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(faketime.library() is None, reason=faketime.MISSING),
    pytest.mark.timeout(300),
]
TEXT = (Path(__file__).resolve().parents[2] / "docs/recovery.md").read_text()
BACK_UP, RESTORE = "Back up first", "The broker's machine is gone"
LOST, AWAY = "The key of an authority is lost", "A sidecar was away for longer than its SVID"
UNKNOWN = "A sidecar knows no authority that counts"
SERVICE = re.compile(r"systemctl (start|stop) firedoor-(broker|sidecar)")
BROKER = """\
trust_domain: example.org
listen: {listen}
metrics: "off"
data_dir: {folder}/broker
admin_socket: {folder}/b.sock
segments: {folder}/policy.yaml
"""
SIDECAR = """\
trust_domain: example.org
broker: ["{broker}"]
metrics: "off"
bootstrap_bundle: {folder}/bootstrap.json
join_token_file: {folder}/token
auth_socket: {folder}/s-auth.sock
admin_socket: {folder}/s-admin.sock
data_dir: {folder}/s
"""


def commands(section: str) -> Iterator[tuple[str, str]]:
    """Yield a section's commands with what the page shows of their answers."""
    text = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, said = part.partition("\n")
            yield command, said


class Site:
    """One machine with a broker and a sidecar, on which somebody types what the page says."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world, self.clock, self.folder = world, clock, world.folder
        self.listen = "127.0.0.1:0"
        self.running: dict[str, Program] = {}
        shim = self.folder / "bin/firedoor"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec env {" ".join(clock.prefix[1:])} {sys.executable} -m firedoor.cli "$@"\n')
        shim.chmod(0o755)
        secret = self.folder / "passphrase"
        secret.touch(0o600)
        secret.write_text("correct horse\n")
        self.start("broker")
        agent = world.enrol()
        self.agent = f"spiffe://example.org{agent}"
        world.create_entry(agent, PATH)
        shutil.copy(self.folder / "bundle.json", self.folder / "bootstrap.json")
        self.start("sidecar")
        self.settled()

    def start(self, what: str) -> None:
        """Do what systemd does."""
        config = self.folder / f"{what}.yaml"
        text = BROKER if what == "broker" else SIDECAR
        config.write_text(text.format(folder=self.folder, listen=self.listen, broker=self.listen))
        program = self.world._start(f"{what}.log", what, "run", "--config", str(config))
        self.running[what] = program
        line = program.ready()
        if what == "broker":
            self.listen = re.search(r"listen=(\S+)", line)[1]  # type: ignore[index]
            config.write_text(text.format(folder=self.folder, listen=self.listen, broker=self.listen))

    def stop(self, what: str) -> None:
        assert self.running.pop(what).stop() == 0

    def settled(self) -> None:
        """Wait until the sidecar holds a good SVID and is connected."""

        def good() -> bool:
            status = self.world.status()
            live = [one for one in status.svids if one.not_after > self.clock.now()] if status else []
            return bool(status and status.connected and live)

        until(good, "an SVID")

    def type(self, section: str, environment: Mapping[str, str] | None = None) -> None:
        """Type what a section says, and see that it says what the page shows."""
        for command, expected in commands(section):
            if found := SERVICE.fullmatch(command):
                getattr(self, found[1])(found[2])
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                    "FIREDOOR_BROKER_ADMIN_SOCKET": str(self.folder / "b.sock"),
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
            )
            said = f"$ {command}\n{done.stdout}{done.stderr}"
            assert done.returncode == 0, said
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert not expected or doctest.OutputChecker().check_output(expected, done.stdout, flags), said


@pytest.fixture
def site(world: World) -> Site:
    clock = Clock(world.folder / "clock")
    world.prefix = clock.prefix
    return Site(world, clock)


def test_every_command_is_typed_by_a_test_below() -> None:
    sections = re.findall(r"^## (.*)$", TEXT, re.M)
    with_commands = {section for section in sections if list(commands(section))}
    assert with_commands == {BACK_UP, RESTORE, LOST, AWAY, UNKNOWN}
    assert len(re.findall(r"^\$ ", TEXT, re.M)) == sum(len(list(commands(one))) for one in sections)


def test_links_within_the_page() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
    known = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= known


def test_back_up_and_restore(site: Site) -> None:
    site.type(BACK_UP)
    site.running.pop("broker").kill()
    shutil.rmtree(site.folder / "broker")
    site.type(RESTORE)
    site.settled()


def test_a_lost_key_and_the_bundle_by_hand(site: Site) -> None:
    site.stop("broker")
    (site.folder / "broker/keys/x509-CA-A.pem").unlink()
    site.start("broker")
    site.type(UNKNOWN)
    site.settled()
    site.type(LOST)
    site.settled()


def test_away_for_days(site: Site) -> None:
    """Broker and sidecar were off for longer than all that they had: the bundle by hand, and another token."""
    site.stop("sidecar")
    site.stop("broker")
    site.clock.go(hours=72)
    site.start("broker")
    for command, _ in list(commands(UNKNOWN)):
        if not SERVICE.fullmatch(command):
            environment = {"PATH": f"{site.folder}/bin:{os.environ['PATH']}"}
            environment["FIREDOOR_BROKER_ADMIN_SOCKET"] = str(site.folder / "b.sock")
            subprocess.run(["bash", "-c", command], cwd=site.folder, env={**os.environ, **environment}, check=True)
    ended = site.world._start("sidecar.log", "sidecar", "run", "--config", str(site.folder / "sidecar.yaml"))
    assert ended.wait() == 4
    assert f"`firedoor token create --replaces {site.agent}`" in ended.text
    site.type(AWAY, {"AGENT": site.agent})
    site.settled()
