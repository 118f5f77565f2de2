# SPDX-License-Identifier: Apache-2.0
"""SPIRE's ClusterSPIFFEID, ClusterStaticEntry and ClusterFederatedTrustDomain, understood as they are."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from firedoor.certs import TrustDomain
from firedoor.wire import entry_pb2, trustdomain_grpc, trustdomain_pb2
from tests.broker.harness import RunningBroker
from tests.kubernetes.asking import until_answer, until_here
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.registering import SIDECAR, grant, has, ids, registered, registering, says
from tests.kubernetes.spire_resources import GROUP, PLURALS, install
from tests.kubernetes.test_crds import resources
from tests.pod_policy import pod_segment
from tests.simulator import SimulatedTrustDomain

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]
__all__ = ["resources"]
CRDS = Path(__file__).parents[2] / "deploy/kubernetes/crds"
WEB = "spiffe://{{ .TrustDomain }}/segment/web"
CLASS = f"firedoor-{secrets.token_hex(4)}"
Start = Callable[..., AbstractAsyncContextManager[RunningBroker]]


@pytest.fixture(scope="module")
def token(resources: Cluster) -> str:
    install(resources, with_conditions=True)
    return grant(resources)


@pytest.fixture
def namespace(resources: Cluster) -> str:
    return resources.namespace("spire")


@pytest.fixture
async def start(resources: Cluster, tmp_path: Path, token: str, namespace: str) -> AsyncIterator[Start]:
    """Run a broker that has SPIRE's resources of one class for its own."""
    admits = pod_segment("web", f"k8s_pod:ns:{namespace}") + "---\n" + pod_segment("closed", "k8s_pod:ns:elsewhere")
    nodes = pod_segment("nodes").replace("k8s_pod:cluster", "k8s_psat:cluster")
    policy = f"{admits}---\n{nodes}"

    @asynccontextmanager
    async def run(**more: str) -> AsyncIterator[RunningBroker]:
        given = {"spire_registration": "true", "spire_class_name": CLASS, "registration_default": "false", **more}
        settings = {f"kubernetes_controllers_{key}": value for key, value in given.items()}
        agents = [{"name": "prod", "service_accounts": ["spire:spire-agent"], **where(resources, tmp_path)}]
        async with registering(
            resources, tmp_path / "b", policy, token, k8s_psat_clusters=json.dumps(agents), **settings
        ) as found:
            yield found

    yield run
    for plural in PLURALS.values():
        resources.api().delete(f"{GROUP}/{plural}")


def where(cluster: Cluster, folder: Path) -> dict[str, str]:
    return {"server": cluster.url, "ca": str(cluster.ca_file), "token": str(folder / "b/token")}


def made(cluster: Cluster, kind: str, **spec: Any) -> str:
    """Make an object of our class; return its path."""
    name = f"{kind.lower()}-{secrets.token_hex(3)}"
    body = {
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"className": CLASS, **spec},
    }
    cluster.api().post(f"{GROUP}/{PLURALS[kind]}", body)
    return f"{GROUP}/{PLURALS[kind]}/{name}"


def in_namespace(namespace: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


async def stats(cluster: Cluster, path: str, **expected: int) -> None:
    """Wait until the statistics of a ClusterSPIFFEID are these, the others 0."""
    await until_answer(
        lambda: cluster.api().get(path).get("status", {}).get("stats", {}),
        lambda found: {key: value for key, value in found.items() if value} == expected,
        f"{path} counts {expected}",
    )


async def test_a_cluster_spiffe_id_as_spires_chart_has_it(resources: Cluster, start: Start, namespace: str) -> None:
    cluster = resources
    template = (
        "spiffe://{{ .TrustDomain }}/segment/web/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}"
    )
    async with start() as broker:
        pod = await asyncio.to_thread(
            cluster.pod, namespace, "a", spec=SIDECAR, labels={"app": "x", "tier": "gold"}, node="worker-1"
        )
        path = made(
            cluster,
            "ClusterSPIFFEID",
            **in_namespace(namespace),
            spiffeIDTemplate=template,
            podSelector={"matchExpressions": [{"key": "app", "operator": "Exists"}]},
            dnsNameTemplates=['{{ index .PodMeta.Labels "app" }}.{{ .PodMeta.Namespace }}.svc'],
            workloadSelectorTemplates=["k8s:ns:{{ .PodMeta.Namespace }}"],
            ttl="1h30m",
            jwtTtl="90s",
            hint="{{ not a template }}",
        )
        await has(broker, pod, f"/segment/web/ns/{namespace}/sa/default")
        (entry,) = registered(broker, pod["metadata"]["uid"])
        assert entry.dns_names == (f"x.{namespace}.svc",)
        assert (entry.x509_svid_ttl, entry.jwt_svid_ttl, entry.hint) == (5400, 90, "{{ not a template }}")
        assert {str(one) for one in entry.selectors} == {f"k8s:pod-uid:{pod['metadata']['uid']}", f"k8s:ns:{namespace}"}
        await stats(cluster, path, namespacesSelected=1, podsSelected=1, entriesToSet=1)
        await says(cluster, path, "Registered", "True", "all 1 pods have their entry")


async def test_pods_without_a_sidecar_are_below_their_nodes_agent(
    resources: Cluster, start: Start, namespace: str
) -> None:
    async with start() as broker:
        template = "spiffe://{{.TrustDomain}}/segment/nodes/{{.NodeMeta.Name}}/{{.PodMeta.Name}}"
        made(resources, "ClusterSPIFFEID", **in_namespace(namespace), spiffeIDTemplate=template)
        pod = await asyncio.to_thread(resources.pod, namespace, "a")
        await asyncio.to_thread(resources.bind, namespace, "a", "worker-7")
        await has(broker, pod, "/segment/nodes/worker-7/a")
        node = await asyncio.to_thread(resources.api().get, "/api/v1/nodes/worker-7")
        (entry,) = registered(broker, pod["metadata"]["uid"])
        assert entry.parent_id.path == f"/spire/agent/k8s_psat/prod/{node['metadata']['uid']}"


async def test_fallback_classes_and_ignored_namespaces(resources: Cluster, start: Start, namespace: str) -> None:
    cluster, chosen = resources, in_namespace(namespace)
    ignored = await asyncio.to_thread(cluster.namespace, "ignored")
    async with start(spire_ignore_namespaces=ignored) as broker:
        pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
        fallback = made(
            cluster,
            "ClusterSPIFFEID",
            **chosen,
            fallback=True,
            spiffeIDTemplate="spiffe://example.org/segment/web/fall",
        )
        await has(broker, pod, "/segment/web/fall")
        made(
            cluster,
            "ClusterSPIFFEID",
            **chosen,
            className="other",
            spiffeIDTemplate="spiffe://example.org/segment/web/b",
        )
        path = made(cluster, "ClusterSPIFFEID", **chosen, spiffeIDTemplate="spiffe://example.org/segment/web/c")
        await has(broker, pod, "/segment/web/c")
        await stats(cluster, fallback, namespacesSelected=1)
        skipped = made(
            cluster, "ClusterSPIFFEID", **in_namespace(ignored), spiffeIDTemplate="spiffe://example.org/segment/web/d"
        )
        other = await asyncio.to_thread(cluster.pod, ignored, "a", spec=SIDECAR)
        await stats(cluster, skipped, namespacesSelected=1, namespacesIgnored=1)
        assert ids(broker, other) == set()
        await asyncio.to_thread(cluster.api().delete, path)
        await has(broker, pod, "/segment/web/fall")


async def test_names_of_services(resources: Cluster, start: Start, namespace: str) -> None:
    cluster = resources
    async with start(spire_cluster_domain="cluster.local") as broker:
        pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR, node="worker-1", address="10.1.2.3")
        made(
            cluster,
            "ClusterSPIFFEID",
            **in_namespace(namespace),
            autoPopulateDNSNames=True,
            spiffeIDTemplate="spiffe://example.org/segment/web/a",
        )
        await has(broker, pod, "/segment/web/a")
        foreign = await asyncio.to_thread(cluster.namespace, "foreign")
        for where_, service in ((foreign, "bank"), (namespace, "models")):
            target = {"kind": "Pod", "name": "a", "namespace": namespace, "uid": pod["metadata"]["uid"]}
            slice_ = {
                "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.2.3"], "targetRef": target}],
            }
            path = f"/apis/discovery.k8s.io/v1/namespaces/{where_}/endpointslices"
            await asyncio.to_thread(cluster.api().post, path, slice_)
        whole = f"models.{namespace}.svc"
        await until_here(
            lambda: [one.dns_names for one in registered(broker, pod["metadata"]["uid"])],
            lambda found: found == [("models", f"models.{namespace}", whole, f"{whole}.cluster.local")],
            "the names of its Service, and of no other",
        )


async def test_what_is_not_understood_or_not_admitted_says_so(resources: Cluster, start: Start, namespace: str) -> None:
    chosen, cluster = in_namespace(namespace), resources
    async with start() as broker:
        pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
        for spec, kind, word in (
            (
                {"spiffeIDTemplate": "{{ range .PodSpec.Containers }}{{ end }}"},
                "Accepted",
                "{{range}} is not",
            ),
            ({"spiffeIDTemplate": "{{ .PodMeta.Finalizers }}"}, "Registered", "PodMeta has no .Finalizers here"),
            ({"spiffeIDTemplate": "spiffe://example.org/{{ .PodMeta.Labels.x }}"}, "Registered", "<no value>"),
            ({"spiffeIDTemplate": "spiffe://other.org/x"}, "Registered", "not a member of trust domain"),
            ({"spiffeIDTemplate": "spiffe://example.org/segment/closed/x"}, "Registered", "segment closed admits"),
            (
                {"spiffeIDTemplate": f"{WEB}/x", "admin": True},
                "Registered",
                "opens more than",
            ),
            ({"spiffeIDTemplate": f"{WEB}/x", "ttl": "1 day"}, "Accepted", "no duration"),
        ):
            await says(cluster, made(cluster, "ClusterSPIFFEID", **chosen, **spec), kind, "False", word)
        assert ids(broker, pod) == set()


async def test_static_entries(resources: Cluster, start: Start, namespace: str) -> None:
    cluster = resources
    spec = {
        "spiffeID": "spiffe://example.org/segment/nodes/db",
        "parentID": "spiffe://example.org/node/db",
        "selectors": ["unix:uid:1001"],
        "x509SVIDTTL": "30m",
        "dnsNames": ["db.example.org"],
    }
    async with start() as broker:
        path = made(cluster, "ClusterStaticEntry", **spec)
        status = {"rendered": True, "masked": False, "set": True}
        await until_answer(
            lambda: cluster.api().get(path).get("status", {}),
            lambda found: found.items() >= status.items(),
            "it is set",
        )
        (entry,) = [one for one in broker.broker.state.entries if one.origin]
        assert (entry.spiffe_id.path, entry.x509_svid_ttl, entry.dns_names) == (
            "/segment/nodes/db",
            1800,
            ("db.example.org",),
        )
        alias = made(cluster, "ClusterStaticEntry", **{**spec, "parentID": "spiffe://example.org/spire/server"})
        await says(cluster, alias, "Registered", "False", "would name nodes")
        above = made(cluster, "ClusterStaticEntry", **{**spec, "spiffeID": "spiffe://example.org/node/db"})
        await says(cluster, above, "Registered", "False", "other entries are below spiffe://example.org/node/db")
        wrong = made(cluster, "ClusterStaticEntry", **{**spec, "selectors": ["unix"]})
        await says(cluster, wrong, "Accepted", "False", "a workload selector is not type:value")
        await asyncio.to_thread(cluster.api().delete, path)
        await until_here(lambda: broker.broker.state.entries.get(entry.id), lambda found: found is None, "it is gone")
        listed = await broker.entries.ListEntries(entry_pb2.ListEntriesRequest())
        assert not listed.entries


async def test_federation(resources: Cluster, start: Start) -> None:
    cluster, partner = resources, SimulatedTrustDomain("partner.example", at=1_700_000_000)
    spec = {
        "trustDomain": "partner.example",
        "bundleEndpointURL": "https://127.0.0.1:1/bundle",
        "bundleEndpointProfile": {
            "type": "https_spiffe",
            "endpointSPIFFEID": "spiffe://partner.example/spire/server",
        },
        "trustDomainBundle": partner.bundle.to_json().decode(),
    }
    domain = TrustDomain.parse("partner.example")
    async with start() as broker:
        federation, state = broker.broker.federation, broker.broker.state
        path = made(cluster, "ClusterFederatedTrustDomain", **spec)
        await says(cluster, path, "Registered", "True", "")
        found = federation.relationships[domain]
        assert (found.url, str(found.endpoint_id)) == (
            spec["bundleEndpointURL"],
            "spiffe://partner.example/spire/server",
        )
        assert state.bundles[domain].to_json() == partner.bundle.to_json()
        second = made(cluster, "ClusterFederatedTrustDomain", **{**spec, "trustDomain": "partner.example"})
        await says(cluster, second, "Registered", "False", "which is older, is about partner.example too")
        stub = trustdomain_grpc.TrustDomainStub(broker.admin)
        request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=["partner.example"])
        refused = await stub.BatchDeleteFederationRelationship(request)
        assert "is made from kubernetes:prod/ClusterFederatedTrustDomain/" in refused.results[0].status.message
        own = made(cluster, "ClusterFederatedTrustDomain", **{**spec, "trustDomain": "example.org"})
        await says(cluster, own, "Registered", "False", "it is the broker's own")
        web = {"bundleEndpointProfile": {"type": "https_web"}, "bundleEndpointURL": "https://127.0.0.1:1/other"}
        await asyncio.to_thread(cluster.api().delete, second)
        await asyncio.to_thread(cluster.api().patch, path, {"spec": web})
        await until_here(
            lambda: federation.relationships[domain].url,
            lambda url: url == "https://127.0.0.1:1/other",
            "the relationship is the changed one",
        )
        await asyncio.to_thread(cluster.api().delete, path)
        await until_here(lambda: domain in federation.relationships, lambda there: not there, "it is gone")
        assert domain in state.bundles


async def test_definitions_without_a_place_for_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As spire-controller-manager delivers them: the statistics are kept, and the log has the sentences."""
    (tmp_path / "cluster").mkdir()
    with running_cluster(tmp_path / "cluster") as cluster:
        applied = await asyncio.to_thread(cluster.kubectl, "apply", "--filename", str(CRDS))
        assert applied.code == 0, applied
        await asyncio.to_thread(install, cluster, with_conditions=False)
        token = await asyncio.to_thread(grant, cluster)
        namespace = await asyncio.to_thread(cluster.namespace, "spire")
        on = {
            "kubernetes_controllers_spire_registration": "true",
            "kubernetes_controllers_registration_default": "false",
        }
        async with registering(cluster, tmp_path / "b", pod_segment("web"), token, **on) as broker:
            pod = await asyncio.to_thread(cluster.pod, namespace, "a", spec=SIDECAR)
            chosen = {**in_namespace(namespace), "className": ""}
            path = made(cluster, "ClusterSPIFFEID", **chosen, spiffeIDTemplate=f"{WEB}/x")
            await has(broker, pod, "/segment/web/x")
            await stats(cluster, path, namespacesSelected=1, podsSelected=1, entriesToSet=1)
            bad = made(cluster, "ClusterSPIFFEID", **chosen, spiffeIDTemplate="spiffe://example.org/elsewhere")
            await stats(cluster, bad, namespacesSelected=1, podsSelected=1, entriesToSet=1, entryFailures=1)
            assert "conditions" not in cluster.api().get(bad)["status"]
            assert "spiffe://example.org/elsewhere" in caplog.text
