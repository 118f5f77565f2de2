# SPDX-License-Identifier: Apache-2.0
"""What the broker counts, for Prometheus. A registry of its own, so that two brokers in a process stay apart."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From what a cached read takes here to a deadline.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The broker's counters. Labels have few values: methods, statuses and codes, never an ID."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.calls = Counter(
            "firedoor_broker_calls", "Calls by method and status", ["method", "status"], registry=registry
        )
        self.call_seconds = Histogram(
            "firedoor_broker_call_seconds", "Time a call took", ["method"], buckets=_BUCKETS, registry=registry
        )
        self.unknown_callers = Counter(
            "firedoor_broker_unknown_callers", "Calls over a connection that the front does not know", registry=registry
        )
        self.issued = Counter("firedoor_broker_svids_issued", "SVIDs signed", ["kind"], registry=registry)
        self.refused = Counter("firedoor_broker_issue_refused", "SVIDs refused by code", ["code"], registry=registry)
        self.attested = Counter(
            "firedoor_broker_attestations", "Attestations by type and outcome", ["type", "outcome"], registry=registry
        )
        self.entries = Gauge("firedoor_broker_entries", "Registration entries", registry=registry)
        self.agents = Gauge("firedoor_broker_agents", "Attested agents, banned ones too", registry=registry)
        self.streams = Gauge("firedoor_broker_control_streams", "Open control streams", registry=registry)
        self.updates_refused = Counter(
            "firedoor_broker_updates_refused", "Updates that a sidecar refused (Nack)", registry=registry
        )
        self.generation = Gauge("firedoor_broker_generation", "Number of the present generation", registry=registry)
        self.bundles_fetched = Counter(
            "firedoor_broker_bundles_fetched", "Fetches of other trust domains' bundles", ["outcome"], registry=registry
        )
        self.bundles_overdue = Gauge(
            "firedoor_broker_bundles_overdue",
            "Federated bundles that were not fetched last time",
            registry=registry,
        )
        self.authority_not_after = Gauge(
            "firedoor_broker_authority_not_after_seconds", "End of the active authority", registry=registry
        )
        self.policy_ok = Gauge(
            "firedoor_broker_policy_ok", "1 unless the last policy that was read had errors", registry=registry
        )

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self.registry)
