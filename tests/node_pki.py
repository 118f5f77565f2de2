# SPDX-License-Identifier: Apache-2.0
"""A company's PKI in memory: CAs, and certificates for nodes, right unless a test says what is to be wrong.

pki = NodePki()
node = pki.node("gpu-1")
node.chain, node.key          # DER, leaf first, no root
pki.root_pem
"""

from __future__ import annotations

import datetime as dt
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from firedoor.certs import split_der

NOW = 1_750_000_000
DAY = 86_400
NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


def usage(*bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{**NO_USAGE, **dict.fromkeys(bits, True)})


def subject(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])


@dataclass
class Held:
    """A certificate with its key, and those above it without the root."""

    certificate: x509.Certificate
    key: Any
    above: tuple[bytes, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def chain(self) -> tuple[bytes, ...]:
        return (self.der, *self.above)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `node.pem` with the chain and `node.key`, and return where."""
        certificate, key = folder / "node.pem", folder / "node.key"
        certificate.write_bytes(pem(*self.chain))
        key.touch(mode=0o600)
        key.write_bytes(key_pem(self.key))
        return certificate, key


def pem(*ders: bytes) -> bytes:
    return b"".join(
        x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
        for der in split_der(b"".join(ders))
    )


def key_pem(key: Any, password: bytes = b"", form: str = "PKCS8") -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made: bytes = key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), hidden)
    return made


class NodePki:
    """One root, `at` a moment."""

    def __init__(self, at: int = NOW, common_name: str = "Company Root", key: Any = None) -> None:
        self.at = at
        self.root = self.ca(common_name, key=key)

    @property
    def root_pem(self) -> bytes:
        return self.root.pem

    def ca(self, common_name: str, issuer: Held | None = None, **wrong: Any) -> Held:
        """Make a CA; without an issuer it signs itself."""
        given = {
            "basic": x509.BasicConstraints(ca=True, path_length=None),
            "usage": usage("key_cert_sign", "crl_sign"),
            "days": (-1, 3650),
            **wrong,
        }
        return self._make(subject(common_name), issuer, given)

    def node(self, *common_names: str, issuer: Held | None = None, **wrong: Any) -> Held:
        """Make a node's certificate: `key`, `public_key`, `uris`, `usage`, `basic`, `extended`, `days`, `extra`."""
        given = {
            "basic": x509.BasicConstraints(ca=False, path_length=None),
            "usage": usage("digital_signature"),
            "days": (-1, 30),
            **wrong,
        }
        return self._make(subject(*(common_names or ("gpu-1",))), issuer or self.root, given)

    def _make(self, name: x509.Name, issuer: Held | None, given: dict[str, Any]) -> Held:
        key = given.get("key") or ec.generate_private_key(ec.SECP256R1())
        start, end = (dt.datetime.fromtimestamp(self.at + days * DAY, dt.UTC) for days in given["days"])
        builder = (
            x509.CertificateBuilder()
            .subject_name(given.get("subject") or name)
            .issuer_name(issuer.certificate.subject if issuer else name)
            .public_key(given.get("public_key") or key.public_key())
            .serial_number(given.get("serial") or secrets.randbits(120) + 1)
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for extension, critical in _extensions(given):
            builder = builder.add_extension(extension, critical)
        signer = issuer.key if issuer else key
        made = builder.sign(signer, _hash(signer))
        above = () if issuer is None or issuer is self.__dict__.get("root") else issuer.chain
        return Held(made, key, above if given.get("chain", True) else ())


def _extensions(given: dict[str, Any]) -> list[tuple[x509.ExtensionType, bool]]:
    found = [(given[name], True) for name in ("basic", "usage") if given[name] is not None]
    if "extended" in given:
        found.append((x509.ExtendedKeyUsage(given["extended"]), False))
    names = [*map(x509.UniformResourceIdentifier, given.get("uris", ())), *map(x509.DNSName, given.get("dns", ()))]
    if names:
        found.append((x509.SubjectAlternativeName(names), False))
    return [*found, *given.get("extra", ())]


def _hash(key: Any) -> Any:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 384:
        return hashes.SHA512()
    return hashes.SHA256()


def rsa_public_key(bits: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    """Return an RSA key that nobody holds: large ones take minutes to make, and no time at all to invent."""
    modulus = secrets.randbits(bits) | (1 << (bits - 1)) | 1
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()
