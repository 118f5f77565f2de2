# SPDX-License-Identifier: Apache-2.0
"""Who is admitted; every refusal has a twin in which the one fact differs."""

import copy

import pytest

from firedoor.segments import (
    AdmissionEmpty,
    AdmissionRefused,
    Admitted,
    MintRefused,
    NoSegment,
    PodNotAsked,
    Refused,
    check_admission,
    check_entry,
    check_mint,
)
from tests.segments.conftest import policy, segment, selectors, sid

POLICY = policy(
    segment("a", admission={"entry": ["unix:user:a", "unix:path:/a"], "node": ["k8s_pod:ns:a"], "mint": True}),
    segment(
        "b", members=["spiffe://{td}/segment/b/**", "spiffe://partner/ns/b/*"], admission={"entry": ["unix:user:b"]}
    ),
    segment("old", members=[], fallback=True, admission={}),
    segment("open", admission={}),
)
ENTRY = selectors("unix:user:a", "unix:path:/a", "unix:gid:7")
NODE = selectors("k8s_pod:ns:a", "spire_agent:id:spiffe://td/spire/agent/x")
ID = sid("/segment/a/x")


def test_all_selectors_admit() -> None:
    admitted = check_admission(POLICY, ID, entry=ENTRY, node=NODE)
    assert (admitted.spiffe_id, admitted.segment.name, admitted.basis) == (ID, "a", "workload")


@pytest.mark.parametrize(
    ("side", "missing"), [("entry", "unix:user:a"), ("entry", "unix:path:/a"), ("node", "k8s_pod:ns:a")]
)
def test_each_missing_selector_is_named(side: str, missing: str) -> None:
    entry, node = ENTRY - selectors(missing), NODE - selectors(missing)
    with pytest.raises(AdmissionRefused) as caught:
        check_admission(POLICY, ID, entry=entry, node=node)
    error = caught.value
    assert (error.code, error.side, str(error.missing), error.segment) == ("admission_refused", side, missing, "a")
    assert error.grpc_status == "PERMISSION_DENIED"
    assert missing in str(error)
    assert missing not in error.redacted
    assert error.missing.redacted in error.redacted
    assert str(ID) in error.redacted


def test_a_selector_counts_on_its_own_side_only() -> None:
    with pytest.raises(AdmissionRefused) as caught:
        check_admission(POLICY, ID, entry=ENTRY | NODE, node=frozenset())
    assert caught.value.side == "node"
    with pytest.raises(AdmissionRefused) as caught:
        check_admission(POLICY, ID, entry=frozenset(), node=ENTRY | NODE)
    assert caught.value.side == "entry"


def test_an_entry_is_checked_by_its_half_when_it_is_written() -> None:
    assert check_entry(POLICY, ID, entry=ENTRY).name == "a"
    with pytest.raises(AdmissionRefused):
        check_entry(POLICY, ID, entry=selectors("unix:user:a"))


@pytest.mark.parametrize("path", ["", "/spire/server", "/spire/agent/x", "/spire", "/segment/nobody/x"])
def test_ids_outside_all_segments_are_refused(path: str) -> None:
    for check in (
        lambda: check_admission(POLICY, sid(path), entry=ENTRY, node=NODE),
        lambda: check_entry(POLICY, sid(path), entry=ENTRY),
        lambda: check_mint(POLICY, sid(path)),
    ):
        with pytest.raises(NoSegment) as caught:
            check()
        assert caught.value.code == "no_segment"


def test_the_fallback_admits_what_nobody_claims() -> None:
    assert check_admission(POLICY, sid("/host/x"), entry=frozenset(), node=frozenset()).segment.name == "old"
    with pytest.raises(NoSegment):
        check_admission(POLICY, sid("spiffe://partner/host/x"), entry=frozenset(), node=frozenset())


def test_an_empty_rule_of_another_segment_admits_nobody() -> None:
    with pytest.raises(AdmissionEmpty):
        check_admission(POLICY, sid("/segment/open/x"), entry=ENTRY, node=NODE)


def test_a_foreign_id_needs_a_pattern_that_names_its_trust_domain() -> None:
    foreign = sid("spiffe://partner/ns/b/x")
    assert check_admission(POLICY, foreign, entry=selectors("unix:user:b"), node=frozenset()).segment.name == "b"
    with pytest.raises(NoSegment):
        check_admission(POLICY, sid("spiffe://partner/segment/b/x"), entry=selectors("unix:user:b"), node=frozenset())


def test_a_pod_is_admitted_by_what_the_broker_attested_or_not_at_all() -> None:
    """Its sidecar is agent and workload in one: whatever entry selectors it claims, nothing stands behind them."""
    pod = selectors("k8s_pod:ns:web", "k8s_pod:cluster:prod", "spire_agent:id:spiffe://td/spire/agent/k8s_pod/prod/1")
    assert check_admission(POLICY, ID, entry=ENTRY, node=NODE | pod).segment.name == "a"
    for spiffe_id in (sid("/segment/b/x"), sid("/host/x")):
        node = frozenset({one for one in pod if one.type != "k8s_pod"})
        check_admission(POLICY, spiffe_id, entry=selectors("unix:user:b"), node=node)
        with pytest.raises(PodNotAsked, match="has no node selector"):
            check_admission(POLICY, spiffe_id, entry=selectors("unix:user:b"), node=pod)


def test_mint() -> None:
    assert check_mint(POLICY, ID).basis == "mint"
    with pytest.raises(MintRefused, match="mint: true"):
        check_mint(POLICY, sid("/segment/b/x"))


def test_nobody_else_makes_an_admitted() -> None:
    with pytest.raises(TypeError, match="functions that check"):
        Admitted()


def test_refusals_can_be_copied() -> None:
    errors: list[Refused] = []
    for spiffe_id in (sid("/spire/x"), ID, sid("/segment/open/x")):
        with pytest.raises(Refused) as caught:
            check_admission(POLICY, spiffe_id, entry=frozenset(), node=frozenset())
        errors.append(caught.value)
    with pytest.raises(Refused) as caught:
        check_mint(POLICY, sid("/segment/b/x"))
    for error in (*errors, caught.value):
        twin = copy.copy(error)
        assert (type(twin), str(twin), twin.redacted) == (type(error), str(error), error.redacted)
