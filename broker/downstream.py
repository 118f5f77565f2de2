# SPDX-License-Identifier: Apache-2.0
"""Authorities below us: for which segments each may issue, and which of their CAs count.

A certificate cannot say it in a way that every verifier understands, so that the list goes to the sidecars with the
bundles (views.py), and what is not on it signs nothing. An entry that lists no segments stands for the fallback segment
alone: `spire-server entry create -downstream` can make no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from firedoor.broker.db.intermediate_rows import DownstreamKey, Intermediate
from firedoor.broker.entry import Entry
from firedoor.broker.errors import Conflict, NotAdmitted, PolicyUnavailable
from firedoor.broker.issuing import NO_POLICY, AuthorizedIssuance, authorize_workload, downstream_proof
from firedoor.certs import EVERY_ID, SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State
    from firedoor.segments import PolicySet

# CAs of one entry that count at once; the oldest give way. A server has three while it rotates, and several may share
# an entry.
MAX_LIVE: Final = 32
# Keys for tokens of one entry and kind; the oldest give way. Everybody who has our bundle carries them.
MAX_KEYS: Final = 16

NO_FALLBACK: Final = (
    "a downstream entry that lists no segments may issue for the fallback segment alone, and no segment is the "
    "fallback; list segments with `firedoor entry create --downstream --segment NAME`"
)


def segments_of(entry: Entry, policy: PolicySet | None) -> frozenset[str]:
    """Return for which segments an authority may issue; nothing where there is no fallback and none is listed."""
    if entry.segments:
        return frozenset(entry.segments)
    declared = policy.segments if policy is not None else ()
    return frozenset(segment.name for segment in declared if segment.fallback)


def check_segments(entry: Entry, policy: PolicySet) -> None:
    """Refuse an entry that could never issue for what it lists. Raise NotAdmitted."""
    unknown = sorted(set(entry.segments) - {segment.name for segment in policy.segments})
    if unknown:
        raise NotAdmitted(f"the entry lists segment {unknown[0]}, which is not declared")
    if not segments_of(entry, policy):
        raise NotAdmitted(NO_FALLBACK)


def authorize_downstream(
    state: State, policy: PolicyKeeper, agent_id: SpiffeId, entry_id: str, ttl: int
) -> AuthorizedIssuance:
    """Check that who holds an SVID of a downstream entry may have a CA: what it needs for another SVID, and segments.

    Raise what `authorize_workload` raises.
    """
    if not state.knows_all_below:
        raise Conflict("this broker is below a server that lists no CAs, so nobody could be held to its segments")
    authorize_workload(state, policy, agent_id, entry_id, ttl)
    entry = state.entitled_entry(agent_id, entry_id)
    if not entry.downstream:
        raise NotAdmitted("the SVID's entry is not a downstream authority's")
    for asked in policy.asked:
        if asked is None:
            raise PolicyUnavailable(NO_POLICY)
        check_segments(entry, asked)
    return downstream_proof(state.trust_domain.id, ttl, agent_id=agent_id, entry_id=entry_id)


def counting(state: State) -> Iterable[Intermediate]:
    """Return the CAs that count now: not expired or revoked, and our own or of an entry that is still a downstream's.

    A key of which one certificate is revoked counts nowhere: verifiers know CAs by their keys.
    """
    now = state.clock.now()
    revoked = {one.key_sha256 for one in state.intermediates.values() if ("serial", one.serial) in state.revocations}
    for one in state.intermediates.values():
        entry = state.entries.get(one.entry_id)
        given = entry is not None and entry.downstream and not entry.expired(now)
        if one.not_after > now and one.key_sha256 not in revoked and (given or not one.entry_id):
            yield one


def listed(state: State, policy: PolicySet | None) -> Mapping[bytes, frozenset[str]]:
    """Return the whole list: which key may issue for which segments."""
    found: dict[bytes, frozenset[str]] = {}
    for one in counting(state):
        key, entry = bytes.fromhex(one.key_sha256), state.entries.get(one.entry_id)
        segments = segments_of(entry, policy) if entry is not None else frozenset([EVERY_ID])
        found[key] = found.get(key, frozenset()) | segments
    return found


def own(state: State) -> frozenset[bytes]:
    """Return the keys of our own CAs below an authority upstream."""
    return frozenset(bytes.fromhex(one.key_sha256) for one in counting(state) if not one.entry_id)


def limited(state: State, policy: PolicySet | None) -> Mapping[str, frozenset[str]]:
    """Return for which segments each key that somebody below us published may sign; for none when it counts no more."""
    found = {}
    for one in state.downstream_keys.values():
        entry = state.entries.get(one.entry_id)
        found[one.key_id] = segments_of(entry, policy) if entry is not None and key_counts(state, one) else frozenset()
    return found


def key_counts(state: State, one: DownstreamKey) -> bool:
    """Say whether the entry is still a downstream authority's, and the agent beside it in good standing."""
    entry, agent = state.entries.get(one.entry_id), state.agents.get(SpiffeId.parse(one.agent_id))
    if entry is None or agent is None or agent.banned:
        return False
    return entry.downstream and not entry.expired(state.clock.now())


def giving_way(state: State, entry_id: str) -> list[str]:
    """Return the serial numbers of the entry's oldest CAs, when one more would be too many."""
    live = sorted((one for one in counting(state) if one.entry_id == entry_id), key=lambda one: one.issued_at)
    return [one.serial for one in live[: max(0, len(live) + 1 - MAX_LIVE)]]
