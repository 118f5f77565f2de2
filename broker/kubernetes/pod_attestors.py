# SPDX-License-Identifier: Apache-2.0
"""Node attestors `k8s_pod` and `k8s_psat`: a projected service-account token, and what its cluster says of it.

`k8s_pod` is for the sidecar of a pod: the agent is that pod. `k8s_psat` is SPIRE's, with its ID and selectors: the
agent is the node where the pod runs, so that the service accounts that may be agents are listed.

A token of `k8s_pod` is good for one attestation: whoever reads it in a log or in a pod's memory after that has
nothing. That it was used is written with the agent, in the database that all brokers share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import Connection

from firedoor.broker.attest import AttestedNode, attested
from firedoor.broker.db.agent_rows import LONGEST_TOKEN, note_spent_token
from firedoor.broker.errors import AttestationRefused, InvalidRequest
from firedoor.broker.kubernetes.pod_facts import PodFacts, namespace_labels, node_facts, pod_selectors, psat_selectors
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.broker.read_files import ReadFiles
from firedoor.certs import (
    K8S_POD,
    K8S_PSAT,
    ClusterKeys,
    EvidenceError,
    JwtSvidError,
    PodClaims,
    PodEvidence,
    PodToken,
    PodTokenError,
    TrustDomain,
    VerifiedPod,
    check_review,
    verify_pod_token,
)
from firedoor.cluster.access import Access
from firedoor.cluster.api import ClusterApi

T = TypeVar("T")
# How much longer than it lives a used token is remembered: clocks of brokers differ.
_SPENT_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class PodCluster:
    """A cluster whose pods attest: its API server is asked, or the keys that it signs with are known."""

    name: str
    access: Access | None
    keys: ReadFiles[ClusterKeys] | None = None
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class PsatCluster:
    """A cluster whose nodes' agents attest."""

    name: str
    access: Access
    # (namespace, service account).
    service_accounts: frozenset[tuple[str, str]]
    pod_labels: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    agent_id_by_pod: bool = False


class PodAttestor:
    """Takes the token of a pod for that pod."""

    def __init__(self, trust_domain: TrustDomain, audience: str, clusters: Mapping[str, PodCluster]) -> None:
        self._trust_domain, self._audience, self._clusters = trust_domain, audience, clusters
        self._apis = {name: cluster_api(name, one.access) for name, one in clusters.items() if one.access is not None}

    async def close(self) -> None:
        """Close connections to API servers."""
        for api in self._apis.values():
            await api.close()

    async def attest(self, payload: bytes, now: int) -> AttestedNode:
        """Have the token verified, and the pod looked up where that can be."""
        cluster, token = _told(K8S_POD, lambda: _read(payload, self._clusters))
        api, keys = self._apis.get(cluster.name), cluster.keys
        if keys is not None:
            verified = _told(K8S_POD, lambda: verify_pod_token(token, keys.value, cluster.issuer, self._audience, now))
        else:
            assert api is not None  # noqa: S101 - the configuration has one of the two
            verified = await _reviewed(K8S_POD, api, token, self._audience, now)
        if verified.claims.expires_at - verified.claims.issued_at > LONGEST_TOKEN:
            raise AttestationRefused(f"failed to attest: {K8S_POD}: the token lives longer than a day")
        facts, of_namespace = None, dict[str, str]()
        if api is not None:
            facts = await _pod(K8S_POD, api, verified)
            found = await api.get(f"/api/v1/namespaces/{verified.claims.namespace}")
            of_namespace = dict(_told(K8S_POD, lambda: namespace_labels(found)))
        return self._attested(cluster.name, verified.claims, facts, of_namespace)

    def _attested(
        self, cluster: str, claims: PodClaims, facts: PodFacts | None, of_namespace: Mapping[str, str]
    ) -> AttestedNode:
        spent, ends = claims.token_hash(), int(claims.expires_at) + _SPENT_SECONDS

        def use_up(connection: Connection) -> None:
            _told(K8S_POD, lambda: note_spent_token(connection, spent, claims.issued_at, ends))

        return attested(
            self._trust_domain.with_path(f"/spire/agent/{K8S_POD}/{cluster}/{claims.pod_uid}"),
            K8S_POD,
            use_up=use_up,
            selectors=pod_selectors(cluster, claims, facts, of_namespace),
            # By its next token, not by renewal: the agent of a pod that is gone ends with its certificate.
            can_reattest=True,
        )


class PsatAttestor:
    """Takes the token of an agent's pod for the node that it runs on."""

    def __init__(self, trust_domain: TrustDomain, audience: str, clusters: Mapping[str, PsatCluster]) -> None:
        self._trust_domain, self._audience, self._clusters = trust_domain, audience, clusters
        self._apis = {name: cluster_api(name, one.access) for name, one in clusters.items()}

    async def close(self) -> None:
        """Close connections to API servers."""
        for api in self._apis.values():
            await api.close()

    async def attest(self, payload: bytes, now: int) -> AttestedNode:
        """Have the token reviewed, and its pod and node looked up."""
        cluster, token = _told(K8S_PSAT, lambda: _read(payload, self._clusters))
        if (token.claims.namespace, token.claims.service_account) not in cluster.service_accounts:
            who = f"the service account is not in service_accounts of cluster {cluster.name}"
            raise AttestationRefused(f"failed to attest: {K8S_PSAT}: {who}")
        api = self._apis[cluster.name]
        verified = await _reviewed(K8S_PSAT, api, token, self._audience, now)
        facts = await _pod(K8S_PSAT, api, verified)
        found = await api.get(f"/api/v1/nodes/{facts.node_name}")
        node = _told(K8S_PSAT, lambda: node_facts(found))
        claims = verified.claims
        tail = f"pod/{claims.pod_uid}" if cluster.agent_id_by_pod else node[0]
        return attested(
            self._trust_domain.with_path(f"/spire/agent/{K8S_PSAT}/{cluster.name}/{tail}"),
            K8S_PSAT,
            selectors=psat_selectors(cluster.name, claims, facts, node, cluster.pod_labels, cluster.node_labels),
            can_reattest=True,
        )


def _read(payload: bytes, clusters: Mapping[str, T]) -> tuple[T, PodToken]:
    """Return the cluster that the evidence names, and its token as read. Raise CertsError or AttestationRefused."""
    evidence = PodEvidence.read(payload)
    cluster = clusters.get(evidence.cluster)
    if cluster is None:
        raise AttestationRefused(f"no cluster of the name {evidence.cluster} is configured")
    return cluster, PodToken.read(evidence.token)


async def _reviewed(kind: str, api: ClusterApi, token: PodToken, audience: str, now: int) -> VerifiedPod:
    status = await api.review(token.text, audience)
    return _told(kind, lambda: check_review(token, status, audience, now))


async def _pod(kind: str, api: ClusterApi, verified: VerifiedPod) -> PodFacts:
    claims = verified.claims
    found = await api.get(f"/api/v1/namespaces/{claims.namespace}/pods/{claims.pod_name}")
    return _told(kind, lambda: PodFacts.read(found, claims))


def _told(kind: str, work: Callable[[], T]) -> T:
    """Turn what is wrong with the evidence into the broker's errors."""
    try:
        return work()
    except EvidenceError as error:
        raise InvalidRequest(f"failed to attest: {kind}: {error}") from None
    except (JwtSvidError, PodTokenError, AttestationRefused) as error:
        raise AttestationRefused(f"failed to attest: {kind}: {error}") from None
