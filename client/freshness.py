# SPDX-License-Identifier: Apache-2.0
"""What is known of a stream, and when to try again: shared by the sync and the asyncio source. No thread, no clock.

The last good answer stays while the sidecar is away, until it expires; a sidecar that says "no identity" is believed at
once (SPIFFE Workload API, section 5.2.3), and a question that it does not take is not asked again.
"""

import random
from collections.abc import Callable

from firedoor.answers import JwtSvid, X509Context
from firedoor.errors import FiredoorError, NoIdentity, NotServed, RequestRefused, SidecarUnavailable, SvidExpired

FIRST_SECONDS = 0.2
FACTOR = 1.6
LONGEST_SECONDS = 10.0
JITTER = 0.25


class Backoff:
    """Waits that grow from one failure to the next."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform, self._next = uniform, FIRST_SECONDS

    def failed(self) -> float:
        """Return the seconds to wait."""
        wait, self._next = self._next, min(self._next * FACTOR, LONGEST_SECONDS)
        return wait * self._uniform(1 - JITTER, 1 + JITTER)

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next = FIRST_SECONDS


class Freshest:
    """The newest answer, or why there is none. `version` grows with each answer."""

    def __init__(self) -> None:
        self.version = 0
        self._context: X509Context | None = None
        self._failure: FiredoorError | None = None

    def answered(self, context: X509Context) -> None:
        """Take a new answer."""
        self._context, self._failure = context, None
        self.version += 1

    def failed(self, error: FiredoorError) -> bool:
        """Note why the stream ended; say whether to open it again."""
        self._failure = error
        if isinstance(error, NoIdentity):
            self._context = None
        return not isinstance(error, RequestRefused | NotServed)

    def missing(self, seconds: float) -> SidecarUnavailable:
        """Return what to raise when nothing has come in time."""
        why = f": {self._failure}" if self._failure else ""
        return SidecarUnavailable(f"no X.509-SVID has come within {seconds:g} s{why}")

    def current(self, now: float) -> X509Context | None:
        """Return the newest answer, None while the sidecar is waited for. Raise its refusal, or SvidExpired."""
        if self._context is None:
            if self._failure is not None and not isinstance(self._failure, SidecarUnavailable):
                raise self._failure
            return None
        if now >= self._context.not_after:
            raise SvidExpired("the X.509-SVID has expired, and no newer one has come") from self._failure
        return self._context


class Tokens:
    """JWT-SVIDs that are kept until half of their life is over."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[str, ...], str], tuple[float, JwtSvid]] = {}

    def find(self, audience: tuple[str, ...], who: str, now: float) -> JwtSvid | None:
        """Return one that is young enough."""
        renew_at, found = self._kept.get((audience, who), (0.0, None))
        return found if now < renew_at else None

    def keep(self, audience: tuple[str, ...], who: str, svid: JwtSvid, now: float) -> None:
        """Keep one, and none that is over."""
        self._kept = {key: one for key, one in self._kept.items() if one[0] > now}
        self._kept[audience, who] = (now + (svid.expires_at - now) / 2, svid)
