# SPDX-License-Identifier: Apache-2.0
"""Administration from elsewhere: the broker's TCP port, as an identity whose entry says `admin`."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.conftest import World
from tests.e2e.test_identity import ID, PATH, issued
from tests.waiting import until

pytestmark = pytest.mark.peer


def firedoor(world: World, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "firedoor.cli", *words]
    where = ("--server", world.address, "--identity", str(world.auth_socket()))
    return subprocess.run([*command, *where], capture_output=True, text=True, timeout=60)


def answer(world: World, *words: str) -> Any:
    ran = firedoor(world, *words, "--output", "json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def start(world: World, *, admin: bool) -> str:
    """A broker, a sidecar and this process's entry; return the entry's ID."""
    world.start_broker()
    path = world.enrol()
    world.start_sidecar().ready()
    entry = world.create_entry(path, PATH, admin=admin)
    until(lambda: issued(world), "an SVID")
    return entry


def test_an_admin_identity_administers(world: World) -> None:
    entry = start(world, admin=True)
    assert [one["id"] for one in answer(world, "entry", "list")] == [entry]
    changed = answer(world, "entry", "update", entry, "--x509-svid-ttl", "15m", "--dns-name", "a.example.org")
    assert (changed["x509_svid_ttl"], changed["dns_names"], changed["revision_number"]) == (900, ["a.example.org"], 1)
    assert (changed["spiffe_id"], changed["admin"]) == (ID, True)
    assert [s["name"] for s in answer(world, "segment", "list")["segments"]] == ["inference", "registry"]
    assert [agent["banned"] for agent in answer(world, "agent", "list")] == [False]


def test_any_other_identity_is_refused(world: World) -> None:
    entry = start(world, admin=False)
    for words in (("entry", "list"), ("agent", "list"), ("segment", "list"), ("entry", "delete", entry)):
        ran = firedoor(world, *words)
        assert (ran.returncode, "authorization denied" in ran.stderr) == (4, True), ran.stderr
    # What anybody may read is read by this one too.
    assert answer(world, "bundle", "show")["keys"]


def test_an_identity_that_is_no_longer_admin_is_refused(world: World) -> None:
    entry = start(world, admin=True)
    assert answer(world, "entry", "update", entry, "--no-admin")["admin"] is False
    assert firedoor(world, "entry", "list").returncode == 4


def test_an_evicted_agent_is_gone_and_may_attest_again(world: World) -> None:
    start(world, admin=False)
    (agent,) = world.agents()
    command = [sys.executable, "-m", "firedoor.cli", "agent", "evict", f"spiffe://example.org{agent}"]
    command += ["--admin-socket", str(world.folder / "b.sock")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, f"evicted spiffe://example.org{agent}\n")
    assert world.agents() == []
    world.programs[-1].wait()
    # Its token is used up; another one lets the same node in, which a ban would not.
    path = world.enrol()
    world.start_sidecar(name="again").ready()
    until(lambda: world.agents() == [path], "the agent again")


def test_what_goes_wrong_is_said(world: World) -> None:
    start(world, admin=True)
    assert firedoor(world, "entry", "list", "--as", ID).returncode == 0
    other = firedoor(world, "entry", "list", "--as", ID + "x")
    assert (other.returncode, ID in other.stderr) == (5, True)
    world.address, right = "127.0.0.1:1", world.address
    nobody = firedoor(world, "entry", "list")
    assert (nobody.returncode, "does not answer" in nobody.stderr) == (3, True), nobody.stderr
    world.address = right.rpartition(":")[0]
    assert firedoor(world, "entry", "list").returncode == 2
