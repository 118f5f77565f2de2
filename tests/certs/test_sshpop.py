# SPDX-License-Identifier: Apache-2.0
"""SSH host certificates, and the messages by which a host proves that it holds the key of one."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1

from firedoor.certs import (
    BundleError,
    EvidenceError,
    SshCertificateError,
    SshChallenge,
    SshNode,
    read_ssh_authorities,
    read_ssh_evidence,
    verify_ssh_certificate,
    write_ssh_evidence,
)
from tests.node_pki import DAY, NOW
from tests.ssh_ca import USER, SshCa, SshHost, public_blob, public_line, rsa_blob, ssh_key_pem, string

KEYS: dict[str, Any] = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
}
CA = SshCa()
CAS = read_ssh_authorities(CA.line)
NONCE, OTHER = bytes(range(32)), bytes(32)


@pytest.mark.parametrize("ca_key", KEYS)
@pytest.mark.parametrize("key", KEYS)
def test_every_kind_of_key(key: str, ca_key: str) -> None:
    ca = SshCa(key=KEYS[ca_key])
    host = ca.host("gpu-1.example.org", key=KEYS[key])
    node = verify_ssh_certificate(read_ssh_evidence(write_ssh_evidence(host.certificate)), _cas(ca), NOW)
    assert (node.hostname, node.not_after) == ("gpu-1.example.org", NOW + 30 * DAY)
    digest = hashlib.sha256(host.certificate).digest()
    assert node.fingerprint == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    challenge = SshChallenge.of(NONCE)
    answer = SshChallenge.read(challenge.message()).answer(host.key, OTHER)
    challenge.check(answer, node.key)
    for other in KEYS.values():
        if other is not KEYS[key]:
            with pytest.raises((EvidenceError, SshCertificateError)):
                challenge.check(answer, other.public_key())


def _cas(*some: SshCa) -> frozenset[bytes]:
    return read_ssh_authorities(b"".join(ca.line for ca in some))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_ssh_keygen_makes(tmp_path: Path, kind: str) -> None:
    run = lambda *words: subprocess.run(["ssh-keygen", "-q", *words], check=True, cwd=tmp_path)  # noqa: E731
    try:
        run("-t", kind, "-N", "", "-f", "ca")
    except FileNotFoundError:
        pytest.skip("there is no ssh-keygen")
    run("-t", kind, "-N", "", "-f", "host")
    run("-s", "ca", "-h", "-I", "id", "-n", "gpu-1.example.org,gpu-1", "-V", "20250101:20350101", "host.pub")
    certificate = base64.b64decode((tmp_path / "host-cert.pub").read_bytes().split()[1])
    cas = read_ssh_authorities((tmp_path / "ca.pub").read_bytes())
    assert verify_ssh_certificate(certificate, cas, NOW, "example.org").hostname == "gpu-1"


REFUSED: dict[str, tuple[Callable[[], SshHost], str]] = {
    "a user's": (lambda: CA.host(type=USER), "not_a_host"),
    "no principal": (lambda: CA.host(named=False), "no_principal"),
    "257 principals": (lambda: CA.host(*(f"h{n}" for n in range(257))), "too_many_principals"),
    "a critical option": (lambda: CA.host(critical=[(b"force-command", string(b"x"))]), "critical_option"),
    "an unknown critical option": (lambda: CA.host(critical=[(b"x@example.org", b"")]), "critical_option"),
    "another CA": (lambda: SshCa().host(), "ca_unknown"),
    "the CA's key, another's signature": (
        lambda: CA.host(signer=ed25519.Ed25519PrivateKey.generate()),
        "bad_ca_signature",
    ),
    "its own CA": (lambda: SshCa(key=KEYS["P-256"]).host(key=KEYS["P-256"]), "ca_unknown"),
    "expired": (lambda: CA.host(days=(-30, 0)), "expired"),
    "not yet valid": (lambda: CA.host(days=(1, 30)), "not_yet_valid"),
    "RSA-1024": (lambda: CA.host(public=rsa_blob(1024)), "unsupported_key"),
    "RSA-16384": (lambda: CA.host(public=rsa_blob(16384)), "unsupported_key"),
    "a huge exponent": (lambda: CA.host(public=rsa_blob(2048, 2**2000 + 1)), "unsupported_key"),
    "a CA of RSA-16384": (lambda: CA.host(ca_blob=rsa_blob(16384), signer=KEYS["RSA"]), "unsupported_key"),
    "DSA": (lambda: CA.host(kind=b"ssh-dss-cert-v01@openssh.com"), "unsupported_key"),
    "a FIDO key": (lambda: CA.host(kind=b"sk-ssh-ed25519-cert-v01@openssh.com"), "unsupported_key"),
    "a key alone": (lambda: SshHost(public_blob(KEYS["Ed25519"]), None), "unsupported_key"),
    "a CA's SHA-1": (lambda: SshCa(key=KEYS["RSA"]).host(algorithm=b"ssh-rsa"), "weak_signature"),
    "a name that is no text": (lambda: CA.host(b"gpu-\xff"), "bad_principal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, code = REFUSED[case]
    with pytest.raises(SshCertificateError) as refused:
        verify_ssh_certificate(make().certificate, CAS | _cas(SshCa(key=KEYS["RSA"])), NOW)
    assert refused.value.code == code
    assert "gpu-" not in str(refused.value)


def test_it_counts_from_its_first_second_and_before_its_last() -> None:
    certificate = CA.host(days=(0, 1)).certificate
    assert verify_ssh_certificate(certificate, CAS, NOW)
    assert verify_ssh_certificate(certificate, CAS, NOW + DAY - 1)
    for at in (NOW - 1, NOW + DAY):
        with pytest.raises(SshCertificateError):
            verify_ssh_certificate(certificate, CAS, at)
    assert verify_ssh_certificate(CA.host(forever=True).certificate, CAS, 2**40).not_after == 0


@pytest.mark.parametrize(
    ("principal", "hostname"),
    [
        ("gpu-1.example.org", "gpu-1"),
        ("a.b.example.org", "a.b"),
        ("gpu-1.example.org.evil.net", ""),
        ("gpu-1xexample.org", ""),
        ("gpu-1.xample.org", ""),
        ("example.org", ""),
    ],
)
def test_the_canonical_domain(principal: str, hostname: str) -> None:
    certificate = CA.host(principal, "gpu-2.example.org").certificate
    if hostname:
        assert verify_ssh_certificate(certificate, CAS, NOW, "example.org").hostname == hostname
        return
    with pytest.raises(SshCertificateError) as refused:
        verify_ssh_certificate(certificate, CAS, NOW, "example.org")
    assert refused.value.code == "wrong_domain"


@pytest.mark.parametrize("cut", [1, 40, 100, 200])
def test_a_certificate_that_ends_too_early_or_too_late(cut: int) -> None:
    certificate = CA.host().certificate
    for wrong in (certificate[:-cut], certificate + bytes(cut), b"", certificate + bytes(20_000)):
        with pytest.raises(EvidenceError) as refused:
            verify_ssh_certificate(wrong, CAS, NOW)
        assert refused.value.code == "malformed_certificate"


@pytest.mark.parametrize("value", [0, 3, 66, 255])
def test_a_certificate_with_any_other_byte(value: int) -> None:
    """Points that are compressed, lengths that lie, numbers below zero: a sentence for each, nothing else."""
    ca = SshCa(key=ec.generate_private_key(ec.SECP256R1()))
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        certificate = ca.host("a", key=key).certificate
        for place in range(len(certificate)):
            altered = certificate[:place] + bytes([value]) + certificate[place + 1 :]
            if altered != certificate:
                with pytest.raises((EvidenceError, SshCertificateError)):
                    verify_ssh_certificate(altered, _cas(ca), NOW)


def test_nobody_else_makes_one() -> None:
    with pytest.raises(TypeError):
        SshNode()


# --- CAs ------------------------------------------------------------------------------------------------------------


def test_cas_are_read_as_ssh_keygen_writes_them() -> None:
    lines = [b"# ours", b"", *(SshCa(key=key).line.strip() for key in KEYS.values()), CA.line.strip()]
    assert len(read_ssh_authorities(b"\r\n".join(lines))) == 6
    assert read_ssh_authorities(b"# none\n") == frozenset()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"x", "malformed_ssh_key"),
        (b"ssh-ed25519 AAAA", "malformed_ssh_key"),
        (b"ssh-ed25519", "malformed_ssh_key"),
        (b"@cert-authority * " + CA.line, "malformed_ssh_key"),
        (b"ssh-dss AAAAB3NzaC1kc3MAAAA=", "malformed_ssh_key"),
        (CA.host().line, "malformed_ssh_key"),
        (ssh_key_pem(KEYS["Ed25519"]), "malformed_ssh_key"),
        (b"ssh-rsa " + base64.b64encode(rsa_blob(1024)), "unsupported_ssh_key"),
        (b"ssh-rsa " + base64.b64encode(rsa_blob(16384)), "unsupported_ssh_key"),
        (b"#" * (4 * 1024 * 1024 + 1), "bundle_too_large"),
        (b"".join(public_line(ed25519.Ed25519PrivateKey.generate()) + b"\n" for _ in range(1025)), "bundle_too_large"),
    ],
    ids=lambda found: found if isinstance(found, str) else found[:20].decode(),
)
def test_cas_that_are_none(line: bytes, code: str) -> None:
    with pytest.raises(BundleError) as refused:
        read_ssh_authorities(CA.line + line)
    assert refused.value.code == code


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"Certificate":""}',
        b'{"certificate":"AAAA"}',
        b'{"Certificate":["AAAA"]}',
        b'{"Certificate":"AAA"}',
        b'{"Certificate":"AAB="}',
        b'{"Certificate":"AAAA","Certificate":"AAAA"}',
        b" " * 40_000,
    ],
    ids=lambda payload: payload[:30].decode(),
)
def test_evidence_that_cannot_be_read(payload: bytes) -> None:
    with pytest.raises(EvidenceError):
        read_ssh_evidence(payload)


@pytest.mark.parametrize("message", [b"", b"{}", b'{"Nonce":"AAAA"}', b'{"nonce":"%b"}' % base64.b64encode(NONCE)])
def test_challenges_that_cannot_be_read(message: bytes) -> None:
    with pytest.raises(EvidenceError):
        SshChallenge.read(message)


KEY = KEYS["P-256"]


def altered(**fields: Any) -> bytes:
    answer = json.loads(SshChallenge.of(NONCE).answer(KEY, OTHER))
    for name, value in fields.items():
        (answer if name in answer else answer["Signature"])[name] = value
    return json.dumps(answer).encode()


def _blob(r: bytes, s: bytes) -> str:
    return base64.b64encode(string(r) + string(s)).decode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        altered(Nonce=base64.b64encode(bytes(31)).decode()),
        altered(Nonce=base64.b64encode(NONCE).decode()),
        altered(Signature=None),
        altered(Signature="x"),
        altered(Format="ssh-ed25519"),
        altered(Format="ecdsa-sha2-nistp384"),
        altered(Format=7),
        altered(Format="é"),
        altered(Blob=""),
        altered(Blob=None),
        altered(Blob=_blob(b"\0", b"\0")),
        altered(Blob=_blob(b"", b"")),
        altered(Blob=_blob(b"\xff", b"\x01")),
        altered(Blob=_blob(b"\0\x01", b"\x01")),
        altered(Blob=base64.b64encode(bytes(3)).decode()),
        altered(Blob=base64.b64encode(bytes(1025)).decode()),
        altered(Rest="AAAA"),
        SshChallenge.of(OTHER).answer(KEY, OTHER),
        SshChallenge.of(NONCE).answer(KEYS["Ed25519"], OTHER),
        b" " * 5000,
    ],
)
def test_answers_that_are_refused(answer: bytes) -> None:
    with pytest.raises((EvidenceError, SshCertificateError)):
        SshChallenge.of(NONCE).check(answer, KEY.public_key())


def test_a_signature_of_stock_agents_with_rsa_keys() -> None:
    """What x/crypto signs with an RSA key when nobody asks for an algorithm: SHA-1, of a digest of both nonces."""
    key, digest = KEYS["RSA"], hashlib.sha256(NONCE + OTHER).digest()
    blob = key.sign(digest, padding.PKCS1v15(), SHA1())
    signature = {"Format": "ssh-rsa", "Blob": base64.b64encode(blob).decode(), "Rest": None}
    answer = json.dumps({"Nonce": base64.b64encode(OTHER).decode(), "Signature": signature}).encode()
    SshChallenge.of(NONCE).check(answer, key.public_key())
