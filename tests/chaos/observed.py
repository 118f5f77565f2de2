# SPDX-License-Identifier: Apache-2.0
"""What was seen of a world while faults went through it. Facts alone; `invariants` judges them.

The brokers' database tells, at the commit of each signature and of each generation, what stood in it then
(`ledger`). Sidecars tell by their records and counters, brokers by their audit logs and bundle endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

# Epoch and number, as the brokers count.
Generation = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment asks for; selectors as `type:value`."""

    name: str
    members: tuple[str, ...]
    entry: frozenset[str] = frozenset()
    node: frozenset[str] = frozenset()
    # For whom another person approved, and for nobody else.
    breakglass: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration entry."""

    id: str
    spiffe_id: str
    parent_id: str
    selectors: frozenset[str]


@dataclass(frozen=True, slots=True)
class Revoked:
    """A serial number, an authority, or a pattern with the time before which it counts."""

    kind: str
    value: str
    before: int = 0


@dataclass(frozen=True, slots=True)
class InForce:
    """What one generation says."""

    generation: Generation
    segments: tuple[Segment, ...]
    revoked: frozenset[Revoked] = frozenset()


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and what stood in the database when its row was committed."""

    serial: str
    spiffe_id: str
    entry_id: str
    agent_id: str
    authority_id: str
    issued_at: int
    # All of them.
    entries: tuple[Entry, ...]
    # Whether the agent was there, and in good standing.
    agent: bool
    # What was attested of the agent, without its ID and aliases.
    attested: frozenset[str]
    # The requester of an approved grant that it was given for.
    granted: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A decision record that let a peer pass."""

    where: str
    generation: Generation
    peer_id: str
    peer_serial: str


@dataclass(frozen=True, slots=True)
class Counts:
    """A sidecar's own counters at one moment."""

    decisions: int
    written: int
    waiting: int
    lost: int


@dataclass(frozen=True, slots=True)
class Life:
    """One process of a sidecar: its last counters, and how many lines its reader had of it in the end."""

    name: str
    end: Literal["settled", "killed"]
    last: Counts
    lines: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observer saw of something that must not go back: (epoch, number), or (0, sequence)."""

    observer: str
    value: Generation


@dataclass(frozen=True, slots=True)
class Attested:
    """A broker gave a node an SVID for a join token."""

    token: str
    broker: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a pair was when all faults had healed."""

    pair: str
    entitled: bool
    spoke: bool


@dataclass(slots=True)
class Journal:
    """All that was seen, each kind in its order."""

    in_force: list[InForce] = field(default_factory=list)
    signed: list[Signed] = field(default_factory=list)
    # Serial numbers that a broker's audit log says were handed out, by what it calls the event.
    handed: dict[str, str] = field(default_factory=dict)
    accepted: list[Accepted] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    attested: list[Attested] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = (
            ("generations", self.in_force),
            ("signatures", self.signed),
            ("handed out", self.handed),
            ("accepted", self.accepted),
            ("lives of sidecars", self.lives),
            ("sightings", self.seen),
            ("tokens used", self.attested),
        )
        return ", ".join(f"{len(found)} {name}" for name, found in sizes)


def matches(pattern: str, spiffe_id: str) -> bool:
    """Match an ID, by a second reading of docs/policy.md."""
    wanted, found = pattern.removeprefix("spiffe://").split("/"), spiffe_id.removeprefix("spiffe://").split("/")
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        if len(found) <= len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(a in ("*", b) for a, b in zip(wanted, found, strict=True))


def segment_of(segments: Iterable[Segment], spiffe_id: str) -> Segment | None:
    """Return the segment that claims an ID."""
    return next((one for one in segments if any(matches(pattern, spiffe_id) for pattern in one.members)), None)
