# SPDX-License-Identifier: Apache-2.0
"""Brokers as processes of their own on one PostgreSQL server: they end, it ends, and sidecars go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firedoor.certs import read_crl
from tests.e2e.brokers import Brokers
from tests.e2e.test_crls import answer
from tests.e2e.test_identity import PATH
from tests.postgres import Server
from tests.waiting import until


@pytest.fixture
def brokers(tmp_path: Path, own_postgres: Server) -> Iterator[Brokers]:
    found = Brokers(tmp_path)
    found.share(own_postgres)
    yield found
    found.close()


def svids(brokers: Brokers, name: str = "s") -> int:
    status = brokers.status(name)
    return len(status.svids) if status else 0


def test_a_change_at_one_reaches_the_sidecar_of_the_other_and_one_may_be_killed(brokers: Brokers) -> None:
    first = brokers.start_one("one")
    second = brokers.start_one("two")
    parent = brokers.at("one").enrol()
    brokers.start_sidecar_of("two").ready()
    began = time.monotonic()
    brokers.at("one").create_entry(parent, PATH)
    until(lambda: svids(brokers) == 1, "an SVID for an entry that another broker made")
    print(f"from an entry at one broker to its SVID at the other's sidecar: {1000 * (time.monotonic() - began):.0f} ms")
    # A sidecar that knows both; whichever it is at is killed, and it goes on at the other.
    parent = brokers.at("one").enrol()
    brokers.at("one").create_entry(parent, f"{PATH}-2")
    sidecar = brokers.start_sidecar_of("one", "two", name="t")
    sidecar.ready()
    until(lambda: svids(brokers, "t") == 1, "an SVID")
    first.kill()
    brokers.at("two").create_entry(parent, f"{PATH}-3")
    until(lambda: svids(brokers, "t") == 2, "an SVID from the broker that is left")
    # It comes back with its own authorities, and takes over when the other one ends.
    brokers.start_one("one")
    assert second.stop() == 0
    brokers.at("one").create_entry(parent, f"{PATH}-4")
    until(lambda: svids(brokers, "t") == 3, "an SVID from the broker that came back")
    assert sidecar.process.poll() is None


def test_three_brokers_of_which_one_is_killed(brokers: Brokers) -> None:
    names = ("one", "two", "three")
    programs = {name: brokers.start_one(name) for name in names}
    parents = {}
    for name in names:
        parents[name] = brokers.at("one").enrol()
        brokers.start_sidecar_of(name, name=name).ready()
    wanted = dict.fromkeys(names, 0)

    def change(through: str, reaches: list[str]) -> None:
        """Make an entry for each of these brokers' sidecars at one broker, and wait until they have the SVIDs."""
        brokers.at(through)
        for name in reaches:
            brokers.create_entry(parents[name], f"{PATH}-{name}-{wanted[name]}")
            wanted[name] += 1
        for name in reaches:
            until(lambda name=name: svids(brokers, name) == wanted[name], f"what {through} changed at {name}'s sidecar")

    for through in names:
        change(through, [name for name in names if name != through])
    # Each sidecar hands out the revocation lists of all three.
    for name in names:
        until(lambda name=name: len(authorities(brokers, name)) == 3, f"three lists from {name}'s sidecar")
    programs["two"].kill()
    change("one", ["three"])
    change("three", ["one"])
    # What was changed without it it has when it is back, and its sidecar too.
    brokers.at("one").create_entry(parents["two"], f"{PATH}-late")
    wanted["two"] += 1
    brokers.start_one("two")
    until(lambda: svids(brokers, "two") == wanted["two"], "an SVID for an entry that was made in its absence")
    change("two", ["one", "three"])


def authorities(brokers: Brokers, name: str) -> set[str]:
    """Return whose revocation lists this process gets from a sidecar."""
    return {read_crl(one).authority_id for one in answer(brokers, name).crl}


def test_postgresql_is_away_and_comes_back(brokers: Brokers, own_postgres: Server) -> None:
    broker = brokers.start_one("one")
    parent = brokers.at("one").enrol()
    brokers.create_entry(parent, PATH)
    brokers.start_sidecar_of("one").ready()
    until(lambda: svids(brokers) == 1, "an SVID")
    own_postgres.stop(signal.SIGQUIT)
    # Others than it who say that it does not answer may be the first, and have nobody say that it does again.
    until(lambda: "does not answer; bundles are served on" in broker.text, "that the broker says so")
    # The bundle is served on.
    assert "x509-svid" in brokers.run("bundle", "show")
    assert svids(brokers) == 1
    own_postgres.start()
    until(lambda: "the database answers again" in broker.text, "that it is back")
    brokers.create_entry(parent, f"{PATH}-2")
    until(lambda: svids(brokers) == 2, "an SVID")
