# SPDX-License-Identifier: Apache-2.0
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.certs import (
    IdPattern,
    Intermediates,
    Revocation,
    SvidError,
    TrustBundle,
    TrustDomain,
    VerifiedSvid,
    parse_x509_svid,
    verify_x509_svid,
)
from tests.cost import costs_less_than
from tests.simulator import NOW, SimulatedTrustDomain, name

VECTORS = Path(__file__).parent.parent / "vectors/svid/cases.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]


def verify(case: dict[str, Any]) -> VerifiedSvid:
    domains = {TrustDomain.parse(name): roots for name, roots in case["bundles"].items()}
    bundles = {td: TrustBundle.of(td, [*map(base64.b64decode, roots)]) for td, roots in domains.items()}
    revocations = [_revocation(each) for each in case.get("revocations", ())]
    chain = [*map(base64.b64decode, case["chain"])]
    return verify_x509_svid(chain, bundles, case["at"], revocations=revocations, intermediates=_listed(case))


def _listed(case: dict[str, Any]) -> Intermediates | None:
    if "intermediates" not in case:
        return None
    td = TrustDomain.parse("td")
    claims = [(IdPattern.parse(text, td), name) for name, each in case["members"].items() for text in each]
    segments = {key: frozenset(names) for key, names in case["intermediates"].items()}
    return Intermediates(td, segments, lambda sid: next((name for one, name in claims if one.matches(sid)), None))


def _revocation(fields: dict[str, Any]) -> Revocation:
    pattern = fields.get("pattern")
    parsed = IdPattern.parse(pattern, TrustDomain.parse("td")) if pattern else None
    return Revocation(**{**fields, "pattern": parsed})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        verified = verify(case)
        assert (str(verified.id), verified.not_after) == (case["id"], case["not_after"])
        return
    with pytest.raises(SvidError) as caught:
        verify(case)
    assert caught.value.code == case["expect"]


def test_names_are_unique() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names))


def test_vectors_hold_every_code() -> None:
    assert {case["expect"] for case in CASES} == {"ok", *SvidError.sentences}


def test_no_constructor() -> None:
    with pytest.raises(TypeError, match="verify_x509_svid"):
        VerifiedSvid()


def test_many_candidates_end_soon() -> None:
    """Six CAs of one name that could each stand above each other: 1957 paths, of which none leads to a root."""
    td = SimulatedTrustDomain("td")
    stranger = SimulatedTrustDomain("td")
    same = name("same")
    key = ec.generate_private_key(ec.SECP256R1())
    stranger.roots.clear()
    top = stranger.rotate(key=key, subject=same)
    others = [stranger.intermediate(top, key=key, subject=same, serial=number) for number in range(1, 6)]
    chain = [stranger.svid("/a", issuer=top).chain[0], top.der, *(other.der for other in others)]
    bundles = td.bundles()
    with costs_less_than(1), pytest.raises(SvidError) as caught:
        verify_x509_svid(chain, bundles, NOW)
    assert caught.value.code == "chain_untrusted"


def test_authorities_of_the_path() -> None:
    td = SimulatedTrustDomain("td")
    lower = td.intermediate(upper := td.intermediate())
    verified = verify_x509_svid(td.svid("/a", issuer=lower).chain, td.bundles(), NOW)
    assert verified.authority_ids == tuple(each.authority_id for each in (lower, upper, td.authority))
    assert verified.svid.authority_id == lower.authority_id


def test_name_constraints_of_other_kinds_matter_to_who_has_such_names() -> None:
    td = SimulatedTrustDomain("td")
    mail = x509.NameConstraints([x509.RFC822Name("a.example")], None)
    issuer = td.intermediate(extensions=[(mail, True)])
    assert verify_x509_svid(td.svid("/a", issuer=issuer).chain, td.bundles(), NOW)
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://td/a"), x509.RFC822Name("x@a.example")]
    )
    with pytest.raises(SvidError) as caught:
        verify_x509_svid(td.svid("/a", uris=[], extensions=[(names, False)], issuer=issuer).chain, td.bundles(), NOW)
    assert caught.value.code == "name_constraints_unsupported"


def test_the_detail_of_an_error_never_holds_names() -> None:
    with pytest.raises(SvidError) as caught:
        parse_x509_svid([b"secret"])
    assert "secret" not in str(caught.value)
