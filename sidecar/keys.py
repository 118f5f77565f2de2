# SPDX-License-Identifier: Apache-2.0
"""Keys of the agent and of workloads: ECDSA P-256, a fresh one at each rotation."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.certs import SpiffeId, jose, jwks

# What a key that `generate` made signs with.
ALGORITHM = "ES256"
_PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
_PRIVATE = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, PKCS#8 DER, and its public half, PKIX DER."""

    private: bytes = field(repr=False)
    public: bytes

    def signer(self) -> ec.EllipticCurvePrivateKey:
        """Return the key, ready to sign."""
        loaded = serialization.load_der_private_key(self.private, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not an ECDSA key")
        return loaded


def generate() -> Key:
    """Make a key."""
    return _key(ec.generate_private_key(ec.SECP256R1()))


def _key(private: ec.EllipticCurvePrivateKey) -> Key:
    return Key(
        private.private_bytes(serialization.Encoding.DER, *_PRIVATE), private.public_key().public_bytes(*_PUBLIC)
    )


def csr(key: Key, spiffe_id: SpiffeId | None = None) -> bytes:
    """Return a PKCS#10 request, DER. Agents send no SAN; for a workload the server ignores the one that it finds."""
    name = [
        x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "SPIRE"),
    ]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(name))
    if spiffe_id is not None:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(key.signer(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def public_key_of(certificate: bytes) -> bytes:
    """Return a certificate's public key, PKIX DER. Raise ValueError when it cannot be read."""
    return x509.load_der_x509_certificate(certificate).public_key().public_bytes(*_PUBLIC)


def private_jwk(key: Key) -> str:
    """Write a key as a JWK, private part and all, with the algorithm that it is for (RFC 7518 section 6.2)."""
    private = key.signer()
    size = (private.curve.key_size + 7) // 8
    secret = private.private_numbers().private_value.to_bytes(size)
    return json.dumps({**jwks.parameters(private.public_key()), "alg": ALGORITHM, "d": jose.encode(secret)})


def to_pem(keys: Iterable[Key]) -> bytes:
    """Write keys as PEM, one after the other."""
    return b"".join(key.signer().private_bytes(serialization.Encoding.PEM, *_PRIVATE) for key in keys)


def from_pem(data: bytes) -> list[Key]:
    """Read the keys of a PEM file. Raise ValueError."""
    end = b"-----END PRIVATE KEY-----"
    found = []
    for part in data.split(end)[:-1]:
        block = part[part.rindex(b"-----BEGIN PRIVATE KEY-----") :] + end + b"\n"
        loaded = serialization.load_pem_private_key(block, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not an ECDSA key")
        found.append(_key(loaded))
    return found


def chain_to_pem(chain: Iterable[bytes]) -> bytes:
    """Write certificates as PEM."""
    return b"".join(x509.load_der_x509_certificate(one).public_bytes(serialization.Encoding.PEM) for one in chain)


def chain_from_pem(data: bytes) -> tuple[bytes, ...]:
    """Read the certificates of a PEM file, in order. Raise ValueError when there is none."""
    start = data.index(b"-----BEGIN CERTIFICATE-----")
    loaded = x509.load_pem_x509_certificates(data[start:])
    return tuple(one.public_bytes(serialization.Encoding.DER) for one in loaded)
