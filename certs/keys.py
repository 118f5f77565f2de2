# SPDX-License-Identifier: Apache-2.0
"""Keys: the kinds that we make, the kinds that we accept, and the managers that hold our own.

A manager answers with private key objects that `cryptography` can sign with. PKCS#11 and cloud KMS fit behind the same
protocol by subclassing `ec.EllipticCurvePrivateKey` or `rsa.RSAPrivateKey` with a `sign()` that calls the device.

>>> keys = MemoryKeyManager()
>>> keys.generate("x509-CA-A", KeyType.parse("ec-p256")).curve.name
'secp256r1'
>>> keys.get("x509-CA-B")
Traceback (most recent call last):
...
firedoor.certs.errors.KeyManagerError: the key manager holds no such key: x509-CA-B
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from firedoor.certs.errors import KeyManagerError

# Signs bytes.
Sign = Callable[[bytes], bytes]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

# NIST SP 800-57: 2048 bits is the least that is still fit. Above 8192 one check costs the peer nothing and us
# milliseconds (the CPU DoS of SPIRE 1.14.2).
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
# The largest exponent that aws-lc and ring take; large ones make verifying as slow as signing.
MAX_RSA_EXPONENT: Final = 2**33 - 1

_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class KeyType(enum.Enum):
    """The kinds of keys that we make."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"

    @classmethod
    def parse(cls, text: str) -> KeyType:
        """Read a name such as `ec-p256`. Raise KeyManagerError."""
        for member in cls:
            if member.value == text:
                return member
        raise KeyManagerError("unknown_key_type")


def generate_key(key_type: KeyType) -> PrivateKey:
    """Make a key. RSA takes up to seconds: not on an event loop."""
    match key_type:
        case KeyType.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.RSA_2048:
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case KeyType.RSA_4096:
            return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash that goes with a signing key: as strong as the curve (RFC 5480 section 4)."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()


def signing(key: PrivateKey) -> Sign:
    """Return what signs bytes with a key as certificates are signed: ECDSA, or RSA with PKCS #1 v1.5."""
    digest = signature_hash(key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return partial(key.sign, signature_algorithm=ec.ECDSA(digest))
    return partial(key.sign, padding=padding.PKCS1v15(), algorithm=digest)


def is_supported(key: object, *, max_rsa_bits: int = MAX_RSA_BITS) -> bool:
    """Say whether certificates may hold this public key. Cheap: to be asked before the key verifies anything."""
    match key:
        case ec.EllipticCurvePublicKey():
            return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
        case rsa.RSAPublicKey():
            return MIN_RSA_BITS <= key.key_size <= max_rsa_bits and key.public_numbers().e <= MAX_RSA_EXPONENT
        case ed25519.Ed25519PublicKey():
            return True
        case _:
            return False


def private_key_der(key: PrivateKey) -> bytes:
    """Return the PKCS#8 DER encoding, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_der(key: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo DER encoding."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class KeyManager(Protocol):
    """Holds signing keys by ID (`x509-CA-A`). Calls may be slow; none may be made on an event loop."""

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key, replacing one of that ID. It is stored when this returns. Raise KeyManagerError."""

    def get(self, key_id: str) -> PrivateKey:
        """Return the key. Raise KeyManagerError."""

    def delete(self, key_id: str) -> None:
        """Forget the key if there is one. Raise KeyManagerError."""


class KeyStore(Protocol):
    """Where `DiskKeyManager` keeps bytes by name, private to us (0600)."""

    def load(self, name: str) -> bytes | None:
        """Return what was stored, None when there is nothing of that name."""

    def replace(self, name: str, data: bytes) -> None:
        """Store durably and atomically: after a crash the name holds the old bytes or the new ones."""

    def delete(self, name: str) -> None:
        """Remove the name if it is there."""


class MemoryKeyManager:
    """Keys that die with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, PrivateKey] = {}

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key."""
        key = generate_key(key_type)
        self._keys[check_key_id(key_id)] = key
        return key

    def get(self, key_id: str) -> PrivateKey:
        """Return the key."""
        key = self._keys.get(check_key_id(key_id))
        if key is None:
            raise KeyManagerError("key_not_found", key_id)
        return key

    def delete(self, key_id: str) -> None:
        """Forget the key."""
        self._keys.pop(check_key_id(key_id), None)


class DiskKeyManager:
    """Keys as PKCS#8 PEM in a store, one name a key (`x509-CA-A.pem`); encrypted when there is a passphrase."""

    def __init__(self, store: KeyStore, passphrase: bytes | None = None) -> None:
        self._store = store
        self._passphrase = passphrase or None

    @property
    def encrypted(self) -> bool:
        """Whether keys are stored encrypted."""
        return self._passphrase is not None

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key."""
        name = _name(key_id)
        key = generate_key(key_type)
        self._store.replace(name, self._encode(key))
        return key

    def get(self, key_id: str) -> PrivateKey:
        """Return the key; an unencrypted one is read even when a passphrase is given."""
        data = self._store.load(_name(key_id))
        if data is None:
            raise KeyManagerError("key_not_found", key_id)
        encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in data
        if encrypted and self._passphrase is None:
            raise KeyManagerError("wrong_passphrase", key_id)
        try:
            key = serialization.load_pem_private_key(data, self._passphrase if encrypted else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # OpenSSL cannot tell a wrong passphrase from damage, and what it says may quote the input.
            raise KeyManagerError("wrong_passphrase" if encrypted else "key_damaged", key_id) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise KeyManagerError("key_damaged", key_id)
        return key

    def delete(self, key_id: str) -> None:
        """Remove the key from the store."""
        self._store.delete(_name(key_id))

    def _encode(self, key: PrivateKey) -> bytes:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if self._passphrase is not None:
            encryption = serialization.BestAvailableEncryption(self._passphrase)
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def check_key_id(key_id: str) -> str:
    """Return a key's ID. Raise KeyManagerError."""
    if not _KEY_ID.fullmatch(key_id):
        raise KeyManagerError("bad_key_id")
    return key_id


def _name(key_id: str) -> str:
    return f"{check_key_id(key_id)}.pem"
