# SPDX-License-Identifier: Apache-2.0
"""What runs in a cluster and is not as the policy would have it.

| code | severity | |
|---|---|---|
| `no_segment` | error | in no segment: no label, or one of a segment that such a pod cannot be in |
| `no_sidecar` | error | its namespace or its own label asks for a sidecar, or it claims a segment, and it has none |
| `host_network` | error | on its node's own network, where no sidecar of a pod stands and no packet filter sees it |
| `missing`, `changed`, `stale` | error | an exported packet filter is not there, differs, or is no longer exported |
| `not_enforcing` | error | nothing is captured, and no packet filter keeps others from the app |
| `widened` | warning | a packet filter of somebody else opens what the exported ones close |
| `opted_out` | warning | says itself that it wants no sidecar; an error where its namespace requires one |
| `left_out` | error | something of it is not captured, and its namespace requires that all is |
| `user` | warning | a container may be the sidecar's user, or become it, and its namespace requires a sidecar |
| `plaintext_audit` | warning | takes connections without TLS, and records them |

Pods of one owner that have the same fault are one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from firedoor.segments.cluster_pods import Cluster, Object, Pod
from firedoor.segments.exports import Options, export
from firedoor.segments.exports.addresses import MANAGED
from firedoor.segments.exports.edges import Ends
from firedoor.segments.exports.places import Place
from firedoor.segments.findings import Severity
from firedoor.segments.model import PolicySet
from firedoor.segments.well_known import INJECT, PORTS, SEGMENT

# What clusters run for themselves.
SYSTEM: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})
_DIFFERS: Final = frozenset({"missing", "changed", "stale", "widened"})


@final
@dataclass(frozen=True, order=True, slots=True)
class Row:
    """One thing to see to. `pods`: how many have it; 0 where it is about a packet filter."""

    namespace: str
    object: str
    code: str
    severity: Severity
    pods: int
    message: str
    fix: str

    def __str__(self) -> str:
        """Return it as a line for people."""
        many = f" ({self.pods} pods)" if self.pods > 1 else ""
        return f"{self.namespace}/{self.object}: {self.severity}[{self.code}]: {self.message}{many}; {self.fix}"


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one pod."""

    code: str
    severity: Severity
    message: str
    fix: str


def inventory(
    policy: PolicySet, cluster: Cluster, form: str, options: Options, now: int, namespaces: Iterable[str] = ()
) -> list[Row]:
    """Return what is to be seen to, sorted. `form` is what the packet filters are exported as; "" for none.

    `namespaces`: look at these alone; else at all but those that clusters run for themselves, and the broker's. Raise
    PolicyErrors or ExportError.
    """
    only = frozenset(namespaces)
    rows = list(_filters(policy, cluster, form, options, now)) if form else []
    open_to_all = {row.namespace for row in rows if row.code in _DIFFERS}
    found = Counter[tuple[str, str, Fault]]()
    homes = Ends(policy).homes
    for pod in cluster.pods:
        drifts = bool(open_to_all & {"", pod.namespace})
        guarded = bool(form) and not drifts and _is_home(pod.namespace, homes.values(), options)
        for fault in _faults(pod, homes, guarded=guarded):
            found[pod.namespace, pod.owner, fault] += 1
    rows += [
        Row(namespace, owner, one.code, one.severity, count, one.message, one.fix)
        for (namespace, owner, one), count in found.items()
    ]
    system = SYSTEM | {options.broker_namespace}
    return sorted(row for row in rows if (row.namespace in only if only else row.namespace not in system))


def _is_home(namespace: str, homes: Iterable[tuple[Place, ...]], options: Options) -> bool:
    """Whether the export closes the namespace at all."""
    return namespace in options.namespaces or any(place.namespace == namespace for home in homes for place in home)


def _faults(pod: Pod, homes: dict[str, tuple[Place, ...]], *, guarded: bool) -> Iterator[Fault]:
    if pod.host_network:
        fix = "take hostNetwork away, or keep such pods out of the namespaces of segments"
        yield Fault("host_network", "error", "it is on its node's own network, past sidecars and packet filters", fix)
    yield from _segment(pod, homes)
    if pod.opted_out:
        severity: Severity = "error" if pod.required else "warning"
        yield Fault("opted_out", severity, "it says that it wants no sidecar", f"take {INJECT}: disabled away")
    elif not pod.has_sidecar and (pod.wanted or pod.segment):
        fix = "make it anew, so that the injector sees it: kubectl rollout restart"
        yield Fault("no_sidecar", "error", "it has no sidecar", fix if pod.wanted else _wish())
    if pod.has_sidecar and not pod.captured and not guarded:
        message = "not enforcing: the app can be reached past its sidecar"
        fix = "have it captured, or apply what `firedoor segment export kubernetes` writes"
        yield Fault("not_enforcing", "error", message, fix)
    yield from _required(pod)
    if pod.audited:
        ports = ", ".join(pod.audited)
        fix = f"take /audit out of {PORTS} when all of its clients have identities"
        yield Fault("plaintext_audit", "warning", f"it takes connections without TLS: {ports}", fix)


def _required(pod: Pod) -> Iterator[Fault]:
    """What a pod has been made with that its namespace does not leave to it, perhaps before that was said."""
    if not pod.required or not pod.has_sidecar:
        return
    if pod.left_out:
        message = f"its namespace requires that all is captured, and it has {', '.join(pod.left_out)}"
        yield Fault("left_out", "error", message, "take that away, and make it anew")
    if pod.captured and pod.loose:
        message = f"{', '.join(pod.loose)} may be the sidecar's user, or become it, and go round it"
        fix = "set runAsUser and allowPrivilegeEscalation: false, and drop the capabilities ALL"
        yield Fault("user", "warning", message, fix)


def _wish() -> str:
    return f"label its namespace {INJECT}=enabled, and make it anew"


def _segment(pod: Pod, homes: dict[str, tuple[Place, ...]]) -> Iterator[Fault]:
    if not pod.segment:
        yield Fault("no_segment", "error", "it is in no segment", _wish())
    elif pod.segment not in homes:
        message = f"its label {SEGMENT} is {pod.segment}, which the policy does not have"
        yield Fault("no_segment", "error", message, "declare that segment, or correct the label")
    elif not any(place.covers(Place(pod.segment, pod.namespace, pod.account)) for place in homes[pod.segment]):
        message = f"its label claims segment {pod.segment}, which admits no pod of account {pod.account} here"
        yield Fault("no_segment", "error", message, "correct the label, or the segment's members and admission")


# Packet filters


def _filters(policy: PolicySet, cluster: Cluster, form: str, options: Options, now: int) -> Iterator[Row]:
    """Compare what is there with what would be exported."""
    wanted = {_key(one): one for one in export(policy, form, options, now).objects}
    kinds = {one["kind"] for one in wanted.values()}
    closed = {one["metadata"].get("namespace", "") for one in wanted.values()}
    there = {_key(one): one for one in cluster.policies}
    again = f"apply what `firedoor segment export {form}` writes"
    for key, one in wanted.items():
        if key not in there:
            yield _row(key, "missing", "error", "it is exported, and not in the cluster", again)
        elif there[key].get("spec") != one["spec"]:
            yield _row(key, "changed", "error", "it says something else than the flows do", again)
    for key, seen in there.items():
        if key in wanted or key[0] not in kinds:
            continue
        if _is_ours(seen):
            yield _row(key, "stale", "error", "it was exported, and the flows no longer ask for it", "delete it")
        elif key[1] in closed and _opens(seen):
            message = "it is somebody else's, and opens beside what the flows do"
            yield _row(key, "widened", "warning", message, "say it as a flow, or delete it")


def _key(one: Object) -> tuple[str, str, str]:
    metadata = one["metadata"]
    return one["kind"], metadata.get("namespace") or "", metadata.get("name") or ""


def _row(key: tuple[str, str, str], code: str, severity: Severity, message: str, fix: str) -> Row:
    return Row(key[1], f"{key[0]}/{key[2]}", code, severity, 0, message, fix)


def _is_ours(one: Object) -> bool:
    labels = one["metadata"].get("labels")
    return isinstance(labels, dict) and all(labels.get(key) == value for key, value in MANAGED.items())


def _opens(one: Object) -> bool:
    """Whether a packet filter allows anything; what is of no known shape counts as one that does."""
    spec = one.get("spec")
    return not isinstance(spec, dict) or bool(spec.get("ingress") or spec.get("egress"))
