# SPDX-License-Identifier: Apache-2.0
"""Deltas that a server should not send: each is refused by its code, and what runs stays."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar import deltas
from firedoor.sidecar.deltas import MAX_SAID, Bases
from firedoor.sidecar.errors import UpdateRefused
from firedoor.sidecar.view import check_update, read_checked
from firedoor.wire import control_pb2, policy_pb2, views
from tests.sidecar.test_view import LISTS, NEWER, TD, TRUST, listing, update, wire_bundle, wire_entry


def base() -> control_pb2.Update:
    """Return what runs: two entries, two bundles, a CA and a key for tokens, two segments, two revocations."""
    segments = [policy_pb2.Segment(name=name) for name in ("a", "b")]
    table = policy_pb2.Table(version=1, trust_domain="example.org", segments=segments)
    before = control_pb2.IssuedBefore(pattern="spiffe://example.org/a/*", time=1)
    revoked = [control_pb2.Revocation(issued_before=before, reason="r"), control_pb2.Revocation(serial="1")]
    made = update(
        entries=control_pb2.Part(entries=control_pb2.Entries(entries=[wire_entry(id="e1"), wire_entry(id="e2")])),
        bundles=listing(),
        policy=control_pb2.Part(policy=control_pb2.Policy(table=table)),
        revocations=control_pb2.Part(revocations=control_pb2.Revocations(revocations=revoked)),
    )
    made.view_hash = views.parts_hash(made.parts)
    return made


BASE = base()


def delta(
    *put: control_pb2.Part, removed: control_pb2.Keys | None = None, result: bytes = b"", number: int = 6
) -> control_pb2.Update:
    """Return an update upon what runs; `result`: the hash of what it makes."""
    made = control_pb2.Update(
        generation=control_pb2.Generation(epoch=1, number=number), base=BASE.generation, view_hash=result
    )
    made.delta.base_hash = BASE.view_hash
    made.delta.put.extend(put)
    if removed is not None:
        made.delta.removed.CopyFrom(removed)
    return made


def take(one: control_pb2.Update, running: tuple[int, int] = (1, 5)) -> control_pb2.Update:
    bases = Bases()
    bases.runs(BASE)
    check_update(one, running)
    full = deltas.whole(bases.find(one.delta.base_hash), one, TD)
    read_checked(full, TD)
    return full


def entries(*ids: str, **fields: object) -> control_pb2.Part:
    return control_pb2.Part(entries=control_pb2.Entries(entries=[wire_entry(id=one, **fields) for one in ids]))


def revocations(*found: control_pb2.Revocation) -> control_pb2.Part:
    return control_pb2.Part(revocations=control_pb2.Revocations(revocations=found))


def test_what_is_put_and_removed() -> None:
    segment = policy_pb2.Segment(name="a", mode=policy_pb2.MODE_AUDIT)
    table = policy_pb2.Table(version=1, trust_domain="example.org", segments=[segment])
    put = [
        entries("e0"),
        control_pb2.Part(bundles=control_pb2.Bundles(bundles=[wire_bundle(TRUST)], intermediates_complete=False)),
        control_pb2.Part(policy=control_pb2.Policy(table=table)),
    ]
    removed = control_pb2.Keys(
        entries=["e1"], bundles=["other.org"], intermediates=[bytes(32)], token_keys=["k"], segments=["b"]
    )
    removed.revocations.add(issued_before=control_pb2.IssuedBefore(pattern="spiffe://example.org/a/*"))
    want = update(
        entries=entries("e0", "e2"),
        bundles=put[1],
        policy=put[2],
        revocations=revocations(control_pb2.Revocation(serial="1")),
        number=6,
    )
    want.view_hash = views.parts_hash(want.parts)
    assert take(delta(*put, removed=removed, result=want.view_hash)) == want


def test_nothing_but_a_generation() -> None:
    full = take(delta(result=BASE.view_hash))
    assert full.generation.number == 6
    assert full.parts == BASE.parts
    # The base is as it was.
    assert BASE.generation.number == 5
    assert base() == BASE


def with_parts() -> control_pb2.Update:
    made = delta(result=BASE.view_hash)
    made.parts.append(entries("e9"))
    return made


def other_base() -> control_pb2.Update:
    made = delta(entries("e3"))
    made.delta.base_hash = bytes(32)
    return made


def keys(**removed: object) -> control_pb2.Update:
    return delta(removed=control_pb2.Keys(**removed))  # type: ignore[arg-type]


UNKNOWN = control_pb2.Part.FromString(bytes([0x9A, 0x06, 0x00]))
REFUSED: dict[str, tuple[Callable[[], control_pb2.Update], str]] = {
    "another_result": (lambda: delta(entries("e3"), result=bytes(32)), "view_hash_mismatch"),
    "no_hash": (lambda: delta(entries("e3")), "view_hash_mismatch"),
    "the_base_s_hash": (lambda: delta(entries("e3"), result=BASE.view_hash), "view_hash_mismatch"),
    "nothing_and_another_hash": (lambda: delta(result=bytes(32)), "view_hash_mismatch"),
    "wrong_base": (other_base, "unknown_base"),
    "older": (lambda: delta(result=BASE.view_hash, number=4), "generation_went_back"),
    "parts_too": (with_parts, "malformed_delta"),
    "unknown_part": (lambda: delta(UNKNOWN), "unknown_part"),
    "part_twice": (lambda: delta(entries("e3"), entries("e4")), "repeated_part"),
    "entry_twice": (lambda: delta(entries("e3", "e3")), "malformed_delta"),
    "removed_twice": (lambda: keys(entries=["e1", "e1"]), "malformed_delta"),
    "removed_and_put": (lambda: delta(entries("e1"), removed=control_pb2.Keys(entries=["e1"])), "malformed_delta"),
    "entry_not_there": (lambda: keys(entries=["e9"]), "malformed_delta"),
    "bundle_not_there": (lambda: keys(bundles=["x.org"]), "malformed_delta"),
    "ca_not_there": (lambda: keys(intermediates=[b"\1" * 32]), "malformed_delta"),
    "key_not_there": (lambda: keys(token_keys=["x"]), "malformed_delta"),
    "segment_not_there": (lambda: keys(segments=["x"]), "malformed_delta"),
    "flow_not_there": (lambda: keys(flows=["x"]), "malformed_delta"),
    "service_not_there": (lambda: keys(services=["x"]), "malformed_delta"),
    "revocation_not_there": (lambda: keys(revocations=[control_pb2.Revocation(serial="2")]), "malformed_delta"),
    "lists_in_a_view_that_has_none": (lambda: delta(LISTS), "malformed_delta"),
    "list_not_there": (lambda: keys(crls=["ab"]), "malformed_delta"),
    "revocation_of_another_kind": (
        lambda: keys(revocations=[control_pb2.Revocation(authority_id="1")]),
        "malformed_delta",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    made, code = REFUSED[case]
    with pytest.raises(UpdateRefused) as caught:
        take(made())
    assert caught.value.nack == code
    assert base() == BASE


def hashed(*put: control_pb2.Part, removed: control_pb2.Keys | None = None) -> control_pb2.Update:
    """Return a delta with the hash of what it makes, whatever that is."""
    made = delta(*put, removed=removed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "parts_hash", lambda _: made.view_hash)
        full = deltas.whole(BASE, made, TD)
    made.view_hash = views.parts_hash(full.parts)
    return made


BAD: dict[str, tuple[Callable[[], control_pb2.Update], str]] = {
    "our_bundle_removed": (lambda: hashed(removed=control_pb2.Keys(bundles=["example.org"])), "bundle_missing"),
    "entry_for_everybody": (lambda: hashed(entries("e3", selectors=[])), "malformed_entry"),
    "unknown_revocation": (lambda: hashed(revocations(control_pb2.Revocation())), "unknown_revocation"),
    "bad_ca": (
        lambda: hashed(
            control_pb2.Part(
                bundles=control_pb2.Bundles(
                    intermediates=[control_pb2.Intermediate(key_sha256=b"x")], intermediates_complete=True
                )
            )
        ),
        "malformed_intermediate",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_full_update_may_not_say_a_delta_may_not_make(case: str) -> None:
    made, code = BAD[case]
    with pytest.raises(UpdateRefused) as caught:
        take(made())
    assert caught.value.nack == code


def test_a_view_does_not_grow_past_what_could_be_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = hashed(entries("e3", hint="h" * 1000))
    take(made)
    monkeypatch.setattr(views, "MAX_VIEW_BYTES", BASE.ByteSize() + 1000)
    monkeypatch.setattr(views, "parts_hash", lambda _: pytest.fail("it was computed of what is too large"))
    with pytest.raises(UpdateRefused) as caught:
        take(made)
    assert caught.value.nack == "view_too_large"


@pytest.mark.parametrize("name", [*(name for name in NEWER if name != "Update"), "Delta", "Keys"])
def test_a_field_that_a_newer_broker_has_is_not_passed_over(name: str) -> None:
    before = control_pb2.Revocation(issued_before=control_pb2.IssuedBefore(pattern="spiffe://example.org/b/*", time=1))
    put = update(
        LISTS, bundles=listing(b"\1" * 32), revocations=revocations(control_pb2.Revocation(serial="2"), before)
    )
    if name in NEWER:
        NEWER[name](put).MergeFromString(bytes([0x9A, 0x06, 0x00]))
    made = delta(*put.parts, removed=control_pb2.Keys(entries=["e2"]))
    if name in ("Delta", "Keys"):
        found = made.delta if name == "Delta" else made.delta.removed
        found.MergeFromString(bytes([0x9A, 0x06, 0x00]))
    sent = control_pb2.Update.FromString(made.SerializeToString())
    with pytest.raises(UpdateRefused, match=f"a field of {name} that") as caught:
        take(sent)
    assert caught.value.nack == "unknown_field"


def test_a_replayed_delta_makes_the_same_and_an_older_one_is_refused() -> None:
    made = hashed(entries("e3"))
    bases = Bases()
    bases.runs(BASE)
    bases.said(BASE.view_hash)
    first = deltas.whole(bases.find(made.delta.base_hash), made, TD)
    bases.runs(first)
    assert deltas.whole(bases.find(made.delta.base_hash), made, TD) == first
    with pytest.raises(UpdateRefused, match="older"):
        check_update(made, (1, 7))


def test_bases_are_what_runs_and_what_was_said() -> None:
    bases, made = Bases(), [update(number=5 + number) for number in range(7)]
    for number, one in enumerate(made):
        one.view_hash = bytes([number]) * 32
        bases.runs(one)
        # The last two are not said.
        if number < 5:
            bases.said(one.view_hash)
    # What does not run is not said to.
    bases.said(made[0].view_hash)
    there = []
    for one in made:
        try:
            assert bases.find(one.view_hash) == one
            there.append(one.view_hash[0])
        except UpdateRefused:
            pass
    assert there == [*range(5 - MAX_SAID, 5), 6]
    bases.forget()
    with pytest.raises(UpdateRefused):
        bases.find(made[6].view_hash)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    made = delta(result=bytes(32))
    try:
        made.delta.MergeFromString(data)
    except Exception as error:  # noqa: BLE001
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    made.delta.base_hash = BASE.view_hash
    with pytest.raises(UpdateRefused):
        take(made)
