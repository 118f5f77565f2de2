# SPDX-License-Identifier: Apache-2.0
"""Opens and closes the data path's listeners.

None is bound until the sidecar is attested (or has identities of before a restart), has an SVID for each `as`, and a
generation; after that each is open while the sidecar is entitled to its ID, and closed when it is not.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from firedoor.mtls import Core, ListenError
from firedoor.mtls import Listener as Bound
from firedoor.sidecar.attestor import decidable_by_uid
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.listeners import Listener

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    listener: Listener
    bound: Bound | None = None
    reason: str = "not yet"


class DataPath:
    """The configured listeners and whether they are open."""

    def __init__(self, core: Core, holder: Holder, listeners: Sequence[Listener]) -> None:
        self._core, self._holder = core, holder
        self._slots = [_Slot(one) for one in listeners]
        self._begun = False

    def missing(self, now: float) -> list[str]:
        """Say what keeps the sidecar from being ready; nothing when it is."""
        found = self._lacking(now)
        if found:
            return found
        return [f"{_name(one)} is not open: {reason}" for one, address, reason in self.status() if not address]

    def _lacking(self, now: float) -> list[str]:
        found = []
        live = self._holder.live(now)
        # Restarted without its server, a sidecar that stores nothing of its agent serves the identities that it stored.
        if self._holder.agent is None and not live:
            found.append("an agent SVID: the sidecar has not attested yet")
        if not self._holder.view.synced:
            found.append("the entries of this sidecar: its server has not answered yet")
        elif self._holder.view.generation is None:
            found.append("a policy: the server pushes none, and `segments` names none")
        held = {str(one.svid.id) for one in live}
        found += [
            f"an SVID for {slot.listener.identity}, as {_name(slot.listener)} is configured"
            for slot in self._slots
            if str(slot.listener.identity) not in held
        ]
        return list(dict.fromkeys(found))

    def adjust(self, now: float) -> None:
        """Open what may be open now and close what may not."""
        if not self._begun and self._lacking(now):
            return
        self._begun = True
        entitled = {one.spiffe_id for one in self._holder.view.entries.values()}
        held = {one.svid.id for one in self._holder.live(now)}
        for slot in self._slots:
            if slot.listener.identity not in entitled:
                self._close(slot, f"this sidecar is not entitled to {slot.listener.identity}")
            elif slot.bound is None and slot.listener.identity in held:
                self._open(slot)

    def _open(self, slot: _Slot) -> None:
        reason = self._refusal(slot.listener)
        if not reason:
            try:
                slot.bound = self._core.listen(slot.listener.spec())
            except ListenError as error:
                reason = str(error)
        if reason and reason != slot.reason:
            log.error("listener not open", extra={"listener": _name(slot.listener), "reason": reason})
        elif slot.bound:
            log.info("listener open", extra={"listener": _name(slot.listener), "address": slot.bound.address})
        slot.reason = reason

    def _refusal(self, listener: Listener) -> str:
        """Say why a listener must not be opened: of a client on loopback TCP, the kernel names the uid and no more."""
        if not listener.told_by_uid:
            return ""
        entries = [one for one in self._holder.view.entries.values() if one.spiffe_id == listener.identity]
        bad = [one.id for one in entries if not decidable_by_uid(one.selectors)]
        if not bad:
            return ""
        return (
            f"entry {', '.join(sorted(bad))} asks for more than uid or user, which cannot be known of a client on "
            "loopback TCP; listen on a Unix socket instead"
        )

    def _close(self, slot: _Slot, reason: str) -> None:
        if slot.bound is not None:
            slot.bound.stop()
            slot.bound = None
            log.warning("listener closed", extra={"listener": _name(slot.listener), "reason": reason})
        slot.reason = reason

    def status(self) -> list[tuple[Listener, str, str]]:
        """Return each listener, the address that it is bound to (empty when closed) and why it is closed."""
        return list(self._status())

    def _status(self) -> Iterator[tuple[Listener, str, str]]:
        # The core closes by itself what new material does not permit, and opens it again.
        reasons = {(one["direction"], one["name"]): one["reason"] for one in json.loads(self._core.listeners())}
        for slot in self._slots:
            if slot.bound is None:
                yield slot.listener, "", slot.reason
            elif slot.bound.open:
                yield slot.listener, slot.bound.address, ""
            else:
                yield slot.listener, "", reasons.get((slot.listener.direction, slot.listener.name), "")


def _name(listener: Listener) -> str:
    return f"{listener.direction} listener {listener.name}"
