# SPDX-License-Identifier: Apache-2.0
"""The lint checks on the directory; `linter.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from firedoor.segments.cover import names_everybody
from firedoor.segments.findings import Finding
from firedoor.segments.lint_flows import can_match
from firedoor.segments.listeners import Protocol
from firedoor.segments.model import Action, Flow, GrpcAction, HttpAction, PolicySet, Service, Speaks, TcpAction
from firedoor.segments.reach import Lead, Reach

# Addresses times ports of all services: as many rows as a sidecar's data path takes.
MAX_ROWS: Final = 262_144
_ACTIONS: Final[tuple[tuple[Protocol, type[Action]], ...]] = (
    ("tcp", TcpAction),
    ("http", HttpAction),
    ("grpc", GrpcAction),
)
_WORDS: Final[dict[Speaks, Protocol]] = {Speaks.TCP: "tcp", Speaks.HTTP: "http", Speaks.GRPC: "grpc"}


def one_service(policy: PolicySet) -> Iterator[Finding]:
    """An address and port lead to one service, and a port stands in it once."""
    # Addresses as numbers: a thousand services have tens of thousands of them.
    seen: dict[tuple[int, int, int], Service] = {}
    for service in policy.services:
        ports = [port.port for port in service.ports]
        for place, port in enumerate(ports):
            if port in ports[:place]:
                at = service.at("spec", "ports", place)
                message = f"port {port} stands in service {service.name} twice"
                yield Finding("error", "port_twice", at, message, "keep one of them")
        for place, address in enumerate(service.addresses):
            keys = [(address.version, int(address), port) for port in ports]
            other = next((seen[key] for key in keys if key in seen), None)
            if other is not None:
                at = service.at("spec", "addresses", place)
                where = other.at("metadata", "name")
                message = f"{address} of service {service.name} is an address of service {other.name} ({where}) too"
                fix = "an address and port belong to one service: remove it from one of them"
                yield Finding("error", "address_in_two_services", at, message, fix)
            seen.update(dict.fromkeys(keys, service))


def expectations(policy: PolicySet) -> Iterator[Finding]:
    """Each expectation names somebody who can exist, and nobody more than is meant."""
    for service in policy.services:
        for place, port in enumerate(service.ports):
            for index, pattern in enumerate(port.expect):
                at = service.at("spec", "ports", place, "expect", index)
                if names_everybody(pattern, policy.trust_domain):
                    message = f"service {service.name} expects everybody: {pattern}"
                    yield Finding("error", "wildcard_subject", at, message, "name the workload that is meant")
                elif not can_match(policy, None, pattern):
                    message = f"{pattern}, which service {service.name} expects, matches no member of any segment"
                    fix = "correct the pattern, or add it to a segment's members"
                    yield Finding("error", "outside_segment", at, message, fix)


def with_flow(policy: PolicySet) -> Iterator[Finding]:
    """Some flow leads to what each port expects, or nobody could use it."""
    if not policy.services:
        return
    reach = _reach(policy)
    for service in policy.services:
        for place, port in enumerate(service.ports):
            protocol = _WORDS[port.protocol]
            if not reach.flows(port.service_port, protocol, port.expect):
                at = service.at("spec", "ports", place)
                message = (
                    f"no flow allows {protocol} at port {port.service_port} to what service {service.name} expects at "
                    f"port {port.port}"
                )
                fix = "declare one, or remove the port"
                yield Finding("warning", "service_without_flow", at, message, fix)


def _reach(policy: PolicySet) -> Reach:
    leads = (
        Lead(flow.name, flow.port, _protocols(flow), flow.destination.segment or "", flow.destination.ids)
        for flow in policy.flows
    )
    reach = Reach(policy.trust_domain, next((one.name for one in policy.segments if one.fallback), None), leads)
    for segment in policy.segments:
        reach.members(segment.name, segment.members)
    return reach


def _protocols(flow: Flow) -> tuple[Protocol, ...]:
    return tuple(word for word, kind in _ACTIONS if any(isinstance(one, kind) for one in flow.allow))


def size(policy: PolicySet) -> Iterator[Finding]:
    """The directory is no larger than a sidecar takes."""
    rows = 0
    for service in policy.services:
        rows += len(service.addresses) * len(service.ports)
        if rows > MAX_ROWS:
            at = service.at("metadata", "name")
            message = f"the services up to {service.name} have more than {MAX_ROWS} addresses and ports"
            yield Finding("error", "directory_too_large", at, message, "remove services that nobody connects to")
            return


SERVICE_CHECKS: Final[tuple[Callable[[PolicySet], Iterator[Finding]], ...]] = (
    one_service,
    expectations,
    with_flow,
    size,
)
