# SPDX-License-Identifier: Apache-2.0
"""The revocation lists (RFC 5280) of this broker's X.509 authorities: signed when they change, and before they end.

One a prepared, active, old or tainted authority, with its own key: below an authority upstream that is the CA that this
broker has there. A list has the exact serial numbers, however the revocation was said, of what the authority issued and
what has not expired; what expires is left out when the next is signed. Revocations themselves do not wait for it: they
are in a generation of their own before (views.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.crl_rows import Ended, SignedCrl, ended_by_pattern, ended_by_serial, put_crls
from firedoor.broker.errors import BrokerError, KeysAway
from firedoor.certs import (
    DEFAULT_CRL_TTL,
    MAX_CRL_ENTRIES,
    Authority,
    CertsError,
    Crl,
    Status,
    TrustDomain,
    X509Issuer,
    issue_crl,
)
from firedoor.certs.certificate import read_certificate

if TYPE_CHECKING:
    from firedoor.broker.authority_kinds import AuthorityManager
    from firedoor.broker.db.rows import Generation, Revoked
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.crls")
# How often it is looked whether a list ends soon, in seconds.
_LOOK_EVERY: Final = 30.0
# After each look: revocations that come together are signed together.
_PAUSE: Final = 0.25
_RETRY: Final = 10.0
# A list is replaced when half of its life is over, or when so much of it has expired that it is only a burden.
_RENEW_AHEAD: Final = DEFAULT_CRL_TTL // 2
_BURDEN: Final = 100
_SHORTEN_EVERY: Final = 300
# What has expired stays listed for so many seconds: readers' clocks may be behind.
_CLOCKS_DIFFER: Final = 300

Revocations = Mapping[tuple[str, str], "Revoked"]


class Crls:
    """Keeps the lists of one broker's authorities as they should be. `run` until cancelled."""

    def __init__(self, state: State, authorities: AuthorityManager, metrics: Metrics) -> None:
        self._state, self._authorities, self._metrics = state, authorities, metrics
        self._changed = asyncio.Event()
        # What the lists were made of; None: look again.
        self._made_of: tuple[Revocations, tuple[str, ...]] | None = None
        # When lists may be shorter, in Unix seconds; 0 when none is long.
        self._shorter_at = 0
        # What each pattern ends. That does not grow: what is signed beside a revocation is not handed out.
        self._by_pattern: dict[Revoked, list[Ended]] = {}
        # Authorities that cannot sign lists, said once.
        self._unable: set[str] = set()
        state.watch(self._changed.set)

    async def run(self) -> None:
        """Sign what is due after every change, and in time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self.refresh()
            except KeysAway:
                # The keyring says so, once.
                self._made_of = None
                await asyncio.sleep(_RETRY)
            except (BrokerError, CertsError) as error:
                _log.error("revocation lists are not up to date: %s", error)
                self._made_of = None
                await asyncio.sleep(_RETRY)
            await asyncio.sleep(_PAUSE)

    async def refresh(self) -> None:
        """Sign what is due now. Raise BrokerError or CertsError."""
        state, authorities = self._state, self._present()
        names = tuple(sorted(one.authority_id for one in authorities))
        made_of = dict(state.revocations), names
        shorter = 0 < self._shorter_at <= state.clock.now()
        if made_of == self._made_of and not shorter and not any(self._ages(name) for name in names):
            return
        at, generation = state.clock.now_for_issuing(), state.generation
        live = await self._live(made_of[0], at - _CLOCKS_DIFFER)
        made, self._shorter_at = [], 0
        for authority in authorities:
            wanted, left_out = _chosen(live.get(authority.authority_id, {}))
            signed = await self._signed(authority, wanted, left_out, generation, at)
            if signed is not None:
                made.append(signed)
        if made:
            await state.change(lambda connection: put_crls(connection, made), lambda _: state.put_crls(made))
            self._metrics.crls_signed.inc(len(made))
        self._made_of = made_of
        self._measure(names)

    def _present(self) -> list[Authority]:
        """Return our authorities that may have signed what lives, or soon will."""
        slots, now = self._authorities.slots, self._state.clock.now()
        found = [one for one in (slots.current, slots.other) if one is not None]
        return [one for one in found if one.status is not Status.REVOKED and one.not_after > now]

    def _ages(self, authority_id: str) -> bool:
        present = self._state.crls.get(authority_id)
        if present is None:
            return authority_id not in self._unable
        return present.next_update - self._state.clock.now() < _RENEW_AHEAD

    async def _live(self, revocations: Revocations, now: int) -> dict[str, dict[str, int]]:
        """Return what is revoked and lives: by authority the serial numbers, with the end of each."""
        patterns = [one for one in revocations.values() if one.kind == "pattern"]
        new, trust_domain = [one for one in patterns if one not in self._by_pattern], self._state.trust_domain
        by_serial, by_pattern = await self._state.database.read(lambda c: _read(c, new, trust_domain, now))
        self._by_pattern = {one: self._by_pattern.get(one, by_pattern.get(one, [])) for one in patterns}
        found: dict[str, dict[str, int]] = {}
        for some in (by_serial, *self._by_pattern.values()):
            for one in some:
                if one.not_after > now:
                    found.setdefault(one.authority_id, {})[one.serial] = one.not_after
        return found

    async def _signed(
        self, authority: Authority, wanted: Mapping[str, int], left_out: int, generation: Generation, at: int
    ) -> SignedCrl | None:
        """Return another list, None while the present one is as it should be."""
        name = authority.authority_id
        present = self._state.crls.get(name)
        listed = await asyncio.to_thread(lambda: present.listed) if present is not None else {}
        fresh = present is not None and present.next_update - at >= _RENEW_AHEAD
        same = wanted.keys() <= listed.keys() and present is not None and bool(left_out) == bool(present.left_out)
        dead = len(listed) - len(wanted)
        if max(len(listed), len(wanted)) > _BURDEN:
            self._shorter_at = at + _SHORTEN_EVERY
        if fresh and same and not (dead > _BURDEN and dead > len(listed) // 2):
            return None
        issuer = await self._authorities.issuer_of(authority)
        if issuer is None or not issuer.may_sign_crls:
            self._say_unable(name)
            return None
        self._unable.discard(name)
        number = max(_number(generation), present.crl.number + 1 if present and present.crl else 0)
        # A certificate keeps the time at which it was first listed.
        times = {serial: listed.get(serial, at) for serial in wanted}
        made = await self._authorities.keys.run(partial(_sign, issuer, times, number, at))
        if left_out:
            _log.error(
                "authority %s has %d revoked certificates more than a revocation list takes (%d); those that end first "
                "are left out. Sidecars refuse them all the same; for other readers rotate and revoke the authority",
                name,
                left_out,
                MAX_CRL_ENTRIES,
            )
        signers = (issuer.der, *issuer.upstream)
        anchor = name if not issuer.above else read_certificate(signers[-1]).authority_key_id
        return SignedCrl(name, anchor, made.der, signers, made.next_update, left_out)

    def _say_unable(self, name: str) -> None:
        if name not in self._unable:
            self._unable.add(name)
            _log.warning(
                "authority %s signs no revocation list: its key is gone, or its certificate has no key usage cRLSign",
                name,
            )

    def _measure(self, names: tuple[str, ...]) -> None:
        present = [one for one in map(self._state.crls.get, names) if one is not None]
        self._metrics.crl_left_out.set(sum(one.left_out for one in present))
        self._metrics.crl_next_update.set(min((one.next_update for one in present), default=0))


def _read(
    connection: Connection, patterns: list[Revoked], trust_domain: TrustDomain, now: int
) -> tuple[list[Ended], dict[Revoked, list[Ended]]]:
    by_pattern = {one: ended_by_pattern(connection, one, trust_domain, now) for one in patterns}
    return ended_by_serial(connection, now), by_pattern


def _chosen(live: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return what a list takes, those that live longest first, and how many more there are."""
    longest = sorted(live.items(), key=lambda one: (-one[1], one[0]))
    return dict(longest[:MAX_CRL_ENTRIES]), max(0, len(live) - MAX_CRL_ENTRIES)


def _number(generation: Generation) -> int:
    """Return a CRL number that grows with generations, over a restore too (RFC 5280 section 5.2.3: 20 octets)."""
    return generation.epoch << 64 | generation.number


def _sign(issuer: X509Issuer, revoked: Mapping[str, int], number: int, at: int) -> Crl:
    return issue_crl(issuer, revoked, number=number, at=at)
