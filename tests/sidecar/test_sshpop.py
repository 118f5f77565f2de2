# SPDX-License-Identifier: Apache-2.0
"""A sidecar that attests by the SSH certificate of its host: its files, and a whole one before a server."""

import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from firedoor.certs import SshChallenge, read_ssh_authorities, read_ssh_evidence
from firedoor.sidecar import config, updates
from firedoor.sidecar.errors import AttestationRefused, ConfigError, NodeCertificateUnusable
from firedoor.sidecar.ssh_certificate import SshPop
from tests.node_pki import DAY, NOW
from tests.sidecar.harness import Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain
from tests.ssh_ca import USER, SshCa, SshHost, rsa_blob, ssh_key_pem

MIN = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}
CA = SshCa()
RSA = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def host() -> SshHost:
    return CA.host()


@pytest.fixture
def files(tmp_path: Path, host: SshHost) -> SshPop:
    return SshPop(*host.write(tmp_path))


FORMS = [
    (ed25519.Ed25519PrivateKey.generate(), "OpenSSH"),
    (ec.generate_private_key(ec.SECP384R1()), "OpenSSH"),
    (ec.generate_private_key(ec.SECP256R1()), "TraditionalOpenSSL"),
    (RSA, "OpenSSH"),
    (RSA, "TraditionalOpenSSL"),
    (RSA, "PKCS8"),
]


@pytest.mark.parametrize(("key", "form"), FORMS, ids=[f"{type(key).__name__}-{form}" for key, form in FORMS])
def test_what_is_shown_and_answered(tmp_path: Path, key: Any, form: str) -> None:
    host = CA.host(key=key)
    shown = SshPop(*host.write(tmp_path, form)).show(NOW)
    assert read_ssh_evidence(shown.payload) == host.certificate
    challenge = SshChallenge.of(bytes(32))
    assert shown.answer
    first, second = (shown.answer(challenge.message()) for _ in range(2))
    challenge.check(first, key.public_key())
    # Its own nonce is never the same: nobody chooses what this key signs.
    assert json.loads(first)["Nonce"] != json.loads(second)["Nonce"]
    # Our own signatures never use SHA-1.
    assert json.loads(first)["Signature"]["Format"] != "ssh-rsa"


Break = Callable[[SshPop], object]


def renew(**wrong: Any) -> Break:
    """Put a certificate in its place of which something is wrong."""
    return lambda files: CA.host(**wrong).write(files.key.parent)


WRONG: dict[str, tuple[Break, str, str]] = {
    "no certificate file": (lambda f: f.certificate.unlink(), "certificate", "cannot be read: No such file"),
    "no key file": (lambda f: f.key.unlink(), "key", "cannot be read: No such file"),
    "no certificate": (lambda f: f.certificate.write_bytes(b"x"), "certificate", "holds no SSH certificate, as in"),
    "damaged": (lambda f: f.certificate.write_bytes(b"x AAAA"), "certificate", "cannot attest: a certificate of"),
    "a public key": (lambda f: f.certificate.write_bytes(CA.line), "certificate", "cannot attest: a key is none of"),
    "a user's": (renew(type=USER), "certificate", "cannot attest: the certificate is none of a host"),
    "no principal": (renew(named=False), "certificate", "cannot attest: the host's certificate names no host"),
    "a large key": (renew(public=rsa_blob(16384)), "certificate", "cannot attest: a key is none of"),
    "expired": (renew(days=(-30, -1)), "certificate", "expired at 2025-06-14 15:06:40 UTC; renew it"),
    "no key": (lambda f: f.key.write_bytes(b"x"), "key", "holds no private key of SSH"),
    "another key": (
        lambda f: f.key.write_bytes(ssh_key_pem(ed25519.Ed25519PrivateKey.generate())),
        "key",
        "is not the key of the certificate in",
    ),
    "an encrypted key": (lambda f: f.key.write_bytes(ssh_key_pem(RSA, b"secret", "PKCS8")), "key", "is encrypted"),
    "an open key": (lambda f: f.key.chmod(0o644), "key", "has mode 0644, open to others; chmod 0600 it"),
    "a huge file": (lambda f: f.certificate.write_bytes(b"x" * 300_000), "certificate", "is longer than 256 KiB"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(files: SshPop, case: str) -> None:
    break_it, setting, words = WRONG[case]
    assert files.show(NOW)
    break_it(files)
    with pytest.raises(NodeCertificateUnusable) as refused:
        files.show(NOW)
    assert str(refused.value).startswith(f"sshpop.{setting}: {getattr(files, setting)} ")
    assert words in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_somebody_else(files: SshPop) -> None:
    os.chown(files.key, 12345, -1)
    with pytest.raises(NodeCertificateUnusable, match="belongs to uid 12345; it must belong to uid 0 or to root"):
        files.show(NOW)


def test_the_certificate_counts_until_its_end(tmp_path: Path) -> None:
    files = SshPop(*CA.host(days=(-1, 1)).write(tmp_path))
    assert files.show(NOW + DAY - 1)
    with pytest.raises(NodeCertificateUnusable):
        files.show(NOW + DAY)
    assert SshPop(*CA.host(forever=True).write(tmp_path)).show(2**40)


@pytest.mark.parametrize("challenge", [b"", b"{}", b'{"Nonce":"AA=="}'])
def test_a_challenge_that_cannot_be_answered(files: SshPop, challenge: bytes) -> None:
    answer = files.show(NOW).answer
    assert answer
    with pytest.raises(AttestationRefused, match="the server's challenge cannot be answered"):
        answer(challenge)


def test_configured(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("sshpop: {certificate: /h-cert.pub, key: /h}\n")
    assert config.load(file, {}, MIN).sshpop == SshPop(Path("/h-cert.pub"), Path("/h"))
    assert config.load(None, {}, MIN).sshpop is None
    with pytest.raises(ConfigError, match=r"sshpop\.key: is missing"):
        config.load(None, {}, {**MIN, "sshpop_certificate": "/h"})
    both = {"sshpop_certificate": "/h", "sshpop_key": "/k", "x509pop_certificate": "/h", "x509pop_key": "/k"}
    with pytest.raises(ConfigError, match="sshpop: a node attests by it or by x509pop, not by both"):
        config.load(None, {}, {**MIN, **both})


# --- a whole sidecar ------------------------------------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.entries["x"] = entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    yield found
    await found.stop()


async def test_attests_again_and_again_and_stores_nothing(server: SpireLike, running: Start, tmp_path: Path) -> None:
    ca = SshCa(int(time.time()))
    server.ssh_cas, server.agent_ttl = read_ssh_authorities(ca.line), 3
    certificate, key = ca.host().write(tmp_path)
    files = {"sshpop_certificate": str(certificate), "sshpop_key": str(key)}
    one = running(settings(tmp_path, join_token_file=None, **files))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert not (tmp_path / "data/agent.key").exists()
    await one.until(lambda _: len(server.attested) >= 3, "two attestations more")
    assert server.renewals == 0
