# SPDX-License-Identifier: Apache-2.0
"""The judge sees what it is there for: programs with a fault of their own (`planted`) trip each invariant.

One world, whose faults begin one after the other. After each, the journal so far has that violation and no new one of
another kind; before the first it has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firedoor.wire import admin_grpc, admin_pb2
from tests.chaos.faults import agent_evicted
from tests.chaos.invariants import check
from tests.chaos.observed import Ended
from tests.chaos.policy import MOVED
from tests.chaos.strangers import ask_for_anothers, spend_twice
from tests.chaos.world import PATIENCE, ChaosWorld
from tests.waiting import until

RATE = 10


class Judged:
    """A world, and what the judge has found in it so far."""

    def __init__(self, world: ChaosWorld, folder: Path) -> None:
        self.world, self._folder = world, folder
        self._found: set[str] = set()

    @contextmanager
    def planted(self, name: str) -> Iterator[None]:
        """Have a fault act."""
        (self._folder / name).touch()
        yield
        (self._folder / name).unlink()

    def now(self) -> set[str]:
        """Return which invariants do not hold that held before."""
        self.world.gather()
        return {one.invariant for one in check(self.world.collect())} - self._found

    def trips(self, *names: str) -> None:
        """Wait until just these do not hold any more."""
        until(lambda: set(names) <= self.now(), f"that {names} do not hold", seconds=PATIENCE)
        assert self.now() == set(names)
        self._found |= set(names)

    def until_answered(self, count: int = 5) -> None:
        """Wait until the entitled pair has had some more answers."""
        before = self.world.app.requests
        until(lambda: self.world.app.requests > before + count, "answers", seconds=PATIENCE)


@pytest.fixture
def judged(faulty: ChaosWorld, tmp_path: Path) -> Judged:
    faulty.begin()
    faulty.load(RATE)
    found = Judged(faulty, tmp_path)
    found.until_answered()
    assert found.now() == set()
    return found


def revoke(world: ChaosWorld, name: str) -> None:
    request = admin_pb2.RevokeSvidsRequest(reason="a test", spiffe_id=world.id(name))
    world.ask(lambda channel: admin_grpc.RevocationAdminStub(channel).RevokeSvids(request, timeout=20))


def obtained(world: ChaosWorld, name: str) -> int:
    """Return from when on the certificate of somebody of the client is valid; 0 when there is none."""
    status = world.status("client")
    return next((one.not_before for one in status.svids if one.spiffe_id == world.id(name)), 0) if status else 0


@pytest.mark.timeout(600)
def test_each_planted_fault_trips_its_invariant(judged: Judged) -> None:
    world = judged.world
    steps: tuple[Callable[[Judged], None], ...] = (
        older_bundle,
        token_twice,
        anothers_entry,
        revoked_and_accepted,
        generation_of_nobody,
        record_dropped,
        signed_without_admission,
    )
    for step in steps:
        began = time.monotonic()
        try:
            step(judged)
        except AssertionError:
            print(world.how())
            raise
        print(f"{step.__name__}: found within {time.monotonic() - began:.1f} s")
    # Who is entitled, and cut off without anybody looking after it.
    fault = agent_evicted(world, "client")
    fault.__enter__()
    until(lambda: not world.speaks("inference"), "silence", seconds=PATIENCE)
    world.journal.ended.append(Ended("inference", True, world.speaks("inference")))
    judged.trips("alive")


def older_bundle(judged: Judged) -> None:
    with judged.planted("older"):
        judged.trips("monotonic")


def token_twice(judged: Judged) -> None:
    with judged.planted("twice"):
        assert judged.world.traffic.submit(spend_twice(judged.world)).result(PATIENCE) > 1
    judged.trips("once")


def anothers_entry(judged: Judged) -> None:
    with judged.planted("entitlement"):
        assert judged.world.traffic.submit(ask_for_anothers(judged.world, "registry")).result(PATIENCE)
    judged.trips("entitled")


def revoked_and_accepted(judged: Judged) -> None:
    """The data path never hears of what is revoked, and both ends go on with the certificates that they have."""
    world = judged.world
    before = obtained(world, "inference")
    with judged.planted("revoked"):
        revoke(world, "inference")
        judged.trips("revoked")
    # Who heard of it under the fault does not look again by itself.
    revoke(world, "inference")
    until(lambda: obtained(world, "inference") > before, "another certificate", seconds=PATIENCE)


def generation_of_nobody(judged: Judged) -> None:
    with judged.planted("ahead"):
        judged.trips("generation")


def record_dropped(judged: Judged) -> None:
    """A record is taken for written and is not; the counters of the sidecar cannot tell."""
    with judged.planted("drop"):
        judged.until_answered()
    with judged.world.quiet():
        judged.world.settle_one("server", 3)
    judged.trips("recorded")
    judged.world.start_life("server")
    until(lambda: judged.world.speaks("inference"), "the server's return", seconds=PATIENCE)


def signed_without_admission(judged: Judged) -> None:
    """An ID moves to a segment that asks for more than its entry has, and is signed for and let in all the same."""
    with judged.planted("admission"):
        judged.world.edit(MOVED, on=True)
        until(lambda: judged.world.speaks("bad"), "that the wrong one speaks", seconds=PATIENCE)
        judged.trips("admitted")
