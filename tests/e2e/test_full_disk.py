# SPDX-License-Identifier: Apache-2.0
"""The disk of a sidecar is full: it says so, goes on with what it has, and stores again when there is room."""

from collections.abc import Iterator

import pytest

from tests.broker.test_database import small_disk
from tests.broker.test_faults import fill
from tests.e2e.conftest import POLICY, Program, World
from tests.e2e.test_datapath import CLIENT, SERVER, App, ask, inbound, listening, outbound, records, reread
from tests.waiting import until

DISK = ("--keep-workload-keys", "disk")
# An agent SVID that cannot be stored is not renewed: what is left of it must last until there is room again.
TTLS = ("--x509-svid-ttl", "40s", "--agent-ttl", "60s")


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


@pytest.fixture
def full(world: World, app: App) -> Iterator[Program]:
    """Sidecar `r` before the app has a disk of 1 MiB; sidecar `i` of the client has room."""
    with small_disk(world.folder / "disk"):
        (world.folder / "r").symlink_to("disk/r")
        (world.folder / "disk/r").mkdir(mode=0o700)
        world.start_broker(*TTLS)
        world.create_entry(world.enrol(), SERVER)
        server = world.start_sidecar("--inbound", inbound(app), *DISK, name="r")
        server.ready()
        world.create_entry(world.enrol(), CLIENT)
        world.start_sidecar("--outbound", outbound(world.folder, listening(world, "r")), name="i").ready()
        yield server
        world.close()


def serves(world: World) -> bool:
    return ask(world.folder / "out.sock") == b"hello you"


def not_before(world: World) -> int:
    status = world.status("r")
    assert status is not None
    return status.svids[0].not_before


@pytest.mark.timeout(240)
def test_a_full_disk_stops_nothing_that_can_go_on(world: World, app: App, full: Program) -> None:
    assert serves(world)
    filler = fill(world.folder / "disk")
    # What cannot be stored is in force all the same: another policy, and its return, and a new SVID.
    reread(world, POLICY.replace("port: 9000", "port: 9001"))
    until(lambda: not serves(world), "the denial")
    reread(world, POLICY)
    until(lambda: serves(world), "the flow's return")
    before = not_before(world)
    until(lambda: not_before(world) > before, "a renewal")
    until(lambda: "the agent SVID is not renewed" in full.text, "a renewal that cannot be stored")
    until(lambda: serves(world) and "decision records cannot be written" in full.text, "a record too many")
    for said in ("the update is not stored", "workload keys are not stored", "No space left on device"):
        until(lambda said=said: said in full.text, said)  # type: ignore[misc]
    assert serves(world)
    filler.unlink()
    until(lambda: "agent SVID renewed" in full.text.rpartition("No space left on device")[2], "a renewal after all")
    until(lambda: "decision records are written again" in full.text, "the records")
    whole(world)
    restarted(world, app, full)


def whole(world: World) -> None:
    """Every decision of before is in a record."""

    def all_written() -> bool:
        status = world.status("r")
        assert status is not None
        counted = status.counters
        return counted["records_lost"] == 0 and len(records(world, "r")) == counted["decisions"]

    until(all_written, "the last record")


def restarted(world: World, app: App, full: Program) -> None:
    """Killed and started again, it finds nothing half-written."""
    address = listening(world, "r")
    full.kill()
    agents = world.agents()
    listen = inbound(app).replace("127.0.0.1:0", address, 1)
    world.start_sidecar("--inbound", listen, *DISK, name="r").ready()
    until(lambda: serves(world), "service")
    assert world.agents() == agents
