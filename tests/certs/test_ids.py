# SPDX-License-Identifier: Apache-2.0
import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import Fingerprint, FingerprintError, SpiffeId, SpiffeIdError, TrustDomain

VECTORS = Path(__file__).parent.parent / "vectors/spiffe_ids"
CASES = [case for file in sorted(VECTORS.glob("*.json")) for case in json.loads(file.read_text())["cases"]]

trust_domains = st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True)
segments = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True).filter(lambda segment: segment not in (".", ".."))
paths = st.lists(segments, max_size=5).map(lambda parts: "".join(f"/{part}" for part in parts))


def outcome(text: str) -> str:
    try:
        SpiffeId.parse(text)
    except SpiffeIdError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case: dict[str, str]) -> None:
    assert outcome(case["id"]) == case["expect"]


def test_vectors_hold_every_code() -> None:
    seen = {case["expect"] for case in CASES}
    assert seen == {"ok", *SpiffeIdError.sentences} - {"missing_leading_slash"}


@given(trust_domains, paths)
def test_round_trip(name: str, path: str) -> None:
    spiffe_id = SpiffeId.parse(f"spiffe://{name}{path}")
    assert (spiffe_id.trust_domain.name, spiffe_id.path) == (name, path)
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id == TrustDomain.parse(name).with_path(path)
    assert "".join(f"/{segment}" for segment in spiffe_id.segments) == path
    assert copy.deepcopy(spiffe_id) == spiffe_id


@given(st.text() | st.text().map(lambda text: f"spiffe://{text}") | st.text().map(lambda text: f"spiffe://td/{text}"))
def test_any_text_is_an_id_or_a_known_error(text: str) -> None:
    code = outcome(text)
    assert code == "ok" or code in SpiffeIdError.sentences
    if code == "ok":
        assert str(SpiffeId.parse(text)) == text


@given(trust_domains, trust_domains, paths, paths)
def test_order_is_by_trust_domain_then_path(left: str, right: str, left_path: str, right_path: str) -> None:
    first = SpiffeId.parse(f"spiffe://{left}{left_path}")
    second = SpiffeId.parse(f"spiffe://{right}{right_path}")
    assert (first < second) == ((left, left_path) < (right, right_path))


def test_trust_domain_id_has_no_path() -> None:
    assert str(TrustDomain.parse("td").id) == "spiffe://td"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "missing_trust_domain"),
        ("spiffe://td", "bad_trust_domain_char"),
        ("td/a", "bad_trust_domain_char"),
        ("td\n", "bad_trust_domain_char"),
        ("\ud800", "bad_trust_domain_char"),
        ("a" * 256, "trust_domain_too_long"),
    ],
)
def test_bad_trust_domain(name: str, code: str) -> None:
    with pytest.raises(SpiffeIdError) as caught:
        TrustDomain.parse(name)
    assert caught.value.code == code


@pytest.mark.parametrize("path", ["evil", ".evil.org/a", "@x/a"])
def test_a_path_cannot_extend_the_trust_domain(path: str) -> None:
    with pytest.raises(SpiffeIdError) as caught:
        TrustDomain.parse("td").with_path(path)
    assert caught.value.code == "missing_leading_slash"


@pytest.mark.parametrize("kind", [SpiffeId, TrustDomain, Fingerprint])
def test_no_constructor(kind: type) -> None:
    with pytest.raises(TypeError, match="is made by"):
        kind()


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        TrustDomain.parse("td").name = "other"  # type: ignore[misc]


def test_fingerprint_round_trip() -> None:
    made = Fingerprint.of(b"der")
    assert Fingerprint.parse(str(made)) == made


@pytest.mark.parametrize("text", ["", "ab", "A" * 64, "g" * 64, "a" * 65, "a" * 64 + "\n", "\u0661" * 64])
def test_bad_fingerprint(text: str) -> None:
    with pytest.raises(FingerprintError):
        Fingerprint.parse(text)
