# SPDX-License-Identifier: Apache-2.0
"""Updates of the control stream: what is taken, and what is answered with a Nack."""

from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import Selector, TrustDomain
from firedoor.sidecar.errors import UpdateRefused
from firedoor.sidecar.view import View, read_entry, read_update
from firedoor.wire import control_pb2, policy_pb2, types, views
from tests.simulator import SimulatedTrustDomain

TD = TrustDomain.parse("example.org")
TRUST = SimulatedTrustDomain("example.org")
OTHER = SimulatedTrustDomain("other.org")


def wire_bundle(trust: SimulatedTrustDomain) -> types.Bundle:
    roots = [types.X509Certificate(asn1=one.der) for one in trust.roots]
    return types.Bundle(trust_domain=trust.td.name, x509_authorities=roots)


def wire_entry(**fields: object) -> types.Entry:
    given = {
        "id": "e1",
        "spiffe_id": types.SPIFFEID(trust_domain="example.org", path="/a/b"),
        "selectors": [types.Selector(type="unix", value="uid:1")],
        **fields,
    }
    return types.Entry(**given)  # type: ignore[arg-type]


def update(*extra: control_pb2.Part, number: int = 5, **parts: control_pb2.Part) -> control_pb2.Update:
    every = {
        "entries": control_pb2.Part(entries=control_pb2.Entries(entries=[wire_entry()])),
        "bundles": control_pb2.Part(bundles=control_pb2.Bundles(bundles=[wire_bundle(TRUST), wire_bundle(OTHER)])),
        "policy": control_pb2.Part(policy=control_pb2.Policy()),
        "revocations": control_pb2.Part(revocations=control_pb2.Revocations()),
        **parts,
    }
    made = control_pb2.Update(generation=control_pb2.Generation(epoch=1, number=number))
    made.parts.extend([*every.values(), *extra])
    made.view_hash = views.view_hash(made.parts)
    return made


def read(one: control_pb2.Update, running: tuple[int, int] | None = None) -> View:
    return read_update(one, TD, running)


def test_reads_a_full_update() -> None:
    view = read(update())
    assert (view.generation, view.synced, list(view.entries)) == ((1, 5), True, ["e1"])
    assert set(view.bundles) == {TD, OTHER.td}


def test_reads_who_may_sign_below_the_broker() -> None:
    segment = policy_pb2.Segment(name="registry", members=["spiffe://example.org/segment/registry/**"])
    table = policy_pb2.Table(version=1, trust_domain="example.org", segments=[segment])
    view = read(update(bundles=listing(), policy=control_pb2.Part(policy=control_pb2.Policy(table=table))))
    assert view.listed is not None
    assert view.listed.segments == {"00" * 32: {"registry"}}
    assert view.limits.segments == {"k": {"registry"}}
    ours, other = TD.with_path("/segment/registry/x"), TD.with_path("/x")
    assert (view.segment_of(ours), view.segment_of(other)) == ("registry", None)
    assert view.not_admitted == {OTHER.td}


def test_a_list_that_is_not_whole_is_none() -> None:
    for bundles_part in (listing(complete=False), bundles(wire_bundle(TRUST), wire_bundle(OTHER))):
        view = read(update(bundles=bundles_part))
        assert (view.intermediates, view.listed) == (None, None)
        assert view.not_admitted == {TD, OTHER.td}


@pytest.mark.parametrize("running", [None, (1, 4), (1, 5), (0, 9)], ids=["first", "older", "same", "older_epoch"])
def test_generation_that_is_not_lower_is_taken(running: tuple[int, int] | None) -> None:
    assert read(update(), running).generation == (1, 5)


@pytest.mark.parametrize("running", [(1, 6), (2, 0)], ids=["number", "epoch"])
def test_generation_that_went_back(running: tuple[int, int]) -> None:
    assert refused(update(), running) == "generation_went_back"


def refused(one: control_pb2.Update, running: tuple[int, int] | None = None) -> str:
    with pytest.raises(UpdateRefused) as caught:
        read(one, running)
    return caught.value.nack


UNKNOWN = control_pb2.Part.FromString(bytes([0x9A, 0x06, 0x00]))


def entries(**fields: object) -> control_pb2.Part:
    return control_pb2.Part(entries=control_pb2.Entries(entries=[wire_entry(**fields)]))


def bundles(*found: types.Bundle) -> control_pb2.Part:
    return control_pb2.Part(bundles=control_pb2.Bundles(bundles=found))


def listing(key: bytes = bytes(32), *, complete: bool = True) -> control_pb2.Part:
    """Return bundles with a CA, and a key for tokens, that may sign for "registry"."""
    ca = control_pb2.Intermediate(key_sha256=key, segments=["registry"])
    kid = control_pb2.TokenKey(key_id="k", segments=["registry"])
    made = control_pb2.Bundles(
        bundles=[wire_bundle(TRUST), wire_bundle(OTHER)],
        intermediates=[ca],
        intermediates_complete=complete,
        token_keys=[kid],
    )
    return control_pb2.Part(bundles=made)


def revocations(one: control_pb2.Revocation) -> control_pb2.Part:
    return control_pb2.Part(revocations=control_pb2.Revocations(revocations=[one]))


def delta() -> control_pb2.Update:
    made = update()
    made.base.number = 4
    return made


def wrong_hash() -> control_pb2.Update:
    made = update()
    made.view_hash = bytes(32)
    return made


LISTS = control_pb2.Part(crls=control_pb2.Crls(crls=[control_pb2.Crl(authority_id="ab", der=b"x")]))
NEWER: dict[str, Callable[[control_pb2.Update], Message]] = {
    "Update": lambda made: made,
    "Part": lambda made: made.parts[0],
    "Entries": lambda made: made.parts[0].entries,
    "Bundles": lambda made: made.parts[1].bundles,
    "Intermediate": lambda made: made.parts[1].bundles.intermediates[0],
    "TokenKey": lambda made: made.parts[1].bundles.token_keys[0],
    "Policy": lambda made: made.parts[2].policy,
    "Crls": lambda made: made.parts[4].crls,
    "Crl": lambda made: made.parts[4].crls.crls[0],
    "Revocations": lambda made: made.parts[3].revocations,
    "Revocation": lambda made: made.parts[3].revocations.revocations[0],
    "IssuedBefore": lambda made: made.parts[3].revocations.revocations[1].issued_before,
}


@pytest.mark.parametrize("name", NEWER)
def test_a_field_that_a_newer_broker_has_is_not_passed_over(name: str) -> None:
    before = control_pb2.Revocation(issued_before=control_pb2.IssuedBefore(pattern="spiffe://example.org/a/*", time=1))
    revoked = control_pb2.Revocations(revocations=[control_pb2.Revocation(serial="1"), before])
    made = update(LISTS, bundles=listing(), revocations=control_pb2.Part(revocations=revoked))
    read(made)
    NEWER[name](made).MergeFromString(bytes([0x9A, 0x06, 0x00]))
    made.view_hash = views.view_hash(made.parts)
    sent = control_pb2.Update.FromString(made.SerializeToString())
    with pytest.raises(UpdateRefused, match=f"a field of {name} that") as caught:
        read(sent)
    assert caught.value.nack == "unknown_field"


def test_fields_of_spires_messages_and_of_the_table_are_theirs() -> None:
    table = policy_pb2.Table(version=1, trust_domain="example.org")
    made = update(policy=control_pb2.Part(policy=control_pb2.Policy(table=table)))
    for message in (made.parts[0].entries.entries[0], made.parts[1].bundles.bundles[0], made.parts[2].policy.table):
        message.MergeFromString(bytes([0x9A, 0x06, 0x00]))
    made.view_hash = views.view_hash(made.parts)
    assert read(control_pb2.Update.FromString(made.SerializeToString())).synced


BAD_BUNDLE = types.Bundle(trust_domain="example.org", x509_authorities=[types.X509Certificate(asn1=b"x")])
REFUSED: dict[str, tuple[Callable[[], control_pb2.Update], str]] = {
    "unknown_part": (lambda: update(UNKNOWN), "unknown_part"),
    "two_of_a_kind": (lambda: update(control_pb2.Part(policy=control_pb2.Policy())), "repeated_part"),
    "delta": (delta, "unexpected_delta"),
    "wrong_hash": (wrong_hash, "view_hash_mismatch"),
    "bad_ca": (lambda: update(bundles=listing(key=bytes(31))), "malformed_intermediate"),
    "no_bundle": (lambda: update(bundles=bundles(wire_bundle(OTHER))), "bundle_missing"),
    "empty_bundle": (lambda: update(bundles=bundles(types.Bundle(trust_domain="example.org"))), "bundle_missing"),
    "bad_root": (lambda: update(bundles=bundles(BAD_BUNDLE)), "malformed_bundle"),
    "bad_bundle_name": (lambda: update(bundles=bundles(types.Bundle(trust_domain="X"))), "malformed_bundle"),
    "no_entry_id": (lambda: update(entries=entries(id="")), "malformed_entry"),
    "no_selectors": (lambda: update(entries=entries(selectors=[])), "malformed_entry"),
    "bad_selector": (
        lambda: update(entries=entries(selectors=[types.Selector(type="a:b", value="c")])),
        "malformed_entry",
    ),
    "foreign": (
        lambda: update(entries=entries(spiffe_id=types.SPIFFEID(trust_domain="other.org", path="/a"))),
        "foreign_entry",
    ),
    "no_path": (lambda: update(entries=entries(spiffe_id=types.SPIFFEID(trust_domain="example.org"))), "foreign_entry"),
    "bad_path": (
        lambda: update(entries=entries(spiffe_id=types.SPIFFEID(trust_domain="example.org", path="/a//b"))),
        "malformed_entry",
    ),
    "bad_federation": (lambda: update(entries=entries(federates_with=["X Y"])), "malformed_entry"),
    "unknown_revocation": (lambda: update(revocations=revocations(control_pb2.Revocation())), "unknown_revocation"),
    "bad_pattern": (
        lambda: update(
            revocations=revocations(control_pb2.Revocation(issued_before=control_pb2.IssuedBefore(pattern="x", time=1)))
        ),
        "malformed_revocation",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    made, code = REFUSED[case]
    assert refused(made()) == code


@given(st.binary(max_size=300))
def test_any_bytes_are_an_update_or_refused(data: bytes) -> None:
    one = control_pb2.Update()
    try:
        one.MergeFromString(data)
    except Exception as error:  # noqa: BLE001
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    one.view_hash = views.view_hash(one.parts)
    with pytest.raises(UpdateRefused):
        read(one)


def view_of(*found: types.Entry) -> View:
    return View(TD).with_entries(read_entry(one, TD) for one in found)


def selectors(*values: str) -> frozenset[Selector]:
    return frozenset(Selector.of("unix", one) for one in values)


def test_all_selectors_of_an_entry_must_match() -> None:
    both = [types.Selector(type="unix", value="uid:1"), types.Selector(type="unix", value="gid:2")]
    view = view_of(wire_entry(selectors=both))
    assert [one.id for one in view.matching(selectors("uid:1", "gid:2", "gid:3"), 0)] == ["e1"]
    assert view.matching(selectors("uid:1"), 0) == ()


def test_order_is_by_creation_then_id() -> None:
    view = view_of(*(wire_entry(id=name, created_at=when) for name, when in [("c", 1), ("b", 2), ("a", 2), ("d", 0)]))
    assert [one.id for one in view.matching(selectors("uid:1"), 0)] == ["d", "c", "a", "b"]


@pytest.mark.parametrize(("expires", "there"), [(0, True), (101, True), (100, False)], ids=["never", "later", "now"])
def test_expired_entries_match_nobody(expires: int, there: bool) -> None:
    assert bool(view_of(wire_entry(expires_at=expires)).matching(selectors("uid:1"), 100)) is there


@pytest.mark.parametrize("store", [False, True])
def test_stored_svids_are_not_for_local_workloads(store: bool) -> None:
    assert bool(view_of(wire_entry(store_svid=store)).matching(selectors("uid:1"), 0)) is not store
