# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs of local workloads: fetched when they are asked for, checked, kept for a while; and validating others'."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from firedoor.certs import (
    IssueError,
    JwtKey,
    JwtSvidError,
    TrustBundle,
    ValidatedJwt,
    check_audience,
    validate_jwt_svid,
)
from firedoor.sidecar.config import CACHE
from firedoor.sidecar.errors import NotEntitled, RequestRefused, ServerUnavailable
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.token_cache import TokenCache
from firedoor.sidecar.view import Entry, View
from firedoor.wire import workload_pb2

# What RFC 7519 registers. Of a token of another trust domain a workload is told these alone, as SPIRE does: what else
# it says means something only to whoever knows that domain.
REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})

# Returns a token for an entry ID and an audience. Raises SidecarError.
Fetch = Callable[[str, tuple[str, ...]], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Token:
    """A token that holds for an entry."""

    text: str = field(repr=False)
    proof: ValidatedJwt
    # From when on a new one is asked for.
    renew_at: float

    @property
    def expires_at(self) -> int:
        """Unix seconds."""
        return int(self.proof.expires_at)


class Tokens:
    """Fetches JWT-SVIDs and keeps some."""

    def __init__(self, holder: Holder, fetch: Fetch, now: Callable[[], float], *, max_held: int = CACHE) -> None:
        self._holder, self._fetch, self._now = holder, fetch, now
        self._kept: TokenCache[Token] = TokenCache(holder, now, max_held, self._fetched, _keys)

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, entry: Entry, audience: Sequence[str]) -> Token:
        """Return a token for an entry that the caller is entitled to. Raise SidecarError."""
        try:
            return await self._kept.get(entry, check_audience(audience))
        except IssueError as error:
            raise RequestRefused(str(error)) from None

    async def _fetched(self, entry: Entry, audience: tuple[str, ...]) -> Token:
        text = await self._fetch(entry.id, audience)
        now, holder = self._now(), self._holder
        try:
            proof = validate_jwt_svid(
                text,
                audience[0],
                holder.view.bundles,
                now,
                revocations=holder.verifier.revocations,
                limits=holder.view.limits,
            )
        except JwtSvidError as error:
            raise ServerUnavailable(f"the server sent a JWT-SVID that cannot be used: {error}") from None
        if proof.id != entry.spiffe_id or set(_listed(proof.claims["aud"])) != set(audience):
            raise ServerUnavailable("the server sent a JWT-SVID of another ID or for another audience")
        return Token(text, proof, now + (proof.expires_at - now) / 2)


def _keys(view: View) -> Iterable[JwtKey]:
    own = view.bundles.get(view.trust_domain)
    return own.jwt_keys if own else ()


async def jwt_tokens(
    tokens: Tokens, entries: Sequence[Entry], audience: Sequence[str], still: Callable[[], Sequence[Entry]]
) -> list[tuple[Entry, Token]]:
    """Return a token for each of these entries; `still` asks afterwards what the workload is entitled to.

    An identity that the server does not issue is left out. Raise NotEntitled when none is left, else SidecarError.
    """
    found = await asyncio.gather(*(tokens.get(entry, audience) for entry in entries), return_exceptions=True)
    present = {entry.id for entry in still()}
    held = []
    for entry, one in zip(entries, found, strict=True):
        if isinstance(one, BaseException):
            if not isinstance(one, NotEntitled):
                raise one
        elif entry.id in present:
            held.append((entry, one))
    if not held:
        raise NotEntitled
    return held


def validate(
    holder: Holder,
    trusted: Sequence[TrustBundle],
    request: workload_pb2.ValidateJWTSVIDRequest,
    now: float,
    foreign_claims: AbstractSet[str] = frozenset(),
) -> workload_pb2.ValidateJWTSVIDResponse:
    """Answer ValidateJWTSVID for a workload that may trust these bundles. Raise RequestRefused.

    Of a foreign token the registered claims are told and those named: any other is a word of somebody else's.
    """
    if not request.audience:
        raise RequestRefused("audience must be specified")
    if not request.svid:
        raise RequestRefused("svid must be specified")
    bundles = {one.trust_domain: one for one in trusted}
    revocations = holder.verifier.revocations
    try:
        limits = holder.view.limits
        proof = validate_jwt_svid(request.svid, request.audience, bundles, now, revocations=revocations, limits=limits)
    except JwtSvidError as error:
        raise RequestRefused(str(error)) from None
    claims: dict[str, Any] = {**proof.claims, "aud": _listed(proof.claims["aud"])}
    if proof.id.trust_domain != holder.view.trust_domain:
        claims = {name: value for name, value in claims.items() if name in REGISTERED | foreign_claims}
    response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(proof.id))
    response.claims.update(claims)
    return response


def _listed(audience: str | list[str]) -> list[str]:
    return [audience] if isinstance(audience, str) else audience
