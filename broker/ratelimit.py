# SPDX-License-Identifier: Apache-2.0
"""Token buckets, and places for what takes time, by remote address. Pure: the time is an argument."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from firedoor.broker.errors import RateLimited

# One address costs about 200 bytes; the one that was quiet for longest goes first.
MAX_ADDRESSES: Final = 65536


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second, and so many at once after a quiet time."""

    per_second: float
    burst: int


class Limiter:
    """Limits by address; IPv6 by /64, for a host has all of one."""

    def __init__(self, rate: Rate, what: str) -> None:
        self._rate, self._what = rate, what
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, remote: str, now: float, cost: int = 1) -> None:
        """Count `cost` uses. Raise RateLimited, and count nothing, when there are not so many left."""
        key = _key(remote)
        left, at = self._buckets.pop(key, (float(self._rate.burst), now))
        left = min(float(self._rate.burst), left + max(0.0, now - at) * self._rate.per_second)
        # A batch larger than the burst passes from a full bucket and is paid off afterwards.
        enough = left >= min(cost, self._rate.burst)
        self._buckets[key] = (left - cost if enough else left, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if not enough:
            raise RateLimited(f"rejecting request due to {self._what} rate limiting")


class Slots:
    """At most so many of something at once, in all and by address."""

    def __init__(self, total: int, each: int, what: str) -> None:
        self._total, self._each, self._what = total, each, what
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, remote: str) -> Iterator[None]:
        """Take a slot for as long as the context is open. Raise RateLimited when there is none."""
        key = _key(remote)
        if self._taken.total() >= self._total or self._taken[key] >= self._each:
            raise RateLimited(f"too many {self._what} are under way; try again")
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


def _key(remote: str) -> str:
    host = remote.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return remote
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
