# SPDX-License-Identifier: Apache-2.0
"""Private keys that stay where they are: what is signed goes there as a digest, and the signature is checked here.

A device that computes wrongly, or that signs with another key than it says, must not get a certificate out of us; and
one faulty RSA signature can be enough to compute the key. Checking costs a tenth of what a device takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol, Self, TypeAlias, runtime_checkable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from firedoor.certs import KeyManager, KeyManagerAway, KeyManagerError, PrivateKey

# Signs a digest made by a hash: ECDSA in DER, or RSA with PKCS #1 v1.5. Raise KeyManagerAway.
SignDigest: TypeAlias = Callable[[bytes, hashes.HashAlgorithm], bytes]


@runtime_checkable
class Device(KeyManager, Protocol):
    """A key manager whose calls take long and may fail. Raise KeyManagerAway, besides what a key manager raises."""

    def connect(self) -> None:
        """Look whether the device answers; go and find it again if it did not."""

    def forgive(self) -> None:
        """Try again what is not tried again by itself: somebody says that it was repaired."""

    def close(self) -> None:
        """Let go of the device."""


class DeviceKey:
    """A key that a device signs with: slowly, and not always. Its private half stays there, and does nothing else."""

    def private_numbers(self) -> NoReturn:
        """Refuse: the device keeps them."""
        raise _kept()

    def private_bytes(self, *_: Any) -> NoReturn:
        """Refuse: the device keeps them."""
        raise _kept()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: Any) -> Self:
        return self


class DeviceEcKey(DeviceKey, ec.EllipticCurvePrivateKey):
    """An ECDSA key."""

    def __init__(self, public: ec.EllipticCurvePublicKey, sign_digest: SignDigest) -> None:
        self._public, self._sign_digest = public, sign_digest

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Bits."""
        return self._public.curve.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign. Raise KeyManagerAway."""
        algorithm = _plain(signature_algorithm.algorithm)
        digest = _digest(data, algorithm)
        made = self._sign_digest(digest, algorithm)
        try:
            self._public.verify(made, digest, ec.ECDSA(Prehashed(algorithm)))
        except InvalidSignature:
            raise KeyManagerAway("wrong_signature") from None
        return made

    def exchange(self, *_: Any) -> NoReturn:
        """Refuse: the key is for signatures alone."""
        raise _kept()


class DeviceRsaKey(DeviceKey, rsa.RSAPrivateKey):
    """An RSA key, for PKCS #1 v1.5 signatures."""

    def __init__(self, public: rsa.RSAPublicKey, sign_digest: SignDigest) -> None:
        self._public, self._sign_digest = public, sign_digest

    @property
    def key_size(self) -> int:
        """Bits."""
        return self._public.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        """Return the public half."""
        return self._public

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:
        """Sign. Raise KeyManagerAway, or UnsupportedAlgorithm for another padding."""
        _check_padding(padding)
        plain = _plain(algorithm)
        digest = _digest(data, plain)
        made = self._sign_digest(digest, plain)
        try:
            self._public.verify(made, digest, padding, Prehashed(plain))
        except InvalidSignature:
            raise KeyManagerAway("wrong_signature") from None
        return made

    def decrypt(self, *_: Any) -> NoReturn:
        """Refuse: the key is for signatures alone."""
        raise _kept()


def device_key(public: object, sign_digest: SignDigest, key_id: str) -> PrivateKey:
    """Return the private key of a public one. Raise KeyManagerError for a kind that we do not make."""
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1):
        return DeviceEcKey(public, sign_digest)
    if isinstance(public, rsa.RSAPublicKey):
        return DeviceRsaKey(public, sign_digest)
    raise KeyManagerError("key_damaged", key_id)


def _digest(data: Any, algorithm: hashes.HashAlgorithm) -> bytes:
    made = hashes.Hash(algorithm)
    made.update(data)
    return made.finalize()


def _plain(algorithm: Any) -> hashes.HashAlgorithm:
    if not isinstance(algorithm, hashes.SHA256 | hashes.SHA384):
        raise UnsupportedAlgorithm("keys of a device sign with SHA-256 and SHA-384")
    return algorithm


def _check_padding(given: Any) -> None:
    if not isinstance(given, padding.PKCS1v15):
        raise UnsupportedAlgorithm("RSA keys of a device sign with PKCS #1 v1.5")


def _kept() -> UnsupportedAlgorithm:
    return UnsupportedAlgorithm("the device keeps the key and signs with it, and nothing else")
