# SPDX-License-Identifier: Apache-2.0
"""Which SVIDs are held when there are more entries than room, and that what is kept stops growing."""

import gc
import tracemalloc
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar.demand import Demand
from firedoor.sidecar.tokens import Tokens
from firedoor.sidecar.view import Entry, View
from firedoor.wire import types
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.harness import Start, ids, settings
from tests.sidecar.harness import entry as wire_entry
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain


def numbered(count: int, **fields: object) -> list[Entry]:
    return [entry(f"/segment/a/{n}", "unix:uid:4000000000", **fields) for n in range(count)]


def view(*entries: Entry) -> View:
    return View(TD, synced=True).with_entries(entries)


def chosen(demand: Demand, entries: list[Entry], held: tuple[str, ...] = ()) -> list[str]:
    return list(demand.chosen(view(*entries), held))


def test_all_are_held_while_there_is_room() -> None:
    assert chosen(Demand(3), numbered(3)) == ["0", "1", "2"]


def test_what_is_held_stays_when_there_is_not() -> None:
    assert chosen(Demand(2), numbered(9), ("7", "4")) == ["7", "4"]


def test_what_is_wanted_comes_first_and_counts() -> None:
    demand = Demand(3)
    with demand.subscription() as wanted:
        wanted.want(["8"])
        assert chosen(demand, numbered(9), ("1", "2", "3")) == ["8", "1", "2"]


def test_what_is_wanted_has_no_cap() -> None:
    demand = Demand(2)
    with demand.subscription() as wanted:
        wanted.want(["1", "2", "3", "4"])
        assert set(chosen(demand, numbered(9), ("0",))) == {"1", "2", "3", "4"}


def test_what_was_wanted_last_stays_longest() -> None:
    demand = Demand(2)
    for one in ("5", "6", "7", "6"):
        with demand.subscription() as wanted:
            wanted.want([one])
    assert chosen(demand, numbered(9), ("0", "5")) == ["6", "7"]


def test_two_who_want_the_same() -> None:
    demand = Demand(1)
    with demand.subscription() as one:
        one.want(["3"])
        with demand.subscription() as other:
            other.want(["3"])
        assert chosen(demand, numbered(9), ("0",)) == ["3"]


def test_listeners_have_theirs_whatever_is_wanted() -> None:
    entries = numbered(9)
    demand = Demand(1, {entries[4].spiffe_id})
    with demand.subscription() as wanted:
        wanted.want(["0"])
        assert set(chosen(demand, entries, ("8",))) == {"0", "4"}


def test_what_is_not_to_be_fetched_ahead_is_held_only_while_it_is_wanted() -> None:
    demand, entries = Demand(9), [*numbered(2), entry("/segment/a/lazy", "unix:uid:1", prefetch=False)]
    assert chosen(demand, entries, ("lazy",)) == ["0", "1"]
    with demand.subscription() as wanted:
        wanted.want(["lazy"])
        assert chosen(demand, entries) == ["lazy", "0", "1"]
    assert chosen(demand, entries, ("lazy",)) == ["0", "1"]


def test_whoever_fetches_is_woken_once_for_what_is_new() -> None:
    demand, woken = Demand(9), []
    demand.wake = lambda: woken.append(1)
    with demand.subscription() as wanted:
        for ids_wanted in (["1"], ["1"], ["1", "2"], ["2"], []):
            wanted.want(ids_wanted)
    assert len(woken) == 2


@given(
    most=st.integers(1, 6),
    wanted=st.lists(st.sets(st.integers(0, 20)), max_size=5),
    past=st.lists(st.integers(0, 20), max_size=10),
    held=st.lists(st.integers(0, 20), unique=True),
)
def test_never_more_than_the_cap_or_what_is_wanted(
    most: int, wanted: list[set[int]], past: list[int], held: list[int]
) -> None:
    demand = Demand(most)
    for one in past:
        with demand.subscription() as gone:
            gone.want([str(one)])
    with ExitStack() as open_ones:
        for some in wanted:
            open_ones.enter_context(demand.subscription()).want(map(str, some))
        found = demand.chosen(view(*numbered(12)), [str(one) for one in held])
        used = {str(one) for some in wanted for one in some if one < 12}
        assert used <= found.keys()
        assert len(found) == max(len(used), min(most, 12))


async def test_a_process_holds_no_more_than_its_cap(server: SpireLike, running: Start, tmp_path: Path) -> None:
    stranger = types.Selector(type="unix", value="uid:4000000000")
    for n in range(40):
        server.entries[str(n)] = wire_entry(str(n), selectors=[stranger])
    one = running(settings(tmp_path, x509_svid_cache_max_size="8"))
    await one.until(lambda p: len(ids(p)) == 8, "eight SVIDs")
    holder = one.process.holder

    async def use_all() -> int:
        with holder.demand.subscription() as wanted:
            for n in range(40):
                wanted.want([str(n)])
                await one.until(lambda p, n=n: str(n) in ids(p), "the one that is wanted")
                assert len(ids(one.process)) <= 8
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held = [await use_all() for _ in range(5)]
    finally:
        tracemalloc.stop()
    # Each time 40 more were fetched, of which each takes more than 2 KiB: certificate, key, what is known of both. What
    # the interpreter and others take for good, they take once.
    assert min(after - before for before, after in pairwise(held)) < 20 * 2048, held
    # Time passes, and nothing comes back by itself.
    holder.notify()
    assert ids(one.process) >= {"39", "38"}
    assert len(ids(one.process)) == 8


@pytest.mark.parametrize("cap", [50])
async def test_tokens_stop_growing(bench: Bench, trust: SimulatedTrustDomain, cap: int) -> None:
    trust.rotate_jwt()
    mine = entry("/segment/a/x", "unix:uid:1")
    bench.entitle(mine)
    tokens = Tokens(bench.holder, bench.fetch, lambda: float(trust.at), max_held=cap)

    async def fetch(count: int, name: str) -> int:
        for n in range(count):
            await tokens.get(mine, [f"{name}-{n}"])
        bench.fetched.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        empty = await fetch(1, "warm-up")
        full = await fetch(cap, "first")
        later = await fetch(20 * cap, "later")
    finally:
        tracemalloc.stop()
    assert len(tokens) == cap
    # Twenty times as many as there is room for would take twenty times the room; what else the process does takes some.
    assert later - full < 2 * (full - empty)
