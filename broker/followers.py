# SPDX-License-Identifier: Apache-2.0
"""Who has followed a rotation, and who would be cut off if it went on.

A sidecar says by its control stream which generation it runs and which authority signed each of its SVIDs. Whoever has
no stream (a spire-agent, a server below us) has followed when it fetched a bundle at least as new, and runs on what it
was issued last. What is not known counts as missing: an agent that is away, for as long as a certificate of its own or
of a workload behind it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firedoor.broker.db.acknowledged_rows import load_acknowledged
from firedoor.broker.db.rows import Generation
from firedoor.broker.db.signed_rows import Holder, Signed, certificates_by_agent, signed_by
from firedoor.broker.downstream import counting
from firedoor.certs import K8S_POD, CertsError, SpiffeId

if TYPE_CHECKING:
    from firedoor.broker.entry import Entry
    from firedoor.broker.push import Listening
    from firedoor.broker.state import State
    from firedoor.certs import Rotation
    from firedoor.mtls import Caller

AWAY: Final = "is not connected"
# What stands in place of a name for those whom nobody here can name.
OTHERS: Final = "other trust domains"
TOKENS: Final = "tokens"
_PODS: Final = f"/spire/agent/{K8S_POD}/"


@dataclass(frozen=True, slots=True)
class Missing:
    """One who would be cut off. `who` is an agent's ID, or that of a certificate which nobody renews."""

    who: str
    why: str
    # When it is over by itself, Unix seconds.
    until: int = 0


@dataclass(frozen=True, slots=True)
class Looked:
    """Who is missing, out of how many."""

    missing: tuple[Missing, ...]
    of: int

    def and_also(self, other: Looked) -> Looked:
        """Return both together; who is missing twice is named once."""
        names = {one.who for one in self.missing}
        fresh = tuple(one for one in other.missing if one.who not in names)
        return Looked((*self.missing, *fresh), max(self.of, other.of))

    @classmethod
    def until(cls, who: str, why: str, end: int, now: int) -> Looked:
        """Return one who is missing until a time."""
        return cls((Missing(who, why, end),) if now < end else (), 1)


@dataclass(frozen=True, slots=True)
class News:
    """What says that somebody knows of a step: a generation, or for who polls the number of a bundle."""

    generation: Generation
    sequence: int


class Fetches:
    """Which bundle each agent, and each server below us, fetched last."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._by_id: dict[SpiffeId, int] = {}

    def note(self, caller: Caller, sequence: int) -> None:
        """Note that a caller, if it is of interest, has that bundle. An agent is one by a certificate that counts."""
        if caller.spiffe_id is None or caller.serial is None:
            return
        try:
            spiffe_id = SpiffeId.parse(caller.spiffe_id)
        except CertsError:
            return
        agent = self._state.agents.get(spiffe_id)
        if agent is not None:
            known = format(int(caller.serial, 16), "x") in agent.certificates
        else:
            known = self._state.is_downstream(spiffe_id)
        if known:
            self._by_id[spiffe_id] = sequence

    def last(self, spiffe_id: SpiffeId) -> int | None:
        """Return the number of the bundle that it fetched last, None when it has not since this broker started."""
        return self._by_id.get(spiffe_id)

    def forget_others(self, known: Iterable[SpiffeId]) -> None:
        """Keep what is known of these alone."""
        self._by_id = {one: self._by_id[one] for one in known if one in self._by_id}


class Followers:
    """Everybody who hangs on an authority of ours."""

    def __init__(self, state: State, listening: Mapping[SpiffeId, Listening], fetches: Fetches) -> None:
        self._state, self._listening, self._fetches = state, listening, fetches

    async def without_news(self, news: News) -> Looked:
        """Return who does not know of a step yet."""
        now = self._state.clock.now()
        live, elsewhere = await self._state.database.read(
            lambda connection: (certificates_by_agent(connection, now), load_acknowledged(connection))
        )
        below = {entry.spiffe_id: until for entry, until in self._servers_below()}
        agents: dict[SpiffeId, int] = {}
        for name, itself, until in live:
            agent_id = SpiffeId.parse(name)
            agent = self._state.agents.get(agent_id)
            if agent is None and not itself and is_pod(agent_id):
                # Its certificate is one that a kubelet asked for: a kubelet brings the bundle too, and tells nobody.
                continue
            # What one that is banned or evicted has of its own opens nothing; workloads behind it may go on.
            if not itself or (agent is not None and not agent.banned):
                agents[agent_id] = max(until, agents.get(agent_id, 0))
        agents |= {agent_id: agents.get(agent_id, 0) for agent_id in self._listening}
        self._fetches.forget_others([*agents, *below])
        found = [
            self._without(agent_id, until, news, elsewhere.get(str(agent_id)))
            for agent_id, until in {**agents, **below}.items()
        ]
        return _looked((one for one in found if one is not None), len(found))

    def _servers_below(self) -> Iterator[tuple[Entry, int]]:
        for one in counting(self._state):
            entry = self._state.entries.get(one.entry_id)
            if entry is not None:
                yield entry, one.not_after

    def _without(
        self, spiffe_id: SpiffeId, until: int, news: News, elsewhere: Generation | None = None
    ) -> Missing | None:
        stream = self._listening.get(spiffe_id)
        if stream is not None:
            if stream.acknowledged is not None and stream.acknowledged >= news.generation:
                return None
            said = f"refused an update: {stream.refused}" if stream.refused else "has not acknowledged the bundle yet"
            return Missing(str(spiffe_id), said, until)
        if elsewhere is not None and elsewhere >= news.generation:
            # Acknowledged at another broker; a sidecar goes back for nobody.
            return None
        fetched = self._fetches.last(spiffe_id)
        if fetched is not None and fetched >= news.sequence:
            return None
        return Missing(str(spiffe_id), AWAY if fetched is None else "has not fetched the bundle yet", until)

    async def not_reissued(self, rotation: Rotation, *, agents: bool) -> Looked:
        """Return who runs on what the old authority signed. `agents`: agents' own SVIDs and CAs below us too."""
        signed = await self._signed(rotation)
        behind: dict[str, list[tuple[Holder, int]]] = {}
        for holder, until in signed.old.items():
            if self._hangs(holder, signed, rotation.old, agents=agents):
                behind.setdefault(holder[2], []).append((holder, until))
        minted = _minted(behind.pop("", ()))
        found = (self._behind(agent_id, held) for agent_id, held in behind.items())
        asked = {agent_id for _, _, agent_id in signed.old if agent_id}
        return _looked([*minted, *found], len(asked) + len(minted))

    async def minted(self, rotation: Rotation) -> Looked:
        """Return what the old authority signed and nobody will replace."""
        signed = await self._signed(rotation)
        found = _minted((holder, until) for holder, until in signed.old.items() if not holder[2])
        return _looked(found, len(found))

    async def _signed(self, rotation: Rotation) -> Signed:
        now = self._state.clock.now()
        return await self._state.database.read(lambda c: signed_by(c, rotation.old, now))

    async def entries_behind(self, rotation: Rotation) -> list[str]:
        """Return the entries whose SVIDs the old authority signed and nobody has replaced."""
        signed = await self._signed(rotation)
        return sorted({h[1] for h in signed.old if h[1] and self._hangs(h, signed, rotation.old, agents=False)})

    def _hangs(self, holder: Holder, signed: Signed, old: str, *, agents: bool) -> bool:
        """Say whether a holder still needs what the old authority signed."""
        spiffe_id, entry_id, agent_id = holder
        if not agent_id:
            return holder not in signed.new
        if not entry_id:
            return agents and self._uses(agent_id, signed.agents)
        if spiffe_id == str(self._state.trust_domain.id):
            # A server below us asks for another CA when it sees the taint.
            return agents and holder not in signed.new
        stream = self._listening.get(SpiffeId.parse(agent_id))
        told = stream.svids.get(entry_id) if stream is not None else None
        # What it was issued proves nothing about what it runs on, if it says what it runs on.
        return told[1] == old if told is not None else holder not in signed.new

    def _uses(self, agent_id: str, serials: frozenset[str]) -> bool:
        """Say whether an agent's present certificate is one of these: another counts from its first use."""
        agent = self._state.agents.get(SpiffeId.parse(agent_id))
        return agent is not None and bool(agent.serial) and format(int(agent.serial), "x") in serials

    def _behind(self, agent_id: str, held: list[tuple[Holder, int]]) -> Missing:
        away = SpiffeId.parse(agent_id) not in self._listening
        named = sorted(spiffe_id for (spiffe_id, entry_id, _), _ in held if entry_id)
        until = max(one for _, one in held)
        if not named:
            why = "its own SVID is of the old authority"
        elif named[0] == str(self._state.trust_domain.id):
            why = "the CA of the server beside it is of the old authority"
        else:
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            why = f"runs on an SVID of the old authority: {named[0]}{more}"
        # One that polls is away for all that is known, if it has fetched nothing since this broker started.
        silent = away and self._fetches.last(SpiffeId.parse(agent_id)) is None
        return Missing(agent_id, f"{why}; it {AWAY}" if silent else why, until)


def is_pod(agent_id: SpiffeId) -> bool:
    """Say whether an agent is a pod."""
    return agent_id.path.startswith(_PODS)


def _minted(held: Iterable[tuple[Holder, int]]) -> list[Missing]:
    return [Missing(holder[0], "minted, so that nobody renews it", until) for holder, until in held]


def _looked(found: Iterable[Missing], of: int) -> Looked:
    return Looked(tuple(sorted(found, key=lambda one: (one.who, one.why))), of)
