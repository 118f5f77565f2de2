# SPDX-License-Identifier: Apache-2.0
"""A TLS client that comes without a sidecar, straight to an inbound listener, with any certificate or none.

It is OpenSSL's (Python's `ssl`), and asks the object store in plain HTTP inside TLS.
"""

import base64
import os
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from firedoor.certs import (
    KeyType,
    SpiffeId,
    TrustDomain,
    generate_key,
    issue_ca,
    issue_x509,
    private_key_der,
    split_der,
)
from firedoor.certs.certificate import pem_encode
from firedoor.cli.demo.errors import DemoError
from firedoor.wire import workload_pb2

SECONDS = 5.0
MODEL = "/models/llm/weights.bin"
_HOST, _REGION = "models", "us-east-1"


@dataclass(frozen=True)
class Identity:
    """A chain, leaf first, and its key."""

    chain: tuple[bytes, ...]
    key: bytes
    not_after: int = 0


def from_workload_api(answer: str, spiffe_id: str) -> Identity:
    """Take one SVID out of the raw Workload API answer that a client program has fetched."""
    response = workload_pb2.X509SVIDResponse.FromString(base64.b64decode(answer))
    svid = next((one for one in response.svids if one.spiffe_id == spiffe_id), None)
    if svid is None:
        raise DemoError(f"the auth socket gave no SVID for {spiffe_id}")
    chain = tuple(split_der(svid.x509_svid))
    return Identity(chain, svid.x509_svid_key, _not_after(chain[0]))


def forged(spiffe_id: str) -> Identity:
    """Make a flawless SVID for any ID, signed by an authority that nobody here trusts."""
    parsed, now = SpiffeId.parse(spiffe_id), int(time.time())
    stranger = issue_ca(parsed.trust_domain, generate_key(KeyType.EC_P256), at=now, random=secrets.token_bytes)
    key = generate_key(KeyType.EC_P256)
    svid = issue_x509(parsed, key.public_key(), stranger, at=now, random=secrets.token_bytes)
    return Identity(svid.chain, private_key_der(key), svid.not_after)


def foreign(domain: str, path: str) -> Identity:
    """Make an SVID of another trust domain."""
    return forged(str(TrustDomain.parse(domain).with_path(path)))


def request(method: str, target: str, keys: Sequence[str]) -> bytes:
    """Write a request as the object store takes it: signed, target and all, byte by byte as given."""
    signed = AWSRequest(method, f"http://{_HOST}{target}")
    S3SigV4Auth(Credentials(*keys), "s3", _REGION).add_auth(signed)
    fields = {"Host": _HOST, **signed.headers, "Content-Length": "0", "Connection": "close"}
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*head, "", ""]).encode()


def ask_over_tls(address: tuple[str, int], identity: Identity | None, request: bytes) -> str:
    """Send a request; return the status that comes back. Raise OSError (ssl.SSLError is one) when there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # It is the server's check of us that is shown here; `ssl` could not check a SPIFFE ID anyway.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        _use(context, identity)
    with socket.create_connection(address, timeout=SECONDS) as plain, context.wrap_socket(plain) as connection:
        return _ask(connection, request)


def ask_in_plaintext(address: tuple[str, int], request: bytes) -> str:
    """Do the same without TLS."""
    with socket.create_connection(address, timeout=SECONDS) as connection:
        return _ask(connection, request)


def _ask(connection: socket.socket, request: bytes) -> str:
    # Or the request waits for the handshake's last message to be acknowledged, which takes the kernel 40 ms.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(request)
    line = connection.makefile("rb").readline(200)
    if not line.startswith(b"HTTP/1.1 "):
        raise ConnectionError(f"closed after {line!r}")
    return line.split(b" ")[1].decode()


def _use(context: ssl.SSLContext, identity: Identity) -> None:
    key = load_der_private_key(identity.key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, name = tempfile.mkstemp(prefix="firedoor-demo-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + pem_encode(identity.chain).encode())
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()


def _not_after(der: bytes) -> int:
    return int(x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp())
