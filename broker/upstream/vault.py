# SPDX-License-Identifier: Apache-2.0
"""A Vault above the broker, as SPIRE's plug-in `vault`: its PKI secrets engine signs our CAs.

What Vault answers is held against the roots in a file: an answer can bring what stands between, never a root. So
whoever can write to the engine, or stands in Vault's place, makes no root of the trust domain. The file is looked at
every second; to leave a root behind, write the next one into it first.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.broker.errors import AuthorityError, ConfigError
from firedoor.broker.files import stamp
from firedoor.broker.upstream import Follow, Minted, TokenKind, with_roots
from firedoor.broker.upstream.roots import read_roots
from firedoor.broker.upstream.vault_client import VaultClient, web_context
from firedoor.broker.upstream.vault_login import Login, TokenFile
from firedoor.certs import JwtKey, PrivateKey, TrustDomain, make_csr, public_key_der
from firedoor.certs.certificate import Certificate, read_certificate
from firedoor.certs.paths import Paths, TooManySignatures, valid_at
from firedoor.certs.profile import CA, MAX_CHAIN, first_broken

_log = logging.getLogger("firedoor.broker.upstream")
_DER: Final = serialization.Encoding.DER
_PEM: Final = serialization.Encoding.PEM
_SPKI: Final = serialization.PublicFormat.SubjectPublicKeyInfo
# RFC 5280, appendix A.1.
_MAX_COMMON_NAME: Final = 64
_NAME_BYTES: Final = 16
# Vault's certificates begin so long before they are asked for.
_CUSHION: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class UpstreamVault:
    """Where the Vault is, how the broker logs in, and the roots that its CA leads to."""

    # https://HOST:PORT
    address: str
    ca: Path
    roots: Path
    mount: str
    # Empty: none.
    namespace: str
    login: Login

    def check(self, trust_domain: TrustDomain) -> None:
        """Read every file as it will be read. Raise ConfigError."""
        web_context(self.ca)
        self.login.check()
        self.read_roots(trust_domain)

    def read_roots(self, trust_domain: TrustDomain) -> tuple[bytes, ...]:
        """Read the roots. Raise ConfigError."""
        return read_roots(trust_domain, self.roots)


class VaultUpstream:
    """See the module."""

    def __init__(self, config: UpstreamVault, trust_domain: TrustDomain) -> None:
        config.check(trust_domain)
        self._config, self._trust_domain = config, trust_domain
        self._client = VaultClient(config.address, config.ca, config.namespace, config.login)
        self._seen, self._token_seen = stamp(config.roots), self._token_stamp()
        self._roots = config.read_roots(trust_domain)

    def mint(self, key: PrivateKey, ttl: int, at: int) -> Minted:
        """Have a CA signed. Raise AuthorityError."""
        path = self._signed(key, ttl, at)
        end = min(one.not_after for one in path[1:])
        if path[0].not_after > end:
            # Vault lets what it signs outlive its own CA; nobody would take it to its end.
            path = self._signed(key, end - at - _CUSHION, at)
            end = min(one.not_after for one in path[1:])
        if path[0].not_after > end:
            raise self._wrong("outlives what signed it")
        return Minted(tuple(one.der for one in path[:-1]), self._roots)

    def publish(self, kind: TokenKind, key: JwtKey) -> None:
        """Do nothing: Vault takes no keys."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def poll(self) -> Follow | None:
        """Keep the token, and read the roots again if they changed. Raise AuthorityError."""
        follow = self._followed()
        seen = self._token_stamp()
        if seen != self._token_seen:
            self._token_seen = seen
            self._client.forget()
        self._client.keep()
        return follow

    def _followed(self) -> Follow | None:
        seen = stamp(self._config.roots)
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            self._roots = roots = self._config.read_roots(self._trust_domain)
        except ConfigError as error:
            _log.error("the roots upstream stay as they were: %s", error)
            return None
        _log.info("the roots upstream were read again")
        return lambda bundle: with_roots(bundle, roots)

    def _token_stamp(self) -> object:
        login = self._config.login
        return stamp(login.path) if isinstance(login, TokenFile) else None

    def _signed(self, key: PrivateKey, ttl: int, at: int) -> Sequence[Certificate]:
        """Ask for a CA; return the path from it to a root. Raise AuthorityError."""
        own_id = str(self._trust_domain.id)
        if ttl <= 0:
            raise self._wrong("would end at once: the CA that signs it is about to end")
        csr = x509.load_der_x509_csr(make_csr(key, uris=[own_id])).public_bytes(_PEM).decode("ascii")
        body: dict[str, str | bool] = {
            "csr": csr,
            # Who reads a list of what Vault has signed knows whose it is; the number keeps two CAs apart.
            "common_name": f"firedoor {self._trust_domain}"[:_MAX_COMMON_NAME],
            "serial_number": secrets.token_hex(_NAME_BYTES),
            "exclude_cn_from_sans": True,
            "uri_sans": own_id,
            "format": "pem",
            "ttl": f"{ttl}s",
        }
        try:
            answer = self._client.write(f"{self._config.mount}/root/sign-intermediate", body)
        except ConfigError as error:
            raise AuthorityError(str(error)) from None
        own, others = self._read(answer)
        self._check(own, key)
        return self._path([own, *others], at)

    def _read(self, answer: Mapping[str, Any]) -> tuple[Certificate, list[Certificate]]:
        """Return the certificate that was signed, and what may stand above it. Raise AuthorityError."""
        chain = answer.get("ca_chain") or []
        if not isinstance(chain, list) or len(chain) > MAX_CHAIN:
            raise self._wrong(f"comes with a chain that is no list, or longer than {MAX_CHAIN}")
        try:
            own = _certificate(answer.get("certificate"))
            above = [_certificate(text) for text in (*chain, answer.get("issuing_ca"))]
        except ValueError:
            raise self._wrong("cannot be read") from None
        return own, list({one.der: one for one in above if one.der != own.der and one.der not in self._roots}.values())

    def _check(self, own: Certificate, key: PrivateKey) -> None:
        """Hold the certificate against what was asked for. Raise AuthorityError."""
        if own.key is None or own.raw.public_key().public_bytes(_DER, _SPKI) != public_key_der(key.public_key()):
            raise self._wrong("is for another key")
        if own.uris != (str(self._trust_domain.id),) or len(own.names) != 1:
            raise self._wrong(f"is not for {self._trust_domain.id} alone")
        if first_broken(CA, own) is not None or own.subject == own.issuer:
            raise self._wrong("is no CA below another")

    def _path(self, certificates: Sequence[Certificate], at: int) -> Sequence[Certificate]:
        roots = [read_certificate(der) for der in self._roots]
        try:
            for path in Paths(certificates, roots):
                if valid_at(path, at):
                    return path
        except TooManySignatures:
            pass
        raise self._wrong(f"leads to no root of {self._config.roots} (upstream.bundle) that is valid now")

    def _wrong(self, what: str) -> AuthorityError:
        return AuthorityError(f"the CA that the Vault at {self._config.address} signed {what}")


def _certificate(text: object) -> Certificate:
    """Read one certificate in PEM. Raise ValueError."""
    if not isinstance(text, str):
        raise ValueError("no text")
    try:
        return read_certificate(x509.load_pem_x509_certificate(text.encode()).public_bytes(_DER))
    except (TypeError, x509.InvalidVersion):
        raise ValueError("certificate") from None
