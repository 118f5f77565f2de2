# SPDX-License-Identifier: Apache-2.0
"""Leaves are signed in the core with keys that can be copied there, and with the key itself when it cannot."""

import os
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.broker.core_signing import sign_in_core
from firedoor.certs import (
    KeyType,
    PrivateKey,
    TrustBundle,
    TrustDomain,
    X509Issuer,
    generate_key,
    issue_ca,
    issue_x509,
    private_key_der,
    verify_x509_svid,
)
from firedoor.mtls import MtlsError, SigningKey

TD = TrustDomain.parse("td")
NOW = 1_800_000_000
HASHES = {KeyType.EC_P256: hashes.SHA256(), KeyType.EC_P384: hashes.SHA384()}


class InDevice(ec.EllipticCurvePrivateKey):
    """A key that signs and is not shown, as keys of a device or a cloud are."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.signatures = 0

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._key.curve

    @property
    def key_size(self) -> int:
        return self._key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        self.signatures += 1
        return self._key.sign(data, signature_algorithm)

    def exchange(self, *_: Any) -> bytes:
        raise NotImplementedError

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        raise NotImplementedError

    def private_bytes(self, *_: Any) -> bytes:
        raise NotImplementedError("it stays in its device")

    def __copy__(self) -> "InDevice":
        return self

    def __deepcopy__(self, _: Any) -> "InDevice":
        return self


def issuer_of(key: PrivateKey) -> X509Issuer:
    made = issue_ca(TD, key, at=NOW, random=os.urandom)
    return X509Issuer.load(TD, made.der, key, sign=sign_in_core(key))


def check(issuer: X509Issuer, count: int = 3) -> None:
    bundles = {TD: TrustBundle.of(TD, [issuer.der])}
    for number in range(count):
        holder = generate_key(KeyType.EC_P256).public_key()
        svid = issue_x509(TD.with_path(f"/w{number}"), holder, issuer, at=NOW, random=os.urandom)
        assert verify_x509_svid(svid.chain, bundles, NOW).svid.serial == svid.serial


@pytest.mark.parametrize("kind", HASHES)
def test_the_core_signs_as_the_key_would(kind: KeyType) -> None:
    key = generate_key(kind)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    sign = sign_in_core(key)
    assert sign is not None
    for message in (b"", b"a", os.urandom(5000)):
        signature = sign(message)
        key.public_key().verify(signature, message, ec.ECDSA(HASHES[kind]))
        with pytest.raises(InvalidSignature):
            key.public_key().verify(signature, message + b"x", ec.ECDSA(HASHES[kind]))
    assert sign(b"a") != sign(b"a")


@pytest.mark.parametrize("kind", KeyType)
def test_what_is_issued_verifies(kind: KeyType) -> None:
    key = generate_key(kind)
    issuer = issuer_of(key)
    assert (issuer.sign is not None) == (kind in HASHES)
    check(issuer)


def test_a_key_that_stays_in_its_device_signs_itself() -> None:
    key = InDevice()
    issuer = issuer_of(key)
    assert issuer.sign is None
    before = key.signatures
    check(issuer, 3)
    assert key.signatures == before + 3


def test_the_core_takes_no_key_of_another_kind() -> None:
    for junk in (b"", b"junk", private_key_der(generate_key(KeyType.RSA_2048))):
        with pytest.raises(MtlsError):
            SigningKey(junk)


def test_the_key_is_in_no_text() -> None:
    key = generate_key(KeyType.EC_P256)
    issuer = issuer_of(key)
    text = repr(SigningKey(private_key_der(key))) + repr(issuer)
    secret = key.private_numbers().private_value if isinstance(key, ec.EllipticCurvePrivateKey) else 0
    assert secret
    assert str(secret) not in text
    assert format(secret, "x") not in text
