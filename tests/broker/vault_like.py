# SPDX-License-Identifier: Apache-2.0
"""A server that speaks as much of Vault's documented HTTP API as a CA takes, and says wrong things when told to.

It stands where a real Vault cannot be made to misbehave. A test puts its own answer in place of a path's:

    vault.answers["pki/root/sign-intermediate"] = lambda asked: (200, {"data": {}})
"""

from __future__ import annotations

import datetime as dt
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from firedoor.certs import X509Issuer
from tests.web_pki import WebPki

PEM = serialization.Encoding.PEM
SIGN, LOOKUP, RENEW = "pki/root/sign-intermediate", "auth/token/lookup-self", "auth/token/renew-self"


@dataclass(frozen=True)
class Asked:
    """One request. `peer` is the DNS name of the client's certificate."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    peer: str


Answer = Callable[[Asked], tuple[int, Any]]


class VaultLike:
    """See the module. `lease`: how long its tokens live, in seconds."""

    def __init__(self, pki: WebPki, issuer: X509Issuer, lease: int = 3600) -> None:
        self.issuer, self.lease = issuer, lease
        self.asked: list[Asked] = []
        self.tokens: set[str] = set()
        self.renewals = 0
        self.answers: dict[str, Answer] = {SIGN: self.sign, LOOKUP: self.look_up, RENEW: self.renew}
        self._context = pki.server("127.0.0.1")
        # Whoever wants to show a certificate may; only a login by one looks at it.
        self._context.verify_mode = ssl.CERT_OPTIONAL
        pki.ca.configure_trust(self._context)
        self.address = ""

    # --- what a Vault answers ---------------------------------------------------------------------------------------

    def login(self, _: Asked) -> tuple[int, Any]:
        """Give a token."""
        token = f"hvs.{len(self.asked)}"
        self.tokens.add(token)
        return 200, {"auth": {"client_token": token, "lease_duration": self.lease, "renewable": True}}

    def look_up(self, _: Asked) -> tuple[int, Any]:
        return 200, {"data": {"ttl": self.lease, "renewable": True}}

    def renew(self, asked: Asked) -> tuple[int, Any]:
        self.renewals += 1
        token = asked.headers["x-vault-token"]
        return 200, {"auth": {"client_token": token, "lease_duration": self.lease, "renewable": True}}

    def sign(self, asked: Asked) -> tuple[int, Any]:
        """Sign as asked."""
        return 200, {"data": self.signed(asked.body)}

    def signed(self, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Sign as asked but for what `changes` says: uris, ca, key, ttl."""
        issuer, now = self.issuer, dt.datetime.now(dt.UTC)
        key = changes.get("key") or x509.load_pem_x509_csr(body["csr"].encode()).public_key()
        ttl = changes.get("ttl") or int(body["ttl"].removesuffix("s"))
        uris = changes.get("uris", body["uri_sans"].split(","))
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, body["common_name"])]))
            .issuer_name(issuer.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(seconds=30))
            .not_valid_after(now + dt.timedelta(seconds=ttl))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris]), False)
            .add_extension(x509.BasicConstraints(ca=changes.get("ca", True), path_length=None), True)
            .add_extension(_usage(), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(issuer.authority_id), None, None), False)
            .sign(issuer.key, hashes.SHA256())  # type: ignore[arg-type]
        )
        text = made.public_bytes(PEM).decode()
        chain = [_pem(der) for der in (issuer.der, *issuer.upstream)]
        return {"certificate": text, "issuing_ca": chain[0], "ca_chain": [text, *chain]}

    # --- the server -------------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self) -> Iterator[VaultLike]:
        """Serve while the block runs."""
        handler = type("Handler", (_Handler,), {"vault": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=True)
        server.daemon_threads = True
        server.socket = self._context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def take(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        answer = self.answers.get(asked.path)
        if answer is None:
            return 404, {"errors": []}
        known = asked.headers.get("x-vault-token") in self.tokens
        if not known and not asked.path.endswith("/login"):
            return 403, {"errors": ["permission denied"]}
        return answer(asked)


class _Handler(BaseHTTPRequestHandler):
    vault: VaultLike
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        certificate = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path.removeprefix("/v1/"), headers, body, "".join(names))
        status, given = self.vault.take(asked)
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", f"{self.vault.address}/v1/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer  # noqa: N815 - as BaseHTTPRequestHandler calls them

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(PEM).decode()
