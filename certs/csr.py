# SPDX-License-Identifier: Apache-2.0
"""Certificate signing requests.

Of an agent's request only the key counts, and that the sender holds it. Names and extensions in it have no effect: what
a certificate says comes from the entry (CVE-2021-27098 is what happens otherwise). An administrator who mints an SVID
names it in the request, so the names are read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from firedoor.certs.errors import CsrError
from firedoor.certs.keys import MAX_RSA_BITS, PrivateKey, PublicKey, is_supported, signature_hash

# An RSA-8192 request takes 2.2 KiB, with some names in it 4.
MAX_CSR_BYTES: Final = 16 * 1024


@final
@dataclass(frozen=True, slots=True)
class Csr:
    """What counts in a request whose self-signature holds."""

    public_key: PublicKey
    # What it asks for. Only minting listens to that.
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()


def parse_csr(der: bytes, *, max_bytes: int = MAX_CSR_BYTES, max_rsa_bits: int = MAX_RSA_BITS) -> Csr:
    """Read a DER request after checking that the holder of its key signed it.

    Sizes and key types are checked before any signature is. Raise CsrError: malformed_csr, unsupported_key or
    invalid_csr_signature.
    """
    if len(der) > max_bytes:
        raise CsrError("malformed_csr", f"longer than {max_bytes} bytes")
    try:
        request = x509.load_der_x509_csr(der)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise CsrError("malformed_csr") from None
    try:
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CsrError("unsupported_key") from None
    if not is_supported(key, max_rsa_bits=max_rsa_bits):
        raise CsrError("unsupported_key")
    # is_supported() has just said so; mypy cannot see through it.
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey)  # noqa: S101
    if not _signed(request, key):
        raise CsrError("invalid_csr_signature")
    return Csr(key, *_names(request))


def _names(request: x509.CertificateSigningRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return URIs and DNS names. Raise CsrError when they cannot be read."""
    try:
        san = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CsrError("malformed_csr", "its extensions cannot be read") from None
    return (
        tuple(san.get_values_for_type(x509.UniformResourceIdentifier)),
        tuple(san.get_values_for_type(x509.DNSName)),
    )


_ECDSA: Final = frozenset(
    (
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    )
)


def _signed(request: x509.CertificateSigningRequest, key: PublicKey) -> bool:
    """Check the self-signature; an algorithm that is too weak or unknown proves nothing."""
    try:
        digest = request.signature_hash_algorithm
        if digest is not None and not isinstance(digest, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey) and digest and request.signature_algorithm_oid in _ECDSA:
            # As below, without reading the key a second time: a fifth of the whole.
            key.verify(request.signature, request.tbs_certrequest_bytes, ec.ECDSA(digest))
            return True
        return request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False


def make_csr(key: PrivateKey, *, uris: Sequence[str] = (), dns_names: Sequence[str] = ()) -> bytes:
    """Return a DER request for a key of ours, without names unless it is for minting: the server knows them."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns_names)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(serialization.Encoding.DER)
