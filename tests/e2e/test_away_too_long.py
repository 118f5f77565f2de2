# SPDX-License-Identifier: Apache-2.0
"""A sidecar slept past its SVID, or a broker past its CA: what is denied meanwhile, and the commands that end it.

The wall clock of the processes is set ahead while timers run on, as when a machine was suspended.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import faketime
from tests.e2e.conftest import World
from tests.e2e.test_datapath import CLIENT, SERVER, App, app, ask, inbound, listening, outbound
from tests.e2e.test_identity import PATH
from tests.faketime import Clock
from tests.node_pki import NodePki
from tests.waiting import until

__all__ = ["app"]
pytestmark = [
    pytest.mark.skipif(faketime.library() is None, reason=faketime.MISSING),
    pytest.mark.timeout(240),
]
# An agent SVID lives for an hour, an authority for a day.
SLEPT, DAYS = 5, 72


@pytest.fixture
def clock(world: World) -> Clock:
    """One clock for all processes of the world."""
    found = Clock(world.folder / "clock")
    world.prefix = found.prefix
    return found


def firedoor(world: World, *words: str, code: int = 0) -> str:
    """Run a command by the world's clock and return what it says on both streams."""
    command = [*world.prefix, sys.executable, "-m", "firedoor.cli", *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def trust(world: World, file: str, name: str = "s", code: int = 0) -> str:
    flags = ("--trust-domain", "example.org", "--broker", world.address, "--data-dir", str(world.folder / name))
    return firedoor(world, "sidecar", "trust", str(world.folder / file), *flags, code=code)


def at(world: World) -> tuple[str, str]:
    return "--admin-socket", str(world.folder / "b.sock")


def replacing(text: str) -> list[str]:
    """Return the words of the command that a sidecar says will enrol it again."""
    found = re.search(r"`firedoor (token create --replaces \S+)`", text)
    assert found, text
    return found[1].split()


def node(world: World) -> tuple[str, ...]:
    """Return the evidence of a node that attests again by itself; the broker trusts its root."""
    pki = NodePki(int(time.time()))
    (world.folder / "nodes-ca.pem").write_bytes(pki.root_pem)
    held = pki.node("gpu-1", issuer=pki.ca("Site CA", issuer=pki.root))
    certificate, key = held.write(world.folder)
    return "--x509pop-certificate", str(certificate), "--x509pop-key", str(key)


def test_stopped_for_hours_and_enrolled_again_by_what_it_says(world: World, clock: Clock) -> None:
    world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, PATH)
    sidecar = world.start_sidecar()
    sidecar.ready()
    until(lambda: (one := world.status()) and one.svids, "an SVID")
    before = world.status()
    assert sidecar.stop() == 0
    # While it is good nobody takes its place.
    words = ("token", "create", "--replaces", f"spiffe://example.org{parent}", "--admin-socket")
    assert "is good until" in firedoor(world, *words, str(world.folder / "b.sock"), code=4)
    clock.go(hours=SLEPT)
    sidecar = world.start_sidecar()
    assert sidecar.wait() == 4
    assert "the stored agent SVID has expired" in sidecar.text
    said = replacing(sidecar.text)
    assert said[-1] == f"spiffe://example.org{parent}"
    (world.folder / "token").write_text(firedoor(world, *said, *at(world)))
    sidecar = world.start_sidecar()
    sidecar.ready()
    # Its entry is its own again, and what it knew of the broker it knows still.
    found = until(lambda: (one := world.status()) and one.svids and one, "an SVID")
    assert before is not None
    assert found.agent_id != before.agent_id
    assert [one.spiffe_id for one in found.svids] == [one.spiffe_id for one in before.svids]
    assert found.generation.epoch == before.generation.epoch
    assert found.generation.number >= before.generation.number


def test_without_a_token_file_it_says_so_too(world: World, clock: Clock) -> None:
    world.start_broker()
    parent = world.enrol()
    sidecar = world.start_sidecar()
    sidecar.ready()
    assert sidecar.stop() == 0
    clock.go(hours=SLEPT)
    (world.folder / "token").unlink()
    sidecar = world.start_sidecar()
    assert sidecar.wait() == 2
    assert replacing(sidecar.text)[-1] == f"spiffe://example.org{parent}"


def test_suspended_with_a_join_token(world: World, clock: Clock, app: App) -> None:
    world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, SERVER)
    sidecar = world.start_sidecar("--inbound", inbound(app))
    sidecar.ready()
    address = listening(world, "s")
    clock.go(hours=SLEPT)
    assert sidecar.wait() == 4
    assert "the machine was suspended" in sidecar.text
    assert ask(address) == b""
    (world.folder / "token").write_text(firedoor(world, *replacing(sidecar.text), *at(world)))
    world.start_sidecar("--inbound", inbound(app)).ready()
    assert app.accepted == 0


def test_suspended_on_a_node_that_attests_by_itself(world: World, clock: Clock, app: App) -> None:
    """While the broker cannot be reached nothing passes; then everything does, and nobody had to do anything."""
    evidence = node(world)
    more = ("--x509pop-ca-bundles", str(world.folder / "nodes-ca.pem"))
    broker = world.start_broker(*more)
    world.enrol()
    world.start_sidecar(evidence=evidence, name="r")
    agent = until(lambda: world.agents(), "an agent")[0]
    world.create_entry(agent, SERVER)
    world.create_entry(agent, CLIENT)
    world.programs[-1].stop()
    receiving = world.start_sidecar("--inbound", inbound(app), evidence=evidence, name="r")
    receiving.ready()
    # The same node's second sidecar would evict the first one's agent: it gets a token.
    world.create_entry(world.enrol(), CLIENT)
    sending = world.start_sidecar("--outbound", outbound(world.folder, listening(world, "r")), name="i")
    sending.ready()
    path = world.folder / "out.sock"
    assert ask(path) == b"hello you"
    assert broker.stop() == 0
    clock.go(hours=SLEPT)
    until(lambda: "the machine was suspended" in receiving.text, "that it notices")
    until(lambda: ask(path) == b"", "the denial")
    accepted = app.accepted
    assert ask(path) == b""
    assert app.accepted == accepted
    world.start_broker(*more)
    until(lambda: (one := world.status("r")) and one.listeners and one.listeners[0].open, "the listener")
    status = world.status("r")
    assert status is not None
    assert all(one.not_after > clock.now() for one in status.svids)
    # The other one says what it needs.
    assert sending.wait() == 4
    (world.folder / "token").write_text(firedoor(world, *replacing(sending.text), *at(world)))
    words = ("--outbound", outbound(world.folder, listening(world, "r")))
    world.start_sidecar(*words, name="i").ready()
    assert ask(path) == b"hello you"


def test_the_authority_expired_while_the_broker_was_off(world: World, clock: Clock) -> None:
    evidence = node(world)
    more = ("--x509pop-ca-bundles", str(world.folder / "nodes-ca.pem"))
    broker = world.start_broker(*more)
    world.enrol()
    stayed = world.start_sidecar(evidence=evidence)
    stayed.ready()
    world.create_entry(until(lambda: world.agents(), "an agent")[0], PATH)
    until(lambda: (one := world.status()) and one.svids, "an SVID")
    assert broker.stop() == 0
    clock.go(hours=DAYS)
    broker = world.start_broker(*more)
    for kind in ("X.509", "JWT", "WIT"):
        assert re.search(rf"{kind} authority \S+ expired at \S+; another one signs now", broker.text)
    assert "firedoor sidecar trust" in broker.text
    # It knows no authority that lives: nobody can prove to be the broker, and it takes nobody's word.
    until(lambda: "does not lead to a root" in stayed.text and "`firedoor sidecar trust` here" in stayed.text, "why")
    status = world.status()
    assert status is not None
    assert not status.connected
    assert all(one.not_after < clock.now() for one in status.svids)
    (world.folder / "fresh.json").write_text(world.run("bundle", "show"))
    assert "is in use by another sidecar" in trust(world, "fresh.json", code=4)
    assert stayed.stop() == 0
    assert "have expired" in trust(world, "bundle.json", code=2)
    said = trust(world, "fresh.json")
    assert re.search(r"\n  [0-9a-f]{40}  until \S+, new\n", said)
    world.start_sidecar(evidence=evidence).ready()
    found = until(lambda: (one := world.status()) and one.svids and one, "an SVID")
    assert found.svids[0].not_after > clock.now()


def test_the_key_of_the_root_is_lost(world: World, app: App) -> None:
    """What runs, runs on; the bundle goes to sidecars by hand, and a rotation takes the lost authority away."""
    broker = world.start_broker()
    world.create_entry(world.enrol(), SERVER)
    receiving = world.start_sidecar("--inbound", inbound(app), name="r")
    receiving.ready()
    world.create_entry(world.enrol(), CLIENT)
    words = ("--outbound", outbound(world.folder, listening(world, "r")))
    sending = world.start_sidecar(*words, name="i")
    sending.ready()
    path = world.folder / "out.sock"
    assert broker.stop() == 0
    lost = world.folder / "broker/keys/x509-CA-A.pem"
    lost.unlink()
    broker = world.start_broker()
    assert "(x509-CA-A) is lost; what it signed stays valid" in broker.text
    assert "old, key lost" in world.run("authority", "list")
    for sidecar in (receiving, sending):
        until(lambda sidecar=sidecar: "`firedoor sidecar trust` here" in sidecar.text, "why")  # type: ignore[misc]
    assert ask(path) == b"hello you"
    (world.folder / "fresh.json").write_text(world.run("bundle", "show"))
    for sidecar, name, more in ((receiving, "r", ("--inbound", inbound(app))), (sending, "i", ())):
        assert sidecar.stop() == 0
        assert trust(world, "fresh.json", name).count(", new") == 1
        # Not attested again: the broker takes what the lost key has signed.
        more = more or ("--outbound", outbound(world.folder, listening(world, "r")))
        world.start_sidecar(*more, name=name).ready()
    assert ask(path) == b"hello you"
    said = world.run("authority", "rotate", "--drain", "0s", seconds=120)
    assert "is done" in said
    assert "key lost" not in world.run("authority", "list")
    assert ask(path) == b"hello you"


def test_a_bundle_is_never_taken_from_a_file_that_holds_none(world: World, tmp_path: Path) -> None:
    world.address = "127.0.0.1:1"
    for name, text in (("empty", ""), ("json", "{}"), ("keys", '{"keys": []}'), ("pem", "-----BEGIN CERTIFICATE-----")):
        (tmp_path / name).write_text(text)
        assert name in trust(world, name, code=2)
    assert "cannot be read" in trust(world, "none", code=2)
    assert not (tmp_path / "s").exists()
