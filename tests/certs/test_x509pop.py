# SPDX-License-Identifier: Apache-2.0
"""The x509pop messages: SPIRE's own bytes are read, every wrong answer is refused, and nothing else is ever raised."""

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import CertsError, Challenge, EvidenceError, NodeCertificateError, read_evidence, write_evidence
from tests.node_pki import NodePki

SERVER, NODE = bytes(range(32)), bytes(range(32, 64))
KEYS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
}
EC, RSA = KEYS["P-256"], KEYS["RSA"]
TWIN = {"RSA": rsa.generate_private_key(65537, 2048), "P-256": ec.generate_private_key(ec.SECP256R1())}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def kind(name: str) -> str:
    return "rsa_signature" if name == "RSA" else "ecdsa_signature"


# --- evidence -------------------------------------------------------------------------------------------------------


def test_evidence_is_as_spire_writes_it() -> None:
    chain = NodePki().node().chain
    payload = write_evidence([*chain, b"\x00\xff"])
    assert payload == b'{"certificates":["%s","AP8="]}' % b64(chain[0]).encode()
    assert read_evidence(payload) == (*chain, b"\x00\xff")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "malformed_evidence"),
        (b"null", "malformed_evidence"),
        (b"[]", "malformed_evidence"),
        (b'{"certificates":["AA=="]', "malformed_evidence"),
        (b'{"certificates":["AA=="],"certificates":["AA=="]}', "malformed_evidence"),
        (b'{"certificates":["AA=="],"x":NaN}', "malformed_evidence"),
        (b'\xff{"certificates":["AA=="]}', "malformed_evidence"),
        (b"[" * 60_000, "malformed_evidence"),
        (b'{"certificates":["AA=="]}' + b" " * 65_536, "malformed_evidence"),
        (b"{}", "no_certificate"),
        (b'{"certificates":null}', "no_certificate"),
        (b'{"certificates":[]}', "no_certificate"),
        (b'{"Certificates":["AA=="]}', "no_certificate"),
        (b'{"certificates":"AA=="}', "malformed_evidence"),
        (b'{"certificates":{"0":"AA=="}}', "malformed_evidence"),
        (b'{"certificates":["AA==",1]}', "malformed_evidence"),
        (b'{"certificates":["AA"]}', "malformed_evidence"),
        (b'{"certificates":["AB=="]}', "malformed_evidence"),
        (b'{"certificates":["A-=="]}', "malformed_evidence"),
        (b'{"certificates":["AA==\\n"]}', "malformed_evidence"),
        (b'{"certificates":["\\u00e4A=="]}', "malformed_evidence"),
        (b'{"certificates":["AA==","AA==","AA==","AA==","AA==","AA=="]}', "too_many_certificates"),
        (b'{"certificates":["!","!","!","!","!","!"]}', "too_many_certificates"),
    ],
)
def test_what_is_no_evidence(payload: bytes, code: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        read_evidence(payload)
    assert (refused.value.code, refused.value.grpc_status) == (code, "INVALID_ARGUMENT")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    for read in (read_evidence, Challenge.read):
        with pytest.raises(EvidenceError):
            read(data)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(b64)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
fields = st.dictionaries(st.sampled_from(["nonce", "signature", "r", "s"]) | st.text(max_size=3), values)
members = st.dictionaries(st.sampled_from(["certificates", "rsa_signature", "ecdsa_signature"]), values | fields)


@given(members)
def test_any_json(value: dict[str, Any]) -> None:
    message = encoded(value)
    for read in (read_evidence, Challenge.read):
        try:
            read(message)
        except EvidenceError:
            continue


@given(members, st.sampled_from(sorted(KEYS)))
def test_no_answer_but_the_right_one(value: dict[str, Any], name: str) -> None:
    key = KEYS[name].public_key()
    with pytest.raises(CertsError):
        Challenge.to(key, SERVER).check(encoded(value), key)


# --- challenge and answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEYS)
def test_an_answer_holds(name: str) -> None:
    key = KEYS[name]
    challenge = Challenge.to(key.public_key(), SERVER)
    challenge.check(Challenge.read(challenge.message()).answer(key, NODE), key.public_key())


def test_a_challenge_is_as_spire_writes_it() -> None:
    nonce = b64(SERVER).encode()
    assert Challenge.to(RSA.public_key(), SERVER).message() == (
        b'{"rsa_signature":{"nonce":"' + nonce + b'"},"ecdsa_signature":null}'
    )
    assert Challenge.to(EC.public_key(), SERVER).message() == (
        b'{"rsa_signature":null,"ecdsa_signature":{"nonce":"' + nonce + b'"}}'
    )


def test_an_answer_as_spire_writes_it_holds() -> None:
    """What spire-agent sends: RSA-PSS with the longest salt that fits, ECDSA's two numbers without leading zeros."""
    digest = hashlib.sha256(SERVER + NODE).digest()
    longest = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    signature = RSA.sign(digest, longest, Prehashed(hashes.SHA256()))
    answer = {"rsa_signature": {"nonce": b64(NODE), "signature": b64(signature)}, "ecdsa_signature": None}
    Challenge.to(RSA.public_key(), SERVER).check(encoded(answer), RSA.public_key())
    for name in ("P-256", "P-521"):
        r, s = decode_dss_signature(KEYS[name].sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        numbers = {word: b64(n.to_bytes((n.bit_length() + 7) // 8)) for word, n in (("r", r), ("s", s))}
        answer = {"rsa_signature": None, "ecdsa_signature": {"nonce": b64(NODE), **numbers}}
        Challenge.to(KEYS[name].public_key(), SERVER).check(encoded(answer), KEYS[name].public_key())


def test_an_answer_is_as_spire_reads_it() -> None:
    """Verified as spire-server does: any salt, and numbers that are big-endian bytes."""
    rsa_answer = json.loads(Challenge.to(RSA.public_key(), SERVER).answer(RSA, NODE))
    assert list(rsa_answer) == ["rsa_signature", "ecdsa_signature"]
    assert rsa_answer["ecdsa_signature"] is None
    sent = rsa_answer["rsa_signature"]
    assert (list(sent), base64.b64decode(sent["nonce"])) == (["nonce", "signature"], NODE)
    any_salt = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    digest = hashlib.sha256(SERVER + NODE).digest()
    RSA.public_key().verify(base64.b64decode(sent["signature"]), digest, any_salt, Prehashed(hashes.SHA256()))
    assert list(json.loads(Challenge.to(EC.public_key(), SERVER).answer(EC, NODE))["ecdsa_signature"]) == [
        "nonce",
        "r",
        "s",
    ]


@pytest.mark.parametrize("name", ["RSA", "P-256"])
def test_what_signs_something_else_is_refused(name: str) -> None:
    key, twin = KEYS[name], TWIN[name]
    challenge, other = (Challenge.to(key.public_key(), nonce) for nonce in (SERVER, NODE))
    good = challenge.answer(key, NODE)
    for wrong in (challenge.answer(twin, NODE), other.answer(key, NODE), _with(good, nonce=SERVER)):
        with pytest.raises(NodeCertificateError) as refused:
            challenge.check(wrong, key.public_key())
        assert refused.value.code == "bad_signature"
    # The answer to an earlier challenge, played again.
    with pytest.raises(NodeCertificateError):
        other.check(good, key.public_key())
    challenge.check(good, key.public_key())


def _with(answer: bytes, **fields: bytes) -> bytes:
    """Replace fields of an answer."""
    members = json.loads(answer)
    found = next(value for value in members.values() if value)
    found.update({name: b64(value) for name, value in fields.items()})
    return encoded(members)


@pytest.mark.parametrize("name", ["RSA", "P-256"])
@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_nonce_has_32_bytes(name: str, size: int) -> None:
    key = KEYS[name]
    challenge = Challenge.to(key.public_key(), SERVER)
    with pytest.raises(EvidenceError) as refused:
        challenge.check(_with(challenge.answer(key, NODE), nonce=bytes(size)), key.public_key())
    assert refused.value.code == "wrong_nonce"
    with pytest.raises(EvidenceError) as refused:
        Challenge.read(_with(challenge.message(), nonce=bytes(size)))
    assert refused.value.code == "wrong_nonce"


@pytest.mark.parametrize(
    ("name", "fields", "error"),
    [
        ("RSA", {"signature": b""}, NodeCertificateError),
        ("RSA", {"signature": bytes(256)}, NodeCertificateError),
        ("RSA", {"signature": b"\xff" * 1024}, NodeCertificateError),
        ("RSA", {"signature": bytes(1025)}, EvidenceError),
        ("P-256", {"r": b"", "s": b""}, NodeCertificateError),
        ("P-256", {"r": b"\x01"}, NodeCertificateError),
        ("P-256", {"r": b"\xff" * 32, "s": b"\xff" * 32}, NodeCertificateError),
        ("P-256", {"r": bytes(33)}, EvidenceError),
    ],
)
def test_a_signature_that_is_none(name: str, fields: dict[str, bytes], error: type[CertsError]) -> None:
    key = KEYS[name]
    challenge = Challenge.to(key.public_key(), SERVER)
    with pytest.raises(error):
        challenge.check(_with(challenge.answer(key, NODE), **fields), key.public_key())


@pytest.mark.parametrize("name", ["RSA", "P-256"])
@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("nonce"),
        lambda found: found.update(nonce=1),
        lambda found: found.update(nonce="!"),
        lambda found: found.update(nonce=b64(NODE).rstrip("=")),
        lambda found: [found.pop(name) for name in ("signature", "r") if name in found],
        lambda found: found.update(signature=[], r=[]),
    ],
)
def test_fields_that_cannot_be_read(name: str, change: Any) -> None:
    key = KEYS[name]
    challenge = Challenge.to(key.public_key(), SERVER)
    members = json.loads(challenge.answer(key, NODE))
    change(members[kind(name)])
    with pytest.raises(EvidenceError) as refused:
        challenge.check(encoded(members), key.public_key())
    assert refused.value.code == "malformed_answer"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b'{"rsa_signature":null,"ecdsa_signature":null}',
        b'{"rsa_signature":{"nonce":"%s"},"ecdsa_signature":{"nonce":"%s"}}' % ((b64(NODE).encode(),) * 2),
        b'{"rsa_signature":"%s"}' % b64(NODE).encode(),
        b'{"rsa_signature":{"nonce":"%s"}}' % b64(NODE).encode() + b" " * 4096,
    ],
)
def test_a_message_has_exactly_one_kind(message: bytes) -> None:
    with pytest.raises(EvidenceError) as challenge:
        Challenge.read(message)
    assert challenge.value.code == "malformed_challenge"
    with pytest.raises(EvidenceError) as answer:
        Challenge.to(RSA.public_key(), SERVER).check(message, RSA.public_key())
    assert answer.value.code == "malformed_answer"


def test_another_kind_of_key_answers_nothing() -> None:
    challenge = Challenge.to(RSA.public_key(), SERVER)
    with pytest.raises(EvidenceError) as refused:
        challenge.answer(EC, NODE)
    assert refused.value.code == "wrong_kind"
    for_ec = Challenge.to(EC.public_key(), SERVER)
    with pytest.raises(EvidenceError, match="another kind of key"):
        challenge.check(for_ec.answer(EC, NODE), RSA.public_key())
    with pytest.raises(EvidenceError, match="another kind of key"):
        for_ec.check(for_ec.answer(EC, NODE), RSA.public_key())
