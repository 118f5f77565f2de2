# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Broker API about pods: by which references, for whom, and until when."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar import config, named_pod
from firedoor.sidecar.broker_endpoint import BrokerEndpoint
from firedoor.sidecar.config import BrokerApiConfig
from firedoor.sidecar.errors import ConfigError, ReferenceInvalid, RequestRefused
from firedoor.sidecar.named_pod import NamedPod, ObjectReference
from firedoor.sidecar.pod_source import ListedPods
from firedoor.sidecar.streams import Streams
from firedoor.wire import brokerapi_pb2
from tests.pods import Kubelet, container_id, kubelet, pod, status
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.test_broker_api import (
    CLIENT,
    INVALID,
    INVALID_ARGUMENT,
    NOT_ENTITLED,
    NOT_FOUND,
    RPCS,
    Client,
    Ending,
    Service,
    agent,
    by_pid,
    ending,
    fields_of,
    refer,
)
from tests.sidecar.test_node_workload import read_config
from tests.waiting import async_until

BY_PID = "/segment/a/by-pid"
POD = entry("/segment/a/vllm", "k8s:ns:inference", "k8s:sa:vllm", hint="inner")
OF_CONTAINER = entry("/segment/a/app", "k8s:ns:inference", "k8s:container-name:app")
OF_USER = entry("/segment/a/user", f"unix:uid:{os.geteuid()}")
LABELLED = entry("/segment/a/labelled", "k8s:pod-label:app:vllm")
GONE: Ending = (grpc.StatusCode.NOT_FOUND, "there is no such pod on this node", NOT_FOUND)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Kubelet]:
    items = [pod("vllm-0", status("app", container_id())), pod("web-0", namespace="web")]
    async with kubelet(tmp_path, items) as found:
        yield found


@pytest.fixture
async def service(
    bench: Bench, tmp_path: Path, node: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    monkeypatch.setattr(named_pod, "_KNOWN_SECONDS", 0.0)
    monkeypatch.setattr(NamedPod, "recheck_seconds", 0.05)
    bench.trust.rotate_jwt()
    bench.entitle(POD, OF_CONTAINER, OF_USER, LABELLED)
    bench.holder.set(agent=agent(bench.trust))
    streams, source = Streams(bench.holder, 20), ListedPods(read_config(node).access)
    made = BrokerApiConfig("127.0.0.1:0", frozenset({TD.with_path(BY_PID)}), frozenset({TD.with_path(CLIENT)}))
    endpoint = BrokerEndpoint(bench.core, bench.holder, made, bench.broker_api(made, streams, source))
    await endpoint.start()
    endpoint.adjust()
    (tmp_path / "c").mkdir(mode=0o700)
    yield Service(bench, endpoint, streams, tmp_path / "c")
    await endpoint.close()
    await source.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    async with service.client() as found:
        yield found


def reference(
    uid: str = "", namespace: str = "", name: str = "", plural: str = "pods", group: str = "core"
) -> brokerapi_pb2.KubernetesObjectReference:
    made = brokerapi_pb2.KubernetesObjectReference(uid=uid)
    if plural or group:
        made.type.plural, made.type.group = plural, group
    if namespace or name:
        made.key.namespace, made.key.name = namespace, name
    return made


def by_object(**given: str) -> brokerapi_pb2.WorkloadReference:
    return refer(reference(**given))


def uid(node: Kubelet, number: int = 0) -> str:
    return str(node.items[number]["metadata"]["uid"])


async def test_a_pod_by_its_name_its_uid_or_both(client: Client, node: Kubelet) -> None:
    key = {"namespace": "inference", "name": "vllm-0"}
    for words in ({"uid": uid(node)}, key, {"uid": uid(node), **key}):
        stream = client.call("SubscribeToX509SVID", by_object(**words))
        # What says more of it than the pod, a container or a user, is nobody's here.
        assert [(one.spiffe_id, one.hint) for one in (await stream.read()).svids] == [(str(POD.spiffe_id), "inner")]
        stream.cancel()
        (one,) = (await client.call("FetchJWTSVID", by_object(**words), audience=["models"])).svids
        assert one.spiffe_id == str(POD.spiffe_id)
        for rpc in ("SubscribeToX509Bundles", "SubscribeToJWTBundles"):
            stream = client.call(rpc, by_object(**words))
            assert set((await stream.read()).bundles) == {"spiffe://example.org"}
            stream.cancel()


@pytest.mark.parametrize("rpc", RPCS)
async def test_pods_that_are_not_meant(client: Client, node: Kubelet, rpc: str) -> None:
    node.items[1]["status"]["phase"] = "Succeeded"
    for words in (
        {"uid": "0b3f5c1e-7a55-4c1a-9a52-2f7d1d1c9e11"},
        {"namespace": "inference", "name": "vllm-1"},
        {"namespace": "web", "name": "vllm-0"},
        # The name of one, the UID of another.
        {"namespace": "inference", "name": "vllm-0", "uid": uid(node, 1)},
        # One that has ended.
        {"uid": uid(node, 1)},
    ):
        assert await ending(client.call(rpc, by_object(**words), **fields_of(rpc))) == GONE


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_pod_without_an_identity(client: Client, node: Kubelet, rpc: str) -> None:
    expected = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued", NOT_ENTITLED)
    assert await ending(client.call(rpc, by_object(uid=uid(node, 1)), **fields_of(rpc))) == expected


TYPE = "type.plural and type.group must be given; the group of the core API is `core`"
NO_KEY = "key must have the namespace and the name of a pod"
OTHER_KIND = "this sidecar knows pods, and no other objects of Kubernetes"
NONE = "key, uid or both must be given"
INVALID_REFERENCES: dict[str, tuple[dict[str, str], str, Any]] = {
    "no type": ({"uid": "a", "plural": "", "group": ""}, TYPE, INVALID),
    "no group": ({"uid": "a", "group": ""}, TYPE, INVALID),
    "no plural": ({"uid": "a", "plural": ""}, TYPE, INVALID),
    "another kind": ({"uid": "a", "plural": "services"}, OTHER_KIND, None),
    "another group": ({"uid": "a", "group": "apps"}, OTHER_KIND, None),
    "neither": ({}, NONE, INVALID),
    "no name": ({"namespace": "inference"}, NO_KEY, INVALID),
    "no namespace": ({"name": "vllm-0"}, NO_KEY, INVALID),
    "no name of a pod": ({"namespace": "inference", "name": "a/b"}, NO_KEY, INVALID),
    "a uid that is none": ({"uid": "a b"}, "uid is none of Kubernetes", INVALID),
}


@pytest.mark.parametrize("case", INVALID_REFERENCES)
async def test_references_that_are_none(client: Client, case: str) -> None:
    given, words, reason = INVALID_REFERENCES[case]
    for rpc in RPCS:
        assert await ending(client.call(rpc, by_object(**given), **fields_of(rpc))) == (INVALID_ARGUMENT, words, reason)


async def test_who_may_ask_by_which_reference(service: Service, client: Client, node: Kubelet) -> None:
    refused = grpc.StatusCode.PERMISSION_DENIED
    words = f"spiffe://example.org{CLIENT} is not among broker_api.clients"
    assert await ending(client.x509(os.getpid())) == (refused, words, None)
    asked = node.asked
    async with service.client(BY_PID) as other:
        words = f"spiffe://example.org{BY_PID} is not among broker_api.kubernetes_clients"
        for given in (by_object(uid=uid(node)), by_object(uid="a b")):
            assert await ending(other.call("SubscribeToX509SVID", given)) == (refused, words, None)
        assert [one.spiffe_id for one in (await other.x509(os.getpid()).read()).svids] == [str(OF_USER.spiffe_id)]
    async with service.client("/segment/a/stranger") as stranger:
        words = "spiffe://example.org/segment/a/stranger is not among broker_api.clients"
        for given in (by_object(uid=uid(node)), by_pid(os.getpid())):
            assert await ending(stranger.call("SubscribeToX509SVID", given)) == (refused, words, None)
    assert node.asked == asked


async def test_a_stream_tells_what_the_pod_becomes_and_ends_with_it(
    service: Service, client: Client, node: Kubelet
) -> None:
    stream = client.call("SubscribeToX509SVID", by_object(namespace="inference", name="vllm-0"))
    assert len((await stream.read()).svids) == 1
    node.items[0]["metadata"]["labels"] = {"app": "vllm"}
    assert len((await stream.read()).svids) == 2
    # For as long as nobody can be asked, what was known counts.
    node.instead, asked = (500, b""), node.asked
    await async_until(lambda: node.asked > asked + 1)
    # Another one takes the name.
    node.items[0] = pod("vllm-0", status("app", container_id()))
    node.instead = None
    assert await ending(stream) == GONE
    assert len(service.streams) == 0


async def test_nobody_to_ask(client: Client, node: Kubelet) -> None:
    node.instead = (500, b"")
    code, words, reason = await ending(client.call("SubscribeToX509SVID", by_object(uid=uid(node))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, None)
    assert words.endswith("does not tell the pods of this node: it answers 500")


def test_configured(tmp_path: Path) -> None:
    given = {"trust_domain": "example.org", "broker": "127.0.0.1:1", "broker_api_listen": "127.0.0.1:8090"}
    own = "spiffe://example.org/segment/management/svc/ztunnel"
    with pytest.raises(ConfigError, match=r"broker_api\.clients"):
        config.load(None, {}, given)
    with pytest.raises(ConfigError, match=r"broker_api\.kubernetes_clients: needs k8s_workloads"):
        config.load(None, {}, {**given, "broker_api_kubernetes_clients": own})
    found = config.load(None, {}, {**given, "broker_api_kubernetes_clients": own, "k8s_workloads_node": "a"}).broker_api
    assert found is not None
    assert (found.clients, {str(one) for one in found.kubernetes_clients}) == (frozenset(), {own})


texts = st.sampled_from(["", "pods", "core", "a", "vllm-0", "A", "/"]) | st.text(max_size=9)


@given(texts, texts, texts, texts, texts)
def test_any_reference(uid: str, namespace: str, name: str, plural: str, group: str) -> None:
    with contextlib.suppress(ReferenceInvalid, RequestRefused):
        found = ObjectReference.read(reference(uid, namespace, name, plural, group))
        assert found.uid or (found.namespace and found.name)
