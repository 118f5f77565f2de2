# SPDX-License-Identifier: Apache-2.0
"""Who may vouch for a node's certificate: CA files, or our own authorities for SVIDs below a prefix.

A verifier is taken on the event loop, with what counts at that moment, and used on another thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from firedoor.broker.downstream import own
from firedoor.broker.errors import AttestationRefused, ConfigError
from firedoor.broker.read_files import ReadFiles, read_capped
from firedoor.certs import (
    EVERY_ID,
    BundleError,
    IdPattern,
    Intermediates,
    NodeCertificate,
    Revocation,
    TrustDomain,
    node_roots,
    read_roots,
    verify_node_certificate,
    verify_x509_svid,
)

if TYPE_CHECKING:
    from firedoor.broker.db.rows import Revoked
    from firedoor.broker.state import State
    from firedoor.certs.certificate import Certificate

_log = logging.getLogger("firedoor.broker.x509pop")


@dataclass(frozen=True, slots=True)
class Vouched:
    """A certificate that somebody vouches for, and what follows the prefix in its SPIFFE ID if it is an SVID."""

    node: NodeCertificate
    path: str = ""


# Takes a chain and the time. Raise EvidenceError, NodeCertificateError, SvidError or AttestationRefused.
Verifier = Callable[[Sequence[bytes], int], Vouched]


class Vouchers(Protocol):
    """Who may vouch for nodes."""

    def verifier(self) -> Verifier:
        """Return what checks a chain by all that counts now."""

    async def poll(self) -> None:
        """Look whether something changed."""

    async def reread(self) -> None:
        """Read again what was read from files (SIGHUP)."""


class CaFiles:
    """CA certificates in PEM files, read again when they change."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = ReadFiles(paths, read_ca_files, "CAs that vouch for nodes", _log)

    def verifier(self) -> Verifier:
        """Return what checks a chain by the CAs of all files."""
        roots = self._files.value
        return lambda chain, now: Vouched(verify_node_certificate(chain, roots, now))

    async def poll(self) -> None:
        """Read the files again if one changed."""
        await self._files.poll()

    async def reread(self) -> None:
        """Read the files now."""
        await self._files.reread()


def read_ca_files(paths: Iterable[Path]) -> tuple[Certificate, ...]:
    """Read CA certificates. Raise ConfigError."""
    found: dict[bytes, Certificate] = {}
    for path in paths:
        try:
            found |= {root.der: root for root in read_roots(read_capped("x509pop.ca_bundles", path))}
        except BundleError as error:
            raise ConfigError(f"x509pop.ca_bundles: {path}: {error}") from None
    return tuple(found.values())


class OwnSvids:
    """Our own authorities: a node shows an SVID whose path lies below a prefix (SPIRE's mode `spiffe`)."""

    def __init__(self, state: State, prefix: str) -> None:
        self._state, self._prefix = state, prefix.rstrip("/") + "/"

    def verifier(self) -> Verifier:
        """Return what checks an SVID by our trust bundle and our revocations."""
        trust_domain, prefix = self._state.trust_domain, self._prefix
        bundle, revoked = self._state.bundles[trust_domain], tuple(self._state.revocations.values())
        keys = {key.hex(): frozenset([EVERY_ID]) for key in own(self._state)}

        def verify(chain: Sequence[bytes], now: int) -> Vouched:
            # First by the rules of nodes, whose caps are narrower.
            node = verify_node_certificate(chain, node_roots(root.der for root in bundle.x509_roots), now)
            revocations = [_revocation(one, trust_domain) for one in revoked]
            # What an authority below us signed vouches for no node.
            ours = Intermediates(trust_domain, keys, lambda _: None)
            svid = verify_x509_svid(chain, {trust_domain: bundle}, now, revocations=revocations, intermediates=ours)
            if not svid.id.path.startswith(prefix):
                raise AttestationRefused(f"the SVID's path does not begin with {prefix}")
            return Vouched(node, svid.id.path.removeprefix(prefix))

        return verify

    async def poll(self) -> None:
        """Do nothing: the bundle is the state's."""

    async def reread(self) -> None:
        """Do nothing: nothing comes from files."""


def _revocation(revoked: Revoked, trust_domain: TrustDomain) -> Revocation:
    match revoked.kind:
        case "serial":
            return Revocation(serial=revoked.value)
        case "authority":
            return Revocation(authority_id=revoked.value)
        case _:
            pattern = IdPattern.parse(revoked.value, trust_domain)
            return Revocation(pattern=pattern, issued_before=revoked.issued_before)
