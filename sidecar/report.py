# SPDX-License-Identifier: Apache-2.0
"""How a running sidecar is: for `sidecar status`, health, metrics and the line that says ready."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firedoor.mtls import Core, Engine
from firedoor.sidecar.agent import Agent
from firedoor.sidecar.apis import Apis
from firedoor.sidecar.broker_endpoint import BrokerEndpoint
from firedoor.sidecar.config import Config
from firedoor.sidecar.datapath import DataPath
from firedoor.sidecar.dns import DnsRelay
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.inspection import agent_chain
from firedoor.sidecar.records import Sink
from firedoor.wire import admin_pb2, agent_debug_pb2, control_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a report reads."""

    config: Config
    holder: Holder
    datapath: DataPath
    agent: Agent
    core: Core
    sink: Sink
    apis: Apis
    broker_endpoint: BrokerEndpoint
    dns: DnsRelay
    now: Callable[[], float]


class Report:
    """Reads the sidecar's parts; changes nothing."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config, self._holder, self._now = parts.config, parts.holder, parts.now
        self._started = time.monotonic()
        # The engine of the table that was asked last.
        self._engine: tuple[bytes, Engine] | None = None

    def missing(self) -> list[str]:
        """Say what keeps the sidecar from being ready; nothing when it is."""
        parts = self._parts
        others = (parts.broker_endpoint, parts.dns, parts.apis)
        return [*parts.datapath.missing(self._now()), *(line for one in others for line in one.missing())]

    def ready(self) -> bool:
        """Whether everything that is configured works."""
        return not self.missing()

    def ready_line(self) -> str:
        """Return the one line that is printed on stdout."""
        agent = self._holder.agent
        return (
            f"firedoor sidecar ready: agent {agent.spiffe_id if agent else '-'}, generation {self._generation_text()}, "
            f"{len(self._holder.identities)} identities, {len(self._config.listeners)} listeners, "
            f"auth socket {self._config.auth_socket}"
        )

    def _generation_text(self) -> str:
        generation = self._holder.view.generation
        return f"{generation[0]}.{generation[1]}" if generation else "-"

    def status(self) -> admin_pb2.GetStatusResponse:
        """Answer GetStatus."""
        holder = self._holder
        epoch, number = holder.view.generation or (0, 0)
        return admin_pb2.GetStatusResponse(
            trust_domain=self._config.trust_domain.name,
            agent_id=str(holder.agent.spiffe_id) if holder.agent else "",
            server=", ".join(self._config.broker),
            connected=self._parts.agent.link.connected,
            generation=control_pb2.Generation(epoch=epoch, number=number),
            revision=holder.revision,
            svids=self._svids(),
            listeners=self._listeners(),
            missing=self.missing(),
            counters={name: int(value) for name, value in self.values().items()},
            broker_api=self._parts.broker_endpoint.address,
            broker_api_clients=self._broker_api_clients(),
            authorized_delegates=sorted(map(str, self._config.authorized_delegates)),
            not_admitted=sorted(one.name for one in holder.view.not_admitted),
            capture_exclusions=self._config.capture.exclusions() if self._config.capture else (),
            dns=self._parts.dns.status(),
            not_enforcing=self._not_enforcing(),
        )

    def _not_enforcing(self) -> str:
        """Say why the app of a pod can be reached past its sidecar. Of packet filters a sidecar knows nothing."""
        if self._config.workload != "pod" or self._config.capture is not None:
            return ""
        return "the app can be reached past its sidecar: nothing is captured"

    def info(self) -> agent_debug_pb2.GetInfoResponse:
        """Answer SPIRE's Debug."""
        held = len(self._holder.identities)
        return agent_debug_pb2.GetInfoResponse(
            svid_chain=agent_chain(self._holder),
            uptime=int(time.monotonic() - self._started),
            svids_count=held,
            cached_x509_svids_count=held,
            cached_jwt_svids_count=len(self._parts.apis.tokens),
            last_sync_success=int(self._parts.agent.last_sync()),
        )

    def _broker_api_clients(self) -> list[str]:
        found = self._config.broker_api
        return sorted({str(one) for one in (*found.clients, *found.kubernetes_clients)}) if found else []

    def _svids(self) -> Iterable[admin_pb2.SvidStatus]:
        for one in sorted(self._holder.identities.values(), key=lambda one: one.entry.order):
            yield admin_pb2.SvidStatus(
                spiffe_id=str(one.svid.id),
                entry_id=one.entry.id,
                segment=self._segment_of(str(one.svid.id)),
                not_before=one.svid.not_before,
                not_after=one.svid.not_after,
                authority_id=one.svid.authority_id,
            )

    def _segment_of(self, spiffe_id: str) -> str:
        table = self._holder.view.table
        if not table:
            return ""
        if self._engine is None or self._engine[0] != table:
            self._engine = (table, Engine(table))
        return self._engine[1].segment_of(spiffe_id) or ""

    def _listeners(self) -> Iterable[admin_pb2.ListenerStatus]:
        for listener, address, reason in self._parts.datapath.status():
            yield admin_pb2.ListenerStatus(
                name=listener.name,
                direction=listener.direction,
                listen=address or listener.listen,
                open=bool(address),
                reason=reason,
                **{"as": str(listener.identity)},
            )

    def values(self) -> dict[str, float]:
        """Return all counters and gauges by name."""
        counted = {name: float(value) for name, value in self._parts.core.stats().items()}
        return {
            **counted,
            # Decisions = written + waiting + lost.
            "records_written": float(self._parts.sink.written),
            "records_waiting": counted["records_waiting"] + self._parts.sink.held,
            "connected_to_server": float(self._parts.agent.link.connected),
            "ready": float(self.ready()),
            "entries": float(len(self._holder.view.entries)),
            "svids": float(len(self._holder.live(self._now()))),
            "jwt_svids": float(len(self._parts.apis.tokens)),
            "wit_svids": float(len(self._parts.apis.wits)),
            "api_streams": float(self._parts.apis.open_streams),
        }

    def expiries(self) -> Iterable[tuple[str, int]]:
        """Return when each identity expires."""
        return sorted({str(one.svid.id): one.svid.not_after for one in self._holder.identities.values()}.items())
