# SPDX-License-Identifier: Apache-2.0
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from spiffe import JwtSvid as PySpiffeJwtSvid
from spiffe.bundle.jwt_bundle.jwt_bundle import JwtBundle
from spiffe.spiffe_id.spiffe_id import TrustDomain as PySpiffeTrustDomain

from firedoor.certs import (
    IdPattern,
    IssueError,
    JwtIssuer,
    JwtKey,
    JwtSvid,
    JwtSvidError,
    KeyLimits,
    KeyType,
    Revocation,
    TrustBundle,
    TrustDomain,
    ValidatedJwt,
    generate_key,
    jose,
    mint_jwt,
    public_key_der,
    validate_jwt_svid,
)
from tests.cost import costs_less_than
from tests.simulator import NOW
from tests.vectors.make_jwts import b64, token

VECTORS = json.loads((Path(__file__).parent.parent / "vectors/jwt_svid/cases.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in VECTORS["cases"]}

TD = TrustDomain.parse("td")
ID = TD.with_path("/segment/a/x")
KEYS = {kind: generate_key(kind) for kind in (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)}


def validate(case: dict[str, Any]) -> ValidatedJwt:
    domains = {TrustDomain.parse(name): each for name, each in case.get("bundles", VECTORS["bundles"]).items()}
    bundles = {td: TrustBundle.parse(td, json.dumps(each).encode()) for td, each in domains.items()}
    revocations = [_revocation(each) for each in case.get("revocations", ())]
    return validate_jwt_svid(
        case["token"], case["audience"], bundles, case["at"], revocations=revocations, limits=_limits(case)
    )


def _limits(case: dict[str, Any]) -> KeyLimits | None:
    if "limits" not in case:
        return None
    claims = [(IdPattern.parse(text, TD), name) for name, each in case["members"].items() for text in each]
    keys = {key: frozenset(names) for key, names in case["limits"].items()}
    return KeyLimits(TD, keys, lambda sid: next((name for one, name in claims if one.matches(sid)), None))


def _revocation(fields: dict[str, Any]) -> Revocation:
    pattern = fields.get("pattern")
    return Revocation(**{**fields, "pattern": IdPattern.parse(pattern, TD) if pattern else None})


@pytest.mark.parametrize("name", CASES)
def test_vector(name: str) -> None:
    case = CASES[name]
    if case["expect"] == "ok":
        assert str(validate(case).id) == case["id"]
        return
    with pytest.raises(JwtSvidError) as caught:
        validate(case)
    assert caught.value.code == case["expect"]
    assert CASES[case["twin"]]["expect"] == "ok"


def test_vectors_hold_every_code_and_each_case_once() -> None:
    assert {case["expect"] for case in CASES.values()} == {"ok", *JwtSvidError.sentences}
    assert len(CASES) == len(VECTORS["cases"])


def _part(text: str, number: int) -> bytes:
    part = text.split(".")[number]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


# --- minting --------------------------------------------------------------------------------------------------------


def issuer(kind: KeyType = KeyType.EC_P256, *, not_after: int = NOW + 86400) -> JwtIssuer:
    key = KEYS[kind]
    return JwtIssuer.load(TD, "kid-1", public_key_der(key.public_key()), key, not_after=not_after)


def mint(given: JwtIssuer | None = None, **fields: Any) -> JwtSvid:
    values: dict[str, Any] = {"spiffe_id": ID, "audience": ["a", "b"], "at": NOW, "token_id": "1f", **fields}
    spiffe_id, audience = values.pop("spiffe_id"), values.pop("audience")
    return mint_jwt(spiffe_id, audience, given or issuer(), **values)


def bundles(given: JwtIssuer | None = None) -> dict[TrustDomain, TrustBundle]:
    return {TD: TrustBundle(TD, jwt_keys=((given or issuer()).public,))}


@pytest.mark.parametrize(("kind", "algorithm"), [(KeyType.EC_P256, "ES256"), (KeyType.EC_P384, "ES384"),
                                                 (KeyType.RSA_2048, "RS256")])  # fmt: skip
def test_what_is_minted(kind: KeyType, algorithm: str) -> None:
    signer = issuer(kind)
    made = mint(signer)
    assert json.loads(_part(made.token, 0)) == {"alg": algorithm, "kid": "kid-1", "typ": "JWT"}
    claims = {"sub": str(ID), "aud": ["a", "b"], "iat": NOW, "exp": NOW + 300, "jti": "1f"}
    assert json.loads(_part(made.token, 1)) == claims
    found = validate_jwt_svid(made.token, "b", bundles(signer), NOW)
    assert (found.id, found.key_id, found.expires_at, dict(found.claims)) == (ID, "kid-1", NOW + 300, claims)


@pytest.mark.peer
@pytest.mark.parametrize("kind", KEYS)
def test_py_spiffe_validates_what_is_minted(kind: KeyType) -> None:
    signer = issuer(kind, not_after=int(time.time()) + 3600)
    made = mint(signer, at=int(time.time()))
    bundle = JwtBundle.parse(PySpiffeTrustDomain("td"), bundles(signer)[TD].to_jwt_json())
    read = PySpiffeJwtSvid.parse_and_validate(made.token, bundle, {"a"})
    assert (str(read.spiffe_id), read.audience, read.expiry) == (str(ID), {"a", "b"}, made.expires_at)


def test_no_token_outlives_its_key() -> None:
    signer = issuer(not_after=NOW + 60)
    made = mint(signer)
    assert made.expires_at == NOW + 60
    with pytest.raises(JwtSvidError):
        validate_jwt_svid(made.token, "a", bundles(signer), NOW + 60)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no audience": ({"audience": []}, "audience_missing"),
    "empty audience": ({"audience": ["a", ""]}, "audience_too_long"),
    "too many": ({"audience": [str(n) for n in range(65)]}, "audience_too_long"),
    "too long": ({"audience": ["a" * 4097]}, "audience_too_long"),
    "too long once escaped": ({"audience": ["\0" * 4096]}, "audience_too_long"),
    "half a surrogate pair": ({"audience": ["\ud800"]}, "audience_too_long"),
    "no time": ({"ttl": 0}, "bad_ttl"),
    "negative time": ({"ttl": -1}, "bad_ttl"),
    "another trust domain": ({"spiffe_id": TrustDomain.parse("other").with_path("/x")}, "foreign_trust_domain"),
    "no path": ({"spiffe_id": TD.id}, "spiffe_id_root_path"),
    "after the key's end": ({"at": NOW + 86400}, "authority_expired"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_minted(name: str) -> None:
    fields, code = REFUSED[name]
    with pytest.raises(IssueError) as caught:
        mint(**fields)
    assert caught.value.code == code


def test_the_most_that_is_minted_is_validated() -> None:
    names = [f"{n:02d}" + "é" * 31 for n in range(64)]
    long = TD.with_path("/" + "x" * 2036)
    made = mint(issuer(KeyType.RSA_2048), audience=[*names, *names], spiffe_id=long)
    assert made.audience == tuple(names)
    assert validate_jwt_svid(made.token, names[-1], bundles(issuer(KeyType.RSA_2048)), NOW).id == long


def test_a_key_that_is_not_the_authoritys() -> None:
    with pytest.raises(IssueError) as caught:
        JwtIssuer.load(TD, "k", public_key_der(KEYS[KeyType.EC_P384].public_key()), KEYS[KeyType.EC_P256], not_after=1)
    assert caught.value.code == "key_mismatch"


def test_secrets_are_in_no_repr() -> None:
    made = mint()
    proof = validate_jwt_svid(made.token, "a", bundles(), NOW)
    assert made.token not in repr(made)
    assert "claims" not in repr(proof)
    assert "PrivateKey" not in repr(issuer())


def test_no_constructor() -> None:
    with pytest.raises(TypeError, match="validate_jwt_svid"):
        ValidatedJwt()


# --- hostile input --------------------------------------------------------------------------------------------------


def outcome(text: str, keys: dict[TrustDomain, TrustBundle] | None = None) -> str:
    try:
        validate_jwt_svid(text, "a", bundles() if keys is None else keys, NOW)
    except JwtSvidError as error:
        return error.code
    return "ok"


def test_a_long_token_is_refused_before_it_is_read() -> None:
    long = "A" * 50_000_000
    keys = bundles()
    with costs_less_than(0.02):
        assert outcome(long, keys) == "token_too_long"


def test_a_huge_key_is_refused_before_it_is_used() -> None:
    numbers = rsa.RSAPublicNumbers(e=65537, n=(1 << 16383) + 1)
    key = JwtKey("p256", public_key_der(numbers.public_key()))
    text = token({"alg": "RS256", "kid": "p256"}, {"sub": str(ID), "aud": "a", "exp": NOW + 1}, KEYS[KeyType.RSA_2048])
    assert outcome(text, {TD: TrustBundle(TD, jwt_keys=(key,))}) == "algorithm_mismatch"
    # The twin: a key of a size that counts, and not its signature.
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key = JwtKey("p256", public_key_der(other.public_key()))
    assert outcome(text, {TD: TrustBundle(TD, jwt_keys=(key,))}) == "bad_signature"


def test_a_key_that_cannot_be_read_verifies_nothing() -> None:
    text = token({"alg": "ES256", "kid": "k"}, {"sub": str(ID), "aud": "a", "exp": NOW + 1})
    assert outcome(text, {TD: TrustBundle(TD, jwt_keys=(JwtKey("k", b"junk"),))}) == "algorithm_mismatch"


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert outcome(text) in JwtSvidError.sentences


@given(st.lists(st.text("AQgwe-_.=", max_size=40), min_size=1, max_size=5))
def test_any_text_that_looks_like_a_token(parts: list[str]) -> None:
    assert outcome(".".join(parts)) in JwtSvidError.sentences


GOOD = mint()


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD.token) - 1), st.characters(max_codepoint=255)), min_size=1, max_size=3)
)
def test_any_change_of_a_good_one_is_refused(changes: list[tuple[int, str]]) -> None:
    text = list(GOOD.token)
    for position, character in changes:
        text[position] = character
    if "".join(text) != GOOD.token:
        assert outcome("".join(text)) in JwtSvidError.sentences


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(str(ID)),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit"]), _values),
       st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "jti", "x"]), _values))  # fmt: skip
def test_any_header_and_claims_of_who_may_sign(header: dict[str, Any], claims: dict[str, Any]) -> None:
    base = {"sub": str(ID), "aud": ["a"], "exp": NOW + 300}
    signed = f"{b64(json.dumps({'alg': 'ES256', 'kid': 'kid-1', **header}).encode())}."
    signed += b64(json.dumps({**base, **claims}).encode())
    signature = jose.sign(KEYS[KeyType.EC_P256], "ES256", signed.encode())
    assert outcome(f"{signed}.{b64(signature)}") in {"ok", *JwtSvidError.sentences}
