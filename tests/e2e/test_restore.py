# SPDX-License-Identifier: Apache-2.0
"""The broker's database comes back from a backup: sidecars follow it into a new epoch by themselves."""

import shutil

from tests.e2e.conftest import World, until
from tests.e2e.test_identity import PATH


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
