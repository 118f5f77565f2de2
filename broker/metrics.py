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
        self.ready = Gauge(
            "firedoor_broker_ready", "Whether it serves those who come, as /ready says: 1, or 0", registry=registry
        )
        self.database_up = Gauge(
            "firedoor_broker_database_up", "Whether the database answers: 1, or 0", registry=registry
        )
        self.key_manager_up = Gauge(
            "firedoor_broker_key_manager_up", "Whether the key manager answers: 1, or 0", registry=registry
        )
        self.sign_seconds = Histogram(
            "firedoor_broker_device_sign_seconds",
            "Time a signature took with a key in a device, the wait for a thread too",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.issued = Counter("firedoor_broker_svids_issued", "SVIDs signed", ["kind"], registry=registry)
        self.refused = Counter("firedoor_broker_issue_refused", "SVIDs refused by code", ["code"], registry=registry)
        self.attested = Counter(
            "firedoor_broker_attestations", "Attestations by type and outcome", ["type", "outcome"], registry=registry
        )
        self.entries = Gauge("firedoor_broker_entries", "Registration entries", registry=registry)
        self.registrations_refused = Gauge(
            "firedoor_broker_registrations_refused",
            "Entries that a cluster's objects ask for and that are not made; of the broker that holds the Lease",
            registry=registry,
        )
        self.pods_left_out = Gauge(
            "firedoor_broker_pods_left_out",
            "Pods that are not registered, as their namespaces have too many; of the broker that holds the Lease",
            registry=registry,
        )
        self.agents = Gauge("firedoor_broker_agents", "Attested agents, banned ones too", registry=registry)
        self.streams = Gauge("firedoor_broker_control_streams", "Open control streams", registry=registry)
        self.behind = Gauge(
            "firedoor_broker_sidecars_behind",
            "Sidecars that listen and have not acknowledged the present generation",
            registry=registry,
        )
        self.updates_refused = Counter(
            "firedoor_broker_updates_refused", "Updates that a sidecar refused (Nack)", registry=registry
        )
        self.updates = Counter(
            "firedoor_broker_updates",
            "Updates for sidecars, whole or delta",
            ["kind"],
            registry=registry,
        )
        self.update_bytes = Counter("firedoor_broker_update_bytes", "Their bytes", ["kind"], registry=registry)
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
        self.rotation_missing = Gauge(
            "firedoor_broker_rotation_missing", "Whom a rotation of an authority waits for", ["kind"], registry=registry
        )
        self.crls_signed = Counter("firedoor_broker_crls_signed", "Revocation lists signed", registry=registry)
        self.crl_left_out = Gauge(
            "firedoor_broker_crl_left_out", "Revoked certificates that no list has room for", registry=registry
        )
        self.crl_next_update = Gauge(
            "firedoor_broker_crl_next_update_seconds",
            "When the oldest revocation list of this broker must be replaced",
            registry=registry,
        )
        self.bundle_maps = Gauge(
            "firedoor_broker_bundle_config_maps",
            "Namespaces whose ConfigMap has the trust bundle, is somebody else's, or is to be written",
            ["state"],
            registry=registry,
        )
        self.pod_certificates = Counter(
            "firedoor_broker_pod_certificates", "Answers to PodCertificateRequests", ["outcome"], registry=registry
        )
        self.pod_certificate_seconds = Histogram(
            "firedoor_broker_pod_certificate_seconds",
            "Time from when a PodCertificateRequest was seen until it was issued",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.directory_services = Gauge(
            "firedoor_broker_directory_services", "Services derived from a cluster's objects", registry=registry
        )
        self.directory_trouble = Gauge(
            "firedoor_broker_directory_trouble",
            "What keeps the directory from being as the cluster's objects say: kinds that cannot be followed, and more",
            registry=registry,
        )
        self.policy_ok = Gauge(
            "firedoor_broker_policy_ok", "1 unless the last policy that was read had errors", registry=registry
        )

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self.registry)
