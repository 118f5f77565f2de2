# SPDX-License-Identifier: Apache-2.0
"""Services that no document declares: derived from somewhere else, and shown to sidecars beside the policy's own.

They change often and the policy seldom, so nothing of the policy is compiled again for them. Where a document has an
address and port, it counts. They permit nothing, as no service does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, final

from firedoor.certs import IdPattern, TrustDomain
from firedoor.segments.model import Service, ServicePort, Speaks
from firedoor.segments.views import Part, Views
from firedoor.wire import policy_pb2

# As many as the engine takes in one table.
MAX_SERVICES: Final = 16_384
MAX_ROWS: Final = 262_144
# Addresses and ports of one, as of a document.
MAX_ADDRESSES: Final = 1000
MAX_PORTS: Final = 64
MAX_EXPECT: Final = 64
# A name of one that is derived; what documents cut out of it makes more, `<name>-2`, which still are labels.
MAX_NAME: Final = 58
_NO_DOMAIN: Final = TrustDomain.parse("none.invalid")


@final
@dataclass(frozen=True, slots=True)
class Derived:
    """A service that was derived. `source` says of what; `data` is it, encoded as one of policy.proto."""

    name: str
    source: str
    data: bytes

    @classmethod
    def of(cls, service: policy_pb2.Service, source: str) -> Derived:
        """Encode it."""
        return cls(service.name, source, service.SerializeToString(deterministic=True))

    def service(self) -> policy_pb2.Service:
        """Return it, to be read."""
        return policy_pb2.Service.FromString(self.data)


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """One as sidecars see it: by name, encoded as fields of a table; and the flows that could lead there."""

    of: Derived
    items: Mapping[str, bytes]
    rows: int
    flows: frozenset[str]


@final
class Directory:
    """All that were derived, beside one policy. What did not change is taken over from the one before."""

    def __init__(self, views: Views, derived: Mapping[str, Derived], before: Directory | None = None) -> None:
        self.views = views
        known = before.shown if before is not None and before.views is views else {}
        self.shown: dict[str, _Shown] = {}
        # Names of those that there is no room for beside the policy's own.
        self.left_out: tuple[str, ...] = ()
        self._fill(derived, known)
        self._by_flow: dict[str, list[_Shown]] = {}
        for one in self.shown.values():
            for flow in one.flows:
                self._by_flow.setdefault(flow, []).append(one)

    def _fill(self, derived: Mapping[str, Derived], known: Mapping[str, _Shown]) -> None:
        services, rows = len(self.views.service_names), self.views.rows
        left_out = []
        # In the order of names: every broker leaves out the same.
        for name in sorted(derived):
            one = known.get(name)
            if one is None or (one.of is not derived[name] and one.of != derived[name]):
                one = self._show(derived[name])
            if services + len(one.items) > MAX_SERVICES or rows + one.rows > MAX_ROWS:
                left_out.append(name)
                continue
            services, rows = services + len(one.items), rows + one.rows
            self.shown[name] = one
        self.left_out = tuple(left_out)

    def _show(self, one: Derived) -> _Shown:
        found = list(without(one.service(), self.views.addresses))
        # Documents' own names are other ones; if not, the document counts.
        found = [service for service in found if service.name not in self.views.service_names]
        items = {
            service.name: policy_pb2.Table(services=[service]).SerializeToString(deterministic=True)
            for service in found
        }
        flows = frozenset(flow for service in found for flow in self.views.flows_to(service))
        return _Shown(one, items, sum(len(each.addresses) * len(each.ports) for each in found), flows)

    def items(self, part: Part) -> dict[str, bytes]:
        """Return what a view with this part of the policy has of them: by name, encoded as fields of a table."""
        found: Iterable[_Shown] = self.shown.values()
        if not part.audits:
            found = (one for flow in part.leaving for one in self._by_flow.get(flow, ()))
        return {name: data for one in found for name, data in one.items.items()}

    def services(self) -> Iterator[tuple[policy_pb2.Service, str]]:
        """Yield all that sidecars may see, and what each was derived from."""
        for one in self.shown.values():
            for data in one.items.values():
                yield policy_pb2.Table.FromString(data).services[0], one.of.source


def as_declared(service: policy_pb2.Service) -> Service:
    """Return a service as if a document had declared it. Raise PatternError or ValueError for one that is none."""
    ports = (
        ServicePort(
            one.port,
            Speaks(one.protocol or Speaks.TCP),
            # In a table `{td}` is expanded.
            tuple(IdPattern.parse(text, _NO_DOMAIN) for text in one.expect),
            one.service_port,
            tuple(one.connect),
        )
        for one in service.ports
    )
    return Service(service.name, tuple(ip_address(packed) for packed in service.addresses), tuple(ports))


def without(service: policy_pb2.Service, taken: Mapping[bytes, frozenset[int]]) -> Iterator[policy_pb2.Service]:
    """Cut what is taken, ports by address, out of a service; yield what is left of it, in one piece or several."""
    if not any(address in taken for address in service.addresses):
        yield service
        return
    ports = frozenset(port.port for port in service.ports)
    left: dict[frozenset[int], list[bytes]] = {}
    for address in service.addresses:
        if rest := ports - taken.get(address, frozenset()):
            left.setdefault(rest, []).append(address)
    for number, rest in enumerate(sorted(left, key=sorted), 1):
        name = service.name if number == 1 else f"{service.name}-{number}"
        kept = (port for port in service.ports if port.port in rest)
        yield policy_pb2.Service(name=name, addresses=left[rest], ports=kept)
