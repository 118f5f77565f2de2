# SPDX-License-Identifier: Apache-2.0
"""The broker's database comes back from a backup: sidecars follow it into a new epoch by themselves."""

import shutil

from tests.e2e.conftest import World
from tests.e2e.test_identity import PATH
from tests.waiting import until


def test_sidecar_follows_a_restored_broker(world: World) -> None:
    broker = world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, PATH)
    world.start_sidecar().ready()
    until(lambda: (one := world.status()) and one.svids, "an SVID")
    assert broker.stop() == 0
    database = world.folder / "broker/broker.db"
    shutil.copy(database, world.folder / "backup.db")
    broker = world.start_broker()
    for number in range(5):
        world.create_entry(parent, f"{PATH}-{number}")
    until(lambda: (one := world.status()) and len(one.svids) == 6, "six SVIDs")
    status = world.status()
    assert status is not None
    before = status.generation
    assert broker.stop() == 0
    shutil.copy(world.folder / "backup.db", database)
    world.start_broker()
    # It takes what the lower number says, because the epoch is higher.
    found = until(lambda: (one := world.status()) and len(one.svids) == 1 and one, "the entries of the backup")
    assert found.generation.epoch > before.epoch
    assert found.generation.number < before.number


def test_a_broker_that_does_not_notice_is_refused_and_told_how_to_go_on(world: World) -> None:
    """The whole data directory came back, mark included: the sidecar answers with a Nack and changes nothing."""
    broker = world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, PATH)
    sidecar = world.start_sidecar()
    sidecar.ready()
    until(lambda: (one := world.status()) and one.svids, "an SVID")
    assert broker.stop() == 0
    shutil.copytree(world.folder / "broker", world.folder / "backup")
    broker = world.start_broker()
    for number in range(5):
        world.create_entry(parent, f"{PATH}-{number}")
    before = until(lambda: (one := world.status()) and len(one.svids) == 6 and one, "six SVIDs").generation
    assert broker.stop() == 0
    shutil.rmtree(world.folder / "broker")
    shutil.copytree(world.folder / "backup", world.folder / "broker")
    broker = world.start_broker()
    until(lambda: "generation_went_back" in broker.text, "the refusal in the broker's log")
    assert "delete the file `generation` in its data directory" in broker.text
    until(lambda: "an update was refused" in sidecar.text, "the refusal in the sidecar's log")
    status = world.status()
    assert status is not None
    assert (status.generation, len(status.svids)) == (before, 6)
    # What it says to do helps.
    assert broker.stop() == 0
    (world.folder / "broker/generation").unlink()
    world.start_broker()
    found = until(lambda: (one := world.status()) and len(one.svids) == 1 and one, "the entries of the backup")
    assert found.generation.epoch > before.epoch
