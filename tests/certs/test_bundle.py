# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import (
    BundleError,
    JwtKey,
    KeyType,
    TrustBundle,
    TrustDomain,
    X509Root,
    generate_key,
    issue_ca,
    issue_x509,
    public_key_der,
)

TD = TrustDomain.parse("td")
NOW = 1_800_000_000


def root(key_type: KeyType = KeyType.EC_P256, *, at: int = NOW) -> bytes:
    return issue_ca(TD, generate_key(key_type), at=at, random=os.urandom).der


ONE, TWO = root(), root(KeyType.EC_P384)
JWT = JwtKey("kid-1", public_key_der(generate_key(KeyType.EC_P256).public_key()))
JWT_RSA = JwtKey("kid-2", public_key_der(generate_key(KeyType.RSA_2048).public_key()))
FULL = TrustBundle(TD, (X509Root(ONE), X509Root(TWO)), (JWT, JWT_RSA), sequence=7, refresh_hint=300)


def x5c(der: bytes = ONE) -> list[str]:
    return [base64.b64encode(der).decode()]


def code(document: object) -> str:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(BundleError) as caught:
        TrustBundle.parse(TD, text)
    return caught.value.code


def test_json_round_trip() -> None:
    assert TrustBundle.parse(TD, FULL.to_json()) == FULL


@pytest.mark.parametrize("key_type", KeyType)
def test_every_kind_of_root(key_type: KeyType) -> None:
    bundle = TrustBundle.of(TD, [root(key_type)])
    assert TrustBundle.parse(TD, bundle.to_json()) == bundle


def test_json_is_what_the_standard_says() -> None:
    document = json.loads(FULL.to_json())
    assert set(document) == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
    first, _, third, fourth = document["keys"]
    assert set(first) == {"use", "kty", "crv", "x", "y", "x5c"}
    assert (first["use"], first["kty"], first["crv"], first["x5c"]) == ("x509-svid", "EC", "P-256", x5c())
    numbers = x509.load_der_x509_certificate(ONE).public_key().public_numbers()  # type: ignore[union-attr]
    assert int.from_bytes(base64.urlsafe_b64decode(first["x"] + "=")) == numbers.x  # type: ignore[union-attr]
    assert set(third) == {"use", "kid", "kty", "crv", "x", "y"}
    assert (third["use"], third["kid"]) == ("jwt-svid", "kid-1")
    assert (fourth["kty"], fourth["e"]) == ("RSA", "AQAB")


def test_coordinates_keep_their_leading_zeros() -> None:
    """RFC 7518 section 6.2.1.2; one key in 128 shows it."""
    key = next(
        key
        for key in (ec.derive_private_key(number, ec.SECP256R1()).public_key() for number in range(1, 2000))
        if key.public_numbers().x < 1 << 248
    )
    bundle = TrustBundle(TD, (), (JwtKey("k", public_key_der(key)),))
    assert len(json.loads(bundle.to_json())["keys"][0]["x"]) == 43
    assert TrustBundle.parse(TD, bundle.to_json()) == bundle


def test_taint_stands_beside_the_json() -> None:
    tainted = FULL.with_tainted(FULL.x509_roots[0].authority_id)
    assert [each.tainted for each in tainted.x509_roots] == [True, False]
    assert b"taint" not in tainted.to_json()
    assert TrustBundle.parse(TD, tainted.to_json()).x509_roots == FULL.x509_roots


def test_empty_revokes_everything() -> None:
    assert TrustBundle.parse(TD, b'{"keys":[]}') == TrustBundle(TD)


def test_pem_and_der_round_trip() -> None:
    bundle = TrustBundle.of(TD, [ONE, TWO])
    assert TrustBundle.from_pem(TD, bundle.to_pem().encode()) == bundle
    assert TrustBundle.from_der(TD, bundle.to_der()) == bundle
    assert TrustBundle.from_der(TD, b"") == TrustBundle(TD)


def test_the_same_root_twice_counts_once() -> None:
    assert len(TrustBundle.of(TD, [ONE, ONE]).x509_roots) == 1


@pytest.mark.parametrize(
    ("name", "jwk"),
    [
        ("no use", {"kty": "EC", "x5c": x5c()}),
        ("unknown use", {"kty": "EC", "use": "sig", "x5c": x5c()}),
        ("wit-svid", {"kty": "EC", "use": "wit-svid", "kid": "k"}),
        ("no kty", {"use": "x509-svid", "x5c": x5c()}),
        ("unknown kty", {"kty": "oct", "use": "x509-svid", "x5c": x5c()}),
        ("kty that is no text", {"kty": ["EC"], "use": "x509-svid", "x5c": x5c()}),
        ("no x5c", {"kty": "EC", "use": "x509-svid"}),
        ("empty x5c", {"kty": "EC", "use": "x509-svid", "x5c": []}),
        ("null x5c", {"kty": "EC", "use": "x509-svid", "x5c": None}),
        ("jwt-svid of a curve that no JWT-SVID uses", {"kty": "EC", "use": "jwt-svid", "kid": "k", "crv": "secp256k1"}),
        ("jwt-svid of a curve that is no text", {"kty": "EC", "use": "jwt-svid", "kid": "k", "crv": {}}),
        ("jwt-svid of Ed25519", {"kty": "OKP", "use": "jwt-svid", "kid": "k", "crv": "Ed25519", "x": "AA"}),
    ],
)
def test_ignored(name: str, jwk: dict[str, Any]) -> None:
    good = {"kty": "EC", "use": "x509-svid", "x5c": x5c()}
    document = json.dumps({"keys": [jwk, good], "extra": {"a": 1}}).encode()
    assert TrustBundle.parse(TD, document) == TrustBundle.of(TD, [ONE])


@pytest.mark.parametrize(
    ("name", "jwk"),
    [
        ("x5c of several", {"kty": "EC", "use": "x509-svid", "x5c": [*x5c(), "junk"]}),
        ("kid", {"kty": "EC", "use": "x509-svid", "kid": "k", "x5c": x5c()}),
        ("other parameters", {"kty": "RSA", "use": "x509-svid", "x5c": x5c(), "alg": "none", "x5u": "https://x"}),
    ],
)
def test_tolerated(name: str, jwk: dict[str, Any]) -> None:
    assert TrustBundle.parse(TD, json.dumps({"keys": [jwk]}).encode()) == TrustBundle.of(TD, [ONE])


LEAF = issue_x509(
    TD.with_path("/a"),
    generate_key(KeyType.EC_P256).public_key(),
    issue_ca(TD, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom),
    at=NOW,
    random=os.urandom,
).chain[0]
JWK: dict[str, Any] = json.loads(FULL.to_json())["keys"][2]
RSA_JWK: dict[str, Any] = json.loads(FULL.to_json())["keys"][3]


@pytest.mark.parametrize(
    ("name", "document", "expect"),
    [
        ("empty", b"", "malformed_bundle"),
        ("not JSON", b"keys", "malformed_bundle"),
        ("not UTF-8", b'{"keys":[],"a":"\xff"}', "malformed_bundle"),
        ("UTF-16", '{"keys":[]}'.encode("utf-16"), "malformed_bundle"),
        ("a list", [], "malformed_bundle"),
        ("a text", "keys", "malformed_bundle"),
        ("no keys", {}, "malformed_bundle"),
        ("keys is null", {"keys": None}, "malformed_bundle"),
        ("keys is an object", {"keys": {}}, "malformed_bundle"),
        ("an element is no object", {"keys": [1]}, "malformed_bundle"),
        ("deep", b'{"keys":' + b"[" * 100_000, "malformed_bundle"),
        ("a name twice", b'{"keys":[],"keys":[]}', "malformed_bundle"),
        ("NaN", b'{"keys":[],"spiffe_sequence":NaN}', "malformed_bundle"),
        ("sequence is a text", {"keys": [], "spiffe_sequence": "1"}, "malformed_bundle"),
        ("sequence is true", {"keys": [], "spiffe_sequence": True}, "malformed_bundle"),
        ("sequence is a fraction", {"keys": [], "spiffe_sequence": 1.5}, "malformed_bundle"),
        ("sequence is negative", {"keys": [], "spiffe_sequence": -1}, "malformed_bundle"),
        ("sequence of 65 bits", {"keys": [], "spiffe_sequence": 2**64}, "malformed_bundle"),
        ("sequence of 5000 digits", b'{"keys":[],"spiffe_sequence":' + b"9" * 5000 + b"}", "malformed_bundle"),
        ("hint of 64 bits", {"keys": [], "spiffe_refresh_hint": 2**63}, "malformed_bundle"),
        ("1025 keys", {"keys": [{}] * 1025}, "bundle_too_large"),
        ("more than 4 MiB", b" " * (4 * 1024 * 1024 + 1), "bundle_too_large"),
        ("x5c is a text", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": "a"}]}, "malformed_certificate"),
        ("x5c of a number", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [1]}]}, "malformed_certificate"),
        ("x5c in bad base64", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["a"]}]}, "malformed_certificate"),
        ("x5c not ASCII", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["é"]}]}, "malformed_certificate"),
        ("x5c of junk", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["AAAA"]}]}, "malformed_certificate"),
        ("x5c of a leaf", {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": x5c(LEAF)}]}, "not_a_ca"),
        ("no kid", {"keys": [{**JWK, "kid": ""}]}, "malformed_jwt_key"),
        ("kid is a number", {"keys": [{**JWK, "kid": 1}]}, "malformed_jwt_key"),
        ("kid twice", {"keys": [JWK, JWK]}, "malformed_jwt_key"),
        ("no coordinate", {"keys": [{key: JWK[key] for key in JWK if key != "y"}]}, "malformed_jwt_key"),
        ("coordinate is a number", {"keys": [{**JWK, "x": 1}]}, "malformed_jwt_key"),
        ("coordinate is long", {"keys": [{**JWK, "x": "A" * 3000}]}, "malformed_jwt_key"),
        ("coordinate in bad base64", {"keys": [{**JWK, "x": "?"}]}, "malformed_jwt_key"),
        ("coordinate not ASCII", {"keys": [{**JWK, "x": "é"}]}, "malformed_jwt_key"),
        ("point off the curve", {"keys": [{**JWK, "x": "AQ"}]}, "malformed_jwt_key"),
        ("RSA of no size", {"keys": [{**RSA_JWK, "n": ""}]}, "malformed_jwt_key"),
        ("RSA of 1016 bits", {"keys": [{**RSA_JWK, "n": "_" * 169}]}, "malformed_jwt_key"),
        ("RSA without e", {"keys": [{**RSA_JWK, "e": None}]}, "malformed_jwt_key"),
    ],
)
def test_refused(name: str, document: object, expect: str) -> None:
    assert code(document) == expect


def test_longest_sequence() -> None:
    assert TrustBundle.parse(TD, b'{"keys":[],"spiffe_sequence":18446744073709551615}').sequence == 2**64 - 1


def test_p521_jwt_keys_are_kept() -> None:
    key = ec.generate_private_key(ec.SECP521R1()).public_key()
    bundle = TrustBundle(TD, (), (JwtKey("k", public_key_der(key)),))  # type: ignore[arg-type]
    assert TrustBundle.parse(TD, bundle.to_json()) == bundle


def test_ed25519_root() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder(
            subject_name=x509.Name([]),
            issuer_name=x509.Name([]),
            public_key=key.public_key(),
            serial_number=1,
            not_valid_before=x509.load_der_x509_certificate(ONE).not_valid_before_utc,
            not_valid_after=x509.load_der_x509_certificate(ONE).not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    bundle = TrustBundle.of(TD, [certificate.public_bytes(serialization.Encoding.DER)])
    assert json.loads(bundle.to_json())["keys"][0]["kty"] == "OKP"
    assert TrustBundle.parse(TD, bundle.to_json()) == bundle
    assert bundle.x509_roots[0].authority_id == x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


@pytest.mark.parametrize("text", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_malformed_pem(text: bytes) -> None:
    with pytest.raises(BundleError):
        TrustBundle.from_pem(TD, text)


@pytest.mark.parametrize("blob", [b"\0", ONE[:-1], ONE + b"\0", b"\x30\x00"])
def test_malformed_der(blob: bytes) -> None:
    with pytest.raises(BundleError):
        TrustBundle.from_der(TD, blob)


def test_every_change_has_the_next_sequence() -> None:
    first = TrustBundle.of(TD, [ONE], sequence=4)
    first_id = first.x509_roots[0].authority_id
    added = first.with_root(TWO)
    assert (added.sequence, len(added.x509_roots)) == (5, 2)
    assert added.with_root(TWO) is added
    tainted = added.with_tainted(first_id)
    assert tainted.sequence == 6
    assert tainted.with_tainted(first_id) is tainted
    revoked = tainted.without(first_id)
    assert (revoked.sequence, [each.der for each in revoked.x509_roots]) == (7, [TWO])


def test_only_the_tainted_can_be_revoked() -> None:
    bundle = TrustBundle.of(TD, [ONE])
    for change, expect in ((bundle.without, "not_tainted"), (bundle.with_tainted, "unknown_authority")):
        with pytest.raises(BundleError) as caught:
            change(bundle.x509_roots[0].authority_id if expect == "not_tainted" else "00")
        assert caught.value.code == expect


def test_pruning() -> None:
    old, new = root(at=NOW - 3 * 24 * 3600), root()
    keys = (JwtKey("old", JWT.public_key, expires_at=NOW - 1), JwtKey("new", JWT.public_key, expires_at=NOW), JWT)
    bundle = TrustBundle(TD, (X509Root(old), X509Root(new)), keys, sequence=1)
    pruned = bundle.pruned(NOW)
    assert ([each.der for each in pruned.x509_roots], pruned.sequence) == ([new], 2)
    assert [key.key_id for key in pruned.jwt_keys] == ["new", "kid-1"]
    assert pruned.pruned(NOW) is pruned
    assert pruned.pruned(NOW + 365 * 24 * 3600) is pruned


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kty", "use", "kid", "x5c", "crv", "x", "y", "n", "e"]) | st.text(max_size=3), inner
        )
    ),
    max_leaves=8,
)
jwks = st.dictionaries(st.sampled_from(["kid", "x5c", "crv", "x", "y", "n", "e"]), json_values).flatmap(
    lambda fields: st.builds(
        lambda kty, use: {**fields, "kty": kty, "use": use},
        st.sampled_from(["EC", "RSA", "OKP"]),
        st.sampled_from(["x509-svid", "jwt-svid"]),
    )
)


@given(st.lists(jwks | json_values, max_size=3), json_values, json_values)
def test_any_document_is_a_bundle_or_a_known_error(keys: list[Any], sequence: object, hint: object) -> None:
    document = {"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint}
    _parse(json.dumps(document).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=100))
def test_any_bytes(text: bytes) -> None:
    _parse(text)


def _parse(text: bytes) -> None:
    try:
        bundle = TrustBundle.parse(TD, text)
    except BundleError as error:
        known = error.code in BundleError.sentences
        assert known
    else:
        assert TrustBundle.parse(TD, bundle.to_json()) == bundle


@given(
    st.permutations([ONE, TWO]), st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.text(min_size=1, max_size=9)
)
def test_round_trip(ders: list[bytes], sequence: int, hint: int, key_id: str) -> None:
    bundle = TrustBundle(TD, tuple(map(X509Root, ders)), (JwtKey(key_id, JWT_RSA.public_key),), sequence, hint)
    assert TrustBundle.parse(TD, bundle.to_json()) == bundle
