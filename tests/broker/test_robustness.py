# SPDX-License-Identifier: Apache-2.0
"""Nonsense in: one of our errors out, and proofs that nobody can forge by calling a constructor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.attest import AttestedNode, JoinTokenAttestor
from firedoor.broker.entry import Entry, parse_entry
from firedoor.broker.errors import BrokerError
from firedoor.broker.issuing import AuthorizedIssuance, read_csr
from firedoor.broker.messages import entry_message
from firedoor.broker.rpc.status import INTERNAL, status_of
from firedoor.certs import TrustDomain
from firedoor.wire import types

TD = TrustDomain.parse("example.org")
_ids = st.builds(
    types.SPIFFEID,
    trust_domain=st.sampled_from(["example.org", "other.org", "", "Example.org", "spiffe://example.org"])
    | st.text(max_size=5),
    path=st.sampled_from(["", "/a", "/spire/server", "/spire/agent/x", "/segment/a/b", "/a/../b", "a"])
    | st.text(max_size=8),
)
_int32 = st.integers(-(2**31), 2**31 - 1)
_entries = st.builds(
    types.Entry,
    id=st.text(max_size=5),
    spiffe_id=_ids,
    parent_id=_ids,
    selectors=st.lists(st.builds(types.Selector, type=st.text(max_size=3), value=st.text(max_size=3)), max_size=3),
    x509_svid_ttl=_int32,
    jwt_svid_ttl=_int32,
    federates_with=st.lists(st.text(max_size=4), max_size=2),
    dns_names=st.lists(st.text(max_size=6), max_size=3),
    expires_at=st.integers(-(2**63), 2**63 - 1),
    hint=st.text(max_size=4),
    store_svid=st.booleans(),
    downstream=st.booleans(),
)


@given(_entries)
def test_any_entry_is_parsed_or_refused(message: types.Entry) -> None:
    try:
        entry = parse_entry(message, TD)
    except BrokerError:
        return
    # What was accepted says the same again.
    assert parse_entry(entry_message(entry), TD) == entry


_good = st.builds(
    types.Entry,
    id=st.from_regex(r"[a-z0-9.-]{0,20}", fullmatch=True),
    spiffe_id=st.builds(
        types.SPIFFEID,
        trust_domain=st.just("example.org"),
        path=st.from_regex(r"/[a-z]{1,5}/[a-z]{1,5}", fullmatch=True),
    ),
    parent_id=st.builds(types.SPIFFEID, trust_domain=st.just("example.org"), path=st.just("/spire/agent/x")),
    selectors=st.lists(
        st.builds(types.Selector, type=st.just("unix"), value=st.from_regex(r"uid:[0-9]{1,4}", fullmatch=True)),
        min_size=1,
        max_size=4,
    ),
    x509_svid_ttl=st.integers(0, 86400),
    admin=st.booleans(),
    hint=st.text(max_size=10),
    expires_at=st.integers(0, 2**40),
)


@given(_good)
def test_a_good_entry_survives_the_way_there_and_back(message: types.Entry) -> None:
    entry: Entry = parse_entry(message, TD)
    assert parse_entry(types.Entry.FromString(entry_message(entry).SerializeToString()), TD) == entry


@given(st.binary(max_size=300))
def test_any_request_for_a_certificate_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(BrokerError) as refused:
        read_csr(data)
    assert status_of(refused.value) is not INTERNAL


@given(st.binary(max_size=300))
async def test_any_join_token_is_a_path_or_refused(payload: bytes) -> None:
    try:
        node = await JoinTokenAttestor(TD).attest(payload, 0)
    except BrokerError:
        return
    # Whatever the token was, the agent stays below its plug-in.
    assert node.agent_id.path.rpartition("/")[0] == "/spire/agent/join_token"


def test_proofs_have_no_constructor() -> None:
    for proof in (AuthorizedIssuance, AttestedNode):
        with pytest.raises(TypeError):
            proof()


def test_what_nobody_foresaw_tells_nothing() -> None:
    assert status_of(RuntimeError("the key is 42")) is INTERNAL
    assert "42" not in INTERNAL.message
