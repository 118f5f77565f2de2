# SPDX-License-Identifier: Apache-2.0
"""What we write, as programs that we did not write read it: py-spiffe and OpenSSL."""

import os
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from spiffe.bundle.jwt_bundle.jwt_bundle import JwtBundle
from spiffe.bundle.x509_bundle.x509_bundle import X509Bundle
from spiffe.spiffe_id.spiffe_id import TrustDomain as PySpiffeTrustDomain
from spiffe.svid.x509_svid import X509Svid as PySpiffeSvid

from firedoor.certs import (
    JwtKey,
    KeyType,
    TrustBundle,
    TrustDomain,
    X509Issuer,
    X509Root,
    generate_key,
    issue_ca,
    issue_x509,
    private_key_der,
    public_key_der,
)
from firedoor.certs.certificate import pem_encode
from tests.simulator import NOW

TD = TrustDomain.parse("example.org")


def authority(key_type: KeyType, *, below: X509Issuer | None = None, at: int = NOW) -> X509Issuer:
    return issue_ca(TD, generate_key(key_type), at=at, random=os.urandom, issuer=below)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_py_spiffe_reads_an_svid(key_type: KeyType) -> None:
    issuer = authority(KeyType.EC_P256, below=authority(KeyType.EC_P256))
    key = generate_key(key_type)
    svid = issue_x509(TD.with_path("/segment/a/x"), key.public_key(), issuer, at=NOW, random=os.urandom)
    read = PySpiffeSvid.parse_raw(b"".join(svid.chain), private_key_der(key))
    assert str(read.spiffe_id) == str(svid.id)
    assert len(read.cert_chain) == 2


def test_py_spiffe_reads_bundles() -> None:
    root = authority(KeyType.EC_P256)
    bundle = TrustBundle.of(TD, [root.der, authority(KeyType.RSA_2048).der])
    read = X509Bundle.parse_raw(PySpiffeTrustDomain("example.org"), bundle.to_der())
    assert {each.public_bytes(serialization.Encoding.DER) for each in read.x509_authorities} == {
        each.der for each in bundle.x509_roots
    }
    assert len(X509Bundle.parse(PySpiffeTrustDomain("example.org"), bundle.to_pem().encode()).x509_authorities) == 2


def test_py_spiffe_reads_jwt_keys() -> None:
    keys = {name: generate_key(KeyType.parse(name)).public_key() for name in ("ec-p256", "ec-p384", "rsa-2048")}
    bundle = TrustBundle(TD, jwt_keys=tuple(JwtKey(name, public_key_der(key)) for name, key in keys.items()))
    read = JwtBundle.parse(PySpiffeTrustDomain("example.org"), bundle.to_json())
    assert set(read.jwt_authorities) == set(keys)


def test_openssl_shakes_hands(tmp_path: Path) -> None:
    """OpenSSL reads the machine's clock, so this is issued for now."""
    at = int((tmp_path.stat()).st_mtime)
    root = authority(KeyType.EC_P256, at=at)
    issuer = issue_ca(TD, generate_key(KeyType.EC_P384), at=at, random=os.urandom, issuer=root, path_length=0)
    sides = [
        _context(tmp_path, protocol, root, issuer, at)
        for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
    ]
    client, server = _shake_hands(*sides)
    for side in (client, server):
        certificate = side.getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("URI", "spiffe://example.org/segment/a/x"), ("DNS", "models"))


def _context(where: Path, protocol: int, root: X509Issuer, issuer: X509Issuer, at: int) -> ssl.SSLContext:
    key = generate_key(KeyType.EC_P256)
    path = TD.with_path("/segment/a/x")
    svid = issue_x509(path, key.public_key(), issuer, at=at, random=os.urandom, dns_names=["models"])
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (where / "chain.pem").write_bytes(pem_encode(svid.chain).encode() + pem)
    (where / "roots.pem").write_text(TrustBundle(TD, (X509Root(root.der),)).to_pem())
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(where / "chain.pem")
    context.load_verify_locations(where / "roots.pem")
    return context


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Do a TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    waiting = list(sides)
    for _ in range(6):
        for side in tuple(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting
    return sides
