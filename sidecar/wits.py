# SPDX-License-Identifier: Apache-2.0
"""WIT-SVIDs of local workloads, each with a key of its own: made when somebody asks, checked, kept for a while.

Who shows one proves with each message that it has the key; so the key goes to the workload with the token.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from firedoor.certs import JwtKey, ValidatedWit, WitSvidError, check_confirmation, validate_wit_svid
from firedoor.sidecar import keys
from firedoor.sidecar.config import CACHE
from firedoor.sidecar.errors import NotEntitled, NotReady, NotServed, ServerError, ServerUnavailable
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.token_cache import TokenCache
from firedoor.sidecar.view import Entry, View
from firedoor.wire import workload_pb2

# Returns a token for an entry ID, a public key (PKIX DER) and the algorithm that goes with it. Raises SidecarError.
Fetch = Callable[[str, bytes, str], Awaitable[str]]
# A token that is due, and whose renewal failed, is asked for again after this time.
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Wit:
    """A token that holds for an entry, and the key that it names."""

    text: str = field(repr=False)
    # A JWK with its private part.
    key: str = field(repr=False)
    proof: ValidatedWit
    renew_at: float

    @property
    def expires_at(self) -> int:
        """Unix seconds."""
        return int(self.proof.expires_at)


class Wits:
    """Fetches WIT-SVIDs and keeps some."""

    def __init__(self, holder: Holder, fetch: Fetch, now: Callable[[], float], *, max_held: int = CACHE) -> None:
        self.holder, self._fetch, self.now = holder, fetch, now
        self._kept: TokenCache[Wit] = TokenCache(holder, now, max_held, self._fetched, _keys)

    def __len__(self) -> int:
        return len(self._kept)

    def check_served(self) -> None:
        """Raise NotServed when our server has no key for WIT-SVIDs, NotReady before it has been heard."""
        if not self.holder.view.synced:
            raise NotReady("the sidecar has not heard from its server yet")
        if not _keys(self.holder.view):
            raise NotServed("the server of this sidecar issues no WIT-SVIDs")

    async def get(self, entry: Entry, mine: Wit | None = None) -> Wit:
        """Return a token for an entry; `mine`, which the caller has, while it is good for more. Raise SidecarError."""
        if mine is None or self.now() >= mine.expires_at or not self._kept.good(mine):
            return await self._kept.get(entry)
        if self.now() < mine.renew_at:
            return mine
        try:
            return await self._kept.get(entry)
        except ServerError:
            return mine

    async def _fetched(self, entry: Entry, _: tuple[str, ...]) -> Wit:
        key = keys.generate()
        text = await self._fetch(entry.id, key.public, keys.ALGORITHM)
        now, holder = self.now(), self.holder
        try:
            revocations, limits = holder.verifier.revocations, holder.view.limits
            proof = validate_wit_svid(text, holder.view.bundles, now, revocations=revocations, limits=limits)
        except WitSvidError as error:
            raise ServerUnavailable(f"the server sent a WIT-SVID that cannot be used: {error}") from None
        wanted = check_confirmation(key.public, keys.ALGORITHM)
        if proof.id != entry.spiffe_id or any(proof.confirmation.get(name) != one for name, one in wanted.items()):
            raise ServerUnavailable("the server sent a WIT-SVID of another ID or for another key")
        return Wit(text, keys.private_jwk(key), proof, now + (proof.expires_at - now) / 2)


class WitStream:
    """What one stream has handed out, and when that is to be replaced."""

    def __init__(self, wits: Wits) -> None:
        self._wits = wits
        self._mine: dict[tuple[object, ...], Wit] = {}

    async def answer(
        self, entries: Sequence[Entry], still: Callable[[], Sequence[Entry]]
    ) -> workload_pb2.WITSVIDResponse:
        """Return a token for each of these entries; `still` asks afterwards what the workload is entitled to.

        An identity that the server does not issue is left out. Raise NotEntitled when none is left, else SidecarError.
        """
        asked = [(entry, self._mine.get((entry.id, entry.revision))) for entry in entries]
        found = await asyncio.gather(*(self._wits.get(*one) for one in asked), return_exceptions=True)
        present = {entry.id for entry in still()}
        self._mine = {}
        response = workload_pb2.WITSVIDResponse()
        for entry, one in zip(entries, found, strict=True):
            if isinstance(one, BaseException):
                if not isinstance(one, NotEntitled):
                    raise one
            elif entry.id in present:
                self._mine[(entry.id, entry.revision)] = one
                response.svids.add(
                    spiffe_id=str(entry.spiffe_id), wit_svid=one.text, wit_svid_key=one.key, hint=entry.hint
                )
        if not response.svids:
            raise NotEntitled
        return response

    def due(self) -> float | None:
        """Return in how many seconds a token is to be replaced."""
        first = min((one.renew_at for one in self._mine.values()), default=None)
        return None if first is None else max(RETRY_SECONDS, first - self._wits.now())


def _keys(view: View) -> Iterable[JwtKey]:
    own = view.bundles.get(view.trust_domain)
    return own.wit_keys if own else ()
