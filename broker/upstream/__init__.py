# SPDX-License-Identifier: Apache-2.0
"""Authorities above the broker: who signs its CAs when it is no root itself.

One protocol, an implementation a module. With one of them, chains are leaf, the broker's CA and what stands between
that and the root; the trust bundle has the roots. Other CAs below the same roots sign nothing here: the broker's own
are on the list that sidecars have (broker/downstream.py), and those of others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from firedoor.certs import JwtKey, PrivateKey, TrustBundle

# What the bundle above changes in ours.
Follow: TypeAlias = Callable[[TrustBundle], TrustBundle]
TokenKind: TypeAlias = Literal["jwt", "wit"]


@dataclass(frozen=True, slots=True)
class Minted:
    """A CA of ours, signed upstream. In `chain` its own certificate is first; the roots are in `roots` alone. DER."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]


class Upstream(Protocol):
    """An authority above the broker. Called on worker threads, one call at a time."""

    def mint(self, key: PrivateKey, ttl: int, at: int) -> Minted:
        """Have a CA signed that lives so many seconds, or less. Raise AuthorityError."""

    def publish(self, kind: TokenKind, key: JwtKey) -> None:
        """Have a key for JWT- or WIT-SVIDs put into the bundle above, where that can be. Raise AuthorityError."""

    def poll(self) -> Follow | None:
        """Return what to change in our bundle, None while there is nothing new. Raise AuthorityError."""

    def close(self) -> None:
        """Close what is open."""


def with_roots(bundle: TrustBundle, roots: Sequence[bytes]) -> TrustBundle:
    """Return a bundle with roots added. Raise BundleError."""
    for root in roots:
        bundle = bundle.with_root(root)
    return bundle
