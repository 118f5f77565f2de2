# SPDX-License-Identifier: Apache-2.0
"""The broker's signing authorities over time: `AuthoritySlots` with a key manager, a journal and a clock.

X.509, JWT and WIT authorities live the same life in slots, journals and keys of their own; all stand in one bundle.
`tick` does by the clock what the LocalAuthority API (rpc/local_authorities.py) does when somebody asks for it.

A new authority is in the bundle from the moment it is prepared, and signs only once it is activated, when everybody has
had a third of the old one's life to learn of it. Order within a step: the key is stored, then journal and bundle are
committed together; a crash in between leaves a key that the next attempt replaces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import gmtime, monotonic, strftime
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection

from firedoor.broker.db.rows import load_journal, put_bundle, put_journal
from firedoor.broker.errors import AuthorityError, Conflict, InvalidRequest
from firedoor.certs import (
    Authority,
    AuthoritySlots,
    Due,
    IssueError,
    JwtKey,
    KeyManager,
    KeyManagerError,
    KeyType,
    PrivateKey,
    Status,
    TrustBundle,
)

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.state import State
    from firedoor.broker.upstream import Upstream
    from firedoor.certs.authority import Kind, SlotName

_log = logging.getLogger("firedoor.broker.authority")
# How often other trust domains should look for changes, in seconds; SPIRE's default.
REFRESH_HINT: Final = 300
# What failed is tried again so much later; an authority upstream that is away takes its time to fail.
_RETRY_SECONDS: Final = 5.0


class _Issuer(Protocol):
    """An authority with its key."""

    @property
    def authority_id(self) -> str:
        """Its ID."""

    @property
    def not_after(self) -> int:
        """When it ends."""


I = TypeVar("I", bound=_Issuer)  # noqa: E741


class Manager(Generic[I]):
    """Prepares and activates the authorities of one kind in time."""

    kind: ClassVar[Kind]
    # What the kind, and one authority of it, is called in sentences; SPIRE's words.
    label: ClassVar[str]
    what: ClassVar[str]

    def __init__(
        self,
        state: State,
        keys: KeyManager,
        key_type: KeyType,
        ttl: int,
        audit: Audit,
        upstream: Upstream | None = None,
    ) -> None:
        self._state, self._keys, self._key_type, self._ttl, self._audit = state, keys, key_type, ttl, audit
        self._upstream = upstream
        self._slots = AuthoritySlots()
        self._issuer: I | None = None
        self._lock = asyncio.Lock()
        # Until when `tick` waits after a failure, by the monotonic clock.
        self._again = 0.0

    def _make(self, slot: SlotName, at: int) -> Authority:
        """Make a key in a slot, and the authority that is known by it."""
        raise NotImplementedError

    def _join(self, authority: Authority, key: PrivateKey) -> I:
        """Return the authority with its key. Raise IssueError when they do not belong together."""
        raise NotImplementedError

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        """Return the bundle with the authority in it."""
        raise NotImplementedError

    def _tainted(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        """Return the bundle with the authority tainted."""
        raise NotImplementedError

    def _beside(self, _: Authority) -> tuple[Callable[[Connection], None], Callable[[], None]]:
        """Return what is written with a prepared authority, and what is then remembered."""
        return _nothing, lambda: None

    @property
    def slots(self) -> AuthoritySlots:
        """The authorities as they stand."""
        return self._slots

    @property
    def not_after(self) -> int:
        """When the authority that signs ends, 0 when there is none."""
        return self._slots.current.not_after if self._slots.current else 0

    @property
    def max_svid_ttl(self) -> int:
        """The longest life of an SVID that never ends early because of its authority."""
        return self._slots.current.max_svid_ttl if self._slots.current else 0

    def issuer(self) -> I:
        """Return what signs. Raise AuthorityError when there is nothing that can."""
        if (issuer := self._able()) is None:
            raise AuthorityError("there is no authority that can sign; the broker's log says why")
        return issuer

    def _able(self) -> I | None:
        found = self._issuer
        return found if found is not None and found.not_after > self._state.clock.now() else None

    async def start(self) -> None:
        """Go on from the journal, and do what is due.

        Raise KeyManagerError for keys that cannot be read, and AuthorityError when nothing can sign. While the
        authority upstream does not help, what there is signs on, and `tick` tries again.
        """
        journal = await self._state.database.read(lambda connection: load_journal(connection, self.kind))
        if journal is not None:
            self._slots = AuthoritySlots.from_json(journal)
        if self._slots.current is not None:
            self._issuer = await asyncio.to_thread(self._load, self._slots.current)
            if self._issuer is None:
                # What it signed stays good: it is in the bundle. But nothing more can be signed with it.
                _log.error("the key of authority %s is gone; a new one takes over", self._slots.current.authority_id)
                self._slots = AuthoritySlots()
        try:
            await self.tick()
        except AuthorityError as error:
            if (issuer := self._able()) is None:
                raise
            end = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(issuer.not_after))
            _log.error("%s authority %s signs on, until %s at most: %s", self.label, issuer.authority_id, end, error)

    async def tick(self) -> None:
        """Do what is due now. Raise AuthorityError when the authority upstream does not help; a while later again."""
        if monotonic() < self._again:
            return
        try:
            await self._work()
        except AuthorityError:
            self._again = monotonic() + _RETRY_SECONDS
            raise

    async def _work(self) -> None:
        """Do what is due now."""
        async with self._lock:
            while (due := self._slots.due(at=self._state.clock.now())) is not None:
                if due is Due.PREPARE:
                    await self._prepare()
                else:
                    await self._activate()

    # --- when somebody asks for it ------------------------------------------------------------------------------

    async def prepare(self) -> Authority:
        """Make the next authority now, in place of one that is prepared, old or tainted. Raise AuthorityError."""
        async with self._lock:
            self.active()
            return await self._prepare()

    async def activate(self, authority_id: str) -> Authority:
        """Let the prepared authority sign now. Raise InvalidRequest or Conflict."""
        async with self._lock:
            other = self._other(authority_id)
            if other.status is not Status.PREPARED:
                raise Conflict(f"only Prepared authorities can be activated: {_status(other)}")
            await self._activate()
            return self.active()

    async def taint(self, authority_id: str) -> Authority:
        """Have everybody replace what the old authority signed. Raise InvalidRequest or Conflict."""
        async with self._lock:
            if authority_id and authority_id == self.active().authority_id:
                raise InvalidRequest("unable to taint current local authority")
            other = self._other(authority_id)
            if other.status is Status.TAINTED:
                raise Conflict(f"failed to taint {self.label} authority: {self.what} is already tainted")
            if other.status is not Status.OLD:
                raise InvalidRequest(f"only Old local authorities can be tainted: {_status(other)}")
            slots = self._slots.taint(authority_id)
            await self._change(slots, lambda bundle: self._tainted(bundle, authority_id))
            self._audited("authority_tainted", other)
            return other

    async def revoke(self, authority_id: str) -> Authority | JwtKey:
        """Take what was tainted out of the bundle: nothing that it signed is valid any more."""
        raise NotImplementedError

    def active(self) -> Authority:
        """Return the authority that signs. Raise AuthorityError when there is none."""
        if self._slots.current is None:
            raise AuthorityError("server is initializing")
        return self._slots.current

    def _other(self, authority_id: str) -> Authority:
        if not authority_id:
            raise InvalidRequest("no authority ID provided")
        other = self._slots.other
        if other is None or other.authority_id != authority_id:
            raise InvalidRequest("unexpected authority ID")
        return other

    async def _change(
        self,
        slots: AuthoritySlots,
        change: Callable[[TrustBundle], TrustBundle],
        also: Callable[[Connection], None] = lambda _: None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Commit slots and bundle together."""

        def write(connection: Connection) -> None:
            put_journal(connection, self.kind, slots.to_json())
            also(connection)

        def apply() -> None:
            self._slots = slots
            then()

        await change_bundle(self._state, change, write, apply, anyway=True)

    # --- steps --------------------------------------------------------------------------------------------------

    async def _prepare(self) -> Authority:
        """Make the next authority and publish it in the bundle."""
        slot, at = self._slots.free_slot, self._state.clock.now_for_issuing()
        authority = await asyncio.to_thread(self._make, slot, at)
        also, then = self._beside(authority)
        slots = self._slots.prepare(authority)
        await self._change(slots, lambda bundle: self._published(bundle, authority), also, then)
        _log.info("%s authority %s is prepared, and in the bundle", self.label, authority.authority_id)
        self._audited("authority_prepared", authority)
        return authority

    async def _activate(self) -> None:
        """Let the prepared authority sign."""
        prepared = self._slots.other
        assert prepared is not None  # noqa: S101 - what is due says so
        issuer = await asyncio.to_thread(self._load, prepared)
        if issuer is None:
            _log.error("the key of authority %s is gone; another is prepared", prepared.authority_id)
            await self._prepare()
            return
        slots = self._slots.activate(prepared.authority_id)

        def apply(_: None) -> None:
            self._slots, self._issuer = slots, issuer

        await self._state.database.write(lambda connection: put_journal(connection, self.kind, slots.to_json()), apply)
        _log.info("%s authority %s signs now", self.label, prepared.authority_id)
        self._audited("authority_activated", prepared)

    def _audited(self, event: str, authority: Authority) -> None:
        fields = {"kind": self.kind, "authority_id": authority.authority_id, "not_after": authority.not_after}
        self._audit.event(event, **fields, generation=str(self._state.generation))

    def _load(self, authority: Authority) -> I | None:
        """Return the authority with its key, None when the key is gone. Raise KeyManagerError for a locked one."""
        try:
            return self._join(authority, self._keys.get(authority.key_id))
        except KeyManagerError as error:
            if error.code != "key_not_found":
                raise
        except IssueError:
            _log.error("the key in slot %s is not that of authority %s", authority.slot, authority.authority_id)
        return None


def _status(authority: Authority) -> str:
    return f"unsupported local authority status: {authority.status.name}"


def _nothing(_: Connection) -> None:
    """Write nothing more."""


async def change_bundle(
    state: State,
    change: Callable[[TrustBundle], TrustBundle],
    also: Callable[[Connection], None] = _nothing,
    then: Callable[[], None] = lambda: None,
    *,
    anyway: bool = False,
) -> None:
    """Commit a change of our own bundle together with what else belongs to it; nothing when nothing changes.

    `anyway`: what belongs to it also when the bundle stays as it is.
    """
    own = state.trust_domain
    async with state.own_bundle:
        before = state.bundles.get(own) or TrustBundle(own, refresh_hint=REFRESH_HINT)
        after = change(before)
        if after is before and not anyway:
            return

        def run(connection: Connection) -> None:
            also(connection)
            put_bundle(connection, after)

        def apply(_: None) -> None:
            then()
            state.put_bundle(after)

        await state.change(run, apply)
