# SPDX-License-Identifier: Apache-2.0
"""The life of a signing authority, and the two slots that authorities take turns in.

An authority is *prepared*: its key exists and it stands in the trust bundle, so that everybody learns to trust it, but
it signs nothing yet. *Activated*, it signs; the one that signed before becomes *old*: what it signed stays good. To cut
an old authority off it is *tainted*, which tells everybody to replace what it signed, and then *revoked*, which takes
it out of the bundle. The authority that signs can be neither tainted nor revoked: activate the next one first. A slot
is used again by *displacing* who is in it; a displaced old authority stays in the bundle until it expires.

Slots A and B take turns (the keys `x509-CA-A` and `x509-CA-B`). The next authority is due at half of the present one's
life and takes over when a sixth is left, as in SPIRE.

>>> LIFE_CYCLE[Status.OLD, Event.TAINT]
<Status.TAINTED: 'tainted'>
>>> slots = AuthoritySlots()
>>> slots.due(at=0), slots.free_slot
(<Due.PREPARE: 'prepare'>, 'A')
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, final

from firedoor.certs.certificate import read_certificate
from firedoor.certs.errors import AuthorityError, JournalError

DAY: Final = 24 * 3600
# The next authority is made when half of the life is over, but not more than 30 days ahead.
_PREPARE_AHEAD: Final = 30 * DAY
# It takes over when a sixth is left, but not more than 7 days ahead.
_ACTIVATE_AHEAD: Final = 7 * DAY
# An SVID that lives longer than a sixth of its authority's life would be cut short by it.
_MAX_SVID_SHARE: Final = 6


class Status(enum.Enum):
    """Where in its life an authority is."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"
    TAINTED = "tainted"
    REVOKED = "revoked"


class Event(enum.Enum):
    """What happens to an authority."""

    ACTIVATE = "activate"
    RETIRE = "retire"
    TAINT = "taint"
    REVOKE = "revoke"
    DISPLACE = "displace"


# What does not stand here is illegal. None: the authority leaves its slot.
LIFE_CYCLE: Final[Mapping[tuple[Status, Event], Status | None]] = MappingProxyType(
    {
        (Status.PREPARED, Event.ACTIVATE): Status.ACTIVE,
        (Status.PREPARED, Event.DISPLACE): None,
        (Status.ACTIVE, Event.RETIRE): Status.OLD,
        (Status.OLD, Event.TAINT): Status.TAINTED,
        (Status.OLD, Event.DISPLACE): None,
        (Status.TAINTED, Event.REVOKE): Status.REVOKED,
        (Status.TAINTED, Event.DISPLACE): None,
        (Status.REVOKED, Event.DISPLACE): None,
    }
)


def advance(status: Status, event: Event) -> Status | None:
    """Return the status after an event, None when the authority leaves its slot. Raise AuthorityError."""
    try:
        return LIFE_CYCLE[status, event]
    except KeyError:
        raise AuthorityError("illegal_event", f"{event.value} of an authority that is {status.value}") from None


def diagram() -> str:
    """Return the life cycle as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> prepared: prepare"]
    for (status, event), then in LIFE_CYCLE.items():
        lines.append(f"    {status.value} --> {then.value if then else '[*]'}: {event.value}")
    return "\n".join(lines) + "\n"


SlotName = Literal["A", "B"]
Kind = Literal["x509", "jwt", "wit"]


class Due(enum.Enum):
    """What the manager of authorities should do now."""

    PREPARE = "prepare"
    ACTIVATE = "activate"


@final
@dataclass(frozen=True, slots=True)
class Authority:
    """One authority, as the journal keeps it. Its private key is in a key manager under `key_id`."""

    kind: Kind
    slot: SlotName
    status: Status
    # X.509: the subject key identifier in lower-case hex. JWT and WIT: the key ID.
    authority_id: str
    # Unix seconds.
    issued_at: int
    not_after: int
    # X.509: the certificate. JWT and WIT: the SubjectPublicKeyInfo. DER.
    public: bytes
    # Certificates between it and the root that is in the bundle; none when it is a root itself.
    upstream: tuple[bytes, ...] = ()

    @classmethod
    def x509(cls, slot: SlotName, certificate: bytes, *, issued_at: int, upstream: tuple[bytes, ...] = ()) -> Authority:
        """Describe a prepared X.509 authority. Raise JournalError when the certificate cannot be read."""
        try:
            facts = read_certificate(certificate)
        except ValueError:
            raise JournalError("malformed_journal", "certificate") from None
        return cls("x509", slot, Status.PREPARED, facts.authority_id, issued_at, facts.not_after, certificate, upstream)

    @classmethod
    def of_tokens(
        cls, kind: Literal["jwt", "wit"], slot: SlotName, key_id: str, public: bytes, *, issued_at: int, not_after: int
    ) -> Authority:
        """Describe a prepared authority for tokens: the ID that they name it by, and its SubjectPublicKeyInfo."""
        return cls(kind, slot, Status.PREPARED, key_id, issued_at, not_after, public)

    @property
    def key_id(self) -> str:
        """The name of its key in a key manager."""
        return key_id(self.kind, self.slot)

    @property
    def lifetime(self) -> int:
        """Seconds."""
        return self.not_after - self.issued_at

    @property
    def prepare_next_at(self) -> int:
        """When the next authority should be prepared."""
        return self.not_after - min(self.lifetime // 2, _PREPARE_AHEAD)

    @property
    def activate_next_at(self) -> int:
        """When the next authority should take over."""
        return self.not_after - min(self.lifetime // 6, _ACTIVATE_AHEAD)

    @property
    def max_svid_ttl(self) -> int:
        """The longest life of an SVID that never ends early because of this authority."""
        return min(self.lifetime // _MAX_SVID_SHARE, _ACTIVATE_AHEAD)

    def after(self, event: Event) -> Authority | None:
        """Return the authority after an event, None when it leaves its slot. Raise AuthorityError."""
        status = advance(self.status, event)
        return replace(self, status=status) if status else None


def key_id(kind: Kind, slot: SlotName) -> str:
    """Return the name of a slot's key, as SPIRE has it: `x509-CA-A`, `JWT-Signer-B`, `WIT-Signer-A`."""
    return f"{_KEY_NAMES[kind]}-{slot}"


_KEY_NAMES: Final[Mapping[Kind, str]] = MappingProxyType({"x509": "x509-CA", "jwt": "JWT-Signer", "wit": "WIT-Signer"})


@final
@dataclass(frozen=True, slots=True)
class AuthoritySlots:
    """The authorities of one kind: the one that signs and the one before or after it. Events give a new value."""

    current: Authority | None = None
    other: Authority | None = None

    @property
    def free_slot(self) -> SlotName:
        """The slot that the next authority is prepared in."""
        return "B" if self.current is not None and self.current.slot == "A" else "A"

    def due(self, *, at: int) -> Due | None:
        """Say what should be done at that time, in Unix seconds."""
        prepared = self.other is not None and self.other.status is Status.PREPARED and self.other.not_after > at
        if self.current is None:
            return Due.ACTIVATE if prepared else Due.PREPARE
        if not prepared:
            return Due.PREPARE if at >= self.current.prepare_next_at else None
        return Due.ACTIVATE if at >= self.current.activate_next_at else None

    def prepare(self, authority: Authority) -> AuthoritySlots:
        """Take a prepared authority into the free slot, displacing who is there. Raise AuthorityError."""
        if authority.status is not Status.PREPARED or authority.slot != self.free_slot:
            raise AuthorityError("no_free_slot", f"{authority.slot}, {authority.status.value}")
        if self.other is not None:
            self.other.after(Event.DISPLACE)
        return replace(self, other=authority)

    def activate(self, authority_id: str) -> AuthoritySlots:
        """Let the prepared authority sign and retire the present one. Raise AuthorityError."""
        activated = self._find(authority_id).after(Event.ACTIVATE)
        retired = self.current.after(Event.RETIRE) if self.current else None
        return AuthoritySlots(activated, retired)

    def taint(self, authority_id: str) -> AuthoritySlots:
        """Taint the old authority. Raise AuthorityError."""
        return replace(self, other=self._find(authority_id).after(Event.TAINT))

    def revoke(self, authority_id: str) -> AuthoritySlots:
        """Revoke the tainted authority. Raise AuthorityError."""
        return replace(self, other=self._find(authority_id).after(Event.REVOKE))

    def _find(self, authority_id: str) -> Authority:
        for authority in (self.current, self.other):
            if authority is not None and authority.authority_id == authority_id:
                return authority
        raise AuthorityError("unknown_authority")

    def to_json(self) -> bytes:
        """Write the journal record, which holds no secret."""
        present = [authority for authority in (self.current, self.other) if authority is not None]
        record = {"version": _JOURNAL_VERSION, "authorities": [_write(authority) for authority in present]}
        return json.dumps(record, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> AuthoritySlots:
        """Read a journal record. Raise JournalError."""
        try:
            record = json.loads(text)
            if record["version"] != _JOURNAL_VERSION:
                raise JournalError("malformed_journal", "its version is another one")
            authorities = [_read(each) for each in record["authorities"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise JournalError("malformed_journal") from None
        current = [each for each in authorities if each.status is Status.ACTIVE]
        others = [each for each in authorities if each.status is not Status.ACTIVE]
        slots = {authority.slot for authority in authorities}
        if len(current) > 1 or len(others) > 1 or len(slots) != len(authorities):
            raise JournalError("malformed_journal", "two authorities in one place")
        return cls(current[0] if current else None, others[0] if others else None)


_JOURNAL_VERSION: Final = 1
_KINDS: Final[Mapping[str, Kind]] = MappingProxyType({"x509": "x509", "jwt": "jwt", "wit": "wit"})
_SLOTS: Final[Mapping[str, SlotName]] = MappingProxyType({"A": "A", "B": "B"})


def _write(authority: Authority) -> dict[str, object]:
    return {
        "kind": authority.kind,
        "slot": authority.slot,
        "status": authority.status.value,
        "authority_id": authority.authority_id,
        "issued_at": authority.issued_at,
        "not_after": authority.not_after,
        "public": _text(authority.public),
        "upstream": [_text(der) for der in authority.upstream],
    }


def _read(fields: dict[str, Any]) -> Authority:
    if not isinstance(fields["authority_id"], str):
        raise TypeError("authority_id")
    return Authority(
        kind=_KINDS[fields["kind"]],
        slot=_SLOTS[fields["slot"]],
        status=Status(fields["status"]),
        authority_id=fields["authority_id"],
        issued_at=_seconds(fields["issued_at"]),
        not_after=_seconds(fields["not_after"]),
        public=_bytes(fields["public"]),
        upstream=tuple(_bytes(each) for each in fields["upstream"]),
    )


def _seconds(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("seconds")
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("base64") from error
