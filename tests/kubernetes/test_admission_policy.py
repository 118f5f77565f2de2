# SPDX-License-Identifier: Apache-2.0
"""The webhook and the API server's own policy make the same pod: what is stored is compared field by field."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.injector.cel import parameters
from firedoor.broker.injector.demands import ENABLED, PATHS
from firedoor.broker.injector.demands import REQUIRED as REQUIRED_BY
from tests.broker.harness import running
from tests.broker.injector.test_inject import LOOSE, RULES, STAYS, UNICODE, WHERE_REQUIRED
from tests.kubernetes.admission import BY_OTHERS, INJECTED, REQUIRED, guarded_cluster
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.test_injection import HOOKS, Injector, allow, settings
from tests.pod_policy import INFERENCE

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
Pod = dict[str, Any]
Outcome = tuple[Pod | None, str]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with guarded_cluster(tmp_path_factory.mktemp("guarded"), RULES) as cluster:
        yield cluster


class Both:
    """Two namespaces: in one a broker's webhook injects, in the other the policy does."""

    def __init__(self, injector: Injector, by_webhook: str, by_policy: str) -> None:
        self.injector, self.by_webhook, self.by_policy = injector, by_webhook, by_policy

    async def made(self, pod: Pod) -> tuple[Pod, Pod]:
        """Return the stored pods, without what differs between any two. What says NAMESPACE means its own."""
        found = []
        for namespace in (self.by_webhook, self.by_policy):
            own = json.loads(json.dumps(pod).replace("NAMESPACE", namespace))
            found.append(plain(await self.injector.create(namespace, own), namespace))
        return found[0], found[1]

    async def outcomes(self, pod: Pod) -> tuple[Outcome, Outcome]:
        """Return what each makes of a pod: the stored one, or why there is none."""
        found: list[Outcome] = []
        for namespace in (self.by_webhook, self.by_policy):
            own = json.loads(json.dumps(pod).replace("NAMESPACE", namespace))
            try:
                found.append((plain(await self.injector.create(namespace, own), namespace), ""))
            except ApiError as error:
                found.append((None, error.message))
        return found[0], found[1]

    async def where(self, labels: dict[str, str]) -> Both:
        """Return two more namespaces, with other labels."""
        return await pair(self.injector, labels)


async def pair(injector: Injector, labels: dict[str, str]) -> Both:
    """Make two namespaces for one comparison."""
    cluster = injector.cluster
    namespaces = [
        await asyncio.to_thread(cluster.namespace, prefix, labels | more)
        for prefix, more in (("webhook", BY_OTHERS), ("policy", {}))
    ]
    for namespace in namespaces:
        await asyncio.to_thread(cluster.service_account, namespace, "vllm")
    return Both(injector, *namespaces)


@pytest.fixture
async def both(guarded: Cluster, tmp_path: Path) -> AsyncIterator[Both]:
    (tmp_path / "b").mkdir()
    name = "firedoor-injector-test"
    async with running(tmp_path / "b", INFERENCE, **settings(name, allow(guarded, name, tmp_path))) as broker:
        rules = broker.broker.config.injector
        assert rules is not None
        # Both go by the same settings.
        assert parameters(rules, "example.org") == parameters(RULES, "example.org")
        injector = Injector(guarded, broker, name)
        injector.configure({"key": "test/injected-by", "operator": "Exists"})
        try:
            await injector.trusted(BY_OTHERS)
            yield await pair(injector, INJECTED)
        finally:
            guarded.api().delete(f"{HOOKS}/{name}")


def plain(pod: Pod, namespace: str) -> Pod:
    """Leave out what API servers draw or count, and which namespace it is."""
    metadata = {key: pod["metadata"].get(key) for key in ("labels", "annotations")}
    text = json.dumps({"metadata": metadata, "spec": pod["spec"]}, sort_keys=True)
    whole: Pod = json.loads(re.sub(r"kube-api-access-\w+", "kube-api-access", text.replace(namespace, "NAMESPACE")))
    return whole


def pod(spec: Pod | None = None, container: Pod | None = None, **notes: str) -> Pod:
    app = {"name": "app", "image": "x", "ports": [{"name": "web", "containerPort": 8080}], **(container or {})}
    annotations = {f"firedoor.dev/{key}": value for key, value in notes.items()}
    metadata = {"generateName": "app-", "annotations": annotations}
    return {"metadata": metadata, "spec": {"containers": [app], **(spec or {})}}


def ready(**probe: Any) -> Pod:
    return {"readinessProbe": probe}


NATIVE = {"name": "proxy", "image": "x", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 15}}}
MANY = [
    {
        "name": f"c{number}",
        "image": "x",
        "startupProbe": {"tcpSocket": {"port": 1000 + number}},
        "readinessProbe": {"exec": {"command": ["true"]}},
        "livenessProbe": {"httpGet": {"port": 2000 + number}},
    }
    for number in range(20)
]
CASES: dict[str, Pod] = {
    "nothing at all": {"metadata": {"generateName": "app-"}, "spec": {"containers": [{"name": "app", "image": "x"}]}},
    "no volume of anybody's": pod({"automountServiceAccountToken": False}),
    "an account": pod({"serviceAccountName": "vllm"}),
    "ports": pod(ports="9000/http, 5432/tcp/audit ,9001/grpc,"),
    "what passes by": pod(**{"capture.exclude": "inbound tcp 9100,9101 from 10.0.0.0/8,::1: a: b ; outbound udp 1: c"}),
    "UDP": pod(udp="pass"),
    "names": pod(dns="s3.example.org, **.cluster.local"),
    "no name": pod(
        dns="none", ports="1/tcp", udp="pass", **{"capture.exclude": "inbound tcp from ::/0: #[]{}'&*!|>%@`"}
    ),
    "a segment": pod(segment="chat"),
    "listeners": pod(capture="none", ports="9000/http=19000, 9001/tcp=19001"),
    "listeners for what leaves": pod(capture="none", outbound='[{"name": "x", "listen": "127.0.0.1:1"}]'),
    "no listener": pod(capture="none", container=ready(httpGet={"port": 8080})),
    "a probe by HTTP": pod(container=ready(httpGet={"port": 8080, "path": '/a"b\\c?d=e&f'}, timeoutSeconds=7)),
    "a probe of a named port": pod(container=ready(httpGet={"port": "web"}, timeoutSeconds=60)),
    "a probe of no port": pod(container=ready(httpGet={"port": "none"})),
    "a probe with headers": pod(
        container=ready(httpGet={"port": 1, "httpHeaders": [{"name": "Host", "value": "x"}]}, periodSeconds=3)
    ),
    "a probe by HTTPS": pod(container=ready(httpGet={"port": 8443, "scheme": "HTTPS", "path": "/x"})),
    "a path that is long": pod(container=ready(httpGet={"port": 1, "path": "/" + 1100 * "x"})),
    "a path that is no line": pod(container=ready(httpGet={"port": 1, "path": "/ä b"})),
    "a probe of another host": pod(container=ready(httpGet={"port": 1, "host": "example.org"})),
    "a probe by TCP": pod(container=ready(tcpSocket={"port": "web"})),
    "a probe by TCP of another host": pod(container=ready(tcpSocket={"port": 1, "host": "10.0.0.1"})),
    "a probe by gRPC": pod(container=ready(grpc={"port": 9, "service": "a.B_c"})),
    "a probe by gRPC of no name": pod(container=ready(grpc={"port": 9, "service": "a/b"})),
    "a probe that runs something": pod(container=ready(exec={"command": ["true"]})),
    "every probe": pod(
        container={
            "startupProbe": {"tcpSocket": {"port": 1}},
            "readinessProbe": {"httpGet": {"port": 2}},
            "livenessProbe": {"grpc": {"port": 3}, "failureThreshold": 9, "terminationGracePeriodSeconds": 5},
        }
    ),
    "more probes than are repeated": pod({"containers": MANY}),
    "init containers": pod({"initContainers": [{"name": "weights", "image": "x"}, NATIVE]}),
    "volumes and variables": pod(
        {"volumes": [{"name": "data", "emptyDir": {}}]},
        {
            "env": [{"name": "A", "value": "b"}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
    ),
    "another socket": pod(
        {"volumes": [{"name": "own", "emptyDir": {}}]},
        {
            "env": [{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///x"}],
            "volumeMounts": [{"name": "own", "mountPath": "/run/firedoor.dev"}],
        },
    ),
    "a Job's": pod({"restartPolicy": "Never", "securityContext": {"runAsNonRoot": True, "runAsUser": 7}}),
}


async def test_the_same_pod(both: Both) -> None:
    for name, given in CASES.items():
        webhook, policy = await both.made(given)
        assert policy == webhook, name
        count = 1 if "firedoor.dev/capture" in given["metadata"].get("annotations", {}) else 2
        ours = [one["name"] for one in policy["spec"]["initContainers"][:count]]
        assert ours == ["firedoor-capture", "firedoor-sidecar"][-count:], name
        # Once more: nothing is added, by either.
        webhook, again = await both.made({**policy, "metadata": {"generateName": "again-"} | policy["metadata"]})
        assert again == webhook, name
        assert bare(again["spec"]) == bare(policy["spec"]), name
        # Its label and the note of what was done are there again.
        notes = {k: v for k, v in policy["metadata"]["annotations"].items() if not k.endswith("/status")}
        bald = {"metadata": {"generateName": "again-", "annotations": notes}, "spec": bare(policy["spec"])}
        webhook, again = await both.made(bald)
        assert again == webhook, name
        assert again["metadata"] == policy["metadata"], name


def bare(spec: Pod) -> Pod:
    """Leave out what shows the service account; when it is shown depends on what is there by then."""
    found = copy.deepcopy(spec)
    found["volumes"] = [one for one in found["volumes"] if not one["name"].startswith("kube-api")]
    for one in (*found["containers"], *found["initContainers"]):
        mounts = one.get("volumeMounts", [])
        one["volumeMounts"] = [mount for mount in mounts if not mount["name"].startswith("kube-api")]
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_the_same_pod_whatever_it_is(both: Both, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(25):
        given = anything(draw)
        webhook, policy = await both.made(given)
        assert policy == webhook, (number, given)


def anything(draw: random.Random) -> Pod:
    """Draw a pod that an API server takes."""
    containers = [container(draw, f"c{number}") for number in range(draw.randint(1, 3))]
    init = [container(draw, f"i{number}", native=draw.random() < 0.5) for number in range(draw.randint(0, 2))]
    spec: Pod = {"containers": containers, **({"initContainers": init} if init else {})}
    volumes = {mount["name"] for one in (*containers, *init) for mount in one.get("volumeMounts", ())}
    if volumes:
        spec["volumes"] = [{"name": name, "emptyDir": {}} for name in sorted(volumes)]
    if draw.random() < 0.3:
        spec["automountServiceAccountToken"] = False
    if draw.random() < 0.3:
        spec["serviceAccountName"] = "vllm"
    if draw.random() < 0.5:
        spec["restartPolicy"] = draw.choice(["Never", "OnFailure", "Always"])
    return {"metadata": {"generateName": "any-", **metadata(draw)}, "spec": spec}


# name: labels of a namespace
WHERE = {
    "required": REQUIRED,
    "exclusions": REQUIRED | {"firedoor.dev/capture": "exclusions"},
    "optional": REQUIRED | {"firedoor.dev/capture": "optional"},
    "a word that is none": REQUIRED | {"firedoor.dev/capture": "yes"},
    "a word that is meant for required": INJECTED | {"firedoor.dev/capture": "exclusions"},
}


@pytest.mark.parametrize("case", WHERE)
async def test_the_same_pods_and_refusals_where_a_sidecar_is_required(both: Both, case: str) -> None:
    """Whoever refuses, the webhook does not leave it to the guards, nor do these leave it to the webhook."""
    there = await both.where(WHERE[case])
    draw, made, refused = random.Random(case), 0, 0
    for number in range(40):
        given = unruly(draw)
        (webhook, why), (policy, why_not) = await there.outcomes(given)
        assert policy == webhook, (number, given, why, why_not)
        assert ("firedoor cannot inject its sidecar: " in why) == ("ValidatingAdmissionPolicy" in why_not), (given, why)
        made, refused = made + (not why), refused + bool(why)
        assert bool(why) == bool(why_not), given
    # Both were drawn, or it would say nothing.
    assert made > 2
    assert refused > 2


CONTEXTS: list[Pod] = [
    *({}, {"runAsUser": 990}, {"runAsUser": 0}, {"runAsNonRoot": True}),
    *({"runAsUser": 7, "capabilities": {"drop": ["CHOWN"]}}, {"capabilities": {"drop": ["ALL"], "add": ["SETUID"]}}),
]


def unruly(draw: random.Random) -> Pod:
    """Draw a pod of which some may not be where a sidecar is required."""
    made = anything(draw)
    spec, whole = made["spec"], draw.choice([{"runAsNonRoot": True}, *3 * [{"runAsUser": 7}]])
    spec["securityContext"] = whole
    for one in (*spec["containers"], *spec.get("initContainers", [])):
        one["securityContext"] = (
            STAYS | (draw.choice(CONTEXTS) if draw.random() < 0.15 else {}) if draw.random() < 0.97 else {}
        )
    for key in ("hostNetwork", "shareProcessNamespace"):
        if draw.random() < 0.05:
            spec[key] = True
            # Ports of the node's own are there once.
            for one in (*spec["containers"], *spec.get("initContainers", [])):
                one.pop("ports", None)
    if draw.random() < 0.1:
        made["metadata"].setdefault("labels", {})["firedoor.dev/inject"] = "disabled"
    return made


DRAWN = {
    "capture.exclude": [
        *("inbound tcp 1: x", "outbound udp 53,123 to 192.0.2.0/24: a: b ;inbound tcp from ::1,fd00::/8: c", ""),
        "inbound tcp 1 from 10.0.0.0/8: `~!@#%^&*()_+-={}[]|:'<>?,./",
    ],
    "udp": ["pass", ""],
    "dns": ["none", "a", "a.b,**.c, *.d", " , "],
}


def metadata(draw: random.Random) -> Pod:
    captured = draw.random() < 0.7
    ports = draw.sample(range(1, 14000), draw.randint(0, 3))
    words = [
        f"{port}/{draw.choice(['tcp', 'http', 'grpc'])}"
        + (draw.choice(["", "/audit"]) if captured else f"={20000 + number}")
        for number, port in enumerate(ports)
    ]
    notes = {} if captured else {"firedoor.dev/capture": "none"}
    if words:
        notes["firedoor.dev/ports"] = draw.choice([",", ", ", " , "]).join(words)
    if not captured and draw.random() < 0.5:
        notes["firedoor.dev/outbound"] = draw.choice(["[]", ' [{"name": "\\"quoted\\" \\\\"}]', "[{name: x,\n y: z}]"])
    if captured:
        notes |= {f"firedoor.dev/{key}": draw.choice(texts) for key, texts in DRAWN.items() if draw.random() < 0.3}
    found: Pod = {}
    if draw.random() < 0.5:
        found["labels"] = draw.choice(
            [{"app": "x"}, {"firedoor.dev/segment": "a-b"}, {"firedoor.dev/inject": "enabled"}]
        )
    if draw.random() < 0.4 and "firedoor.dev/segment" not in found.get("labels", {}):
        notes["firedoor.dev/segment"] = draw.choice(["a", "a-b", "x" * 63])
    return {**found, **({"annotations": notes} if notes else {})}


def container(draw: random.Random, name: str, *, native: bool | None = None) -> Pod:
    made: Pod = {"name": name, "image": "x"}
    if draw.random() < 0.5:
        made["ports"] = [{"name": "web", "containerPort": draw.randint(1, 65535)}, {"containerPort": 3}]
    if draw.random() < 0.3:
        made["env"] = [{"name": draw.choice(["A", "SPIFFE_ENDPOINT_SOCKET"]), "value": draw.choice(["", "b"])}]
    if draw.random() < 0.3:
        made["volumeMounts"] = [{"name": "data", "mountPath": draw.choice(["/data", "/run/firedoor.dev"])}]
    if native:
        made["restartPolicy"] = "Always"
    if native is not False:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if draw.random() < 0.5:
                made[kind] = probe(draw)
    return made


def probe(draw: random.Random) -> Pod:
    port: Any = draw.choice([draw.randint(1, 65535), "web", "other"])
    way = draw.choice(["httpGet", "tcpSocket", "grpc", "exec"])
    actions: dict[str, Pod] = {
        "httpGet": {"port": port, "path": draw.choice(["", "/", "/a%20b", '/"\\', "x", "/é", "/" + "y" * 1023])},
        "tcpSocket": {"port": port},
        "grpc": {"port": draw.randint(1, 65535), "service": draw.choice(["", "a.b", "a b", "z" * 256])},
        "exec": {"command": ["true"]},
    }
    action = actions[way]
    if way in ("httpGet", "tcpSocket") and draw.random() < 0.2:
        action["host"] = "127.0.0.1"
    if way == "httpGet" and draw.random() < 0.3:
        action["scheme"] = draw.choice(["HTTP", "HTTPS"])
    made = {way: action}
    if draw.random() < 0.5:
        made["timeoutSeconds"] = draw.choice([1, 9, 10, 11, 3600])
    if draw.random() < 0.3:
        made["periodSeconds"] = draw.randint(1, 100)
    return made


async def test_both_refuse_the_same(both: Both) -> None:
    """Each with its sentence: the webhook itself, and for the policy the guards."""
    refused: dict[str, Pod] = {
        "hostNetwork": pod({"hostNetwork": True}),
        "shareProcessNamespace": pod({"shareProcessNamespace": True}),
        "privileged": pod(container={"securityContext": {"privileged": True}}),
        "NET_RAW": pod(container={"securityContext": {"capabilities": {"add": ["CAP_NET_RAW"]}}}),
        "is given a capability with another name": pod(
            container={"securityContext": {"capabilities": {"add": [UNICODE[0]]}}}
        ),
        "runs as user 990": pod(container={"securityContext": {"runAsUser": 990}}),
        "there is no annotation": pod(port="1/tcp"),
        "names a port twice": pod(ports="1/tcp,1/http"),
        "must say what passes and why": pod(**{"capture.exclude": "everything"}),
        "must be a name such as": pod(dns="a..b"),
    }
    for words, given in refused.items():
        await refuse(both, words, given)


async def refuse(both: Both, words: str, given: Pod) -> None:
    """Have both refuse a pod, each by itself."""
    (webhook, why), (policy, why_not) = await both.outcomes(given)
    assert webhook is policy is None
    assert words in why
    assert words in why_not
    assert "firedoor cannot inject its sidecar: " in why
    assert "ValidatingAdmissionPolicy 'firedoor-pods'" in why_not


async def test_both_refuse_the_same_where_a_sidecar_is_required(both: Both) -> None:
    labels = {ENABLED: INJECTED, REQUIRED_BY: WHERE["required"]}
    labels |= {PATHS[f"/inject/required/{word}"]: WHERE[word] for word in ("exclusions", "optional")}
    pairs = {demands: await both.where(more) for demands, more in labels.items()}
    for given, demands, words in WHERE_REQUIRED.values():
        await refuse(pairs[demands], words, given)


async def test_who_wants_none_has_none(both: Both) -> None:
    out = pod()
    out["metadata"]["labels"] = {"firedoor.dev/inject": "disabled"}
    webhook, policy = await both.made(out)
    assert webhook == policy
    assert "initContainers" not in policy["spec"]


def test_who_may_be_told_is(guarded: Cluster) -> None:
    """A policy that mutates has no warnings; one that validates has."""
    namespace = guarded.namespace("policy", INJECTED)
    loose = guarded.kubectl("create", "--namespace", namespace, "--filename", "-", given=[kind(pod())])
    assert "container app may become the sidecar's user and go round it" in loose.err
    uncaptured = kind(pod(capture="none"))
    told = guarded.kubectl("create", "--namespace", namespace, "--filename", "-", given=[uncaptured])
    assert "not enforcing: the app can be reached past its sidecar" in told.err
    excluding = kind(pod(**{"capture.exclude": "inbound tcp 1: x"}))
    told = guarded.kubectl("create", "--namespace", namespace, "--filename", "-", given=[excluding])
    assert "something passes by the sidecar (firedoor.dev/capture.exclude)" in told.err
    tight = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    quiet = kind(pod(container={"securityContext": tight}))
    assert guarded.kubectl("create", "--namespace", namespace, "--filename", "-", given=[quiet]).err == ""
    for case, (context, warned) in LOOSE.items():
        given = kind(pod(container={"securityContext": context}))
        told = guarded.kubectl("create", "--namespace", namespace, "--filename", "-", given=[given])
        assert ("may become the sidecar's user" in told.err) == warned, case


def kind(made: Pod) -> Pod:
    return {"apiVersion": "v1", "kind": "Pod", **made}
