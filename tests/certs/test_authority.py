# SPDX-License-Identifier: Apache-2.0
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import (
    Authority,
    AuthorityError,
    AuthoritySlots,
    CertsError,
    Due,
    Event,
    JournalError,
    KeyType,
    Status,
    TrustDomain,
    generate_key,
    issue_ca,
)
from firedoor.certs.authority import DAY, LIFE_CYCLE, SlotName, advance, diagram, key_id

TD = TrustDomain.parse("td")
NOW = 1_800_000_000
KEY = generate_key(KeyType.EC_P256)


def authority(slot: SlotName, name: str = "", *, issued_at: int = NOW, lifetime: int = DAY) -> Authority:
    return Authority("x509", slot, Status.PREPARED, name or slot.lower(), issued_at, issued_at + lifetime, b"der")


def running() -> AuthoritySlots:
    """A signs, B was prepared."""
    return AuthoritySlots().prepare(authority("A")).activate("a").prepare(authority("B"))


@pytest.mark.parametrize(("status", "event"), [*itertools.product(Status, Event)], ids=lambda each: each.value)
def test_what_is_not_in_the_table_raises(status: Status, event: Event) -> None:
    if (status, event) in LIFE_CYCLE:
        assert advance(status, event) is LIFE_CYCLE[status, event]
        return
    with pytest.raises(AuthorityError) as caught:
        advance(status, event)
    assert caught.value.code == "illegal_event"


def test_the_diagram_has_every_transition() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == 2 + len(LIFE_CYCLE)
    assert "    old --> tainted: taint" in lines
    assert "    old --> [*]: displace" in lines


def test_a_whole_life() -> None:
    slots = running().activate("b")
    assert slots.current is not None
    assert slots.other is not None
    assert (slots.current.authority_id, slots.other.authority_id) == ("b", "a")
    assert slots.other.status is Status.OLD
    tainted = slots.taint("a")
    revoked = tainted.revoke("a")
    assert revoked.other is not None
    assert revoked.other.status is Status.REVOKED
    assert revoked.free_slot == "A"
    again = revoked.prepare(authority("A", "c")).activate("c")
    assert again.current is not None
    assert again.current.authority_id == "c"


@pytest.mark.parametrize(
    ("name", "event", "code"),
    [
        ("taint what signs", lambda slots: slots.taint("a"), "illegal_event"),
        ("revoke what signs", lambda slots: slots.revoke("a"), "illegal_event"),
        ("activate what signs", lambda slots: slots.activate("a"), "illegal_event"),
        ("taint what is prepared", lambda slots: slots.taint("b"), "illegal_event"),
        ("revoke what is prepared", lambda slots: slots.revoke("b"), "illegal_event"),
        ("revoke without tainting", lambda slots: slots.activate("b").revoke("a"), "illegal_event"),
        ("activate what is old", lambda slots: slots.activate("b").activate("a"), "illegal_event"),
        ("unknown", lambda slots: slots.activate("z"), "unknown_authority"),
        ("no ID", lambda slots: slots.activate(""), "unknown_authority"),
        ("prepare in the slot that signs", lambda slots: slots.prepare(authority("A", "c")), "no_free_slot"),
        ("prepare an active one", lambda slots: slots.prepare(slots.current), "no_free_slot"),
    ],
)
def test_illegal(name: str, event: object, code: str) -> None:
    slots = running()
    before = slots.to_json()
    with pytest.raises(AuthorityError) as caught:
        event(slots)  # type: ignore[operator]
    assert caught.value.code == code
    assert slots.to_json() == before


@pytest.mark.parametrize("again", [lambda slots: slots, lambda slots: slots.activate("b")])
def test_preparing_displaces_the_prepared_and_the_old(again: object) -> None:
    slots = again(running())  # type: ignore[operator]
    displaced = slots.prepare(authority(slots.free_slot, "new"))
    assert displaced.other.authority_id == "new"
    assert displaced.current == slots.current


@pytest.mark.parametrize(
    ("name", "lifetime", "prepare_after", "activate_after"),
    [
        ("a day", DAY, DAY // 2, DAY - DAY // 6),
        ("60 days, the last where half a life counts", 60 * DAY, 30 * DAY, 53 * DAY),
        ("42 days, the last where a sixth counts", 42 * DAY, 21 * DAY, 35 * DAY),
        ("a year", 365 * DAY, 335 * DAY, 358 * DAY),
    ],
)
def test_due(name: str, lifetime: int, prepare_after: int, activate_after: int) -> None:
    slots = AuthoritySlots().prepare(authority("A", lifetime=lifetime)).activate("a")
    assert slots.due(at=NOW + prepare_after - 1) is None
    assert slots.due(at=NOW + prepare_after) is Due.PREPARE
    prepared = slots.prepare(authority("B", issued_at=NOW + prepare_after, lifetime=lifetime))
    assert prepared.due(at=NOW + prepare_after) is None
    assert prepared.due(at=NOW + activate_after - 1) is None
    assert prepared.due(at=NOW + activate_after) is Due.ACTIVATE
    assert prepared.activate("b").due(at=NOW + activate_after) is None


def test_due_at_the_first_start() -> None:
    assert AuthoritySlots().due(at=NOW) is Due.PREPARE
    prepared = AuthoritySlots().prepare(authority("A"))
    assert prepared.due(at=NOW) is Due.ACTIVATE
    assert prepared.due(at=NOW + DAY) is Due.PREPARE  # It expired before it was used.


def test_svid_lifetime() -> None:
    assert authority("A").max_svid_ttl == 4 * 3600
    assert authority("A", lifetime=365 * DAY).max_svid_ttl == 7 * DAY


def test_from_a_certificate() -> None:
    ca = issue_ca(TD, KEY, at=NOW, random=os.urandom)
    made = Authority.x509("B", ca.der, issued_at=NOW)
    assert (made.authority_id, made.not_after, made.status) == (ca.authority_id, NOW + DAY, Status.PREPARED)
    assert made.key_id == "x509-CA-B"
    assert key_id("jwt", "A") == "JWT-Signer-A"
    with pytest.raises(JournalError):
        Authority.x509("B", b"der", issued_at=NOW)


@pytest.mark.parametrize(
    "slots", [AuthoritySlots(), running(), running().activate("b"), running().activate("b").taint("a")]
)
def test_journal_round_trip(slots: AuthoritySlots) -> None:
    assert AuthoritySlots.from_json(slots.to_json()) == slots


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"version":2,"authorities":[]}',
        b'{"version":1,"authorities":[{}]}',
        b'{"version":1,"authorities":[1]}',
        b"\xff",
        b"[" * 100_000,
        running().to_json().replace(b'"prepared"', b'"active"'),
        running().to_json().replace(b'"slot":"B"', b'"slot":"A"'),
        running().to_json().replace(b'"slot":"B"', b'"slot":"C"'),
        running().to_json().replace(b'"public":"ZGVy"', b'"public":"ZGV"'),
        running().to_json().replace(b'"issued_at":1800000000', b'"issued_at":"x"'),
    ],
)
def test_malformed_journal(text: bytes) -> None:
    with pytest.raises(JournalError):
        AuthoritySlots.from_json(text)


events = st.lists(st.sampled_from(["prepare", "activate", "taint", "revoke"]), max_size=12)


@given(events, st.data())
def test_no_sequence_of_events_breaks_the_slots(names: list[str], data: st.DataObject) -> None:
    slots, made = AuthoritySlots(), 0
    for name in names:
        made += 1
        try:
            if name == "prepare":
                slots = slots.prepare(authority(slots.free_slot, f"id{made}"))
            else:
                target = data.draw(st.sampled_from([f"id{number}" for number in range(made + 1)]))
                slots = getattr(slots, name)(target)
        except CertsError:
            continue
    assert slots.current is None or slots.current.status is Status.ACTIVE
    assert slots.other is None or slots.other.status is not Status.ACTIVE
    assert AuthoritySlots.from_json(slots.to_json()) == slots
