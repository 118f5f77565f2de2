# SPDX-License-Identifier: Apache-2.0
"""What must hold whatever fails. Pure: judges a `Journal`, and shares no code with what it judges.

| invariant | |
|---|---|
| admitted | no SVID is accepted that its ID's segment, in the accepting generation, did not admit at signing |
| generation | what is accepted is so in a generation that a broker committed |
| revoked | none is accepted that the accepting generation revokes |
| entitled | nothing is handed out without an agent in good standing, an entry for it and an admission; none by hand |
| recorded | records + counted losses = decisions, in each life of each sidecar |
| monotonic | no observer sees a lower generation, epoch or bundle sequence than before |
| once | a join token makes one agent |
| alive | when all has healed, who is entitled speaks, and nobody else |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.observed import Accepted, Entry, InForce, Journal, Segment, Signed, matches, segment_of

SERVER: Final = "/spire/server"


@dataclass(frozen=True, slots=True)
class Violation:
    """What did not hold."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


def check(journal: Journal) -> list[Violation]:
    """Return every violation."""
    return [Violation(name, what) for name, find in _INVARIANTS.items() for what in find(journal)]


def refusal(segments: Sequence[Segment], signed: Signed) -> str:
    """Say why a segment of these would not have admitted the ID when it was signed; nothing when it would have."""
    segment = segment_of(segments, signed.spiffe_id)
    if segment is None:
        return "no segment claims it"
    if segment.breakglass:
        return "" if signed.granted else f"segment {segment.name} asks for a grant"
    entry = _entry(signed)
    if entry is None:
        return "it came by no entry"
    lacking = (segment.entry - entry.selectors) | (segment.node - _node(signed))
    return f"segment {segment.name} asks for {', '.join(sorted(lacking))}" if lacking else ""


def _entry(signed: Signed) -> Entry | None:
    return next((one for one in signed.entries if one.id == signed.entry_id), None)


def _named(signed: Signed) -> set[str]:
    """Return the agent's own ID and those by which entries name it."""
    own = {signed.agent_id}
    for one in signed.entries:
        by_token = one.parent_id == signed.agent_id and one.selectors == {f"spiffe_id:{signed.agent_id}"}
        if by_token or (one.parent_id.endswith(SERVER) and one.selectors <= signed.attested):
            own.add(one.spiffe_id)
    return own


def _node(signed: Signed) -> frozenset[str]:
    aliases = {f"spire_agent:alias:{one}" for one in _named(signed) - {signed.agent_id}}
    return signed.attested | aliases | {f"spire_agent:id:{signed.agent_id}"}


def _is_below(signed: Signed, entry: Entry) -> bool:
    """Say whether the entry stands below the agent, at any depth."""
    reached = _named(signed)
    while entry.parent_id not in reached:
        more = {one.spiffe_id for one in signed.entries if one.parent_id in reached} - reached
        if not more:
            return False
        reached |= more
    return True


def _lacks(signed: Signed) -> str:
    """Say why this must not have been handed out; nothing when it might."""
    if not signed.agent_id and not signed.entry_id:
        # The broker's own, or somebody's whom another person approved.
        return "" if signed.spiffe_id.endswith(SERVER) else refusal(signed.segments, signed)
    if not signed.agent:
        return "its agent was banned, or not there"
    if not signed.entry_id:
        return "" if signed.spiffe_id == signed.agent_id else "an agent's own certificate has another ID"
    entry = _entry(signed)
    if entry is None:
        return "its entry was not there"
    if entry.spiffe_id != signed.spiffe_id:
        return f"its entry is of {entry.spiffe_id}"
    if not _is_below(signed, entry):
        return "its entry does not stand below its agent"
    return refusal(signed.segments, signed)


def _admitted(journal: Journal) -> Iterator[str]:
    signed = {one.serial: one for one in journal.signed}
    in_force = {one.generation: one for one in journal.in_force}
    for accepted, present in _with_generation(journal, in_force):
        found = signed.get(accepted.peer_serial)
        if found is None:
            yield f"{_name(accepted)} was accepted and nobody signed it"
        elif found.spiffe_id != accepted.peer_id:
            yield f"{_name(accepted)} was accepted and signed for {found.spiffe_id}"
        elif why := refusal(present.segments, found):
            yield f"{_name(accepted)} was accepted: {why}"


def _with_generation(journal: Journal, in_force: dict[tuple[int, int], InForce]) -> Iterator[tuple[Accepted, InForce]]:
    """Pair what was accepted with the generation that accepted it, each pair once."""
    for accepted in dict.fromkeys(journal.accepted):
        if (present := in_force.get(accepted.generation)) is not None:
            yield accepted, present


def _name(accepted: Accepted) -> str:
    generation = ".".join(map(str, accepted.generation))
    return f"{accepted.peer_id} ({accepted.peer_serial}) at {accepted.where} in {generation}"


def _unknown_generations(journal: Journal) -> Iterator[str]:
    known = {one.generation for one in journal.in_force}
    for accepted in dict.fromkeys(journal.accepted):
        if accepted.generation not in known:
            yield f"{_name(accepted)}: no broker committed that generation"


def _revoked(journal: Journal) -> Iterator[str]:
    signed = {one.serial: one for one in journal.signed}
    in_force = {one.generation: one for one in journal.in_force}
    for accepted, present in _with_generation(journal, in_force):
        found = signed.get(accepted.peer_serial)
        if found is None:
            continue
        for one in present.revoked:
            by_pattern = one.kind == "pattern" and found.issued_at < one.before and matches(one.value, found.spiffe_id)
            if by_pattern or (one.kind, one.value) in (("serial", found.serial), ("authority", found.authority_id)):
                yield f"{_name(accepted)} was accepted, and revoked by {one.kind} {one.value}"


def _entitled(journal: Journal) -> Iterator[str]:
    known = {one.serial for one in journal.signed}
    for serial, event in journal.handed.items():
        if serial not in known:
            yield f"{serial} was handed out ({event}) and is not in the table of what was issued"
    for one in journal.signed:
        # What was written down and refused after the commit reached nobody.
        if one.entry_id and one.serial not in journal.handed:
            continue
        if why := _lacks(one):
            yield f"{one.spiffe_id} ({one.serial}) for {one.agent_id or 'nobody'}: {why}"


def _recorded(journal: Journal) -> Iterator[str]:
    for life in journal.lives:
        last = life.last
        if life.end == "settled" and life.lines + last.lost + last.waiting != last.decisions:
            yield f"{life.name}: {last.decisions} decisions, {life.lines} records arrived, {last.lost} were lost"
        # What was written is in the pipe; what a killed process had counted since, and not written, is gone.
        if life.end == "killed" and life.lines < last.written:
            yield f"{life.name}: {last.written} records were written, {life.lines} arrived"


def _monotonic(journal: Journal) -> Iterator[str]:
    highest: dict[str, tuple[int, int]] = {}
    for one in journal.seen:
        before = highest.get(one.observer, (0, 0))
        if one.value < before:
            yield f"{one.observer}: {one.value} after {before}"
        highest[one.observer] = max(before, one.value)


def _once(journal: Journal) -> Iterator[str]:
    for token, count in Counter(one.token for one in journal.attested).items():
        if count > 1:
            yield f"a join token ({token[:4]}...) made {count} agents"


def _alive(journal: Journal) -> Iterator[str]:
    for one in journal.ended:
        if one.entitled != one.spoke:
            yield f"{one.pair}: {'is entitled and does not speak' if one.entitled else 'speaks and is not entitled'}"


_INVARIANTS: Final[dict[str, Callable[[Journal], Iterator[str]]]] = {
    "admitted": _admitted,
    "generation": _unknown_generations,
    "revoked": _revoked,
    "entitled": _entitled,
    "recorded": _recorded,
    "monotonic": _monotonic,
    "once": _once,
    "alive": _alive,
}
