# SPDX-License-Identifier: Apache-2.0
"""Which CAs below the roots of our own trust domain may sign, and for which segments.

A CA is known by its key. Constraints inside its certificate would be better known and worse enforced: webpki refuses
everything below a URI name constraint, and so does pyca (see constraints.py). So the broker keeps the whole list, and
who is not on it may sign nothing. The Rust core does the same (mtls/identity/src/intermediates.rs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

from cryptography.hazmat.primitives import serialization

from firedoor.certs.certificate import Certificate
from firedoor.certs.errors import SvidError
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.keys import PublicKey
from firedoor.certs.subject_key import SubjectKey

# What stands in place of a segment's name for a CA of the broker's own: it may sign for every ID.
EVERY_ID: Final = "*"


@final
@dataclass(frozen=True)
class Intermediates:
    """The whole list of one trust domain: each CA's segments, by `key_hash`. Who is not listed may sign nothing."""

    trust_domain: TrustDomain
    segments: Mapping[str, frozenset[str]]
    # Which segment an ID is in, None for none.
    segment_of: Callable[[SpiffeId], str | None]

    def check(self, spiffe_id: SpiffeId, between: Iterable[Certificate]) -> None:
        """Hold the CAs from a leaf up, its root excluded, against the list. Raise SvidError."""
        if spiffe_id.trust_domain != self.trust_domain:
            return
        limits: list[frozenset[str]] = []
        for authority in between:
            segments = self.segments.get(_hash(authority))
            if segments is None:
                raise SvidError("intermediate_not_listed")
            if EVERY_ID in segments:
                # What stands above it is the business of the authority upstream.
                break
            limits.append(segments)
        segment = self.segment_of(spiffe_id) if limits else None
        if not all(segment in one for one in limits):
            raise SvidError("segment_not_listed")


def key_hash(key: PublicKey | SubjectKey) -> str:
    """Return what a CA is known by: SHA-256 over its subjectPublicKeyInfo, lower-case hex. Raise IssueError."""
    return hashlib.sha256(SubjectKey.of(key).der).hexdigest()


def _hash(certificate: Certificate) -> str:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(certificate.raw.public_key().public_bytes(encoding, form)).hexdigest()
