# SPDX-License-Identifier: Apache-2.0
"""The broker's signing authorities over time: `AuthoritySlots` with a key manager, a journal and a clock.

A new authority is in the bundle from the moment it is prepared, and signs only once it is activated, when everybody has
had a third of the old one's life to learn of it. Order within a step: the key is stored, then journal and bundle are
committed together; a crash in between leaves a key that the next attempt replaces.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.rows import load_journal, put_bundle, put_journal
from firedoor.broker.errors import AuthorityError
from firedoor.certs import (
    Authority,
    AuthoritySlots,
    Due,
    IssueError,
    KeyManager,
    KeyManagerError,
    KeyType,
    TrustBundle,
    X509Issuer,
    issue_ca,
)

if TYPE_CHECKING:
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.authority")
_KIND: Final = "x509"
# How often other trust domains should look for changes, in seconds; SPIRE's default.
REFRESH_HINT: Final = 300
# A root stays in the bundle for a day after its end, as in SPIRE, so that nobody's clock makes a difference.
_PRUNE_AFTER: Final = 86400
_PRUNE_EVERY: Final = 3600


class AuthorityManager:
    """Prepares and activates X.509 authorities in time."""

    def __init__(self, state: State, keys: KeyManager, key_type: KeyType, ttl: int) -> None:
        self._state, self._keys, self._key_type, self._ttl = state, keys, key_type, ttl
        self._slots = AuthoritySlots()
        self._issuer: X509Issuer | None = None
        self._prune_at = 0
        self._lock = asyncio.Lock()

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

    def issuer(self) -> X509Issuer:
        """Return what signs. Raise AuthorityError when there is nothing that can."""
        if self._issuer is None or self._issuer.not_after <= self._state.clock.now():
            raise AuthorityError("there is no authority that can sign; the broker's log says why")
        return self._issuer

    async def start(self) -> None:
        """Go on from the journal, and do what is due. Raise KeyManagerError for keys that cannot be read."""
        journal = await self._state.database.read(lambda connection: load_journal(connection, _KIND))
        if journal is not None:
            self._slots = AuthoritySlots.from_json(journal)
        if self._slots.current is not None:
            self._issuer = await asyncio.to_thread(self._load, self._slots.current)
            if self._issuer is None:
                # What it signed stays good: its certificate is in the bundle. But nothing more can be signed with it.
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
            await self._prune()

    async def _prepare(self) -> None:
        """Make the next authority and publish it in the bundle."""
        slot, at = self._slots.free_slot, self._state.clock.now_for_issuing()
        certificate = (await asyncio.to_thread(self._make, slot, at)).der
        authority = Authority.x509(slot, certificate, issued_at=at)
        slots = self._slots.prepare(authority)
        bundle = self._bundle().with_root(certificate)

        def run(connection: Connection) -> None:
            put_journal(connection, _KIND, slots.to_json())
            put_bundle(connection, bundle)

        def apply(_: None) -> None:
            self._slots = slots
            self._state.put_bundle(bundle)

        await self._state.change(run, apply)
        _log.info("authority %s is prepared, and in the bundle", authority.authority_id)

    def _make(self, slot: str, at: int) -> X509Issuer:
        key = self._keys.generate(f"x509-CA-{slot}", self._key_type)
        return issue_ca(self._state.trust_domain, key, at=at, random=secrets.token_bytes, ttl=self._ttl)

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

        await self._state.database.write(lambda connection: put_journal(connection, _KIND, slots.to_json()), apply)
        _log.info("authority %s signs now", prepared.authority_id)

    def _load(self, authority: Authority) -> X509Issuer | None:
        """Return the authority with its key, None when the key is gone. Raise KeyManagerError for a locked one."""
        try:
            key = self._keys.get(authority.key_id)
            return X509Issuer.load(self._state.trust_domain, authority.public, key, authority.upstream)
        except KeyManagerError as error:
            if error.code != "key_not_found":
                raise
        except IssueError:
            _log.error("the key in slot %s is not that of authority %s", authority.slot, authority.authority_id)
        return None

    async def _prune(self) -> None:
        """Take roots that ended a day ago out of the bundle."""
        now = self._state.clock.now()
        if now < self._prune_at:
            return
        self._prune_at = now + _PRUNE_EVERY
        bundle = self._bundle()
        pruned = bundle.pruned(now - _PRUNE_AFTER)
        if pruned is not bundle:
            await self._state.change(
                lambda connection: put_bundle(connection, pruned), lambda _: self._state.put_bundle(pruned)
            )

    def _bundle(self) -> TrustBundle:
        own = self._state.trust_domain
        return self._state.bundles.get(own) or TrustBundle(own, refresh_hint=REFRESH_HINT)
