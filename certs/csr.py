# SPDX-License-Identifier: Apache-2.0
"""Certificate signing requests of our own. Those of others are read by the Rust core, `firedoor.mtls.read_csr`."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.certs.keys import PrivateKey, signature_hash


def make_csr(key: PrivateKey, *, uris: Sequence[str] = (), dns_names: Sequence[str] = ()) -> bytes:
    """Return a DER request for a key of ours, without names unless it is for minting: the server knows them."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns_names)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(serialization.Encoding.DER)
