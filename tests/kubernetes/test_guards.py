# SPDX-License-Identifier: Apache-2.0
"""The guards that are delivered: a real API server refuses each case with its sentence, and admits its twin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.broker.injector.test_inject import RULES, UNICODE
from tests.kubernetes.admission import BY_OTHERS, INJECTED, guarded_cluster, refusal
from tests.kubernetes.api import Api, ApiError
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pod_certificates import kubelets
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
STRATEGIC = "application/strategic-merge-patch+json"
Pod = dict[str, Any]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with guarded_cluster(tmp_path_factory.mktemp("guarded"), RULES) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def namespace(guarded: Cluster) -> str:
    return guarded.namespace("inference", INJECTED)


def pod(
    *,
    spec: Pod | None = None,
    container: Pod | None = None,
    labels: dict[str, str] | None = None,
    **notes: str,
) -> Pod:
    metadata = {"generateName": "app-", "annotations": {f"firedoor.dev/{key}": value for key, value in notes.items()}}
    app = {"name": "app", "image": "x"} | (container or {})
    return {"metadata": metadata | {"labels": labels or {}}, "spec": {"containers": [app]} | (spec or {})}


def capable(name: str) -> Pod:
    return {"securityContext": {"capabilities": {"add": [name]}}}


def mounting(volume: str, **more: Any) -> Pod:
    return {"volumeMounts": [{"name": volume, "mountPath": "/x", **more}]}


def projecting(audience: str) -> Pod:
    sources = [{"configMap": {"name": "x"}}, {"serviceAccountToken": {"audience": audience, "path": "token"}}]
    scratch: Pod = {"name": "scratch", "emptyDir": {}}
    return {"volumes": [scratch, {"name": "own", "projected": {"sources": sources}}]}


def excluding(text: str) -> Pod:
    return pod(**{"capture.exclude": text})


AT = "spec.containers[0]"
GIVEN = "container app could go round its sidecar: it is given the capability"
# name: (what is refused, the field and words of the sentence, its twin)
CREATED: dict[str, tuple[Pod, str, Pod]] = {
    "a label that is misspelt": (
        pod(labels={"firedoor.dev/inject": "yes"}),
        "metadata.labels[firedoor.dev/inject]: it must be enabled or disabled",
        pod(labels={"firedoor.dev/inject": "enabled"}),
    ),
    "an unknown annotation": (
        pod(port="9000/http"),
        "metadata.annotations: there is no annotation firedoor.dev/port; known are",
        pod(ports="9000/http"),
    ),
    "another capture": (pod(capture="some"), "[firedoor.dev/capture]: it has one value: none", pod(capture="none")),
    "too many ports": (
        pod(ports=",".join(f"{port}/tcp" for port in range(1, 66))),
        "[firedoor.dev/ports]: it names more than 64 ports",
        pod(ports=",".join(f"{port}/tcp" for port in range(1, 65))),
    ),
    "a port that is none": (
        pod(ports="9000/http, 65536/tcp"),
        "[firedoor.dev/ports]: 65536/tcp must be PORT/PROTOCOL, such as 9000/http",
        pod(ports="9000/http, 65535/tcp/audit"),
    ),
    "a port of many digits": (
        pod(ports="9" * 40 + "/tcp"),
        "must be PORT/PROTOCOL, such as 9000/http",
        pod(ports="99/tcp"),
    ),
    "a listener where all is captured": (
        pod(ports="9000/http=19000"),
        "9000/http=19000 must be PORT/PROTOCOL, such as 9000/http",
        pod(ports="9000/http=19000", capture="none"),
    ),
    "no listener where nothing is": (
        pod(ports="9000/http", capture="none"),
        "9000/http must be PORT/PROTOCOL=PORT, such as 9000/http=19000",
        pod(ports="9000/http=65535", capture="none"),
    ),
    "a port twice": (
        pod(ports="9/tcp,9/http"),
        "[firedoor.dev/ports]: it names a port twice",
        pod(ports="9/tcp,8/tcp"),
    ),
    "a listener twice": (
        pod(ports="9/tcp=99,8/tcp=99", capture="none"),
        "[firedoor.dev/ports]: it names a port twice",
        pod(ports="9/tcp=99,8/tcp=98", capture="none"),
    ),
    "outbound where all is captured": (
        pod(outbound="[]"),
        "[firedoor.dev/outbound]: it is for pods with firedoor.dev/capture: none",
        pod(outbound="[]", capture="none"),
    ),
    "outbound that is no list": (
        pod(outbound="x", capture="none"),
        "[firedoor.dev/outbound]: it must be a list of listeners",
        pod(outbound=" [{}]", capture="none"),
    ),
    "an exclusion of everything": (
        excluding("inbound tcp: x"),
        "[firedoor.dev/capture.exclude]: inbound tcp: x must say what passes and why",
        excluding("inbound tcp 1: x; outbound udp to 192.0.2.1: y: z"),
    ),
    "an exclusion of a port that is none": (
        excluding("inbound tcp 1,65536: x"),
        "[firedoor.dev/capture.exclude]: inbound tcp 1,65536: x must say what passes",
        excluding("inbound tcp 1,65535: x"),
    ),
    "an exclusion with what a kubelet replaces": (
        excluding("inbound tcp 1: $(FIREDOOR_SIDECAR_CAPTURE_PROBES)"),
        "must say what passes and why",
        excluding("inbound tcp 1: (FIREDOOR_SIDECAR_CAPTURE_PROBES)"),
    ),
    "an exclusion of no network": (
        excluding("inbound tcp from 10.0.0.1/8: x"),
        "must say what passes and why",
        excluding("inbound tcp from 10.0.0.0/8,fd00::/8,::1: x"),
    ),
    "too many exclusions": (
        excluding(17 * "inbound tcp 1: x;"),
        "[firedoor.dev/capture.exclude]: it has more than 16 exclusions",
        excluding(16 * "inbound tcp 1: x;"),
    ),
    "UDP where nothing is captured": (
        pod(capture="none", udp="pass"),
        "[firedoor.dev/udp]: it is for pods that are captured",
        pod(udp="pass"),
    ),
    "another word for UDP": (pod(udp="yes"), "[firedoor.dev/udp]: it has one value: pass", pod(udp="")),
    "a name that is none": (
        pod(dns="a.b, a.**"),
        "[firedoor.dev/dns]: a.** must be a name such as s3.example.org",
        pod(dns="a.b, **.a"),
    ),
    "too many names": (
        pod(dns=101 * "a,"),
        "[firedoor.dev/dns]: it has more than 100 names",
        pod(dns=100 * "a,"),
    ),
    "a segment that is none": (
        pod(segment="A.b"),
        "[firedoor.dev/segment]: it is no name of a segment",
        pod(segment="a-b"),
    ),
    "two segments": (
        pod(segment="a", labels={"firedoor.dev/segment": "b"}),
        "metadata.labels[firedoor.dev/segment]: it is not what the annotation of that name says",
        pod(segment="a", labels={"firedoor.dev/segment": "a"}),
    ),
    "the node's network": (
        pod(spec={"hostNetwork": True}),
        "spec.hostNetwork: it uses the node's network",
        pod(spec={"hostNetwork": False}),
    ),
    "the node's processes": (
        pod(spec={"hostPID": True}),
        "spec.hostPID: its containers see each other's processes",
        pod(spec={"hostPID": False}),
    ),
    "one view of processes": (
        pod(spec={"shareProcessNamespace": True}),
        "spec.shareProcessNamespace: its containers see each other's processes",
        pod(spec={"shareProcessNamespace": False}),
    ),
    "the sidecar's user": (
        pod(container={"securityContext": {"runAsUser": 990}}),
        f"{AT}.securityContext.runAsUser: container app runs as user 990",
        pod(container={"securityContext": {"runAsUser": 991}}),
    ),
    "the sidecar's user, for all": (
        pod(spec={"securityContext": {"runAsUser": 990}}),
        f"{AT}.securityContext.runAsUser: container app runs as user 990",
        pod(spec={"securityContext": {"runAsUser": 990}}, container={"securityContext": {"runAsUser": 1}}),
    ),
    "the sidecar's token": (
        pod(container=mounting("firedoor-token", readOnly=True)),
        f"{AT}.volumeMounts: container app mounts a volume of the sidecar's",
        pod(container=mounting("firedoor-bundle", readOnly=True)),
    ),
    "a token like the sidecar's": (
        pod(spec=projecting("firedoor")),
        "spec.volumes[1]: volume own projects a token for firedoor, which proves who the pod is",
        pod(spec=projecting("vault")),
    ),
    "a token like the sidecar's, where nothing is captured": (
        pod(spec=projecting("firedoor"), capture="none"),
        "spec.volumes[1]: volume own projects a token for firedoor, which proves who the pod is",
        pod(spec=projecting("vault"), capture="none"),
    ),
    "the socket, to write to": (
        pod(container=mounting("firedoor-auth")),
        f"{AT}.volumeMounts: container app mounts firedoor-auth to write to",
        pod(container=mounting("firedoor-auth", readOnly=True)),
    ),
    "privileged": (
        pod(container={"securityContext": {"privileged": True}}),
        f"{AT}.securityContext.privileged: container app could go round its sidecar",
        pod(container={"securityContext": {"privileged": True}}, capture="none"),
    ),
    **{
        name: (
            pod(container=capable(name)),
            f"{AT}.securityContext.capabilities.add: {GIVEN} {name.removeprefix('CAP_')}",
            pod(container=capable("CHOWN")),
        )
        for name in (
            *("NET_ADMIN", "CAP_NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO"),
            *("BPF", "PERFMON", "DAC_READ_SEARCH", "ALL"),
        )
    },
    **{
        f"{name}, by letters that become others": (
            pod(container=capable(name)),
            f"{AT}.securityContext.capabilities.add: container app is given a capability with another name",
            pod(container=capable(name), capture="none"),
        )
        for name in UNICODE
    },
    "an init container that may do more": (
        pod(spec={"initContainers": [{"name": "first", "image": "x", **capable("NET_ADMIN")}]}),
        "spec.initContainers[2].securityContext.capabilities.add: container first could go round",
        pod(spec={"initContainers": [{"name": "first", "image": "x", **capable("CHOWN")}]}),
    ),
    "a name of ours": (
        pod(container={"name": "firedoor-capture"}, capture="none"),
        f"{AT}.name: it is a name that only the init containers of the sidecar have",
        pod(container={"name": "firedoor"}, capture="none"),
    ),
}


@pytest.mark.parametrize("case", CREATED)
def test_a_pod_that_is_made(guarded: Cluster, namespace: str, case: str) -> None:
    refused, words, twin = CREATED[case]
    api, path = guarded.api(), f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    assert words in refusal(lambda: api.post(path, refused))
    assert api.post(path, twin)["metadata"]["labels"]["firedoor.dev/segment"]


def test_a_pod_without_a_sidecar(guarded: Cluster) -> None:
    """Whoever was to inject it has not."""
    api, none = guarded.api(), guarded.namespace("none", INJECTED | BY_OTHERS)
    path = f"/api/v1/namespaces/{none}/pods"
    assert "spec.initContainers: it has no sidecar in front" in refusal(lambda: api.post(path, pod()))
    # Who wants none has none; so it is in other namespaces, but for pods that ask.
    assert "initContainers" not in api.post(path, pod(labels={"firedoor.dev/inject": "disabled"}))["spec"]
    other = f"/api/v1/namespaces/{guarded.namespace('other', BY_OTHERS)}/pods"
    assert "initContainers" not in api.post(other, pod(spec={"hostNetwork": True}))["spec"]
    asks = pod(labels={"firedoor.dev/inject": "enabled"})
    assert "spec.initContainers: it has no sidecar in front" in refusal(lambda: api.post(other, asks))


Change = Callable[[Pod], object]


def second(change: Callable[[Pod], object]) -> Change:
    """Change the sidecar itself."""
    return lambda made: change(made["spec"]["initContainers"][1])


def renamed(made: Pod) -> None:
    for one in made["spec"]["initContainers"]:
        for variable in one["env"]:
            variable["value"] = variable["value"].replace("/segment/", "/segment/x-")


SIDECAR = "spec.initContainers[1]"
FORGED: dict[str, tuple[Change, str]] = {
    "another image": (second(lambda one: one.update(image="evil")), f"{SIDECAR}.image: it comes with a sidecar"),
    "another command": (second(lambda one: one.update(command=["sleep"])), f"{SIDECAR}.command:"),
    "arguments": (second(lambda one: one.update(args=["--help"])), f"{SIDECAR}: it comes with"),
    "a hook": (
        second(lambda one: one.update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}})),
        f"{SIDECAR}: it comes with",
    ),
    "variables from elsewhere": (
        second(lambda one: one.update(envFrom=[{"secretRef": {"name": "x"}}])),
        f"{SIDECAR}: it comes with",
    ),
    "one more variable": (second(lambda one: one["env"].append({"name": "A", "value": "b"})), f"{SIDECAR}.env:"),
    "a variable from elsewhere": (
        second(
            lambda one: one["env"].__setitem__(
                0, {"name": one["env"][0]["name"], "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
            )
        ),
        f"{SIDECAR}.env:",
    ),
    "another identity": (renamed, "spec.initContainers[0].env:"),
    "another user": (
        second(lambda one: one["securityContext"].update(runAsUser=0, runAsNonRoot=False)),
        f"{SIDECAR}.securityContext:",
    ),
    "a capability": (
        second(lambda one: one["securityContext"]["capabilities"].update(add=["NET_ADMIN"])),
        f"{SIDECAR}.securityContext:",
    ),
    "a sidecar that ends": (second(lambda one: [one.pop("restartPolicy"), one.pop("startupProbe")]), SIDECAR),
    "another startup probe": (
        second(lambda one: one["startupProbe"]["exec"].update(command=["true"])),
        f"{SIDECAR}.startupProbe:",
    ),
    "other programs": (
        second(lambda one: one["volumeMounts"].insert(0, {"name": "firedoor-state", "mountPath": "/usr/lib"})),
        f"{SIDECAR}.volumeMounts:",
    ),
    "a file over one of its own": (
        second(lambda one: one.update(terminationMessagePath="/var/lib/firedoor/data/key")),
        f"{SIDECAR}.terminationMessagePath:",
    ),
    "a device": (
        second(lambda one: one.update(resources={"limits": {"example.org/gpu": "1"}})),
        f"{SIDECAR}.resources:",
    ),
    "a claim": (
        lambda made: [
            made["spec"].update(resourceClaims=[{"name": "gpu", "resourceClaimName": "gpu"}]),
            made["spec"]["initContainers"][0].update(resources={"claims": [{"name": "gpu"}]}),
        ],
        "spec.initContainers[0].resources:",
    ),
    "no rules": (lambda made: made["spec"]["initContainers"].pop(0), "spec.initContainers: it has no sidecar in front"),
    "the other way round": (
        lambda made: made["spec"]["initContainers"].reverse(),
        "spec.initContainers: it has no sidecar in front",
    ),
    "something before it": (
        lambda made: made["spec"]["initContainers"].insert(0, {"name": "first", "image": "x"}),
        "spec.initContainers: it has no sidecar in front",
    ),
    "a folder of the node": (
        lambda made: [
            one.update(emptyDir=None, hostPath={"path": "/x"})
            for one in made["spec"]["volumes"]
            if one["name"] == "firedoor-state"
        ],
        "spec.volumes: firedoor-state: it comes with",
    ),
    "another audience": (
        lambda made: [
            one["projected"]["sources"][0]["serviceAccountToken"].update(audience="x")
            for one in made["spec"]["volumes"]
            if one["name"] == "firedoor-token"
        ],
        "spec.volumes: firedoor-token: it comes with",
    ),
}


@pytest.fixture(scope="module")
def sidecared(guarded: Cluster, namespace: str) -> Pod:
    """A pod with its sidecar, to be made again."""
    made = guarded.api().post(f"/api/v1/namespaces/{namespace}/pods", pod(ports="9000/http"))
    metadata = {"generateName": "again-", "annotations": made["metadata"]["annotations"]}
    return {"metadata": metadata, "spec": made["spec"]}


@pytest.mark.parametrize("case", FORGED)
def test_a_sidecar_that_is_not_ours(guarded: Cluster, namespace: str, sidecared: Pod, case: str) -> None:
    """Names prove nothing."""
    change, words = FORGED[case]
    forged = copy.deepcopy(sidecared)
    change(forged)
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    assert words in refusal(lambda: guarded.api().post(path, forged))


def test_a_sidecar_that_is_ours(guarded: Cluster, namespace: str, sidecared: Pod) -> None:
    """More memory for it, and another order of defaults, change nothing about what runs."""
    twin = copy.deepcopy(sidecared)
    twin["spec"]["initContainers"][1]["resources"] = {"limits": {"memory": "512Mi"}}
    made = guarded.api().post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", twin)
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["firedoor-capture", "firedoor-sidecar"]


# name: (subresource, patch, words; none where it is admitted)
CHANGED: dict[str, tuple[str, Pod, str]] = {
    "another segment": (
        "",
        {"metadata": {"labels": {"firedoor.dev/segment": "other"}}},
        "metadata.labels[firedoor.dev/segment]: it stays",
    ),
    "no segment": (
        "",
        {"metadata": {"labels": {"firedoor.dev/segment": None}}},
        "metadata.labels[firedoor.dev/segment]: it stays",
    ),
    "another segment, by the status": (
        "/status",
        {"metadata": {"labels": {"firedoor.dev/segment": "other"}}},
        "metadata.labels[firedoor.dev/segment]: it stays",
    ),
    "no wish": (
        "",
        {"metadata": {"labels": {"firedoor.dev/inject": "disabled"}}},
        "metadata.labels[firedoor.dev/inject]: it stays",
    ),
    "another segment, by the annotation": (
        "",
        {"metadata": {"annotations": {"firedoor.dev/segment": "other"}}},
        "metadata.annotations[firedoor.dev/segment]: it stays",
    ),
    **{
        f"another {key}": (
            "",
            {"metadata": {"annotations": {f"firedoor.dev/{key}": "x"}}},
            "metadata.annotations: what its sidecar was told stays",
        )
        for key in ("status", "ports", "capture", "capture.exclude", "udp")
    },
    "no status": (
        "/status",
        {"metadata": {"annotations": {"firedoor.dev/status": None}}},
        "metadata.annotations: what its sidecar was told stays",
    ),
    "another annotation": ("", {"metadata": {"annotations": {"team": "ml"}}}, ""),
    "to be captured": (
        "",
        {"metadata": {"labels": {"firedoor.dev/enforcing": "false"}}},
        "metadata.labels[firedoor.dev/enforcing]: it stays",
    ),
    "another label": ("", {"metadata": {"labels": {"team": "ml"}}}, ""),
    "a status": ("/status", {"status": {"phase": "Running"}}, ""),
    "another sidecar": (
        "",
        {"spec": {"initContainers": [{"name": "firedoor-sidecar", "image": "evil"}]}},
        "spec.initContainers: the image of its sidecar stays",
    ),
    "another app": ("", {"spec": {"containers": [{"name": "app", "image": "y"}]}}, ""),
}
JOINING: dict[str, tuple[Pod, str]] = {
    "nothing special": ({}, ""),
    "the app's processes": ({"targetContainerName": "app"}, ""),
    "the sidecar's processes": (
        {"targetContainerName": "firedoor-sidecar"},
        "spec.ephemeralContainers[0].targetContainerName: container debug would see the sidecar's processes",
    ),
    "a capability": (
        capable("SYS_PTRACE"),
        "spec.ephemeralContainers[0].securityContext.capabilities.add: container debug could go round",
    ),
    "a capability, by letters that become others": (
        capable(UNICODE[0]),
        "spec.ephemeralContainers[0].securityContext.capabilities.add: container debug is given a capability with",
    ),
    "privileged": (
        {"securityContext": {"privileged": True}},
        "spec.ephemeralContainers[0].securityContext.privileged: container debug could go round",
    ),
    "the sidecar's user": (
        {"securityContext": {"runAsUser": 990}},
        "spec.ephemeralContainers[0].securityContext.runAsUser: container debug runs as user 990",
    ),
    "the sidecar's state": (
        mounting("firedoor-state"),
        "spec.ephemeralContainers[0].volumeMounts: container debug mounts a volume of the sidecar's",
    ),
    "the socket, to write to": (mounting("firedoor-auth"), "container debug mounts firedoor-auth to write to"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_pod_that_runs(guarded: Cluster, namespace: str, case: str) -> None:
    part, patch, words = CHANGED[case]
    path = f"/api/v1/namespaces/{namespace}/pods"
    name = guarded.api().post(path, pod())["metadata"]["name"]
    found = refusal(lambda: guarded.api().patch(f"{path}/{name}{part}", patch, STRATEGIC))
    assert words in found
    assert bool(words) == bool(found), found


@pytest.mark.parametrize("case", JOINING)
def test_a_container_that_joins(guarded: Cluster, namespace: str, case: str) -> None:
    """As `kubectl debug` adds one."""
    fields, words = JOINING[case]
    path = f"/api/v1/namespaces/{namespace}/pods"
    name = guarded.api().post(path, pod())["metadata"]["name"]
    joining = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x", **fields}]}}
    # A kubelet starts it at once, and its init containers after it.
    found = refusal(lambda: guarded.api().patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC))
    assert "its rules are not written yet" in found or (words and words in found), found
    ruled(guarded, f"{path}/{name}")
    found = refusal(lambda: guarded.api().patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC))
    assert words in found
    assert bool(words) == bool(found), found


def ruled(guarded: Cluster, pod: str, code: int = 0) -> None:
    """Say what a kubelet says when the rules of a pod are written."""
    ended = {"name": "firedoor-capture", "state": {"terminated": {"exitCode": code}}, "ready": code == 0}
    whole = {"restartCount": 0, "image": "x", "imageID": "x", **ended}
    guarded.api().patch(f"{pod}/status", {"status": {"initContainerStatuses": [whole]}}, STRATEGIC)


def test_no_container_joins_where_rules_failed(guarded: Cluster, namespace: str) -> None:
    """Without capture there are none to wait for; and once it is in, a pod may be changed whatever becomes of them."""
    api, path = guarded.api(), f"/api/v1/namespaces/{namespace}/pods"
    joining = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x"}]}}
    name = api.post(path, pod())["metadata"]["name"]
    ruled(guarded, f"{path}/{name}", code=1)
    found = refusal(lambda: api.patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC))
    assert "spec.ephemeralContainers: its rules are not written yet" in found
    ruled(guarded, f"{path}/{name}")
    assert api.patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC)
    ruled(guarded, f"{path}/{name}", code=1)
    assert api.patch(f"{path}/{name}", {"metadata": {"labels": {"team": "ml"}}})
    name = api.post(path, pod(capture="none"))["metadata"]["name"]
    assert api.patch(f"{path}/{name}/ephemeralcontainers", joining, STRATEGIC)


@pytest.mark.parametrize("kind", ["labels", "annotations"])
@pytest.mark.parametrize("where", ["pods/{}/binding", "bindings"])
def test_a_binding_says_nothing_of_a_segment(guarded: Cluster, kind: str, where: str) -> None:
    """An API server copies what a scheduler writes there."""
    folder = f"/api/v1/namespaces/{guarded.namespace('other')}"
    name = guarded.api().post(f"{folder}/pods", pod())["metadata"]["name"]
    guarded.node("one")
    binding = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": "one"}}
    claims = {**binding, "metadata": {"name": name, kind: {"firedoor.dev/segment": "a"}}}
    found = refusal(lambda: guarded.api().post(f"{folder}/{where.format(name)}", claims))
    assert f"metadata.{kind}[firedoor.dev/segment]: it is said as the pod is made" in found
    told = {**binding, "metadata": {"name": name, "annotations": {"firedoor.dev/ports": "1/tcp"}}}
    found = refusal(lambda: guarded.api().post(f"{folder}/{where.format(name)}", told))
    assert "a sidecar is told as the pod is made" in found
    topology = {**binding, "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}}}
    assert guarded.api().post(f"{folder}/{where.format(name)}", topology)["status"] == "Success"


def test_kubelets_alone_ask_for_the_tokens_of_pods(guarded: Cluster, namespace: str) -> None:
    """Whoever may ask for tokens in a namespace could attest as its pods, wherever he is."""
    api, other = guarded.api(), guarded.namespace("other")
    guarded.node("asks")
    bare = pod(spec=projecting("firedoor") | {"nodeName": "asks"})
    for where, given in ((namespace, pod(spec={"nodeName": "asks"})), (other, bare)):
        made = api.post(f"/api/v1/namespaces/{where}/pods", given)["metadata"]
        reference = {"apiVersion": "v1", "kind": "Pod", "name": made["name"], "uid": made["uid"]}
        path = f"/api/v1/namespaces/{where}/serviceaccounts/default/token"

        def asked(by: Api, *audiences: str, path: str = path, reference: Pod = reference) -> str:
            body = {"spec": {"audiences": audiences, "boundObjectRef": reference, "expirationSeconds": 600}}
            return refusal(lambda: by.post(path, body))

        found = asked(api, "vault", "firedoor")
        assert "spec.audiences: a token for firedoor proves who a pod is: kubelets ask for it" in found
        assert asked(api, "vault") == asked(api) == ""
        with kubelets(guarded):
            until(lambda: not asked(guarded.kubelet("asks"), "firedoor"), "its kubelet has it")
            # Of which pods a kubelet may ask, the API server knows.
            assert "different node" in asked(guarded.kubelet("another"), "firedoor")


def test_a_label_stays_in_other_namespaces_too(guarded: Cluster) -> None:
    """Packet filters go by it wherever they are exported for."""
    path = f"/api/v1/namespaces/{guarded.namespace('other')}/pods"
    name = guarded.api().post(path, pod(labels={"firedoor.dev/segment": "a"}))["metadata"]["name"]
    other = {"metadata": {"labels": {"firedoor.dev/segment": "b"}}}
    assert "it stays as it was" in refusal(lambda: guarded.api().patch(f"{path}/{name}", other))


VOLUMES = {
    "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "scratch", "emptyDir": {}},
        {
            "name": "own",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                }
            },
        },
    ]
}


def writing(*mounts: str, **more: Any) -> Pod:
    """Return a pod whose app mounts volumes; those that end with ! to read only."""
    found = [
        {"name": one.rstrip("!"), "mountPath": f"/{one.rstrip('!')}", **({"readOnly": True} if "!" in one else {})}
        for one in mounts
    ]
    return pod(spec=VOLUMES, container={"volumeMounts": found, **more}, segment="frozen")


@pytest.fixture(scope="module")
def frozen(guarded: Cluster, namespace: str) -> str:
    """A namespace with pods of a segment that says `volumes: read-only`."""
    for name, more in (("frozen", {"volumes": "read-only"}), ("thawed", {"volumes": "read-write"}), ("plain", {})):
        spec = {"admission": {"node": [f"k8s_pod:ns:{namespace}"]}, **more}
        segment = {"apiVersion": "firedoor.dev/v1alpha1", "kind": "Segment", "metadata": {"name": name}, "spec": spec}
        guarded.api().post("/apis/firedoor.dev/v1alpha1/segments", segment)
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"

    def known() -> bool:
        return "needs readOnly" in refusal(lambda: guarded.api().post(path, writing("data")))

    until(known, "the segment is known")
    return namespace


def test_volumes_of_a_segment_that_only_reads(guarded: Cluster, frozen: str) -> None:
    api, path = guarded.api(), f"/api/v1/namespaces/{frozen}/pods"
    found = refusal(lambda: api.post(path, writing("scratch", "data")))
    assert "spec.containers[0].volumeMounts: data needs readOnly: true: segment frozen has volumes: read-only" in found
    device = writing(volumeDevices=[{"name": "data", "devicePath": "/dev/x"}])
    assert "spec.containers[0].volumeDevices: a device can be written to" in refusal(lambda: api.post(path, device))
    first = writing("data!")
    first["spec"] |= {"initContainers": [{"name": "first", "image": "x", **mounting("data")}]}
    assert "spec.initContainers[2].volumeMounts: data needs readOnly" in refusal(lambda: api.post(path, first))
    # Its twins: what only reads, what is the pod's own, and other segments.
    name = api.post(path, writing("data!", "scratch", "own"))["metadata"]["name"]
    for segment in ("thawed", "plain", "undeclared"):
        other = writing("data")
        other["metadata"]["annotations"]["firedoor.dev/segment"] = segment
        assert api.post(path, other)
    # Nor without a sidecar: a certificate in a volume gives an identity, too.
    alone = writing("data")
    alone["metadata"]["labels"] = {"firedoor.dev/inject": "disabled"}
    assert "data needs readOnly: true: segment frozen" in refusal(lambda: api.post(path, alone))
    elsewhere = f"/api/v1/namespaces/{guarded.namespace('other')}/pods"
    alone["metadata"]["labels"] = {"firedoor.dev/segment": "frozen"}
    assert "data needs readOnly: true: segment frozen" in refusal(lambda: api.post(elsewhere, alone))
    # Nor later: not by another container, and not by another label.
    ruled(guarded, f"{path}/{name}")
    debug = {"name": "debug", "image": "x", **mounting("data")}
    joined = {"spec": {"ephemeralContainers": [debug]}}
    found = refusal(lambda: api.patch(f"{path}/{name}/ephemeralcontainers", joined, STRATEGIC))
    assert "spec.ephemeralContainers[0].volumeMounts: data needs readOnly" in found
    with pytest.raises(ApiError, match="it stays as it was"):
        api.patch(f"{path}/{name}", {"metadata": {"labels": {"firedoor.dev/segment": "thawed"}}})


def test_without_its_settings_nothing_is_made(guarded: Cluster, namespace: str) -> None:
    """The ConfigMap is gone: pods are refused where sidecars are wanted, and nowhere else."""
    api, settings = guarded.api(), "/api/v1/namespaces/firedoor-system/configmaps/firedoor-injector"
    before, path = api.get(settings), f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    api.delete(settings)
    try:
        until(lambda: "no params found" in refusal(lambda: api.post(path, pod())), "a refusal")
        assert api.post(f"/api/v1/namespaces/{guarded.namespace('other')}/pods", pod())
    finally:
        restored = {"metadata": {"name": "firedoor-injector"}, "data": before["data"]}
        api.post(settings.rpartition("/")[0], restored)
        until(lambda: not refusal(lambda: api.post(path, pod())), "a pod")
