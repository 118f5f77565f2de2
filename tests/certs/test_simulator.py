# SPDX-License-Identifier: Apache-2.0
"""The simulator keeps its promises, since everybody's tests stand on it."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from firedoor.certs import SvidError, verify_x509_svid
from tests.simulator import NOW, Identity, SimulatedTrustDomain


def outcome(td: SimulatedTrustDomain, identity: Identity) -> str:
    try:
        return str(verify_x509_svid(identity.chain, td.bundles(), td.at).id)
    except SvidError as error:
        return error.code


def test_issue_and_verify() -> None:
    td = SimulatedTrustDomain("td")
    assert outcome(td, td.svid("/a")) == str(td.svid("/a").id) == "spiffe://td/a"


def test_the_clock_is_yours() -> None:
    td = SimulatedTrustDomain("td")
    svid = td.svid("/a")
    td.at += 3600
    assert outcome(td, svid) == "spiffe://td/a"
    td.at += 1
    assert outcome(td, svid) == "expired"
    assert outcome(td, td.svid("/a")) == "spiffe://td/a"


def test_rotate_and_forget() -> None:
    td = SimulatedTrustDomain("td")
    before, old = td.svid("/a"), td.authority
    td.rotate()
    assert outcome(td, before) == outcome(td, td.svid("/a")) == "spiffe://td/a"
    td.forget(old)
    assert (outcome(td, before), outcome(td, td.svid("/a"))) == ("chain_untrusted", "spiffe://td/a")
    assert td.bundle.sequence == td.sequence == 3


def test_intermediate() -> None:
    td = SimulatedTrustDomain("td")
    below = td.intermediate(td.intermediate())
    svid = td.svid("/a", issuer=below)
    assert len(svid.chain) == 3
    assert outcome(td, svid) == "spiffe://td/a"


@pytest.mark.parametrize(
    ("fields", "expect"),
    [
        ({}, "spiffe://td/a"),
        ({"expires": NOW - 1}, "expired"),
        ({"starts": NOW + 301}, "not_yet_valid"),
        ({"ca": True}, "leaf_is_ca"),
        ({"uris": []}, "uri_san_missing"),
        ({"key_usage": None}, "key_usage_missing"),
    ],
)
def test_a_field_wrong_on_purpose(fields: dict[str, object], expect: str) -> None:
    td = SimulatedTrustDomain("td")
    assert outcome(td, td.svid("/a", **fields)) == expect


def test_two_trust_domains() -> None:
    ours, theirs = SimulatedTrustDomain("td"), SimulatedTrustDomain("other.org")
    foreign = theirs.svid("/a")
    assert outcome(ours, foreign) == "unknown_trust_domain"
    assert verify_x509_svid(foreign.chain, ours.bundles(theirs), NOW).id == foreign.id
    assert set(ours.roots_by_name(theirs)) == {"td", "other.org"}


def test_pem_is_what_tls_libraries_load(tmp_path: Path) -> None:
    td = SimulatedTrustDomain("td")
    svid = td.svid("/a", issuer=td.intermediate())
    chain = tmp_path / "chain.pem"
    chain.write_bytes(svid.chain_pem + svid.key_pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain)
    assert len(x509.load_pem_x509_certificates(svid.chain_pem)) == 2
