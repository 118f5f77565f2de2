# SPDX-License-Identifier: Apache-2.0
"""What the directory keeps of a cluster's Services, EndpointSlices and Pods: small records. Pure.

What cannot be used is left out here, so that nothing else need ask: addresses that name no machine, ports that are not
TCP, pods on their node's own network. Whoever may write such an object in one namespace says nothing of another's: an
endpoint counts by the UID of a pod in the slice's own namespace, and by an address that this pod's status has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final

from firedoor.broker.injector import exclusions
from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.certs import SpiffeId, SpiffeIdError, TrustDomain
from firedoor.cluster.objects import mapping, text
from firedoor.segments.names import is_name
from firedoor.segments.pod_ports import MAX_PORTS, PodPort, port_words
from firedoor.segments.well_known import EXCLUDE, PORTS, SEGMENT
from firedoor.wire import policy_pb2

Seen = Mapping[str, Any]
# A namespace and a name.
Key = tuple[str, str]
SERVICE_NAME: Final = "kubernetes.io/service-name"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ENDED: Final = ("Succeeded", "Failed")
_MAX_PORT: Final = 65535
# The API server takes 1000 endpoints and 100 ports a slice, and 100 addresses an endpoint, of which one is used.
_MAX_ENDPOINTS: Final = 1000
_MAX_PORTS: Final = 100
_MAX_SERVICE_PORTS: Final = 1000
_MAX_ADDRESSES: Final = 4
_MAX_ANNOTATION: Final = 4096
TCP: Final = policy_pb2.PROTOCOL_TCP
_PROTOCOLS: Final = {"tcp": TCP, "http": policy_pb2.PROTOCOL_HTTP, "grpc": policy_pb2.PROTOCOL_GRPC}
# What `appProtocol` says in our words. A listener of ours speaks HTTP/1.1 to an app at an `http` port, which one of
# `kubernetes.io/h2c` need not know: such a port is carried as it is, as all others are.
_APP_PROTOCOLS: Final = {
    "http": policy_pb2.PROTOCOL_HTTP,
    "grpc": policy_pb2.PROTOCOL_GRPC,
}


@final
@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod that can be expected: it has a segment, an address of its own, and has not ended."""

    uid: str
    namespace: str
    account: str
    segment: str
    # Packed, as its kubelet says.
    addresses: tuple[bytes, ...]
    # By port of the pod: the service port, and what is spoken there.
    ports: tuple[tuple[int, int, int], ...]
    # Ports at which everybody passes by its sidecar, so that nobody proves anything there.
    excluded: frozenset[int]
    # Who was there first; text of one form sorts as time does.
    created: str
    going: bool

    def spiffe_id(self, trust_domain: TrustDomain) -> str:
        """Return the ID that it has if its segment admits it; nothing when there can be none."""
        return _id(f"spiffe://{trust_domain.name}/segment/{self.segment}/ns/{self.namespace}/sa/{self.account}")


@final
@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A Service with the addresses that the API server itself gave it."""

    key: Key
    addresses: tuple[bytes, ...]
    # Name, port and protocol (0: not said) of each TCP port.
    ports: tuple[tuple[str, int, int], ...]
    created: str


@final
@dataclass(frozen=True, slots=True)
class SliceRecord:
    """An EndpointSlice, by what it says of pods of its own namespace."""

    key: Key
    service: Key
    # Name and number of each TCP port.
    ports: tuple[tuple[str, int], ...]
    # By the UID of a pod.
    endpoints: Mapping[str, tuple[bytes, ...]]


@lru_cache(maxsize=8192)
def _id(text: str) -> str:
    """Return an ID as it is; nothing for what is none."""
    try:
        return str(SpiffeId.parse(text))
    except SpiffeIdError:
        return ""


def key_of(seen: Seen) -> Key:
    """Return an object's namespace and name; empty texts where it has none."""
    metadata = mapping(seen.get("metadata"))
    return _name(metadata.get("namespace")), _name(metadata.get("name"))


def uid_of(seen: Seen) -> str:
    """Return an object's UID."""
    return text(mapping(seen.get("metadata")).get("uid"))[:64]


def read_pod(seen: Seen) -> PodRecord | None:
    """Read a pod; None when nobody can be expected at it."""
    metadata, spec, status = (mapping(seen.get(part)) for part in ("metadata", "spec", "status"))
    segment, account = text(mapping(metadata.get("labels")).get(SEGMENT)), _name(spec.get("serviceAccountName"))
    if not is_name(segment) or spec.get("hostNetwork") or status.get("phase") in _ENDED:
        return None
    uid, (namespace, name) = uid_of(seen), key_of(seen)
    listed = [text(mapping(one).get("ip")) for one in _items(status.get("podIPs"), _MAX_ADDRESSES)]
    addresses = tuple(dict.fromkeys(found for text in listed if (found := packed(text)) is not None))
    if not (uid and namespace and name and account and addresses):
        return None
    annotations = mapping(metadata.get("annotations"))
    ports, excluded = _annotated(text(annotations.get(PORTS))), _excluded(text(annotations.get(EXCLUDE)))
    created, going = _created(metadata), metadata.get("deletionTimestamp") is not None
    return PodRecord(uid, namespace, account, segment, addresses, ports, excluded, created, going)


def read_service(seen: Seen) -> ServiceRecord | None:
    """Read a Service. Of its addresses those count that the API server gave it: no external, no load balancer's."""
    metadata, spec = mapping(seen.get("metadata")), mapping(seen.get("spec"))
    key = key_of(seen)
    if not all(key) or spec.get("type") == "ExternalName":
        return None
    listed = _items(spec.get("clusterIPs"), _MAX_ADDRESSES) or [spec.get("clusterIP")]
    addresses = tuple(dict.fromkeys(found for one in listed if (found := packed(text(one))) is not None))
    ports = [
        (name, number, _APP_PROTOCOLS.get(text(one.get("appProtocol")), 0))
        for name, number, one in _tcp_ports(spec, _MAX_SERVICE_PORTS)
    ]
    return ServiceRecord(key, addresses, tuple(sorted(ports)), _created(metadata)) if ports else None


def read_slice(seen: Seen) -> SliceRecord | None:
    """Read an EndpointSlice; None when it is no Service's or names no pod of its own namespace."""
    key = namespace, _ = key_of(seen)
    service = _name(mapping(mapping(seen.get("metadata")).get("labels")).get(SERVICE_NAME))
    if not all(key) or not service or seen.get("addressType") not in ("IPv4", "IPv6"):
        return None
    ports = [(name, number) for name, number, _ in _tcp_ports(seen, _MAX_PORTS)]
    endpoints = dict(_endpoints(seen, namespace))
    if not ports or not endpoints:
        return None
    return SliceRecord(key, (namespace, service), tuple(sorted(ports)), endpoints)


def _endpoints(seen: Seen, namespace: str) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    for one in map(mapping, _items(seen.get("endpoints"), _MAX_ENDPOINTS)):
        target = mapping(one.get("targetRef"))
        uid = text(target.get("uid"))[:64]
        if target.get("kind") != "Pod" or target.get("namespace") not in (None, "", namespace) or not uid:
            continue
        listed = (packed(text(each)) for each in _items(one.get("addresses"), _MAX_ADDRESSES))
        addresses = tuple(found for found in listed if found is not None)
        if addresses:
            yield uid, addresses


@lru_cache(maxsize=8192)
def packed(text: str) -> bytes | None:
    """Return an address that a pod or Service can have, packed; None for any other text."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and (found.ipv4_mapped is not None or found.scope_id is not None):
        return None
    if found.is_unspecified or found.is_multicast or found.is_loopback or found.is_link_local:
        return None
    return found.packed


def _annotated(text: str) -> tuple[tuple[int, int, int], ...]:
    """Read what a pod says of its ports. What is wrong in it the injector has refused; here it counts for nothing."""
    found: dict[int, tuple[int, int, int]] = {}
    for one in map(PodPort.parse, port_words(text[:_MAX_ANNOTATION])[:MAX_PORTS]):
        if one is not None:
            # Without capture the sidecar listens at a port of its own, and the service port stays the app's.
            listen = one.listen or one.port
            found.setdefault(listen, (listen, one.port, _PROTOCOLS[one.protocol]))
    return tuple(found[port] for port in sorted(found))


def _excluded(text: str) -> frozenset[int]:
    """Read which ports a pod's sidecar does not capture for anybody."""
    try:
        found = exclusions.read(text[:_MAX_ANNOTATION])
    except InjectionRefused:
        return frozenset()
    whole = (one for one in found if (one.way, one.protocol) == ("inbound", "tcp") and not one.addresses)
    return frozenset(port for one in whole for port in one.ports)


def _tcp_ports(of: Seen, most: int) -> Iterator[tuple[str, int, Seen]]:
    """Yield name, number and all of each TCP port; none of another protocol, and none without a number."""
    for one in map(mapping, _items(of.get("ports"), most)):
        number = one.get("port")
        if one.get("protocol") in (None, "", "TCP") and isinstance(number, int) and 0 < number <= _MAX_PORT:
            yield text(one.get("name"))[:63], number, one


def _created(metadata: Seen) -> str:
    # Without a time it came last.
    return text(metadata.get("creationTimestamp"))[:32] or "9"


def _name(value: object) -> str:
    found = text(value)
    return found if _NAME.fullmatch(found) else ""


def _items(value: object, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []
