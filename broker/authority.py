# SPDX-License-Identifier: Apache-2.0
"""The broker's signing authorities over time: `AuthoritySlots` with a key manager, a journal and a clock.

X.509 and JWT authorities live the same life in slots, journals and keys of their own; both stand in one bundle.

A new authority is in the bundle from the moment it is prepared, and signs only once it is activated, when everybody has
had a third of the old one's life to learn of it. Order within a step: the key is stored, then journal and bundle are
committed together; a crash in between leaves a key that the next attempt replaces.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

from sqlalchemy import Connection

from firedoor.broker.db.rows import load_journal, put_bundle, put_journal
from firedoor.broker.errors import AuthorityError
from firedoor.certs import (
    Authority,
    AuthoritySlots,
    Due,
    IssueError,
    JwtIssuer,
    JwtKey,
    KeyManager,
    KeyManagerError,
    KeyType,
    PrivateKey,
    TrustBundle,
    X509Issuer,
    issue_ca,
    public_key_der,
)

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.state import State
    from firedoor.certs.authority import Kind, SlotName

_log = logging.getLogger("firedoor.broker.authority")
# How often other trust domains should look for changes, in seconds; SPIRE's default.
REFRESH_HINT: Final = 300
# A root stays in the bundle for a day after its end, as in SPIRE, so that nobody's clock makes a difference.
_PRUNE_AFTER: Final = 86400
_PRUNE_EVERY: Final = 3600
# SPIRE's form of a key ID: 190 bits that nobody meets twice.
_KEY_ID_LETTERS: Final = string.ascii_letters + string.digits
_KEY_ID_LENGTH: Final = 32


class _Issuer(Protocol):
    """An authority with its key."""

    @property
    def authority_id(self) -> str:
        """Its ID."""

    @property
    def not_after(self) -> int:
        """When it ends."""


I = TypeVar("I", bound=_Issuer)  # noqa: E741


class _Manager(Generic[I]):
    """Prepares and activates the authorities of one kind in time."""

    kind: ClassVar[Kind]

    def __init__(self, state: State, keys: KeyManager, key_type: KeyType, ttl: int, audit: Audit) -> None:
        self._state, self._keys, self._key_type, self._ttl, self._audit = state, keys, key_type, ttl, audit
        self._slots = AuthoritySlots()
        self._issuer: I | None = None
        self._lock = asyncio.Lock()

    def _make(self, slot: SlotName, at: int) -> Authority:
        """Make a key in a slot, and the authority that is known by it."""
        raise NotImplementedError

    def _join(self, authority: Authority, key: PrivateKey) -> I:
        """Return the authority with its key. Raise IssueError when they do not belong together."""
        raise NotImplementedError

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        """Return the bundle with the authority in it."""
        raise NotImplementedError

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
        if self._issuer is None or self._issuer.not_after <= self._state.clock.now():
            raise AuthorityError("there is no authority that can sign; the broker's log says why")
        return self._issuer

    async def start(self) -> None:
        """Go on from the journal, and do what is due. Raise KeyManagerError for keys that cannot be read."""
        journal = await self._state.database.read(lambda connection: load_journal(connection, self.kind))
        if journal is not None:
            self._slots = AuthoritySlots.from_json(journal)
        if self._slots.current is not None:
            self._issuer = await asyncio.to_thread(self._load, self._slots.current)
            if self._issuer is None:
                # What it signed stays good: it is in the bundle. But nothing more can be signed with it.
                _log.error("the key of authority %s is gone; a new one takes over", self._slots.current.authority_id)
                self._slots = AuthoritySlots()
        await self.tick()

    async def tick(self) -> None:
        """Do what is due now."""
        async with self._lock:
            while (due := self._slots.due(at=self._state.clock.now())) is not None:
                if due is Due.PREPARE:
                    await self._prepare()
                else:
                    await self._activate()

    async def _prepare(self) -> None:
        """Make the next authority and publish it in the bundle."""
        slot, at = self._slots.free_slot, self._state.clock.now_for_issuing()
        authority = await asyncio.to_thread(self._make, slot, at)
        slots = self._slots.prepare(authority)

        def apply() -> None:
            self._slots = slots

        await change_bundle(
            self._state,
            lambda bundle: self._published(bundle, authority),
            lambda connection: put_journal(connection, self.kind, slots.to_json()),
            apply,
        )
        _log.info("%s authority %s is prepared, and in the bundle", self.kind, authority.authority_id)
        self._audited("authority_prepared", authority)

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
        _log.info("%s authority %s signs now", self.kind, prepared.authority_id)
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


class AuthorityManager(_Manager[X509Issuer]):
    """X.509 authorities. It also takes out of the bundle what has long ended, of either kind."""

    kind = "x509"
    _prune_at = 0

    async def tick(self) -> None:
        """Do what is due now."""
        await super().tick()
        now = self._state.clock.now()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY
            await change_bundle(self._state, lambda bundle: bundle.pruned(now - _PRUNE_AFTER))

    def _make(self, slot: SlotName, at: int) -> Authority:
        key = self._keys.generate(f"x509-CA-{slot}", self._key_type)
        made = issue_ca(self._state.trust_domain, key, at=at, random=secrets.token_bytes, ttl=self._ttl)
        return Authority.x509(slot, made.der, issued_at=at)

    def _join(self, authority: Authority, key: PrivateKey) -> X509Issuer:
        return X509Issuer.load(self._state.trust_domain, authority.public, key, authority.upstream)

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        return bundle.with_root(authority.public)


class JwtAuthorityManager(_Manager[JwtIssuer]):
    """JWT authorities: a key and its ID."""

    kind = "jwt"

    def _make(self, slot: SlotName, at: int) -> Authority:
        public = public_key_der(self._keys.generate(f"JWT-Signer-{slot}", self._key_type).public_key())
        key_id = "".join(secrets.choice(_KEY_ID_LETTERS) for _ in range(_KEY_ID_LENGTH))
        return Authority.jwt(slot, key_id, public, issued_at=at, not_after=at + self._ttl)

    def _join(self, authority: Authority, key: PrivateKey) -> JwtIssuer:
        return JwtIssuer.load(
            self._state.trust_domain, authority.authority_id, authority.public, key, not_after=authority.not_after
        )

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        return bundle.with_jwt_key(JwtKey(authority.authority_id, authority.public, authority.not_after))


def _nothing(_: Connection) -> None:
    """Write nothing more."""


async def change_bundle(
    state: State,
    change: Callable[[TrustBundle], TrustBundle],
    also: Callable[[Connection], None] = _nothing,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Commit a change of our own bundle together with what else belongs to it; nothing when nothing changes."""
    own = state.trust_domain
    async with state.own_bundle:
        before = state.bundles.get(own) or TrustBundle(own, refresh_hint=REFRESH_HINT)
        after = change(before)
        if after is before:
            return

        def run(connection: Connection) -> None:
            also(connection)
            put_bundle(connection, after)

        def apply(_: None) -> None:
            then()
            state.put_bundle(after)

        await state.change(run, apply)
