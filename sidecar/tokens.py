# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs of local workloads: fetched from the server when asked for, checked, and kept for half of their life.

What is kept has a hard cap, and goes at once when its entry changes, its key is tainted or leaves the bundle, or it is
revoked. While the server is away, what is held is handed out until it expires. Tokens are in memory alone and in no
log.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from firedoor.certs import IssueError, JwtSvidError, TrustBundle, ValidatedJwt, check_audience, validate_jwt_svid
from firedoor.certs.jwt import check_not_revoked
from firedoor.sidecar.config import CACHE
from firedoor.sidecar.errors import NotEntitled, RequestRefused, ServerError, ServerUnavailable
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.view import Entry, View
from firedoor.wire import workload_pb2

# What RFC 7519 registers. Of a token of another trust domain a workload is told these alone, as SPIRE does: what else
# it says means something only to whoever knows that domain.
REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})

# Returns a token for an entry ID and an audience. Raises SidecarError.
Fetch = Callable[[str, tuple[str, ...]], Awaitable[str]]
_Key = tuple[str, tuple[object, ...], tuple[str, ...]]


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
    """Fetches tokens and keeps some. Several who ask for the same one at once wait for one answer."""

    def __init__(self, holder: Holder, fetch: Fetch, now: Callable[[], float], *, max_held: int = CACHE) -> None:
        # Of at most 16 KiB each; the one that was not asked for the longest goes first.
        self._holder, self._fetch, self._now, self._max_held = holder, fetch, now, max_held
        self._held: OrderedDict[_Key, Token] = OrderedDict()
        self._asked: dict[_Key, asyncio.Task[Token]] = {}
        self._view: View | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, entry: Entry, audience: Sequence[str]) -> Token:
        """Return a token for an entry that the caller is entitled to. Raise SidecarError."""
        try:
            key = (entry.id, entry.revision, check_audience(audience))
        except IssueError as error:
            raise RequestRefused(str(error)) from None
        self._purge()
        held, now = self._held.get(key), self._now()
        if held is not None and now < held.renew_at:
            self._held.move_to_end(key)
            return held
        try:
            return await self._obtain(key, entry)
        except NotEntitled:
            self._held.pop(key, None)
            raise
        except ServerError:
            self._purge()
            held = self._held.get(key)
            if held is not None and self._now() < held.proof.expires_at:
                return held
            raise

    async def _obtain(self, key: _Key, entry: Entry) -> Token:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._ask(key, entry))
            task.add_done_callback(lambda done: self._answered(key, done))
        # Whoever asked first may go away; the others still wait.
        return await asyncio.shield(task)

    def _answered(self, key: _Key, done: asyncio.Task[Token]) -> None:
        del self._asked[key]
        # Looked at, so that nobody warns of an error that nobody is left to hear.
        _ = done.cancelled() or done.exception()

    async def _ask(self, key: _Key, entry: Entry) -> Token:
        text = await self._fetch(entry.id, key[2])
        now, holder = self._now(), self._holder
        try:
            proof = validate_jwt_svid(
                text, key[2][0], holder.view.bundles, now, revocations=holder.verifier.revocations
            )
        except JwtSvidError as error:
            raise ServerUnavailable(f"the server sent a JWT-SVID that cannot be used: {error}") from None
        if proof.id != entry.spiffe_id or set(_listed(proof.claims["aud"])) != set(key[2]):
            raise ServerUnavailable("the server sent a JWT-SVID of another ID or for another audience")
        token = Token(text, proof, now + (proof.expires_at - now) / 2)
        self._purge()
        self._held[key] = token
        self._held.move_to_end(key)
        while len(self._held) > self._max_held:
            self._held.popitem(last=False)
        return token

    def _purge(self) -> None:
        """Forget what the present view gives no longer."""
        view = self._holder.view
        if view is self._view:
            return
        self._view = view
        own = view.bundles.get(view.trust_domain)
        # What a tainted key signed holds until the key is revoked, and is not handed out any more.
        keys = {one.key_id for one in own.jwt_keys if not one.tainted} if own else set()
        for key, token in list(self._held.items()):
            entry = view.entries.get(key[0])
            if entry is None or entry.revision != key[1] or token.proof.key_id not in keys or self._revoked(token):
                del self._held[key]

    def _revoked(self, token: Token) -> bool:
        try:
            check_not_revoked(token.proof, self._holder.verifier.revocations)
        except JwtSvidError:
            return True
        return False


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
    holder: Holder, trusted: Sequence[TrustBundle], request: workload_pb2.ValidateJWTSVIDRequest, now: float
) -> workload_pb2.ValidateJWTSVIDResponse:
    """Answer ValidateJWTSVID for a workload that may trust these bundles. Raise RequestRefused."""
    if not request.audience:
        raise RequestRefused("audience must be specified")
    if not request.svid:
        raise RequestRefused("svid must be specified")
    bundles = {one.trust_domain: one for one in trusted}
    revocations = holder.verifier.revocations
    try:
        proof = validate_jwt_svid(request.svid, request.audience, bundles, now, revocations=revocations)
    except JwtSvidError as error:
        raise RequestRefused(str(error)) from None
    claims: dict[str, Any] = {**proof.claims, "aud": _listed(proof.claims["aud"])}
    if proof.id.trust_domain != holder.view.trust_domain:
        claims = {name: value for name, value in claims.items() if name in REGISTERED}
    response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id=str(proof.id))
    response.claims.update(claims)
    return response


def _listed(audience: str | list[str]) -> list[str]:
    return [audience] if isinstance(audience, str) else audience
