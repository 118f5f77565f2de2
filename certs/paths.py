# SPDX-License-Identifier: Apache-2.0
"""Finding the ways from a certificate up to a root (RFC 5280 section 6.1), for SVIDs and for nodes' certificates.

What a CA must not break is a table of the profile, given by the caller; names, lengths, signatures and name constraints
are looked at here. The time is not: callers differ in what they make of a path that is not valid now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from firedoor.certs import profile
from firedoor.certs.certificate import Certificate
from firedoor.certs.constraints import check_name_constraints
from firedoor.certs.errors import SvidError

Path = list[Certificate]


class TooManySignatures(Exception):
    """The search would cost more signature checks than it may."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a CA must not break, which signatures count, and what a search may cost."""

    ca: tuple[profile.Row, ...]
    signature_allowed: Callable[[Certificate], bool]
    # Certificates in a path without its root.
    max_chain: int
    # Signatures checked in one search.
    budget: int


SVID_RULES: Final = Rules(
    ca=profile.CA,
    signature_allowed=lambda certificate: certificate.signature_allowed,
    max_chain=profile.MAX_CHAIN,
    # A path of 7 needs 7; webpki stops at 100 too.
    budget=100,
)


class Paths:
    """The paths from a leaf to a root, leaf first, root last; depth first, the shortest of a branch before others."""

    def __init__(
        self, certificates: Sequence[Certificate], roots: Sequence[Certificate], rules: Rules = SVID_RULES
    ) -> None:
        self._leaf, *self._intermediates = certificates
        self._roots, self._rules = roots, rules
        self._budget = rules.budget
        # Why a CA that signed could not stand above what it signed, when its name constraints were the reason.
        self.constrained: SvidError | None = None

    def __iter__(self) -> Iterator[Path]:
        """Yield every path. Raise TooManySignatures when there are more candidates than may be tried."""
        if not self._leaf.unknown_critical:
            yield from self._above([self._leaf])

    def _above(self, path: Path) -> Iterator[Path]:
        for root in self._roots:
            if self._issues(root, path):
                yield [*path, root]
        if len(path) == self._rules.max_chain:
            return
        for intermediate in self._intermediates:
            if intermediate not in path and self._issues(intermediate, path):
                yield from self._above([*path, intermediate])

    def _issues(self, issuer: Certificate, path: Path) -> bool:
        """Say whether `issuer` may stand above the path and signed its last certificate."""
        subject = path[-1]
        if subject.issuer != issuer.subject or profile.first_broken(self._rules.ca, issuer) is not None:
            return False
        # CAs below this one: all of the path but the leaf.
        if issuer.path_length is not None and len(path) - 1 > issuer.path_length:
            return False
        if issuer.unknown_critical or not self._rules.signature_allowed(subject) or not self._signed(subject, issuer):
            return False
        return self._within_constraints(issuer, path)

    def _within_constraints(self, issuer: Certificate, path: Path) -> bool:
        if issuer.name_constraints is not None:
            try:
                check_name_constraints(issuer.name_constraints, path)
            except SvidError as error:
                self.constrained = self.constrained or error
                return False
        return True

    def _signed(self, subject: Certificate, issuer: Certificate) -> bool:
        self._budget -= 1
        if self._budget < 0:
            raise TooManySignatures
        try:
            subject.raw.verify_directly_issued_by(issuer.raw)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return True


def valid_at(path: Path, at: int, early: int = 0) -> bool:
    """Say whether a whole path is valid at a time, or begins within so many seconds and has not ended.

    RFC 5280 section 4.1.2.5: both ends belong to the validity.
    """
    return all(certificate.not_before - early <= at <= certificate.not_after for certificate in path)
