# SPDX-License-Identifier: Apache-2.0
"""Which calls are limited by remote address, and how much. Callers on the admin socket are not."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from firedoor.broker.ratelimit import Limiter, Rate, Slots
from firedoor.mtls import Caller

# SPIRE's: how often an agent may say which version it runs.
_STATUS: Final = Rate(10, 100)
# CAs and keys of one entry's authority: each is news for every sidecar.
_DOWNSTREAM: Final = Rate(1, 100)
# Attestations that wait for a check or for an answer, in all and by address. Each takes milliseconds, or seconds when
# somebody does not answer; a rack behind one address may start at once.
_ATTESTING: Final = 256
_ATTESTING_EACH: Final = 32


class Limits:
    """The limiters of one broker."""

    def __init__(self, attestation: Rate, signing: Rate) -> None:
        self._attestation = Limiter(attestation, "attestation")
        self._signing = Limiter(signing, "X.509 signing")
        self._tokens = Limiter(signing, "JWT signing")
        self._wits = Limiter(signing, "WIT signing")
        self._publishing = Limiter(signing, "key publishing")
        self._downstream = Limiter(_DOWNSTREAM, "downstream")
        self._status = Limiter(_STATUS, "status posting")
        self._attesting = Slots(_ATTESTING, _ATTESTING_EACH, "attestations")

    def attestation(self, caller: Caller) -> None:
        """Count an attestation. Raise RateLimited."""
        _take(self._attestation, caller, 1)

    def attesting(self, caller: Caller) -> AbstractContextManager[None]:
        """Hold a place among the attestations that are under way. Raise RateLimited when all are taken."""
        return self._attesting.hold(caller.remote) if caller.transport == "tls" else nullcontext()

    def signing(self, caller: Caller, count: int) -> None:
        """Count so many signatures. Raise RateLimited."""
        _take(self._signing, caller, count)

    def tokens(self, caller: Caller) -> None:
        """Count the signature of a JWT-SVID. Raise RateLimited."""
        _take(self._tokens, caller, 1)

    def wits(self, caller: Caller, count: int) -> None:
        """Count the signatures of WIT-SVIDs. Raise RateLimited."""
        _take(self._wits, caller, count)

    def publishing(self, caller: Caller) -> None:
        """Count a key that somebody below us publishes. Raise RateLimited."""
        _take(self._publishing, caller, 1)

    def downstream(self, entry_id: str) -> None:
        """Count a CA or key of an entry's authority. Raise RateLimited."""
        self._downstream.take(entry_id, time.monotonic(), 1)

    def status(self, caller: Caller) -> None:
        """Count a status. Raise RateLimited."""
        _take(self._status, caller, 1)


def _take(limiter: Limiter, caller: Caller, cost: int) -> None:
    if caller.transport == "tls":
        limiter.take(caller.remote, time.monotonic(), cost)
