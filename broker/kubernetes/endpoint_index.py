# SPDX-License-Identifier: Apache-2.0
"""Services of the directory, derived from a cluster's records as they change. Pure.

    A Service's ClusterIPs lead to the IDs of the pods behind it, and a pod's own addresses to its own ID.

Each address belongs to one of those who claim it, so that an address and port stand in one derived service: to a
Service before a pod, to a pod that stays before one that goes, and else to who was there first. A change costs what
hangs on it: a Service with its endpoints, a pod with its Services and its like.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar, final

from firedoor.broker.kubernetes.endpoint_records import TCP, Key, PodRecord, ServiceRecord, SliceRecord
from firedoor.certs import TrustDomain
from firedoor.segments.directory import MAX_ADDRESSES, MAX_EXPECT, MAX_NAME, MAX_PORTS, Derived
from firedoor.wire import policy_pb2

# What one namespace may have: whoever may write there takes nothing from others.
MAX_SERVICES_A_NAMESPACE: Final = 2048
MAX_ROWS_A_NAMESPACE: Final = 65_536
# Pods of one kind in one derived service; their changes are written together.
_PODS: Final = 250
# Sentences about what is not as the cluster's objects say it.
_MAX_TROUBLE: Final = 20
# A port of a pod, its service port, its protocol.
Row = tuple[int, int, int]
# A derived service, and its pairs of address and port.
Made = tuple[Derived, int]
K = TypeVar("K")
V = TypeVar("V")


@final
@dataclass(frozen=True, slots=True)
class _Kind:
    """What pods have in common that one derived service can stand for."""

    namespace: str
    account: str
    segment: str
    rows: tuple[Row, ...]


@final
class EndpointIndex:
    """The records of one cluster, and what follows from them. `derive` after changes, then `derived`."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self._trust_domain = trust_domain
        self._pods: dict[str, PodRecord] = {}
        self._services: dict[Key, ServiceRecord] = {}
        self._slices: dict[Key, SliceRecord] = {}
        self._slices_of: defaultdict[Key, set[Key]] = defaultdict(set)
        self._slices_with: defaultdict[str, set[Key]] = defaultdict(set)
        # Who says that an address is theirs, each with a rank: the least has it.
        self._claims: defaultdict[bytes, dict[Key | str, tuple[int, str, str]]] = defaultdict(dict)
        self._kind_of: dict[str, _Kind] = {}
        self._of_kind: defaultdict[_Kind, set[str]] = defaultdict(set)
        self._dirty_services: set[Key] = set()
        self._dirty_pods: set[str] = set()
        self._dirty_kinds: set[_Kind] = set()
        self._made: dict[Key | _Kind, tuple[Made, ...]] = {}
        self._trouble: dict[Key | _Kind, str] = {}
        # Of namespaces that have more than they may.
        self._full: list[str] = []
        # Grows with each change of what is derived.
        self.changes = 0

    # --- records ------------------------------------------------------------------------------------------------

    def pod(self, uid: str, now: PodRecord | None) -> None:
        """Take a pod as it is, None when it is gone or nobody can be expected at it."""
        before = self._pods.get(uid)
        if before == now:
            return
        _put(self._pods, uid, now)
        self._dirty_pods.add(uid)
        self._dirty_services.update(self._slices[key].service for key in self._slices_with.get(uid, ()))
        self._claim(uid, before.addresses if before else (), ())
        if now is not None:
            self._claim(uid, (), now.addresses, (1 + now.going, now.created, uid))

    def service(self, key: Key, now: ServiceRecord | None) -> None:
        """Take a Service as it is, None when it is gone."""
        before = self._services.get(key)
        if before == now:
            return
        _put(self._services, key, now)
        self._dirty_services.add(key)
        for one in self._slices_of.get(key, ()):
            self._dirty_pods.update(self._slices[one].endpoints)
        self._claim(key, before.addresses if before else (), ())
        if now is not None:
            self._claim(key, (), now.addresses, (0, now.created, "/".join(key)))

    def slice(self, key: Key, now: SliceRecord | None) -> None:
        """Take an EndpointSlice as it is, None when it is gone."""
        before = self._slices.get(key)
        if before == now:
            return
        _put(self._slices, key, now)
        old, new = before.endpoints if before else {}, now.endpoints if now else {}
        same = before is not None and now is not None and (before.ports, before.service) == (now.ports, now.service)
        differing = [uid for uid in old.keys() | new.keys() if not same or old.get(uid) != new.get(uid)]
        self._dirty_pods.update(differing)
        for uid in differing:
            _mark(self._slices_with, uid, key, there=uid in new)
        if before is not None:
            self._dirty_services.add(before.service)
            _mark(self._slices_of, before.service, key, there=False)
        if now is not None:
            self._dirty_services.add(now.service)
            _mark(self._slices_of, now.service, key, there=True)

    def keys(self, kind: str) -> list[Key] | list[str]:
        """Return what is known of a kind: pods by UID, services and slices by namespace and name."""
        return list(self._pods) if kind == "pods" else list(self._services if kind == "services" else self._slices)

    def _claim(
        self,
        who: Key | str,
        gone: Iterable[bytes],
        taken: Iterable[bytes],
        rank: tuple[int, str, str] = (0, "", ""),
    ) -> None:
        for address in gone:
            self._touch(address)
            claims = self._claims[address]
            claims.pop(who, None)
            if not claims:
                del self._claims[address]
        for address in taken:
            self._claims[address][who] = rank
            self._touch(address)

    def _touch(self, address: bytes) -> None:
        """Have everybody who claims an address looked at: it may be another's now."""
        for who in self._claims.get(address, ()):
            if isinstance(who, str):
                self._dirty_pods.add(who)
            else:
                self._dirty_services.add(who)

    def _owned(self, who: Key | str, addresses: Iterable[bytes]) -> list[bytes]:
        """Return which of the addresses that somebody claims are theirs."""
        found = []
        for address in addresses:
            claims = self._claims[address]
            if len(claims) == 1 or min(claims, key=claims.__getitem__) == who:
                found.append(address)
        return found

    # --- what follows -------------------------------------------------------------------------------------------

    def derive(self) -> Iterator[None]:
        """Bring what is derived up to the records, and yield after each step; at the end all of it is of one moment."""
        while self._dirty_services or self._dirty_pods or self._dirty_kinds:
            if self._dirty_pods:
                self._sort(self._dirty_pods.pop())
            elif self._dirty_kinds:
                kind = self._dirty_kinds.pop()
                self._make(kind, self._of_pods(kind))
            else:
                key = self._dirty_services.pop()
                self._make(key, self._of_service(key))
            yield

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be derived."""
        return not (self._dirty_services or self._dirty_pods or self._dirty_kinds)

    def derived(self) -> dict[str, Derived]:
        """Return all of it by name, as much as each namespace may have."""
        by_namespace: defaultdict[str, list[Made]] = defaultdict(list)
        for of, made in self._made.items():
            by_namespace[of.namespace if isinstance(of, _Kind) else of[0]] += made
        self._full = []
        return {one.name: one for name, all_ in by_namespace.items() for one in self._capped(name, all_)}

    def _capped(self, namespace: str, all_: list[Made]) -> Iterator[Derived]:
        if len(all_) > MAX_SERVICES_A_NAMESPACE or sum(rows for _, rows in all_) > MAX_ROWS_A_NAMESPACE:
            self._full.append(
                f"namespace {namespace} has more than {MAX_SERVICES_A_NAMESPACE} services or {MAX_ROWS_A_NAMESPACE} "
                "addresses and ports; what is more is left out"
            )
            all_ = sorted(all_, key=lambda one: one[0].name)[:MAX_SERVICES_A_NAMESPACE]
        left = MAX_ROWS_A_NAMESPACE
        for one, rows in all_:
            left -= rows
            if left < 0:
                return
            yield one

    def trouble(self) -> list[str]:
        """Say what of the cluster's objects is not in the directory as they have it: some sentences."""
        return [*self._full[:_MAX_TROUBLE], *sorted(self._trouble.values())[:_MAX_TROUBLE]]

    def _make(self, of: Key | _Kind, made: tuple[Made, ...]) -> None:
        if self._made.get(of, ()) == made:
            return
        self.changes += 1
        _put(self._made, of, made or None)

    def _sort(self, uid: str) -> None:
        """Find the kind of a pod, and mark what that changes."""
        before, now = self._kind_of.get(uid), self._kind(uid)
        # Its addresses may be others, of the same kind.
        self._dirty_kinds.update(kind for kind in (before, now) if kind is not None)
        if before == now:
            return
        _put(self._kind_of, uid, now)
        if before is not None:
            _mark(self._of_kind, before, uid, there=False)
        if now is not None:
            _mark(self._of_kind, now, uid, there=True)

    def _kind(self, uid: str) -> _Kind | None:
        pod = self._pods.get(uid)
        if pod is None:
            return None
        rows: dict[int, Row] = {}
        # In a lasting order: where two Services call a port by two protocols, one counts.
        for key in sorted(self._slices_with.get(uid, ())):
            one = self._slices[key]
            service = self._services.get(one.service)
            if service is None or not _confirmed(one, pod):
                continue
            said = {name: protocol for name, _, protocol in service.ports}
            for name, port in one.ports:
                if name in said and port not in pod.excluded:
                    row = _row(pod, port, said[name])
                    rows[port] = min(rows.get(port, row), row)
        if not rows:
            return None
        return _Kind(pod.namespace, pod.account, pod.segment, tuple(rows[port] for port in sorted(rows)))

    def _of_pods(self, kind: _Kind) -> tuple[Made, ...]:
        """Derive what pods of a kind have at their own addresses."""
        self._trouble.pop(kind, None)
        uids = self._of_kind.get(kind, ())
        buckets: defaultdict[int, list[bytes]] = defaultdict(list)
        # A pod that comes or goes changes one of them, unless there are twice as many as before.
        among = 1 << max(0, (len(uids) - 1) // _PODS).bit_length()
        expect = ""
        for uid in uids:
            pod = self._pods[uid]
            expect = pod.spiffe_id(self._trust_domain)
            buckets[zlib.crc32(uid.encode()) % among] += self._owned(uid, pod.addresses)
        if not expect:
            return ()
        source = f"pods of service account {kind.namespace}/{kind.account} in segment {kind.segment}"
        ports = [_port(port, service_port, protocol, [expect]) for port, service_port, protocol in kind.rows]
        made: list[Made] = []
        for number, addresses in sorted(buckets.items()):
            if len(addresses) > MAX_ADDRESSES:
                self._trouble[kind] = f"{source}: they have too many addresses, and some are left out"
            base = _name("pods", kind.namespace, kind.account, kind.segment, repr(kind.rows), str(number), str(among))
            made += _services(base, source, sorted(addresses)[:MAX_ADDRESSES], ports)
        return tuple(made)

    def _of_service(self, key: Key) -> tuple[Made, ...]:
        """Derive what a Service has at its ClusterIPs."""
        self._trouble.pop(key, None)
        service = self._services.get(key)
        addresses = self._owned(key, service.addresses) if service else []
        if service is None or not addresses:
            return ()
        said: list[str] = []
        ports: dict[int, policy_pb2.ServicePort] = {}
        for name, number, protocol in service.ports:
            port = self._port_of(key, name, number, protocol, said)
            if port is not None:
                ports.setdefault(number, port)
        if said:
            self._trouble[key] = f"Service {'/'.join(key)}: {'; '.join(said[:3])}"
        return tuple(_services(_name("k8s", *key), f"Service {'/'.join(key)}", addresses, list(ports.values())))

    def _port_of(
        self, key: Key, name: str, number: int, protocol: int, said: list[str]
    ) -> policy_pb2.ServicePort | None:
        """Derive one port of a Service; None when nobody is expected there. Add to what is said of it."""
        rows: Counter[tuple[int, int]] = Counter()
        expect = set()
        for slice_key in self._slices_of.get(key, ()):
            one = self._slices[slice_key]
            targets = [port for named, port in one.ports if named == name]
            for uid in one.endpoints if targets else ():
                pod = self._pods.get(uid)
                if pod is None or not _confirmed(one, pod):
                    continue
                found = [_row(pod, target, protocol)[1:] for target in targets if target not in pod.excluded]
                if found and (spiffe_id := pod.spiffe_id(self._trust_domain)):
                    expect.add(spiffe_id)
                    rows.update(found)
        if not expect:
            return None
        if len(expect) > MAX_EXPECT:
            said.append(f"more than {MAX_EXPECT} identities are behind port {number}, and some are left out")
        if len(rows) > 1:
            said.append(f"its endpoints disagree about port {number} or its protocol, and what most of them say counts")
        # The least of those that are most often said.
        service_port, spoken = min(rows, key=lambda row: (-rows[row], row))
        return _port(number, service_port, spoken, sorted(expect)[:MAX_EXPECT])


def _confirmed(one: SliceRecord, pod: PodRecord) -> bool:
    """Say whether an endpoint is that pod: of the slice's own namespace, at an address that the pod has."""
    return pod.namespace == one.key[0] and any(address in pod.addresses for address in one.endpoints[pod.uid])


def _row(pod: PodRecord, port: int, said: int) -> Row:
    """Return a port of a pod, as its sidecar serves it: the pod's annotation, else what the Service says, else tcp."""
    return next((row for row in pod.ports if row[0] == port), (port, port, said or TCP))


def _port(number: int, service_port: int, protocol: int, expect: list[str]) -> policy_pb2.ServicePort:
    made = policy_pb2.ServicePort(port=number, expect=expect, service_port=service_port)
    made.protocol = protocol  # type: ignore[assignment]
    return made


def _services(name: str, source: str, addresses: list[bytes], ports: list[policy_pb2.ServicePort]) -> Iterator[Made]:
    """Return it in as many services as their ports need."""
    ports.sort(key=lambda port: port.port)
    addresses = sorted(set(addresses), key=lambda packed: (len(packed), packed))
    for at in range(0, len(ports) if addresses else 0, MAX_PORTS):
        # Within the length of a name, what follows is another hash.
        called = name if at == 0 else _name(name[:4].rstrip("-"), name, str(at))
        some = ports[at : at + MAX_PORTS]
        made = policy_pb2.Service(name=called, addresses=addresses, ports=some)
        yield Derived.of(made, source), len(addresses) * len(some)


def _name(kind: str, *parts: str) -> str:
    """Return a label that is nobody else's: what a person can read of the parts, and a hash of them."""
    hashed = hashlib.sha256("\0".join((kind, *parts)).encode()).hexdigest()[:16]
    most = MAX_NAME - len(kind) - len(hashed) - 2
    return f"{kind}-{'-'.join(parts[:2]).replace('.', '-')[:most].strip('-')}-{hashed}"


def _put(records: dict[K, V], key: K, now: V | None) -> None:
    if now is None:
        records.pop(key, None)
    else:
        records[key] = now


def _mark(index: defaultdict[K, set[V]], key: K, value: V, *, there: bool) -> None:
    """Add to an index, or take out of it; what is empty is no key."""
    if there:
        index[key].add(value)
    elif key in index:
        index[key].discard(value)
        if not index[key]:
            del index[key]
