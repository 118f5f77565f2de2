# SPDX-License-Identifier: Apache-2.0
"""What the server signs when it is asked for, kept for half of its life.

What is kept has a hard cap, and goes at once when its entry changes, its key is tainted or leaves the bundle, or it is
revoked. While the server is away, what is held is handed out until it expires. Tokens are in memory alone, and in no
log.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from firedoor.certs import JwtKey, JwtSvidError
from firedoor.certs.jwt import Revocable, check_not_revoked
from firedoor.sidecar.errors import NotEntitled, ServerError
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.view import Entry, View

# An entry as it was at a revision, and an audience, empty where there is none.
Key = tuple[str, tuple[object, ...], tuple[str, ...]]


class Signed(Protocol):
    """A token that holds for an entry."""

    @property
    def proof(self) -> Revocable:
        """What it says."""

    @property
    def renew_at(self) -> float:
        """From when on a new one is asked for, Unix seconds."""

    @property
    def expires_at(self) -> int:
        """Unix seconds."""


T = TypeVar("T", bound=Signed)


class TokenCache(Generic[T]):
    """Fetches tokens and keeps some. Several who ask for the same one at once wait for one answer.

    `fetch` returns a token that was checked; `keys` are those of our own bundle that sign such tokens.
    """

    def __init__(
        self,
        holder: Holder,
        now: Callable[[], float],
        max_held: int,
        fetch: Callable[[Entry, tuple[str, ...]], Awaitable[T]],
        keys: Callable[[View], Iterable[JwtKey]],
    ) -> None:
        # Of at most 16 KiB each; the one that was not asked for the longest goes first.
        self._holder, self._now, self._max_held = holder, now, max_held
        self._fetch, self._keys = fetch, keys
        self._held: OrderedDict[Key, T] = OrderedDict()
        self._asked: dict[Key, asyncio.Task[T]] = {}
        self._view: View | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, entry: Entry, audience: tuple[str, ...] = ()) -> T:
        """Return a token for an entry that the caller is entitled to. Raise SidecarError."""
        key = (entry.id, entry.revision, audience)
        self._purge()
        held = self._held.get(key)
        if held is not None and self._now() < held.renew_at:
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
            if held is not None and self._now() < held.expires_at:
                return held
            raise

    def good(self, token: T) -> bool:
        """Say whether the present view lets a token be used."""
        view = self._holder.view
        return any(one.key_id == token.proof.key_id and not one.tainted for one in self._keys(view)) and not (
            self._revoked(token)
        )

    async def _obtain(self, key: Key, entry: Entry) -> T:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._ask(key, entry))
            task.add_done_callback(lambda done: self._answered(key, done))
        # Whoever asked first may go away; the others still wait.
        return await asyncio.shield(task)

    def _answered(self, key: Key, done: asyncio.Task[T]) -> None:
        del self._asked[key]
        # Looked at, so that nobody warns of an error that nobody is left to hear.
        _ = done.cancelled() or done.exception()

    async def _ask(self, key: Key, entry: Entry) -> T:
        token = await self._fetch(entry, key[2])
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
        for key, token in list(self._held.items()):
            entry = view.entries.get(key[0])
            if entry is None or entry.revision != key[1] or not self.good(token):
                del self._held[key]

    def _revoked(self, token: T) -> bool:
        try:
            check_not_revoked(token.proof, self._holder.verifier.revocations)
            self._holder.view.limits.check(token.proof)
        except JwtSvidError:
            return True
        return False
