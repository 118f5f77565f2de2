# SPDX-License-Identifier: Apache-2.0
"""The stages of a rotation: what is legal, what always holds, and the record that a broker goes on from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import AuthorityError, AuthoritySlots, JournalError, Rotation, Stage, Status, Step
from firedoor.certs.authority import Authority
from firedoor.certs.rotation import MAX_NAMES, ROTATION, advance, diagram

BEGUN = Rotation("x509", Stage.PREPARE, "uid 0", 100, 100, "aa")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
TIMES = st.integers(0, 2**53)
ROTATIONS = st.builds(
    Rotation,
    kind=st.sampled_from(["x509", "jwt", "wit"]),
    stage=st.sampled_from(Stage),
    by=TEXTS,
    started_at=TIMES,
    since=TIMES,
    old=TEXTS,
    new=TEXTS,
    force=st.booleans(),
    patience=TIMES,
    emergency=st.booleans(),
    drain=TIMES,
    others=TIMES,
    tokens_until=TIMES,
    over=st.lists(TEXTS, max_size=3).map(tuple),
    over_count=TIMES,
    reason=TEXTS,
)
# What each step of a rotation does to the authorities, and the stage that it may be taken in.
STEPS = {
    Step.PREPARE: lambda slots: slots.prepare(made(slots)),
    Step.ACTIVATE: lambda slots: slots.activate(slots.other.authority_id),
    Step.TAINT: lambda slots: slots.taint(slots.other.authority_id),
    Step.REVOKE: lambda slots: slots.revoke(slots.other.authority_id),
}


def made(slots: AuthoritySlots) -> Authority:
    return Authority.of_tokens("jwt", slots.free_slot, f"key {slots.free_slot}", b"", issued_at=0, not_after=9)


@pytest.mark.parametrize("stage", Stage, ids=lambda one: one.value)
@pytest.mark.parametrize("step", Step, ids=lambda one: one.value)
def test_what_is_not_in_the_table_raises_and_changes_nothing(stage: Stage, step: Step) -> None:
    rotation = replace(BEGUN, stage=stage)
    wanted = ROTATION.get((stage, step))
    if wanted is not None:
        assert rotation.after(step, 200) == replace(rotation, stage=wanted, since=200)
        return
    with pytest.raises(AuthorityError, match="the rotation's stage does not allow this"):
        rotation.after(step, 200)


@given(st.lists(st.sampled_from(Step), max_size=12))
def test_whatever_happens_the_order_holds(steps: list[Step]) -> None:
    """Every authority that is tainted was active before, and another one signs by then; what has ended stays so."""
    stage, slots = Stage.PREPARE, AuthoritySlots().prepare(made(AuthoritySlots()))
    slots = slots.activate(slots.other.authority_id if slots.other else "")
    seen = []
    for step in steps:
        try:
            after = advance(stage, step)
        except AuthorityError:
            continue
        assert not stage.ended
        # What the table allows for a rotation, the life cycle of its two authorities allows too.
        slots, stage = STEPS.get(step, lambda same: same)(slots), after
        seen.append(step)
        assert slots.current is not None
        assert slots.current.status is Status.ACTIVE
        if stage is Stage.RETIRE:
            assert slots.other is not None
            assert slots.other.status is Status.TAINTED
    order = [Step.PREPARE, Step.ACTIVATE, Step.TAINT, Step.REVOKE]
    taken = [step for step in seen if step in order]
    assert taken == order[: len(taken)]
    if Step.TAINT in seen:
        assert Step.ABORT not in seen


def test_it_always_ends_one_way_or_the_other() -> None:
    """From every stage some end can be reached, and none is left that has ended."""
    for stage in Stage:
        onward = {then for (before, _), then in ROTATION.items() if before is stage}
        assert stage.ended == (not onward)
    reached, fresh = {Stage.PREPARE}, {Stage.PREPARE}
    while fresh:
        fresh = {then for (before, _), then in ROTATION.items() if before in fresh} - reached
        reached |= fresh
    assert reached == set(Stage)


@given(ROTATIONS)
def test_the_record_is_read_as_it_was_written(rotation: Rotation) -> None:
    assert Rotation.from_json(rotation.to_json()) == rotation


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        BEGUN.to_json().replace(b'"version":1', b'"version":2'),
        BEGUN.to_json().replace(b'"stage":"prepare"', b'"stage":"sleep"'),
        BEGUN.to_json().replace(b'"kind":"x509"', b'"kind":"ssh"'),
        BEGUN.to_json().replace(b'"since":100', b'"since":true'),
        BEGUN.to_json().replace(b'"over":[]', b'"over":[1]'),
        BEGUN.to_json().replace(b'"force":false', b'"force":0'),
        BEGUN.to_json().replace(b'"reason"', b'"raisin"'),
        json.dumps({"version": 1, "kind": "x509"}).encode(),
    ],
    ids=range(13),
)
def test_a_record_that_cannot_be_read(text: bytes) -> None:
    with pytest.raises(JournalError):
        Rotation.from_json(text)


def test_who_is_impatient() -> None:
    forced = replace(BEGUN, force=True, patience=10)
    assert [one.impatient(at) for one, at in ((BEGUN, 999), (forced, 109), (forced, 110))] == [False, False, True]


@given(st.lists(st.lists(st.integers(0, 300).map(str), max_size=200), max_size=4))
def test_names_are_kept_once_and_not_without_end(rounds: list[list[str]]) -> None:
    rotation = BEGUN
    for names in rounds:
        rotation = rotation.gone_over(tuple(names))
    assert len(rotation.over) == len(set(rotation.over)) <= MAX_NAMES
    assert rotation.over_count >= len(rotation.over)
    if len({name for names in rounds for name in names}) <= MAX_NAMES:
        assert set(rotation.over) == {name for names in rounds for name in names}
        assert rotation.over_count == len(rotation.over)


def test_the_diagram_is_that_of_the_table() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == 2 + len(ROTATION) + 2
