# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs, SVIDs, trust bundles, authorities and keys. Pure: no socket, clock, file or environment."""

from firedoor.certs.errors import (
    CallerError,
    CertsError,
    FingerprintError,
    OurError,
    PatternError,
    PeerError,
    SelectorError,
    SpiffeIdError,
)
from firedoor.certs.fingerprints import Fingerprint
from firedoor.certs.ids import SpiffeId, TrustDomain
from firedoor.certs.patterns import IdPattern
from firedoor.certs.selectors import Selector

__all__ = [
    "CallerError",
    "CertsError",
    "Fingerprint",
    "FingerprintError",
    "IdPattern",
    "OurError",
    "PatternError",
    "PeerError",
    "Selector",
    "SelectorError",
    "SpiffeId",
    "SpiffeIdError",
    "TrustDomain",
]
