# SPDX-License-Identifier: Apache-2.0
"""The cases of tests/vectors/jwt_svid/cases.json; written by `generate.py jwt_svid`.

A case is a token, an audience, bundles by trust domain, a time, revocations, and what a validator must answer: "ok"
with the ID, or an error code. `twin` names a case that passes and differs in one fact. Tokens are put together here by
hand, with nothing of the code that they test.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.simulator import NOW

PATH = "/segment/registry/host/h1/svc/models"
ID = f"spiffe://td{PATH}"
AUDIENCE = "spiffe://td/segment/storage/s3"
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}

P256, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
P384, P521 = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
FOREIGN = ec.generate_private_key(ec.SECP256R1())

_cases: list[dict[str, Any]] = []


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int) -> str:
    return b64(value.to_bytes(size))


def jwk(kid: str, key: Any, **more: Any) -> dict[str, Any]:
    public = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        shape = {"kty": "RSA", "n": number(public.n, 256), "e": number(public.e, 3)}
    else:
        size = (key.curve.key_size + 7) // 8
        curve = f"P-{key.curve.key_size}"
        shape = {"kty": "EC", "crv": curve, "x": number(public.x, size), "y": number(public.y, size)}
    return {"use": "jwt-svid", "kid": kid, **shape, **more}


KEYS = [jwk("p256", P256), jwk("p384", P384), jwk("p521", P521), jwk("rsa", RSA)]
BUNDLES: dict[str, Any] = {"td": {"keys": KEYS}, "other.org": {"keys": [jwk("p256", FOREIGN)]}}


def sign(algorithm: str, key: Any, data: bytes) -> bytes:
    kind, digest = algorithm[:2], HASHES.get(algorithm[2:], hashes.SHA256())
    if isinstance(key, bytes):
        made = hmac.HMAC(key, digest)
        made.update(data)
        return made.finalize()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size) + s.to_bytes(size)
    if kind == "PS":
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(data, padding.PKCS1v15(), digest)


def token(header: Any, claims: Any, key: Any = P256, algorithm: str = "") -> str:
    """Sign; `header` and `claims` are values, or text that is taken as it is."""
    parts = [each if isinstance(each, str) else json.dumps(each, separators=(",", ":")) for each in (header, claims)]
    signed = ".".join(b64(part.encode()) for part in parts)
    algorithm = algorithm or (header["alg"] if isinstance(header, dict) and header.get("alg") else "ES256")
    return f"{signed}.{b64(sign(str(algorithm), key, signed.encode()))}"


HEADER = {"alg": "ES256", "kid": "p256", "typ": "JWT"}
CLAIMS = {"sub": ID, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW}


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def case(
    title: str,
    made: str,
    expect: str = "ok",
    *,
    twin: str = "plain",
    at: float = NOW,
    audience: str = AUDIENCE,
    bundles: Mapping[str, Any] = BUNDLES,
    revocations: Sequence[Mapping[str, Any]] = (),
    limits: Mapping[str, Sequence[str]] | None = None,
    identity: str = ID,
) -> None:
    written: dict[str, Any] = {"name": title, "expect": expect, "at": at, "audience": audience, "token": made}
    # What most cases share stands once, at the top of the file.
    if bundles is not BUNDLES:
        written["bundles"] = bundles
    if revocations:
        written["revocations"] = list(revocations)
    if limits is not None:
        written |= {"limits": limits, "members": MEMBERS}
    written |= {"id": identity} if expect == "ok" else {"twin": twin}
    _cases.append(written)


def jwt_svids() -> dict[str, Any]:
    """Every case."""
    _cases.clear()
    groups = (_good, _form, _headers, _subjects, _audiences, _times, _keys, _signatures, _revocations, _limits)
    for group in groups:
        group()
    return {"bundles": BUNDLES, "cases": list(_cases)}


def _good() -> None:
    case("plain", token(HEADER, CLAIMS))
    keys = {"RS": RSA, "PS": RSA, "ES256": P256, "ES384": P384, "ES512": P521}
    kids = {"RS": "rsa", "PS": "rsa", "ES256": "p256", "ES384": "p384", "ES512": "p521"}
    for kind in ("RS", "ES", "PS"):
        for size in HASHES:
            name = kind + size
            key = keys.get(name) or keys[kind]
            header = {**HEADER, "alg": name, "kid": kids.get(name) or kids[kind]}
            case(name, token(header, CLAIMS, key))
    case("without typ", token(without(HEADER, "typ"), CLAIMS))
    case("typ JOSE", token({**HEADER, "typ": "JOSE"}, CLAIMS))
    case("of another trust domain", token(HEADER, {**CLAIMS, "sub": f"spiffe://other.org{PATH}"}, FOREIGN),
         identity=f"spiffe://other.org{PATH}")  # fmt: skip
    more = {"iss": "https://issuer.example", "jti": "1f", "roles": ["a"], "n": {"x": None, "y": 1.5, "z": True}}
    case("other claims", token(HEADER, {**CLAIMS, **more}))
    case("without iat", token(HEADER, without(CLAIMS, "iat")))
    case("iat in the future", token(HEADER, {**CLAIMS, "iat": NOW + 60}))


def _form() -> None:
    good = token(HEADER, CLAIMS)
    header, claims, signature = good.split(".")
    case("empty", "", "malformed_token")
    case("one part", header, "malformed_token")
    case("two parts", f"{header}.{claims}", "malformed_token")
    case("four parts", f"{good}.{signature}", "malformed_token")
    case("five parts, as in JWE", ".".join([header, *[claims] * 4]), "malformed_token")
    flat = json.dumps({"protected": header, "payload": claims, "signature": signature})
    case("flattened JSON serialization", flat, "malformed_token")
    general = {"payload": claims, "signatures": [{"protected": header, "signature": signature}]}
    case("general JSON serialization", json.dumps(general), "malformed_token")
    case("padding", f"{header}.{claims}.{signature}==", "malformed_token")
    case("blank at the end", f"{good} ", "malformed_token")
    case("newline in it", f"{header}.{claims[:9]}\n{claims[9:]}.{signature}", "malformed_token")
    case("not ASCII", f"{header}.{claims}.é", "malformed_token")
    last = {"A": "B", "Q": "R", "g": "h", "w": "x"}[signature[-1]]
    case("bits that no byte needs are set", f"{header}.{claims}.{signature[:-1]}{last}", "malformed_token")
    case("standard base64", f"{header}.{b64(json.dumps({**CLAIMS, 'x': '?>?>?'}).encode())[:-3]}+/+.{signature}",
         "malformed_token")  # fmt: skip
    case("too long", token(HEADER, {**CLAIMS, "x": "y" * 12288}), "token_too_long", twin="long")
    case("long", token(HEADER, {**CLAIMS, "x": "y" * 11000}))
    case("no header", f".{claims}.{signature}", "malformed_header")
    for name, text in _no_objects(json.dumps(HEADER)).items():
        case(f"header: {name}", token(text, CLAIMS), "malformed_header")
    case("no claims", f"{header}..{signature}", "malformed_claims")
    for name, text in _no_objects(json.dumps(CLAIMS)).items():
        case(f"claims: {name}", token(HEADER, text), "malformed_claims")


def _no_objects(good: str) -> dict[str, str]:
    return {
        "no JSON": "alg",
        "an array": "[]",
        "a string": '"x"',
        "truncated": good[:-1],
        "something after it": good + "x",
        "a name twice": good[:-1] + ',"alg":"ES256","alg":"ES256"}',
        "NaN": good[:-1] + ',"x":NaN}',
        "a number that is infinite": good[:-1] + ',"x":1e999}',
        "a number of 400 digits": good[:-1] + ',"x":' + "9" * 400 + "}",
        "half a surrogate pair": good[:-1] + ',"x":"\\ud800"}',
        "half a surrogate pair in a name": good[:-1] + ',"\\ud800":1}',
        "nested too deep": good[:-1] + ',"x":' + "[" * 17 + "]" * 17 + "}",
        "nested so deep that a parser may break": good[:-1] + ',"x":' + "[" * 5000,
        "a byte order mark": "\ufeff" + good,
    }


def _headers() -> None:
    for name in ("crit", "jwk", "jku", "x5u", "x5c", "x5t", "cty", "zip", "b64"):
        value: Any = {"crit": ["b64"], "b64": True}.get(name, "x")
        case(f"header: {name}", token({**HEADER, name: value}, CLAIMS), "header_not_allowed")
    for name in ("none", "None", "NONE", "", "es256", "ES256K", "HS256", "HS384", "HS512", "EdDSA", "dir", "ES"):
        case(f"alg {name or 'empty'}", token({**HEADER, "alg": name}, CLAIMS), "algorithm_not_allowed")
    case("alg none, no signature", token({**HEADER, "alg": "none"}, CLAIMS).rpartition(".")[0] + ".",
         "algorithm_not_allowed")  # fmt: skip
    public = P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    case("alg HS256 with the public key as secret", token({**HEADER, "alg": "HS256"}, CLAIMS, public),
         "algorithm_not_allowed")  # fmt: skip
    case("alg EdDSA, signed so", token({**HEADER, "alg": "EdDSA"}, CLAIMS, ED25519), "algorithm_not_allowed")
    case("alg is missing", token(without(HEADER, "alg"), CLAIMS), "algorithm_not_allowed")
    for value in (None, 1, ["ES256"], {}):
        case(f"alg is {json.dumps(value)}", token({**HEADER, "alg": value}, CLAIMS, P256, "ES256"),
             "algorithm_not_allowed")  # fmt: skip
    for value in ("jwt", "at+jwt", "wit+jwt", "", None, ["JWT"], 1):
        case(f"typ {json.dumps(value)}", token({**HEADER, "typ": value}, CLAIMS), "type_not_allowed")
    case("kid is missing", token(without(HEADER, "kid"), CLAIMS), "key_id_missing")
    for value in ("", None, 1, ["p256"]):
        case(f"kid is {json.dumps(value)}", token({**HEADER, "kid": value}, CLAIMS), "key_id_missing")


def _subjects() -> None:
    case("sub is missing", token(HEADER, without(CLAIMS, "sub")), "subject_missing")
    for value in ("", "models", None, 1, [ID], "https://td/x", "spiffe://TD/x", "spiffe://td/x/", "spiffe://td:1/x",
                  "spiffe://td/%61", "spiffe://td/../x", f"spiffe://td/{'x' * 2048}"):  # fmt: skip
        case(f"sub is {json.dumps(value)[:40]}", token(HEADER, {**CLAIMS, "sub": value}), "spiffe_id_invalid")
    case("sub has no path", token(HEADER, {**CLAIMS, "sub": "spiffe://td"}), "spiffe_id_root_path")


def _audiences() -> None:
    case("aud is a string", token(HEADER, {**CLAIMS, "aud": AUDIENCE}))
    case("aud of several", token(HEADER, {**CLAIMS, "aud": ["x", AUDIENCE, "y"]}))
    case("aud is missing", token(HEADER, without(CLAIMS, "aud")), "audience_missing")
    for value in ([], "", None):
        case(f"aud is {json.dumps(value)}", token(HEADER, {**CLAIMS, "aud": value}), "audience_missing")
    for value in (1, {}, {AUDIENCE: 1}, [1], [AUDIENCE, None], [[AUDIENCE]], True):
        case(f"aud is {json.dumps(value)[:30]}", token(HEADER, {**CLAIMS, "aud": value}), "malformed_claim")
    case("another audience", token(HEADER, CLAIMS), "wrong_audience", audience=AUDIENCE + "/x")
    case("audience in another case", token(HEADER, CLAIMS), "wrong_audience", audience=AUDIENCE.upper())
    case("a part of the audience", token(HEADER, {**CLAIMS, "aud": AUDIENCE}), "wrong_audience",
         audience=AUDIENCE[:-1], twin="aud is a string")  # fmt: skip
    case("no audience asked for", token(HEADER, CLAIMS), "wrong_audience", audience="")


def _times() -> None:
    case("the last moment", token(HEADER, CLAIMS), at=NOW + 299.9)
    case("at exp", token(HEADER, CLAIMS), "expired", at=NOW + 300, twin="the last moment")
    case("after exp", token(HEADER, CLAIMS), "expired", at=NOW + 301, twin="the last moment")
    case("exp with a fraction", token(HEADER, {**CLAIMS, "exp": NOW + 0.5}))
    case("exp with a fraction, at exp", token(HEADER, {**CLAIMS, "exp": NOW + 0.5}), "expired", at=NOW + 0.5,
         twin="exp with a fraction")  # fmt: skip
    case("exp is missing", token(HEADER, without(CLAIMS, "exp")), "expiry_missing")
    case("at nbf", token(HEADER, {**CLAIMS, "nbf": NOW}))
    case("before nbf", token(HEADER, {**CLAIMS, "nbf": NOW}), "not_yet_valid", at=NOW - 1, twin="at nbf")
    for name in ("exp", "nbf", "iat"):
        for value in (str(NOW + 300), None, True, [], -1, 10**12):
            case(f"{name} is {json.dumps(value)}", token(HEADER, {**CLAIMS, name: value}), "malformed_claim")
    case("jti is a number", token(HEADER, {**CLAIMS, "jti": 1}), "malformed_claim", twin="other claims")


def _keys() -> None:
    plain = token(HEADER, CLAIMS)
    case("no bundles", plain, "unknown_trust_domain", bundles={})
    case("bundle of another trust domain alone", plain, "unknown_trust_domain",
         bundles={"other.org": BUNDLES["td"]})  # fmt: skip
    case("bundle without keys", plain, "unknown_trust_domain", bundles={"td": {"keys": []}})
    case("unknown kid", token({**HEADER, "kid": "x"}, CLAIMS), "key_unknown")
    case("kid of another trust domain's key", token({**HEADER, "kid": "far"}, CLAIMS), "key_unknown",
         bundles={"td": {"keys": KEYS}, "other.org": {"keys": [jwk("far", P256)]}})  # fmt: skip
    case("signed by another trust domain's key of that kid", token(HEADER, CLAIMS, FOREIGN), "bad_signature")
    foreign = {"td": {"keys": [{**KEYS[0], "use": "wit-svid"}]}}
    case("key of another use", plain, "unknown_trust_domain", bundles=foreign)
    case("key that ends later", plain, bundles={"td": {"keys": [jwk("p256", P256, exp=NOW + 1)]}})
    case("key that has ended", plain, "key_expired", bundles={"td": {"keys": [jwk("p256", P256, exp=NOW)]}},
         twin="key that ends later")  # fmt: skip


def _signatures() -> None:
    plain = token(HEADER, CLAIMS)
    header, claims, signature = plain.split(".")
    case("signed by a stranger", token(HEADER, CLAIMS, STRANGER), "bad_signature")
    case("no signature", f"{header}.{claims}.", "bad_signature")
    case("another signature", f"{header}.{claims}.{token(HEADER, {**CLAIMS, 'x': 1}).split('.')[2]}", "bad_signature")
    case("all zero", f"{header}.{claims}.{b64(bytes(64))}", "bad_signature")
    case("DER instead of r and s", f"{header}.{claims}.{b64(P256.sign(b'x', ec.ECDSA(hashes.SHA256())))}",
         "bad_signature")  # fmt: skip
    case("a byte more", f"{header}.{claims}.{b64(base64.urlsafe_b64decode(signature + '==') + bytes(1))}",
         "bad_signature")  # fmt: skip
    other = b64(json.dumps({**CLAIMS, "sub": f"spiffe://td{PATH}-2"}).encode())
    case("claims changed after signing", f"{header}.{other}.{signature}", "bad_signature")
    changed = b64(json.dumps(without(HEADER, "typ")).encode())
    case("header changed after signing", f"{changed}.{claims}.{signature}", "bad_signature", twin="without typ")
    for name, kid, key in (("ES384", "p256", P256), ("ES512", "p256", P256), ("ES256", "p384", P384),
                           ("RS256", "p256", RSA), ("PS256", "p256", RSA), ("ES256", "rsa", P256)):  # fmt: skip
        case(f"{name} with the key {kid}", token({**HEADER, "alg": name, "kid": kid}, CLAIMS, key),
             "algorithm_mismatch", twin=name)  # fmt: skip
    rsa256 = {**HEADER, "kid": "rsa"}
    case("PS256 signed as RS256", token({**rsa256, "alg": "PS256"}, CLAIMS, RSA, "RS256"), "bad_signature",
         twin="PS256")  # fmt: skip
    case("RS256 signed as RS384", token({**rsa256, "alg": "RS256"}, CLAIMS, RSA, "RS384"), "bad_signature",
         twin="RS256")  # fmt: skip
    signed = token({**rsa256, "alg": "PS256"}, CLAIMS, RSA).rpartition(".")[0]
    no_salt = RSA.sign(signed.encode(), padding.PSS(padding.MGF1(hashes.SHA256()), 0), hashes.SHA256())
    case("PS256 without salt", f"{signed}.{b64(no_salt)}", "bad_signature", twin="PS256")


def _revocations() -> None:
    made = token(HEADER, {**CLAIMS, "jti": "1f"})
    silent = token(HEADER, without(CLAIMS, "iat"))
    case("another token is revoked", made, revocations=[{"serial": "1e"}])
    case("revoked", made, "revoked_token", revocations=[{"serial": "1f"}], twin="another token is revoked")
    case("another key is revoked", made, revocations=[{"authority_id": "p384"}])
    case("its key is revoked", made, "revoked_authority", revocations=[{"authority_id": "p256"}],
         twin="another key is revoked")  # fmt: skip
    pattern = {"pattern": "spiffe://{td}/segment/registry/**"}
    case("issued when its ID was revoked", made, revocations=[{**pattern, "issued_before": NOW}])
    case("issued before its ID was revoked", made, "revoked_id", revocations=[{**pattern, "issued_before": NOW + 1}],
         twin="issued when its ID was revoked")  # fmt: skip
    case("nobody knows when it was issued", silent, "revoked_id", revocations=[{**pattern, "issued_before": 1}],
         twin="without iat")  # fmt: skip
    case("other IDs are revoked", made, revocations=[{"pattern": "spiffe://{td}/segment/a/**", "issued_before": 2**40}])


# For the cases with keys that may sign for some segments alone: which segment has which IDs of the trust domain "td".
MEMBERS = {"registry": ["spiffe://td/segment/registry/**"], "inference": ["spiffe://td/segment/inference/**"]}


def _limits() -> None:
    made = token(HEADER, CLAIMS)
    case("its key may sign for its segment", made, limits={"p256": ["registry"]})
    case("its key may sign for another segment", made, "segment_not_listed", limits={"p256": ["inference"]},
         twin="its key may sign for its segment")  # fmt: skip
    case("its key may sign for none", made, "segment_not_listed", limits={"p256": []},
         twin="its key may sign for its segment")  # fmt: skip
    case("another key may sign for none", made, limits={"p384": []})
    outside = token(HEADER, {**CLAIMS, "sub": "spiffe://td/elsewhere"})
    case("an ID in no segment", outside, identity="spiffe://td/elsewhere", limits={})
    case("an ID in no segment, by a key for some", outside, "segment_not_listed", limits={"p256": ["registry"]},
         twin="an ID in no segment")  # fmt: skip
