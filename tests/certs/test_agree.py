# SPDX-License-Identifier: Apache-2.0
"""The Rust core and `firedoor.certs` answer the same: on every vector, and on texts and chains made at random."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.certs import IdPattern, PatternError, SpiffeId, SpiffeIdError, SvidError, TrustDomain, verify_x509_svid
from tests.simulator import NOW, SimulatedTrustDomain
from tests.vectors.listed import listed

VECTORS = Path(__file__).parent.parent / "vectors"
TD = TrustDomain.parse("td")


def load(path: str, key: str = "cases") -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((VECTORS / path).read_text())[key]
    return cases


def rust_outcome(call: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return call(*arguments, **named)
    except mtls.VerifyError as error:
        return error.code


@pytest.mark.parametrize("case", load("svid/cases.json"), ids=lambda case: case["name"])
def test_svid_vector(case: dict[str, Any]) -> None:
    bundles = {td: [*map(base64.b64decode, roots)] for td, roots in case["bundles"].items()}
    revocations = [mtls.Revocation(**each) for each in case.get("revocations", ())]
    chain = [*map(base64.b64decode, case["chain"])]
    got = rust_outcome(mtls.verify_svid, chain, bundles, at=case["at"], revocations=revocations, **listed(case))
    assert got == ((case["id"], case["not_after"]) if case["expect"] == "ok" else case["expect"])


@pytest.mark.parametrize("file", ["alphabets", "lengths", "rules"])
def test_spiffe_id_vectors(file: str) -> None:
    cases = load(f"spiffe_ids/{file}.json")
    got = {case["name"]: rust_outcome(mtls.check_spiffe_id, case["id"]) or "ok" for case in cases}
    assert got == {case["name"]: case["expect"] for case in cases}


@pytest.mark.parametrize("case", load("policy/id_patterns.json", "patterns"), ids=lambda case: case["name"])
def test_pattern_vector(case: dict[str, Any]) -> None:
    assert (rust_outcome(mtls.check_pattern, case["pattern"]) or "ok") == case["expect"]
    assert all(mtls.match_pattern(case["pattern"], text) for text in case["matches"])
    assert not any(mtls.match_pattern(case["pattern"], text) for text in case["differs"])


pieces = st.sampled_from(
    ["spiffe://", "td", "/", ".", "..", "a", "A", "*", "**", "%", "?", "spire", "{td}", "\n", "é", ":"]
)
texts = st.lists(pieces, max_size=8).map("".join) | st.lists(pieces, max_size=6).map(
    lambda each: "spiffe://" + "".join(each)
)


@given(texts | st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(text: str) -> None:
    try:
        SpiffeId.parse(text)
    except SpiffeIdError as error:
        assert rust_outcome(mtls.check_spiffe_id, text) == error.code  # noqa: PT017
    else:
        assert mtls.check_spiffe_id(text) is None


@given(texts.filter(lambda text: "{td}" not in text))
def test_any_pattern(text: str) -> None:
    try:
        IdPattern.parse(text, TD, allow_reserved=True)
    except PatternError as error:
        assert rust_outcome(mtls.check_pattern, text) == error.code  # noqa: PT017
    else:
        assert mtls.check_pattern(text) is None


words = st.sampled_from(["a", "b", "spire", "*"])
patterns = st.tuples(st.lists(words, max_size=3), st.sampled_from(["/*", "/**", "/a"])).map(
    lambda parts: "spiffe://td" + "".join(f"/{word}" for word in parts[0]) + parts[1]
)
ids = st.lists(st.sampled_from(["a", "b", "spire"]), max_size=5).map(lambda each: "".join(f"/{part}" for part in each))


@given(patterns, ids)
def test_any_match(pattern: str, path: str) -> None:
    spiffe_id = TD.with_path(path)
    expected = IdPattern.parse(pattern, TD, allow_reserved=True).matches(spiffe_id)
    assert mtls.match_pattern(pattern, str(spiffe_id)) == expected


DOMAIN = SimulatedTrustDomain("td")
GOOD = DOMAIN.svid("/segment/a/x", issuer=DOMAIN.intermediate(), dns_names=["models"]).chain
changes = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 700), st.integers(1, 255)), max_size=2)


# `cryptography` warns of a serial number in the authority key identifier that is not positive.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(changes)
def test_any_change_of_a_chain(changes: list[tuple[int, int, int]]) -> None:
    """Both refuse what is not the chain that was issued. The reason may differ where a change breaks two rules."""
    chain = [bytearray(der) for der in GOOD]
    for which, position, value in changes:
        der = chain[which]
        der[position % len(der)] = (der[position % len(der)] + value) % 256
    ders = [bytes(der) for der in chain]
    got = rust_outcome(mtls.verify_svid, ders, DOMAIN.roots_by_name(), at=NOW)
    if ders == GOOD:
        assert got == (str(verify_x509_svid(ders, DOMAIN.bundles(), NOW).id), NOW + 3600)
        return
    assert isinstance(got, str)
    with pytest.raises(SvidError):
        verify_x509_svid(ders, DOMAIN.bundles(), NOW)
