# SPDX-License-Identifier: Apache-2.0
"""WIT-SVIDs: what a minted one says, and every rule of WIT-SVID.md broken one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from firedoor.certs import (
    IssueError,
    JwtIssuer,
    KeyType,
    TrustBundle,
    TrustDomain,
    WitSvidError,
    generate_key,
    jose,
    mint_wit,
    public_key_der,
    validate_wit_svid,
)
from firedoor.certs.jwt import encode_part
from tests.simulator import NOW

TD = TrustDomain.parse("example.org")
ID = TD.with_path("/segment/a/x")
KEY, MINE = generate_key(KeyType.EC_P256), generate_key(KeyType.EC_P256)
PUBLIC = public_key_der(MINE.public_key())
ISSUER = JwtIssuer.load(TD, "kid-1", public_key_der(KEY.public_key()), KEY, not_after=NOW + 86400)
BUNDLES = {TD: TrustBundle(TD, wit_keys=(ISSUER.public,))}


def minted(**changes: Any) -> Any:
    fields: dict[str, Any] = {"at": NOW, "token_id": "1f", "ttl": 600, **changes}
    return mint_wit(ID, PUBLIC, "ES256", ISSUER, **fields)


def signed(header: dict[str, Any], claims: dict[str, Any]) -> str:
    text = f"{encode_part(header)}.{encode_part(claims)}"
    return f"{text}.{jose.encode(jose.sign(KEY, 'ES256', text.encode()))}"


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = minted().token.split(".")
    return jose.read_object(jose.decode(header)), jose.read_object(jose.decode(claims))


def outcome(token: str, at: float = NOW) -> str:
    try:
        validate_wit_svid(token, BUNDLES, at)
    except WitSvidError as error:
        return error.code
    return "valid"


def test_what_a_minted_one_says() -> None:
    header, claims = parts()
    assert header == {"alg": "ES256", "kid": "kid-1", "typ": "wit+jwt"}
    numbers = MINE.public_key().public_numbers()  # type: ignore[union-attr]
    jwk = claims.pop("cnf")["jwk"]
    assert claims == {"sub": str(ID), "exp": NOW + 600, "iat": NOW, "jti": "1f"}
    assert {name: jwk[name] for name in ("kty", "crv", "alg")} == {"kty": "EC", "crv": "P-256", "alg": "ES256"}
    assert int.from_bytes(jose.decode(jwk["x"])) == numbers.x  # type: ignore[union-attr]
    found = validate_wit_svid(minted().token, BUNDLES, NOW)
    assert (found.id, found.key_id, found.expires_at, found.confirmation) == (ID, "kid-1", NOW + 600, jwk)


def test_it_never_outlives_its_key() -> None:
    assert minted(ttl=10**7).expires_at == ISSUER.not_after


BROKEN: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "as it is": (lambda h, c: None, "valid"),
    "an unknown header": (lambda h, c: h.update(x5t="a"), "valid"),
    "an unknown claim": (lambda h, c: c.update(role="a"), "valid"),
    "crit": (lambda h, c: h.update(crit=["b64"]), "header_not_allowed"),
    "no typ": (lambda h, c: h.pop("typ"), "type_not_allowed"),
    "typ of a JWT-SVID": (lambda h, c: h.update(typ="JWT"), "type_not_allowed"),
    "no kid": (lambda h, c: h.pop("kid"), "key_id_missing"),
    "another kid": (lambda h, c: h.update(kid="kid-2"), "key_unknown"),
    "alg none": (lambda h, c: h.update(alg="none"), "algorithm_not_allowed"),
    "HS256": (lambda h, c: h.update(alg="HS256"), "algorithm_not_allowed"),
    "an alg of another key": (lambda h, c: h.update(alg="RS256"), "algorithm_mismatch"),
    "no sub": (lambda h, c: c.pop("sub"), "subject_missing"),
    "no SPIFFE ID": (lambda h, c: c.update(sub="me"), "spiffe_id_invalid"),
    "a root ID": (lambda h, c: c.update(sub="spiffe://example.org"), "spiffe_id_root_path"),
    "a foreign ID": (lambda h, c: c.update(sub="spiffe://other.org/a"), "unknown_trust_domain"),
    "an audience": (lambda h, c: c.update(aud=["models"]), "audience_present"),
    "no exp": (lambda h, c: c.pop("exp"), "expiry_missing"),
    "exp as text": (lambda h, c: c.update(exp="soon"), "malformed_claim"),
    "expired": (lambda h, c: c.update(exp=NOW), "expired"),
    "nbf in the future": (lambda h, c: c.update(nbf=NOW + 1), "not_yet_valid"),
    "iat in the future": (lambda h, c: c.update(iat=NOW + 1000), "valid"),
    "no cnf": (lambda h, c: c.pop("cnf"), "confirmation_missing"),
    "cnf without a key": (lambda h, c: c.update(cnf={"kid": "x"}), "confirmation_missing"),
    "no alg of the key": (lambda h, c: c["cnf"]["jwk"].pop("alg"), "confirmation_not_allowed"),
    "alg of another kind": (lambda h, c: c["cnf"]["jwk"].update(alg="RS256"), "confirmation_not_allowed"),
    "alg HS256 of the key": (lambda h, c: c["cnf"]["jwk"].update(alg="HS256"), "confirmation_not_allowed"),
    "a private key": (lambda h, c: c["cnf"]["jwk"].update(d="AA"), "confirmation_not_allowed"),
    "a key that is none": (lambda h, c: c["cnf"]["jwk"].update(x="AA"), "confirmation_not_allowed"),
    "a symmetric key": (lambda h, c: c["cnf"].update(jwk={"kty": "oct", "k": "AA"}), "confirmation_not_allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rule(name: str) -> None:
    change, expected = BROKEN[name]
    header, claims = parts()
    change(header, claims)
    assert outcome(signed(header, claims)) == expected


def test_other_breaks() -> None:
    token = minted().token
    head, body, _ = token.split(".")
    assert outcome("x" * 20000) == "token_too_long"
    assert outcome("a.b") == "malformed_token"
    assert outcome(f"{head}.{body}.{jose.encode(bytes(64))}") == "bad_signature"
    assert outcome(f"{jose.encode(b'[]')}.{body}.AA") == "malformed_header"
    assert outcome(f"{head}.{jose.encode(b'[]')}.AA") == "malformed_claims"
    assert outcome(token, ISSUER.not_after) == "key_expired"


def test_keys_of_jwt_svids_do_not_count() -> None:
    """Whoever may sign one kind of token may not sign the other."""
    with pytest.raises(WitSvidError, match="no trust bundle with keys"):
        validate_wit_svid(minted().token, {TD: TrustBundle(TD, jwt_keys=(ISSUER.public,))}, NOW)


@pytest.mark.parametrize(
    ("key_type", "algorithm", "code"),
    [
        (KeyType.EC_P256, "ES256", ""),
        (KeyType.EC_P384, "ES384", ""),
        (KeyType.RSA_2048, "PS256", ""),
        (KeyType.RSA_2048, "RS512", ""),
        (KeyType.EC_P256, "ES384", "algorithm_mismatch"),
        (KeyType.RSA_2048, "ES256", "algorithm_mismatch"),
        (KeyType.EC_P256, "none", "algorithm_mismatch"),
        (KeyType.EC_P256, "", "algorithm_mismatch"),
    ],
)
def test_the_algorithm_goes_with_the_key(key_type: KeyType, algorithm: str, code: str) -> None:
    public = public_key_der(generate_key(key_type).public_key())
    if not code:
        token = mint_wit(ID, public, algorithm, ISSUER, at=NOW, token_id="1").token
        assert validate_wit_svid(token, BUNDLES, NOW).confirmation["alg"] == algorithm
        return
    with pytest.raises(IssueError) as caught:
        mint_wit(ID, public, algorithm, ISSUER, at=NOW, token_id="1")
    assert caught.value.code == code


@pytest.mark.parametrize("public", [b"", b"junk", b"x" * 10_000], ids=["empty", "junk", "long"])
def test_what_is_no_key(public: bytes) -> None:
    with pytest.raises(IssueError) as caught:
        mint_wit(ID, public, "ES256", ISSUER, at=NOW, token_id="1")
    assert caught.value.code == "unsupported_key"


@pytest.mark.parametrize(
    ("spiffe_id", "changes", "code"),
    [
        (TrustDomain.parse("other.org").with_path("/a"), {}, "foreign_trust_domain"),
        (TD.id, {}, "spiffe_id_root_path"),
        (ID, {"ttl": 0}, "bad_ttl"),
        (ID, {"at": ISSUER.not_after}, "authority_expired"),
    ],
)
def test_what_is_not_minted(spiffe_id: Any, changes: dict[str, Any], code: str) -> None:
    fields: dict[str, Any] = {"at": NOW, "token_id": "1", **changes}
    with pytest.raises(IssueError) as caught:
        mint_wit(spiffe_id, PUBLIC, "ES256", ISSUER, **fields)
    assert caught.value.code == code


def test_every_code_has_a_case() -> None:
    """What a WIT-SVID has and a JWT-SVID has not."""
    met = {code for _, code in BROKEN.values()}
    assert {"audience_present", "confirmation_missing", "confirmation_not_allowed", "type_not_allowed"} <= met


def test_a_bundle_with_both_kinds_of_keys() -> None:
    other = replace(ISSUER.public, key_id="kid-2")
    bundle = TrustBundle(TD).with_jwt_key(other).with_wit_key(ISSUER.public)
    again = TrustBundle.parse(TD, bundle.to_json())
    assert (again.jwt_keys, again.wit_keys) == (bundle.jwt_keys, bundle.wit_keys)
    assert TrustBundle.parse(TD, bundle.to_wit_json()).jwt_keys == ()
    assert TrustBundle.parse(TD, bundle.to_jwt_json()).wit_keys == ()
    tainted = bundle.with_tainted_key("kid-1")
    assert [key.tainted for key in (*tainted.jwt_keys, *tainted.wit_keys)] == [False, True]
    assert tainted.with_tainted_key("kid-1") is tainted
    assert tainted.without_key("kid-1").wit_keys == ()
    assert tainted.sequence == bundle.sequence + 1
