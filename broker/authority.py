# SPDX-License-Identifier: Apache-2.0
"""The broker's signing authorities over time: `AuthoritySlots` with a key manager, a journal and a clock.

X.509, JWT and WIT authorities live the same life in slots, journals and keys of their own; all stand in one bundle.
`tick` does by the clock what the LocalAuthority API (rpc/local_authorities.py) does when somebody asks for it.

A new authority is in the bundle from the moment it is prepared, and signs only once it is activated, when everybody has
had a third of the old one's life to learn of it. Order within a step: the key is stored, then journal and bundle are
committed together; a crash in between leaves a key that the next attempt replaces.

An authority whose key is lost signs nothing more, and stays in the bundle, so that what it signed stays good. The one
that is prepared takes over, or a new one; `authority rotate` then takes the lost one out (rotation.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import gmtime, monotonic, strftime
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection

from firedoor.broker.db.rows import load_journal, put_bundle, put_journal
from firedoor.broker.db.settled import settled
from firedoor.broker.errors import AuthorityError, BrokerError, Conflict, InvalidRequest, KeysAway
from firedoor.broker.keys.keyring import Keyring
from firedoor.certs import (
    Authority,
    AuthoritySlots,
    CertsError,
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
# How often the key manager is asked whether it still has the key that signs.
_LOOK_SECONDS: Final = 15.0
# With these a key manager says that a key is gone. With others it may have it: a passphrase is wrong, a device is away.
_GONE: Final = frozenset({"key_not_found", "key_damaged"})
# How long the first authorities of a broker that comes to others stand in the bundle before they sign: other brokers'
# sidecars have them then.
NEWCOMER_WAITS: Final = 5.0


class _Issuer(Protocol):
    """An authority with its key."""

    @property
    def authority_id(self) -> str:
        """Its ID."""

    @property
    def not_after(self) -> int:
        """When it ends."""

    @property
    def key(self) -> PrivateKey:
        """What it signs with."""


I = TypeVar("I", bound=_Issuer)  # noqa: E741


def _nothing(_: Connection) -> None:
    """Write nothing more."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What is written in the transaction of a step, and remembered once it is committed."""

    write: Callable[[Connection], None] = _nothing
    then: Callable[[], None] = lambda: None


# Made for the authority that a step is about.
BesideOf = Callable[[Authority], Beside]


def alone(_: Authority) -> Beside:
    """A step that nothing is written with."""
    return Beside()


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
        self._state, self._key_type, self._ttl, self._audit = state, key_type, ttl, audit
        self.keys = keys if isinstance(keys, Keyring) else Keyring(keys)
        self._upstream = upstream
        self._slots = AuthoritySlots()
        self._issuer: I | None = None
        # Whether there was no authority at the start: the first one signs as soon as it is made.
        self.fresh = False
        # Whether the key manager was away at the start, so that keys are looked for as soon as it is back.
        self._late = False
        # From when on it signs, by the monotonic clock, when it comes late to other brokers.
        self._signs_from = 0.0
        # Keys of authorities that were revoked while the key manager was away.
        self._doomed: set[str] = set()
        self._lock = asyncio.Lock()
        # When the last token that each key signed in this process expires.
        self._signed: dict[str, int] = {}
        # Until when `tick` waits after a failure, and when it looks at the key again, by the monotonic clock.
        self._again, self._look_at = 0.0, 0.0
        # Authorities whose key is lost, by ID.
        self._lost: set[str] = set()

    def _make(self, slot: SlotName, at: int) -> Authority:
        """Make a key in a slot, and the authority that is known by it."""
        raise NotImplementedError

    def _join(self, authority: Authority, key: PrivateKey) -> I:
        """Return the authority with its key. Raise IssueError when they do not belong together."""
        raise NotImplementedError

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        """Return the bundle with the authority in it."""
        raise NotImplementedError

    def _without(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        """Return the bundle without an authority that never signed."""
        raise NotImplementedError

    def _tainted(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        """Return the bundle with the authority tainted."""
        raise NotImplementedError

    def _beside(self, _: Authority) -> Beside:
        """Return what is written with a prepared authority, and what is then remembered."""
        return Beside()

    @property
    def slots(self) -> AuthoritySlots:
        """The authorities as they stand."""
        return self._slots

    @property
    def signing_key(self) -> PrivateKey | None:
        """The key that signs, None when there is none."""
        return self._issuer.key if self._issuer is not None else None

    @property
    def not_after(self) -> int:
        """When the authority that signs ends, 0 when there is none."""
        return self._slots.current.not_after if self._slots.current else 0

    @property
    def max_svid_ttl(self) -> int:
        """The longest life of an SVID that never ends early because of its authority."""
        return self._slots.current.max_svid_ttl if self._slots.current else 0

    def is_lost(self, authority_id: str) -> bool:
        """Say whether the key of an authority is lost."""
        return authority_id in self._lost

    @property
    def left_behind(self) -> Authority | None:
        """The authority that signed until its key was lost, as long as it is neither tainted nor replaced."""
        other = self._slots.other
        return other if other is not None and other.status is Status.OLD and self.is_lost(other.authority_id) else None

    def signed_until(self, authority_id: str) -> int:
        """Return until when tokens are valid that an authority signed in this process; 0 for none that are known."""
        return self._signed.get(authority_id, 0)

    def note(self, authority_id: str, expires_at: int) -> None:
        """Note that a token was signed. Certificates are in the table of what was issued."""
        self._signed[authority_id] = max(expires_at, self._signed.get(authority_id, 0))

    def issuer(self) -> I:
        """Return what signs. Raise AuthorityError when there is nothing that can, KeysAway while it cannot."""
        self.keys.check()
        if (issuer := self._able()) is None:
            raise AuthorityError("there is no authority that can sign; the broker's log says why")
        return issuer

    async def issuer_of(self, authority: Authority) -> I | None:
        """Return an authority of these with its key; None when that is gone. Raise KeyManagerError."""
        if self._issuer is not None and self._issuer.authority_id == authority.authority_id:
            return self._issuer
        return await self.keys.run(partial(self._load, authority))

    def _able(self) -> I | None:
        found = self._issuer
        if found is None or found.not_after <= self._state.clock.now() or monotonic() < self._signs_from:
            return None
        return found

    async def start(self) -> None:
        """Go on from the journal, and do what is due.

        Raise KeyManagerError for keys that cannot be read, and AuthorityError when nothing can sign. While the
        authority upstream does not help, what there is signs on, and `tick` tries again; so it does while the key
        manager is away, and nothing signs.
        """
        broker_id = self._state.database.broker_id
        journal = await self._state.database.read(lambda connection: load_journal(connection, self.kind, broker_id))
        if journal is not None:
            self._slots = AuthoritySlots.from_json(journal)
        self.fresh = self._slots.current is None
        self._look_at = monotonic() + _LOOK_SECONDS
        try:
            await self._load_keys()
            await self.tick()
        except KeysAway:
            self._late = True
        except AuthorityError as error:
            if (issuer := self._able()) is None:
                raise
            end = _when(issuer.not_after)
            _log.error("%s authority %s signs on, until %s at most: %s", self.label, issuer.authority_id, end, error)

    async def _load_keys(self) -> None:
        """Fetch the key of the authority that signs. Raise KeyManagerError or KeysAway."""
        current, other = self._slots.current, self._slots.other
        if other is not None and other.status is Status.OLD and await self.keys.run(partial(self._gone, other)):
            self._lost.add(other.authority_id)
        if current is None:
            return
        self._issuer = await self.keys.run(partial(self._load, current))
        if self._issuer is None:
            self._note_lost(current, "what it signed stays valid, and another one signs from now on")
        elif current.not_after <= self._state.clock.now():
            self._note_expired(current)

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
        if self.keys.trouble:
            return
        async with self._lock:
            if self._late:
                await self._come_late()
            await self._sweep_keys()
            await self._look_at_key()
            if self._issuer is None and self._slots.current is not None:
                await self._replace_lost()
            while (due := self._slots.due(at=self._state.clock.now())) is not None:
                if due is Due.PREPARE:
                    await self._prepare()
                else:
                    await self._activate()

    # --- keys that are lost -------------------------------------------------------------------------------------

    async def _replace_lost(self) -> None:
        """Let the prepared authority sign in place of one whose key is lost; a new one when there is none."""
        for _ in range(2):
            other = self._slots.other
            if other is None or other.status is not Status.PREPARED or other.not_after <= self._state.clock.now():
                # Its key's place is the next one's.
                await self._keep_known(other)
                await self._prepare()
                # Nobody knows it yet.
                self.fresh = True
                self._warn_unknown()
            await self._activate()
            if self._issuer is not None:
                return

    async def _look_at_key(self) -> None:
        """Look whether the key that signs is still stored, and have the next authority known in time if it is not."""
        current = self._slots.current
        if current is None or self._issuer is None or self.is_lost(current.authority_id) or monotonic() < self._look_at:
            return
        self._look_at = monotonic() + _LOOK_SECONDS
        if not await self.keys.run(partial(self._gone, current)):
            return
        if self.keys.is_device:
            # Unlike a copy in memory, it signs no more.
            self._note_lost(current, "what it signed stays valid, and another one signs from now on")
            self._issuer = None
            return
        self._note_lost(current, "it signs until the broker ends; replace it before that: `firedoor authority rotate`")
        other = self._slots.other
        if other is None or other.status in (Status.OLD, Status.REVOKED):
            await self._prepare()

    def _gone(self, authority: Authority) -> bool:
        """Say whether the key manager has lost an authority's key. While that cannot be asked, it has not."""
        try:
            return self._load(authority) is None
        except (CertsError, BrokerError):
            return False

    def _note_lost(self, authority: Authority, then: str) -> None:
        self._lost.add(authority.authority_id)
        name = f"{self.label} authority {authority.authority_id}"
        _log.error("the key of %s (%s) is lost; %s (docs/recovery.md)", name, authority.key_id, then)
        self._audited("authority_key_lost", authority)

    def _note_expired(self, authority: Authority) -> None:
        end = _when(authority.not_after)
        _log.error("%s authority %s expired at %s; another one signs now", self.label, authority.authority_id, end)
        self._audited("authority_expired", authority)

    async def _keep_known(self, old: Authority | None) -> None:
        """Keep in memory what everybody knows and can prove who this broker is, until they know the next one."""

    def _warn_unknown(self) -> None:
        """Say who cannot know the authority that was just made."""

    async def _come_late(self) -> None:
        """Do what could not be done at the start, once the key manager is back."""
        await self._load_keys()
        if self._issuer is None and await self._state.database.others():
            self._signs_from = monotonic() + NEWCOMER_WAITS
        self._late = False

    # --- when somebody asks for it ------------------------------------------------------------------------------

    async def prepare(self, beside: BesideOf = alone, *, distrust: bool = False) -> Authority:
        """Make the next authority now, in place of one that is prepared, old or tainted. Raise AuthorityError.

        `distrust`: one that was prepared leaves the bundle too, as somebody else may have its key.
        """
        async with self._lock:
            self.active()
            return await self._prepare(beside, distrust=distrust)

    async def activate(self, authority_id: str, beside: BesideOf = alone) -> Authority:
        """Let the prepared authority sign now. Raise InvalidRequest or Conflict."""
        async with self._lock:
            other = self._other(authority_id)
            if other.status is not Status.PREPARED:
                raise Conflict(f"only Prepared authorities can be activated: {_status(other)}")
            await self._activate(beside)
            return self.active()

    async def taint(self, authority_id: str, beside: BesideOf = alone) -> Authority:
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
            await self._change(slots, lambda bundle: self._tainted(bundle, authority_id), beside(other))
            self._audited("authority_tainted", other)
            return other

    async def revoke(self, authority_id: str, beside: BesideOf = alone) -> Authority | JwtKey:
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

    def _put(self, connection: Connection, slots: AuthoritySlots) -> None:
        """Write the journal. Every broker has its own; the bundle is of all."""
        put_journal(connection, self.kind, slots.to_json(), self._state.database.broker_id)

    async def _change(
        self,
        slots: AuthoritySlots,
        change: Callable[[TrustBundle], TrustBundle],
        *beside: Beside,
    ) -> None:
        """Commit slots and bundle together."""

        def write(connection: Connection) -> None:
            self._put(connection, slots)
            for one in beside:
                one.write(connection)

        def apply() -> None:
            self._slots = slots
            for one in beside:
                one.then()

        await change_bundle(self._state, change, write, apply, anyway=True)

    # --- steps --------------------------------------------------------------------------------------------------

    async def _prepare(self, beside: BesideOf = alone, *, distrust: bool = False) -> Authority:
        """Make the next authority and publish it in the bundle."""
        slot, at = self._slots.free_slot, self._state.clock.now_for_issuing()
        authority = await self.keys.run(partial(self._make, slot, at))
        self._doomed.discard(authority.key_id)
        before, slots = self._slots.other, self._slots.prepare(authority)
        left = before.authority_id if distrust and before is not None and before.status is Status.PREPARED else ""
        written = self._beside(authority), beside(authority)

        def change(bundle: TrustBundle) -> TrustBundle:
            return self._published(self._without(bundle, left) if left else bundle, authority)

        await self._change(slots, change, *written)
        _log.info("%s authority %s is prepared, and in the bundle", self.label, authority.authority_id)
        self._audited("authority_prepared", authority)
        return authority

    async def _activate(self, beside: BesideOf = alone) -> None:
        """Let the prepared authority sign."""
        prepared = self._slots.other
        assert prepared is not None  # noqa: S101 - what is due says so
        issuer = await self.keys.run(partial(self._load, prepared))
        if issuer is None:
            self._note_lost(prepared, "it never signed, and another one is prepared")
            await self._prepare()
            return
        slots, written = self._slots.activate(prepared.authority_id), beside(prepared)

        def run(connection: Connection) -> None:
            self._put(connection, slots)
            written.write(connection)

        def apply(_: None) -> None:
            self._slots, self._issuer = slots, issuer
            written.then()

        await self._state.database.write(run, apply)
        _log.info("%s authority %s signs now", self.label, prepared.authority_id)
        self._audited("authority_activated", prepared)

    async def _forget_key(self, key_id: str) -> None:
        """Delete the key of what was revoked; later when the key manager is away, as nothing is undone for that."""
        self._doomed.add(key_id)
        try:
            await self._sweep_keys()
        except KeysAway:
            _log.warning("key %s is deleted once the key manager is back", key_id)

    async def _sweep_keys(self) -> None:
        while self._doomed:
            key_id = next(iter(self._doomed))
            await self.keys.run(partial(self.keys.delete, key_id))
            self._doomed.discard(key_id)

    def _audited(self, event: str, authority: Authority) -> None:
        fields = {"kind": self.kind, "authority_id": authority.authority_id, "not_after": authority.not_after}
        self._audit.event(event, **fields, generation=str(self._state.generation))

    def _load(self, authority: Authority) -> I | None:
        """Return the authority with its key, None when the key is lost. Raise KeyManagerError for a locked one."""
        try:
            return self._join(authority, self.keys.get(authority.key_id))
        except KeyManagerError as error:
            if error.code not in _GONE:
                raise
        except IssueError:
            _log.error("the key in slot %s is not that of authority %s", authority.slot, authority.authority_id)
        return None


def _when(seconds: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(seconds))


def _status(authority: Authority) -> str:
    return f"unsupported local authority status: {authority.status.name}"


async def change_bundle(
    state: State,
    change: Callable[[TrustBundle], TrustBundle],
    also: Callable[[Connection], None] = _nothing,
    then: Callable[[], None] = lambda: None,
    *,
    anyway: bool = False,
) -> None:
    """Commit a change of our own bundle together with what else belongs to it; nothing when nothing changes.

    `change` may be called again, with another bundle, when another broker came first.
    `anyway`: what belongs to it also when the bundle stays as it is.
    """
    own = state.trust_domain

    async def attempt() -> None:
        basis = state.database.basis("bundles", "downstream_keys")
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

        await state.change(run, apply, basis=basis)

    # What another broker put into it meanwhile stays there.
    await state.own_bundle.run(lambda: settled(attempt))
