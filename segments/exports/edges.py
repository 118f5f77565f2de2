# SPDX-License-Identifier: Apache-2.0
"""What flows mean between pods: from which place to which, at which port, and what no packet filter can say of them.

Every `Rule` counts: none is covered by another, so that taking one away closes something. A segment in audit mode has
no rules at its own end, for firedoor lets there pass, and records, what no flow allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, final

from firedoor.segments.exports.places import Place, end, home, least, names_pods
from firedoor.segments.findings import Finding, Position
from firedoor.segments.model import Flow, Mode, PolicySet, Segment, Subject, TcpAction, Validity

# Istio's ambient mesh tunnels connections to this port (HBONE).
HBONE_PORT: Final = 15008


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the policy does not say about the cluster.

    `namespaces`: those in which pods of segments are, beside those that the policy names. `broker_namespace`: where
    sidecars find the broker. `ambient`: Istio's ambient mesh carries the connections.
    """

    namespaces: tuple[str, ...] = ()
    broker_namespace: str = "firedoor-system"
    broker_port: int = 8081
    ambient: bool = False

    @property
    def broker_ports(self) -> tuple[int, ...]:
        """The ports by which sidecars reach the broker."""
        return (self.broker_port, HBONE_PORT) if self.ambient else (self.broker_port,)


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """Connections from a place to a place at a port. Both name their namespace."""

    source: Place
    destination: Place
    port: int

    def covers(self, other: Rule) -> bool:
        """Say whether it allows all that the other does."""
        same = self.port == other.port
        return same and self.source.covers(other.source) and self.destination.covers(other.destination)


@final
@dataclass(frozen=True, slots=True)
class Zone:
    """The pods of one segment in one namespace, and what their ends of the rules allow.

    `names`: the flows that the rules come from. In audit mode there are no rules, and nothing is closed.
    """

    segment: str
    namespace: str
    audit: bool
    incoming: tuple[Rule, ...]
    outgoing: tuple[Rule, ...]
    names: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What every form of export is written from."""

    options: Options
    namespaces: tuple[str, ...]
    zones: tuple[Zone, ...]
    report: tuple[Finding, ...]

    def zones_in(self, namespace: str) -> list[Zone]:
        """Return the zones of a namespace."""
        return [zone for zone in self.zones if zone.namespace == namespace]


@final
class Ends:
    """Which pods the ends of flows mean."""

    def __init__(self, policy: PolicySet) -> None:
        self._policy = policy
        self.homes = {one.name: home(one, policy.trust_domain) for one in policy.segments}

    def of(self, subject: Subject) -> tuple[Place, ...]:
        """Return the pods that one end means, of all segments."""
        named = None if subject.segment is None else self._policy.segment(subject.segment)
        segments = self._policy.segments if named is None else (named,)
        own = self._policy.trust_domain
        return least(place for one in segments for place in end(one, self.homes[one.name], subject, own))


def plan(policy: PolicySet, options: Options, now: int) -> Plan:
    """Work out which pods may connect where, at a time in Unix seconds, for a policy that lints clean."""
    ends = Ends(policy)
    named = {place.namespace for places in ends.homes.values() for place in places if place.namespace}
    namespaces = tuple(sorted(named.union(options.namespaces)))
    report: list[Finding] = []
    for segment in policy.segments:
        report.extend(_about_segment(segment, policy, ends.homes[segment.name], namespaces))
    rules: dict[Rule, set[str]] = {}
    for flow in policy.flows:
        report.extend(_about_flow(flow, ends, now))
        if _holds(flow, now):
            for rule in _rules(flow, ends, namespaces, options):
                rules.setdefault(rule, set()).add(flow.name)
    zones = [
        _zone(segment, namespace, rules)
        for segment in policy.segments
        for namespace in namespaces
        if any(place.namespace in (None, namespace) for place in ends.homes[segment.name])
    ]
    return Plan(options, namespaces, tuple(zones), tuple(report))


def _zone(segment: Segment, namespace: str, rules: dict[Rule, set[str]]) -> Zone:
    here = (segment.name, namespace)
    incoming = [rule for rule in rules if (rule.destination.segment, rule.destination.namespace) == here]
    outgoing = [rule for rule in rules if (rule.source.segment, rule.source.namespace) == here]
    names = {name for rule in (*incoming, *outgoing) for name in rules[rule]}
    audit = segment.mode is Mode.AUDIT
    ends = ((), ()) if audit else (fewest(incoming), fewest(outgoing))
    return Zone(segment.name, namespace, audit, *ends, () if audit else tuple(sorted(names)))


def fewest(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Leave out what other rules cover, and sort."""
    all_of = sorted(set(rules), key=lambda rule: (rule.port, rule.destination.order, rule.source.order))
    return tuple(one for one in all_of if not any(other != one and other.covers(one) for other in all_of))


def without_accounts(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules as they are where nothing can select by service account."""
    wide = (
        Rule(replace(rule.source, account=None), replace(rule.destination, account=None), rule.port) for rule in rules
    )
    return fewest(wide)


def _rules(flow: Flow, ends: Ends, namespaces: tuple[str, ...], options: Options) -> Iterator[Rule]:
    sources = _everywhere(ends.of(flow.source), namespaces)
    destinations = _everywhere(ends.of(flow.destination), namespaces)
    ports = (flow.port, HBONE_PORT) if options.ambient else (flow.port,)
    for source in sources:
        for destination in destinations:
            for port in ports:
                yield Rule(source, destination, port)


def _everywhere(places: tuple[Place, ...], namespaces: tuple[str, ...]) -> tuple[Place, ...]:
    """Write the namespaces out."""
    return least(
        replace(place, namespace=namespace)
        for place in places
        for namespace in ((place.namespace,) if place.namespace else namespaces)
    )


def _holds(flow: Flow, now: int) -> bool:
    valid = flow.valid
    return valid is None or ((valid.start is None or valid.start <= now) and (valid.until is None or now < valid.until))


# What cannot be said


def _lost(code: str, at: Position, message: str, fix: str) -> Finding:
    return Finding("warning", code, at, message, fix)


def _about_segment(
    segment: Segment, policy: PolicySet, places: tuple[Place, ...], namespaces: tuple[str, ...]
) -> Iterator[Finding]:
    at, name = segment.at("metadata", "name"), segment.name
    for number, member in enumerate(segment.members):
        if not names_pods(member, name, policy.trust_domain):
            message = f"{member} is no ID of a pod, so nothing is opened for it"
            yield _lost("no_pods", segment.at("spec", "members", number), message, "allow its addresses yourself")
    if places and not namespaces:
        message = f"nothing says in which namespaces the pods of segment {name} are"
        yield _lost("no_namespace", at, message, "give --namespace for each")
    if segment.fallback:
        message = f"segment {name} is what no other segment claims; here it is the pods that carry its label"
        yield _lost("fallback", at, message, "label only pods that no other segment claims")
    if segment.mode is Mode.AUDIT:
        message = f"segment {name} is in audit mode: its pods are left open, and packets are not recorded"
        yield _lost("audit", segment.at("spec", "mode"), message, "export again when it enforces")


def _about_flow(flow: Flow, ends: Ends, now: int) -> Iterator[Finding]:
    at = flow.at("metadata", "name")
    if any(not isinstance(action, TcpAction) for action in flow.allow):
        message = f"flow {flow.name} allows some requests; a packet filter opens port {flow.port} for any"
        yield _lost("requests", flow.at("spec", "allow"), message, "the sidecars decide each request")
    if flow.valid is not None:
        yield _lost(
            "time",
            flow.at("spec", "valid"),
            _when(flow.name, flow.valid, _holds(flow, now)),
            "export again at these times",
        )
    for word, subject in (("from", flow.source), ("to", flow.destination)):
        if not ends.of(subject):
            message = f"the `{word}` of flow {flow.name} means no pods, so nothing is opened for it"
            yield _lost("no_pods", flow.at("spec", word), message, "allow its addresses yourself")
    if flow.port == HBONE_PORT:
        message = f"flow {flow.name} leads to port {HBONE_PORT}, which Istio's ambient mesh takes for its own"
        yield _lost("ambient_port", at, message, "use another port where a mesh is")


def about_accounts(policy: PolicySet) -> Iterator[Finding]:
    """Yield the flows that mean some service accounts only, for exports that cannot say so."""
    ends = Ends(policy)
    for flow in policy.flows:
        for word, subject in (("from", flow.source), ("to", flow.destination)):
            accounts = sorted({place.account for place in ends.of(subject) if place.account})
            if accounts:
                message = f"the `{word}` of flow {flow.name} means service account {', '.join(accounts)}"
                at = flow.at("spec", word)
                yield _lost("account", at, f"{message}; here it opens to its whole segment", "the sidecars decide")


def _when(name: str, valid: Validity, holds: bool) -> str:
    span = [f"from {_utc(valid.start)}"] if valid.start is not None else []
    span += [f"until {_utc(valid.until)}"] if valid.until is not None else []
    state = "it is in the export" if holds else "it is not in the export"
    return f"flow {name} holds {' '.join(span)}, and packet filters know no time: {state}"


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
