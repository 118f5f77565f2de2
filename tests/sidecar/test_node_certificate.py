# SPDX-License-Identifier: Apache-2.0
"""The files of x509pop: what is wrong with them is said with the setting and the file, and nothing else comes of it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.certs import Challenge, read_evidence
from firedoor.sidecar import config
from firedoor.sidecar.errors import AttestationRefused, ConfigError, NodeCertificateUnusable
from firedoor.sidecar.node_certificate import X509Pop
from tests.node_pki import DAY, NOW, Held, NodePki, key_pem, pem, rsa_public_key, usage

MIN = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki()


@pytest.fixture
def held(pki: NodePki) -> Held:
    return pki.node("gpu-1", issuer=pki.ca("Between", issuer=pki.root))


@pytest.fixture
def files(tmp_path: Path, held: Held) -> X509Pop:
    certificate, key = held.write(tmp_path)
    return X509Pop(certificate, key)


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_what_is_shown_and_answered(tmp_path: Path, pki: NodePki, key: Any, form: str) -> None:
    held = pki.node(issuer=pki.ca("Between", issuer=pki.root), key=key)
    certificate, place = held.write(tmp_path)
    place.write_bytes(key_pem(key, form=form))
    shown = X509Pop(certificate, place).show(NOW)
    assert read_evidence(shown.payload) == held.chain
    challenge = Challenge.to(key.public_key(), bytes(32))
    assert shown.answer
    first, second = (shown.answer(challenge.message()) for _ in range(2))
    challenge.check(first, key.public_key())
    # Its own nonce is never the same: nobody chooses what this key signs.
    assert _nonce(first) != _nonce(second)


def _nonce(answer: bytes) -> str:
    (found,) = (value for value in json.loads(answer).values() if value)
    return str(found["nonce"])


def test_intermediates_may_stand_alone(tmp_path: Path, held: Held, files: X509Pop) -> None:
    files.certificate.write_bytes(held.pem)
    above = tmp_path / "above.pem"
    above.write_bytes(pem(*held.above))
    assert read_evidence(X509Pop(files.certificate, files.key, above).show(NOW).payload) == held.chain


def test_files_are_read_each_time(tmp_path: Path, pki: NodePki, files: X509Pop) -> None:
    first = files.show(NOW).payload
    pki.node("gpu-1").write(tmp_path)
    assert files.show(NOW).payload != first


def test_a_group_of_its_own_may_read_the_key(files: X509Pop) -> None:
    for mode in (0o600, 0o400, 0o640, 0o440):
        files.key.chmod(mode)
        assert files.show(NOW)


Break = Callable[[NodePki, X509Pop], object]


def renew(**wrong: Any) -> Break:
    """Put a certificate in its place of which something is wrong."""

    def put(pki: NodePki, files: X509Pop) -> None:
        pki.node(**wrong).write(files.key.parent)

    return put


WRONG: dict[str, tuple[Break, str, str]] = {
    "no certificate file": (lambda _, f: f.certificate.unlink(), "certificate", "cannot be read: No such file"),
    "no key file": (lambda _, f: f.key.unlink(), "key", "cannot be read: No such file"),
    "a folder": (lambda _, f: (f.key.unlink(), f.key.mkdir()), "key", "cannot be read: Is a directory"),
    "no PEM": (lambda _, f: f.certificate.write_bytes(b"x"), "certificate", "holds no certificate in PEM"),
    "a damaged certificate": (
        lambda _, f: f.certificate.write_bytes(f.certificate.read_bytes().replace(b"MII", b"MIA", 1)),
        "certificate",
        "holds no certificate in PEM, or one that cannot be read",
    ),
    "the key in the certificate's place": (
        lambda _, f: f.certificate.write_bytes(f.key.read_bytes()),
        "certificate",
        "holds no certificate in PEM",
    ),
    "no key in PEM": (lambda _, f: f.key.write_bytes(b"x"), "key", "holds no private key in PEM"),
    "a huge file": (lambda _, f: f.key.write_bytes(b"x" * 300_000), "key", "is longer than 256 KiB"),
    "an encrypted key": (
        lambda _, f: f.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")),
        "key",
        "is encrypted; x509pop needs the key unencrypted",
    ),
    "another key": (
        lambda _, f: f.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()))),
        "key",
        "is not the key of the certificate in",
    ),
    "a key that everybody reads": (lambda _, f: f.key.chmod(0o604), "key", "has mode 0604, open to others; chmod 0600"),
    "a key that a group writes": (lambda _, f: f.key.chmod(0o660), "key", "has mode 0660, open to others; chmod 0600"),
    "an Ed25519 key": (
        renew(key=ed25519.Ed25519PrivateKey.generate()),
        "key",
        "is neither an ECDSA nor an RSA key: x509pop has no challenge for others",
    ),
    "a small key": (renew(key=rsa.generate_private_key(65537, 1024)), "certificate", "cannot attest: a key is none of"),
    "an unknown curve": (renew(key=ec.generate_private_key(ec.SECP256K1())), "certificate", "a key is none of"),
    "an expired certificate": (renew(days=(-30, -1)), "certificate", "expired at 2025-06-14 15:06:40 UTC; renew it"),
    "no digitalSignature": (
        renew(usage=usage("key_agreement")),
        "certificate",
        "cannot attest: the node's certificate has no key usage digitalSignature",
    ),
    "a large intermediate": (
        lambda pki, f: f.certificate.write_bytes(
            f.certificate.read_bytes() + pki.ca("Large", issuer=pki.root, public_key=rsa_public_key(16384)).pem
        ),
        "certificate",
        "that of intermediate certificate 2",
    ),
    "too many intermediates": (
        lambda pki, f: f.certificate.write_bytes(f.certificate.read_bytes() + pki.root_pem * 4),
        "certificate",
        "more than a certificate and 4 intermediates",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(pki: NodePki, files: X509Pop, case: str) -> None:
    break_it, setting, words = WRONG[case]
    assert files.show(NOW)
    break_it(pki, files)
    with pytest.raises(NodeCertificateUnusable) as refused:
        files.show(NOW)
    assert str(refused.value).startswith(f"x509pop.{setting}: {getattr(files, setting)} ")
    assert words in str(refused.value)
    assert "BEGIN" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_somebody_else(files: X509Pop) -> None:
    os.chown(files.key, 12345, -1)
    with pytest.raises(NodeCertificateUnusable, match="belongs to uid 12345; it must belong to uid 0 or to root"):
        files.show(NOW)


def test_the_certificate_counts_to_its_last_second(pki: NodePki, tmp_path: Path) -> None:
    certificate, key = pki.node(days=(-1, 1)).write(tmp_path)
    assert X509Pop(certificate, key).show(NOW + DAY)
    with pytest.raises(NodeCertificateUnusable):
        X509Pop(certificate, key).show(NOW + DAY + 1)


@pytest.mark.parametrize(
    "challenge",
    [b"", b"{}", Challenge.to(rsa_public_key(2048), bytes(32)).message(), b'{"ecdsa_signature":{"nonce":"AA=="}}'],
    ids=["nothing", "no kind", "another kind of key", "a short nonce"],
)
def test_a_challenge_that_cannot_be_answered(files: X509Pop, challenge: bytes) -> None:
    answer = files.show(NOW).answer
    assert answer
    with pytest.raises(AttestationRefused, match="the server's challenge cannot be answered"):
        answer(challenge)


# --- configuration --------------------------------------------------------------------------------------------------


def test_configured(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("x509pop: {certificate: /n.pem, key: /n.key, intermediates: /i.pem}\n")
    found = config.load(file, {}, MIN).x509pop
    assert found == X509Pop(Path("/n.pem"), Path("/n.key"), Path("/i.pem"))
    assert config.load(None, {}, MIN).x509pop is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x509pop_certificate": "/n.pem"}, "x509pop.key: is missing"),
        ({"x509pop_key": "/n.key"}, "x509pop.certificate: is missing"),
        (
            {"x509pop_certificate": "/n.pem", "x509pop_key": "/n.key", "join_token_file": "/t"},
            "x509pop: a node attests by it or by join_token_file, not by both",
        ),
    ],
)
def test_configured_wrong(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(None, {}, {**MIN, **given})
    assert words in str(refused.value)


def test_validate_reads_the_files(tmp_path: Path) -> None:
    certificate, key = NodePki(int(time.time())).node().write(tmp_path)
    flags = {**MIN, "data_dir": str(tmp_path), "x509pop_certificate": str(certificate), "x509pop_key": str(key)}
    assert not [found for found in config.validate(config.load(None, {}, flags)) if "x509pop" in found]
    key.chmod(0o644)
    # What is stored of an agent before does not help: it would not be used.
    (tmp_path / "agent.json").write_text("{}")
    (finding,) = (found for found in config.validate(config.load(None, {}, flags)) if "x509pop" in found)
    assert finding == f"x509pop.key: {key} has mode 0644, open to others; chmod 0600 it"
