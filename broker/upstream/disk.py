# SPDX-License-Identifier: Apache-2.0
"""A CA in files, as SPIRE's plug-in `disk`: certificate, key and, unless the certificate is a root, the roots.

The files are looked at every second. Files that do not go together, as in the middle of a change, change nothing; what
they hold signs from the next authority of ours on, which `localauthority x509 prepare` brings at once.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_private_key

from firedoor.broker.errors import AuthorityError, ConfigError
from firedoor.broker.files import stamp
from firedoor.broker.upstream import Follow, Minted, TokenKind, with_roots
from firedoor.broker.upstream.roots import read_roots
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.certs import (
    CertsError,
    JwtKey,
    PrivateKey,
    TrustDomain,
    X509Issuer,
    issue_downstream_ca,
)

_log = logging.getLogger("firedoor.broker.upstream")


@dataclass(frozen=True, slots=True)
class UpstreamFiles:
    """Where the CA is. `bundle` None: the certificate is a root itself."""

    ca: CertificateFiles
    bundle: Path | None

    def read(self, trust_domain: TrustDomain) -> tuple[X509Issuer, tuple[bytes, ...]]:
        """Return the CA, and the roots above it. Raise ConfigError."""
        found = self.ca.read()
        try:
            key = load_der_private_key(found.key, None)
            issuer = X509Issuer.load(trust_domain, found.chain[0], key, found.chain[1:])  # type: ignore[arg-type]
        except CertsError as error:
            raise ConfigError(f"upstream.certificate: {self.ca.certificate} cannot be used: {error}") from None
        if self.bundle is not None:
            return issuer, read_roots(trust_domain, self.bundle)
        if issuer.above:
            raise ConfigError(f"upstream.bundle: is missing, and {self.ca.certificate} is no root")
        return issuer, read_roots(trust_domain, self.ca.certificate)

    def stamp(self) -> tuple[object, ...]:
        """Return what differs when a file was edited or replaced."""
        return (*self.ca.stamp(), stamp(self.bundle) if self.bundle is not None else None)


class DiskUpstream:
    """See the module."""

    def __init__(self, files: UpstreamFiles, trust_domain: TrustDomain) -> None:
        self._files, self._trust_domain = files, trust_domain
        self._seen = files.stamp()
        self._issuer, self._roots = files.read(trust_domain)

    def mint(self, key: PrivateKey, ttl: int, at: int) -> Minted:
        """Sign a CA with the one in the files. Raise AuthorityError."""
        try:
            made = issue_downstream_ca(
                self._trust_domain,
                key.public_key(),
                self._issuer,
                at=at,
                random=secrets.token_bytes,
                ttl=ttl,
                path_length=None,
            )
        except CertsError as error:
            raise AuthorityError(f"the CA in {self._files.ca.certificate} cannot sign: {error}") from None
        roots = set(self._roots)
        return Minted(tuple(der for der in made.chain if der not in roots), self._roots)

    def publish(self, kind: TokenKind, key: JwtKey) -> None:
        """Do nothing: files take no keys."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def poll(self) -> Follow | None:
        """Read the files again if one changed."""
        seen = self._files.stamp()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            self._issuer, self._roots = self._files.read(self._trust_domain)
        except ConfigError as error:
            _log.error("the CA upstream stays as it was: %s", error)
            return None
        _log.info("the CA upstream was read again; the next authority is signed by it")
        roots = self._roots
        return lambda bundle: with_roots(bundle, roots)
