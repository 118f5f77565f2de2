# SPDX-License-Identifier: Apache-2.0
"""The admission webhook over TLS, asked as an API server asks; tests/kubernetes has a real one ask."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from firedoor.broker.config import load
from firedoor.broker.errors import ConfigError, InvalidRequest
from firedoor.broker.injector import MAX_REVIEW, answer
from firedoor.broker.injector.ca_bundle import changes
from firedoor.broker.injector.demands import ENABLED, PATHS
from firedoor.certs import parse_x509_svid
from tests.broker.harness import POLICY, RunningBroker, flags, running
from tests.broker.injector.test_inject import OUT, RULES, applied, pod, tight
from tests.waiting import async_until

NAME = "firedoor-injector.firedoor-system.svc"
MANIFESTS = "deploy/kubernetes/injector.yaml"
GIVEN = {
    "injector_listen": "127.0.0.1:0",
    "injector_names": NAME,
    "injector_cluster": "prod",
    "injector_image": "registry.example.org/firedoor:0.1.0",
    "injector_broker": "firedoor-broker.firedoor-system.svc:8081",
}


def review(made: Any = None, **request: Any) -> bytes:
    """Return what kube-apiserver 1.37 sends for a pod."""
    asked = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "inference",
        "operation": "CREATE",
        "object": pod() if made is None else made,
    } | request
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}).encode()


def response(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer(body, RULES, "example.org", ENABLED))["response"]
    return found


def test_a_pod_gets_its_patch() -> None:
    found = response(review())
    assert (found["uid"], found["allowed"], found["patchType"]) == (
        "705ab4f5-6393-11e8-b7cc-42010a800002",
        True,
        "JSONPatch",
    )
    made = applied(pod(), json.loads(base64.b64decode(found["patch"])))
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["firedoor-capture", "firedoor-sidecar"]
    assert found["warnings"]
    again = response(review(made))
    assert (again["allowed"], "patch" in again) == (True, False)


def test_a_refusal_is_a_sentence() -> None:
    found = response(review(pod(spec={"hostNetwork": True})))
    assert (found["allowed"], found["status"]["code"], "patch" in found) == (False, 403, False)
    assert found["status"]["message"].startswith("firedoor cannot inject its sidecar: it uses the node's network")


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
        {"subResource": "ephemeralcontainers"},
    ],
)
def test_what_makes_no_pod_passes(request_: dict[str, Any]) -> None:
    found = response(review(**request_))
    assert (found["allowed"], "patch" in found) == (True, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"x"}}',
        review(uid=""),
        review(uid="x" * 300),
        b" " * (MAX_REVIEW + 1),
    ],
)
def test_what_is_no_review(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        answer(body, RULES, "example.org", ENABLED)


def test_objects_that_are_no_pods_are_refused() -> None:
    odd = [{"name": "a", key: value} for key in ("env", "volumeMounts", "ports") for value in (1, [1], {"a": 1})]
    odd += [{"name": "a", "securityContext": {"capabilities": {"drop": 1}}}]
    for one in odd:
        assert response(review({"spec": {"containers": [one]}}))["allowed"] is False
    for made in ([], "x", {"spec": []}, {"spec": {"containers": "x", "volumes": 1}, "metadata": 3}):
        assert response(review(made))["allowed"] is False
    assert response(review(namespace=None))["allowed"] is False


@pytest.fixture
async def broker(folder: Path) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY, **GIVEN) as found:
        yield found


def trusting(broker: RunningBroker) -> ssl.SSLContext:
    """Return what an API server goes by: `caBundle`, and nothing else."""
    (patch,) = changes({"webhooks": [{"clientConfig": {}}]}, broker.roots())[1:]
    return ssl.create_default_context(cadata=base64.b64decode(patch["value"]).decode())


async def post(broker: RunningBroker, body: bytes, path: str = "/inject", **headers: str) -> tuple[int, bytes]:
    webhook = broker.broker.webhook
    assert webhook is not None
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"https://{webhook.address}{path}",
            data=body,
            headers={"Content-Type": "application/json", **headers},
            ssl=trusting(broker),
            server_hostname=NAME,
        ) as found,
    ):
        return found.status, await found.read()


async def test_by_tls_as_the_broker_itself(broker: RunningBroker) -> None:
    status, body = await post(broker, review())
    assert (status, json.loads(body)["response"]["patchType"]) == (200, "JSONPatch")
    assert (await post(broker, b"{}"))[0] == 400
    assert (await post(broker, review(), **{"Content-Type": "text/plain"}))[0] == 415


async def test_the_path_says_what_the_namespace_demands(broker: RunningBroker) -> None:
    for path, demands in PATHS.items():
        status, body = await post(broker, review(tight(capture="none")), path)
        assert (status, json.loads(body)["response"]["allowed"]) == (200, demands.may_leave)
        _, body = await post(broker, review(OUT), path)
        assert json.loads(body)["response"]["allowed"] == (not demands.required)
    # An older broker, asked at a path that it does not know, says no.
    assert (await post(broker, review(), "/inject/other"))[0] == 404


async def test_its_certificate_is_renewed_with_the_brokers(broker: RunningBroker) -> None:
    """A new authority signs, and the webhook shows what it signed; API servers knew it before."""
    identity = broker.broker.identity
    before = identity.svid
    identity._svid = None
    await identity.refresh()
    assert identity.svid.serial != before.serial
    assert (await post(broker, review()))[0] == 200
    assert parse_x509_svid(identity.svid.chain).id == broker.broker.state.server_id


async def test_by_another_name_it_is_not_reached(broker: RunningBroker) -> None:
    webhook = broker.broker.webhook
    assert webhook is not None
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.post(f"https://{webhook.address}/inject", ssl=trusting(broker), server_hostname="other.svc")


async def test_without_it_the_brokers_svid_has_no_dns_name(folder: Path) -> None:
    async with running(folder, POLICY) as broker:
        assert broker.broker.webhook is None
        await async_until(lambda: broker.broker.identity.svid)


def test_ca_bundles_are_written_where_they_differ() -> None:
    first = changes({"webhooks": [{"clientConfig": {}}, {"clientConfig": {"caBundle": "x"}}]}, [b"a"])
    assert [one["path"] for one in first] == [
        "/metadata/resourceVersion",
        "/webhooks/0/clientConfig/caBundle",
        "/webhooks/1/clientConfig/caBundle",
    ]
    value = first[1]["value"]
    assert changes({"webhooks": [{"clientConfig": {"caBundle": value}}]}, [b"a"]) == []
    assert changes({}, [b"a"]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"injector_names": None}, "injector.names: is missing or empty"),
        ({"injector_names": "10.0.0.1"}, "must be lower-case labels"),
        ({"injector_broker": None}, "injector.broker: is missing or empty"),
        ({"injector_image": "a b"}, "must be the reference of an image"),
        ({"injector_image": None}, "injector.image: is missing"),
        ({"injector_cluster": "a/b"}, "must be letters, digits"),
        ({"injector_uid": "0"}, "injector.uid"),
        ({"injector_strict_users": "yes"}, "must be one of required, everywhere, nowhere"),
        ({"injector_accepted_images": "a b"}, "must be the reference of an image"),
    ],
)
def test_what_is_configured_wrong(folder: Path, change: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in (GIVEN | change).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        load(None, {}, flags(folder, **given))
    assert words in str(refused.value)


def test_the_documented_configuration_loads_and_fits_the_manifests(folder: Path) -> None:
    root = Path(__file__).parents[3]
    (block,) = re.findall(r"```yaml broker\n(.*?)```", (root / "docs/injection.md").read_text(), re.DOTALL)
    (folder / "broker.yaml").write_text(block)
    found = load(folder / "broker.yaml", {}, {}).injector
    assert found is not None
    objects = {one["kind"]: one for one in yaml.load_all((root / MANIFESTS).read_text(), Loader=yaml.SafeLoader)}
    hooks = objects["MutatingWebhookConfiguration"]
    assert {hook["clientConfig"]["service"]["path"] for hook in hooks["webhooks"]} == set(PATHS)
    assert hooks["metadata"]["name"] == found.webhook
    for hook in hooks["webhooks"]:
        service = hook["clientConfig"]["service"]
        assert f"{service['name']}.{service['namespace']}.svc" == found.names[0]
        # It is asked at the path of what the namespace demands.
        asked = {one["key"]: one for one in hook["namespaceSelector"]["matchExpressions"]}
        at_inject = asked["firedoor.dev/inject"]
        required = (at_inject["operator"], at_inject["values"]) == ("In", ["required"])
        assert PATHS[service["path"]].required == required == ("objectSelector" not in hook)
        if required:
            word = asked["firedoor.dev/capture"]
            assert word["values"] == (
                [service["path"].rpartition("/")[2]] if word["operator"] == "In" else ["exclusions", "optional"]
            )
        # Nobody gets round it by asking when it is down, nor has it wait for itself.
        assert (hook["failurePolicy"], hook["sideEffects"]) == ("Fail", "None")
        (excluded,) = [one for one in hook["namespaceSelector"]["matchExpressions"] if "metadata.name" in one["key"]]
        assert (excluded["operator"], service["namespace"] in excluded["values"]) == ("NotIn", True)
    documented = (root / "docs/nodes.md").read_text()
    for rule in objects["ClusterRole"]["rules"][:2]:
        assert f"resources: [{', '.join(rule['resources'])}], verbs: [{', '.join(rule['verbs'])}]" in documented
