# SPDX-License-Identifier: Apache-2.0
"""The broker's key manager, and whether it answers.

Keys that this process holds are used at once. What needs a device runs on threads of its own, so long and no longer,
and when the device fails the keyring is *away*: `check` refuses what would be signed with one error, `trouble` says why
(/ready, health), and it is logged, audited and counted once. `tick` asks the device again until it answers and signs.

    here ──a call fails, or takes too long──▶ away ──`tick`: it connects, and every key that signs does──▶ here
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from firedoor.broker.errors import KeysAway, StorageError
from firedoor.broker.keys.device import Device, DeviceKey
from firedoor.broker.keys.pool import Pool, PoolFull
from firedoor.certs import KeyManager, KeyManagerAway, KeyType, PrivateKey
from firedoor.certs.keys import signing

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.metrics import Metrics

T = TypeVar("T")
_log = logging.getLogger("firedoor.broker.keys")
# How long a signature may take; a sidecar waits 30 s for its answer.
SIGN_SECONDS: Final = 15.0
# How long making or fetching a key may take: RSA-4096 in a small token takes minutes.
MAKE_SECONDS: Final = 180.0
# How often a device that is away is asked, and one of which nothing is wanted.
_RETRY_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 30.0
# What is signed to see whether a key signs: neither a certificate (it is no DER) nor a token (it has spaces).
_PROBE: Final = b"firedoor: does this key manager sign?"


class Keyring:
    """A key manager behind what this module says. `run`, `sign` and `tick` are called on the event loop."""

    def __init__(self, manager: KeyManager, metrics: Metrics | None = None, audit: Audit | None = None) -> None:
        self._manager, self._metrics, self._audit = manager, metrics, audit
        self._device = manager if isinstance(manager, Device) else None
        self._pool = Pool()
        # Signatures that a device is at.
        self.in_flight = 0
        # Why the device does not answer; empty when it does.
        self.trouble = ""
        self._look_at = monotonic() + _IDLE_SECONDS
        # Returns the keys that sign now.
        self.active: Callable[[], Iterable[PrivateKey]] = tuple
        if metrics is not None:
            metrics.key_manager_up.set(1)

    @property
    def is_device(self) -> bool:
        """Whether keys are elsewhere than in this process."""
        return self._device is not None

    # --- what a key manager does: on the threads of `run` -------------------------------------------------------

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key. Raise KeyManagerError."""
        return self._manager.generate(key_id, key_type)

    def get(self, key_id: str) -> PrivateKey:
        """Return the key. Raise KeyManagerError."""
        return self._manager.get(key_id)

    def delete(self, key_id: str) -> None:
        """Forget the key. Raise KeyManagerError."""
        self._manager.delete(key_id)

    # --- using it -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse to sign while the device is away. Raise KeysAway."""
        if self.trouble:
            raise away()

    async def run(self, job: Callable[[], T], seconds: float = MAKE_SECONDS) -> T:
        """Run what makes, fetches or uses keys on a thread. Raise what it raises, and KeysAway."""
        if self._device is None:
            return await asyncio.to_thread(job)
        self.check()
        try:
            found = await self._pool.run(job, seconds)
        except KeyManagerAway as error:
            # One key less is not the device: whoever has an authority of that key finds out, and replaces it.
            if error.code != "key_gone":
                self._lost(error)
            raise away() from None
        except TimeoutError:
            self._lost(KeyManagerAway("too_slow", f"{seconds:.0f} s"))
            raise away() from None
        except PoolFull:
            raise away() from None
        self._look_at = monotonic() + _IDLE_SECONDS
        return found

    async def sign(self, key: PrivateKey, job: Callable[[], T]) -> T:
        """Run what signs with a key: at once, or on a thread when a device has it. Raise KeysAway."""
        if not isinstance(key, DeviceKey):
            return job()
        started = monotonic()
        self.in_flight += 1
        try:
            made = await self.run(job, SIGN_SECONDS)
        finally:
            self.in_flight -= 1
        if self._metrics is not None:
            self._metrics.sign_seconds.observe(monotonic() - started)
        return made

    # --- whether it answers -------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Call `tick` every second, until cancelled. On its own: a device may take its time."""
        while True:
            await asyncio.sleep(1.0)
            await self.tick()

    async def tick(self) -> None:
        """Look whether the device is back, or still there. It never raises for a device."""
        if self._device is None or monotonic() < self._look_at:
            return
        self._look_at = monotonic() + (_RETRY_SECONDS if self.trouble else _IDLE_SECONDS)
        try:
            await self._pool.run(partial(self._probe, self._device, list(self.active())), SIGN_SECONDS)
        except KeyManagerAway as error:
            self._lost(error)
        except TimeoutError:
            self._lost(KeyManagerAway("too_slow", f"{SIGN_SECONDS:.0f} s"))
        except PoolFull:
            pass
        else:
            self._found()

    @staticmethod
    def _probe(device: Device, keys: list[PrivateKey]) -> None:
        device.connect()
        for key in keys:
            try:
                signing(key)(_PROBE)
            except KeyManagerAway as error:
                if error.code != "key_gone":
                    raise

    def forgive(self) -> None:
        """Ask the device again now, also for what it refused: somebody says that it was repaired (SIGHUP)."""
        if self._device is not None:
            self._device.forgive()
            self._look_at = 0.0

    def close(self) -> None:
        """Let go of the device."""
        self._pool.close()
        if self._device is not None:
            self._device.close()

    def _lost(self, error: KeyManagerAway) -> None:
        before, self.trouble = self.trouble, str(error)
        if before == self.trouble:
            return
        _log.error("nothing is signed, as the key manager is away: %s", error)
        if not before:
            self._look_at = monotonic() + _RETRY_SECONDS
            self._told("key_manager_lost", error.code, 0)

    def _found(self) -> None:
        if self.trouble:
            self.trouble = ""
            _log.warning("the key manager is back, and signs")
            self._told("key_manager_back", "", 1)

    def _told(self, event: str, reason: str, up: int) -> None:
        if self._metrics is not None:
            self._metrics.key_manager_up.set(up)
        if self._audit is not None:
            try:
                self._audit.event(event, reason=reason)
            except StorageError as error:
                _log.error("%s", error)


def away() -> KeysAway:
    """Return the one error of all that would be signed meanwhile. Callers learn no more."""
    return KeysAway("the broker's key manager does not answer, so nothing is signed; ask again later")
