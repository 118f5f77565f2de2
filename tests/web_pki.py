# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the web, as browsers and operating systems know some.

pki = WebPki()
pki.pair("bundle.example")                # (DER chain, PKCS#8), as the core takes them
pki.write(folder, "bundle.example")       # (chain.pem, key.pem), as an operator has them
pki.client()                              # an SSLContext that trusts it alone
"""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class WebPki:
    """See the module."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    @property
    def root_pem(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def pair(self, *names: str) -> tuple[list[bytes], bytes]:
        """Return a chain and its key for these names or addresses."""
        made = self.ca.issue_cert(*names)
        chain = [ssl.PEM_cert_to_DER_cert(blob.bytes().decode()) for blob in made.cert_chain_pems]
        key = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
        pkcs8 = serialization.PrivateFormat.PKCS8
        return chain, key.private_bytes(serialization.Encoding.DER, pkcs8, serialization.NoEncryption())

    def write(self, folder: Path, *names: str, common_name: str | None = None) -> tuple[Path, Path]:
        """Write a chain and its key, each in one step, and return where."""
        made = self.ca.issue_cert(*names, common_name=common_name)
        certificate, key = folder / "web.pem", folder / "web.key"
        _replace(certificate, b"".join(blob.bytes() for blob in made.cert_chain_pems), 0o644)
        _replace(key, made.private_key_pem.bytes(), 0o600)
        return certificate, key

    def server(self, *names: str) -> ssl.SSLContext:
        """Return what a server with such a certificate uses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        """Return what a client that trusts this CA alone uses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context


def _replace(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_suffix(".new")
    fresh.touch(mode)
    fresh.chmod(mode)
    fresh.write_bytes(data)
    fresh.replace(path)
