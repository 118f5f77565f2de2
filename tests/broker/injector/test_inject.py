# SPDX-License-Identifier: Apache-2.0
"""The injector: any pod keeps what it had, has the sidecar once and first, and what could go round it is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.injector import InjectionRefused, InjectorRules, difference, inject
from firedoor.broker.injector.containers import ACCOUNT, VOLUMES
from firedoor.broker.injector.demands import ENABLED, PATHS, REQUIRED, Demands
from firedoor.segments.well_known import CAPTURE_CONTAINER as CAPTURE
from firedoor.segments.well_known import CONTAINERS as NAMES
from firedoor.segments.well_known import SIDECAR_CONTAINER as SIDECAR
from firedoor.sidecar import config as sidecar_config

RULES = InjectorRules(
    listen="0.0.0.0:9443",
    names=("firedoor-injector.firedoor-system.svc",),
    cluster="prod",
    image="registry.example.org/firedoor:0.1.0",
    broker=("firedoor-broker.firedoor-system.svc:8081",),
    bundle_config_map="firedoor-bundle",
    audience="firedoor",
    uid=990,
    strict_users="required",
    accepted_images=("registry.example.org/firedoor:0.0.9",),
    webhook="firedoor-injector",
)
GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name.removesuffix(".in.json") for path in GOLDEN.glob("*.in.json"))


def injected(pod: dict[str, Any], namespace: str = "inference", demands: Demands = ENABLED) -> dict[str, Any]:
    return inject(pod, namespace, RULES, "example.org", demands).pod


def pod(*, spec: dict[str, Any] | None = None, container: dict[str, Any] | None = None, **annotations: str) -> Any:
    app = {"name": "app", "image": "registry.example/app:1"} | (container or {})
    notes = {f"firedoor.dev/{key}": value for key, value in annotations.items()}
    return {"metadata": {"name": "vllm", "annotations": notes}, "spec": {"containers": [app]} | (spec or {})}


def applied(document: Any, patch: list[dict[str, Any]]) -> Any:
    """Apply a JSON patch as RFC 6902 says."""
    whole = {"": copy.deepcopy(document)}
    for one in patch:
        *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in one["path"].split("/")]
        place: Any = whole
        for step in parents:
            place = place[int(step)] if isinstance(place, list) else place[step]
        if isinstance(place, list):
            assert one["op"] in ("add", "replace"), one
            place[int(last) : int(last) + (one["op"] == "replace")] = [one["value"]]
        elif one["op"] == "remove":
            del place[last]
        else:
            assert (last in place) == (one["op"] == "replace"), one
            place[last] = one["value"]
    return whole[""]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    """FIREDOOR_GOLDEN=write writes the files anew, for a person to read."""
    given = json.loads((GOLDEN / f"{case}.in.json").read_text())
    made = inject(given, "inference", RULES, "example.org", ENABLED)
    text = json.dumps({"warnings": made.warnings, "pod": made.pod}, indent=2) + "\n"
    if os.environ.get("FIREDOOR_GOLDEN") == "write":
        (GOLDEN / f"{case}.out.json").write_text(text)
    assert text == (GOLDEN / f"{case}.out.json").read_text()


def test_there_are_golden_files() -> None:
    assert {"captured", "uncaptured"} <= set(CASES)


names = st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
probes = st.fixed_dictionaries(
    {},
    optional={
        "httpGet": st.fixed_dictionaries(
            {"port": st.integers(1, 65535) | names},
            optional={
                "path": st.text(max_size=8),
                "scheme": st.sampled_from(["HTTP", "HTTPS"]),
                "host": st.text(max_size=3),
            },
        ),
        "tcpSocket": st.fixed_dictionaries({"port": st.integers(1, 65535)}),
        "grpc": st.fixed_dictionaries({"port": st.integers(1, 65535)}, optional={"service": st.text(max_size=5)}),
        "exec": st.fixed_dictionaries({"command": st.lists(st.text(max_size=4), max_size=2)}),
        "timeoutSeconds": st.integers(1, 60),
        "periodSeconds": st.integers(1, 60),
    },
)
containers = st.fixed_dictionaries(
    {"name": names, "image": names},
    optional={
        "env": st.lists(st.fixed_dictionaries({"name": names, "value": st.text(max_size=5)}), max_size=2),
        "ports": st.lists(
            st.fixed_dictionaries({"containerPort": st.integers(1, 65535)}, optional={"name": names}), max_size=2
        ),
        "volumeMounts": st.lists(st.fixed_dictionaries({"name": names, "mountPath": names}), max_size=2),
        "readinessProbe": probes,
        "livenessProbe": probes,
        "startupProbe": probes,
        "securityContext": st.fixed_dictionaries(
            {}, optional={"runAsUser": st.integers(0, 2000).filter(lambda n: n != 990)}
        ),
        "other": values,
    },
)
pods = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {}, optional={"labels": st.dictionaries(names, st.text(max_size=5)), "x": values}
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(containers, min_size=1, max_size=3, unique_by=lambda one: one["name"])},
            optional={
                "initContainers": st.lists(containers, max_size=2),
                "volumes": st.lists(st.fixed_dictionaries({"name": names, "emptyDir": st.just({})}), max_size=2),
                "restartPolicy": st.sampled_from(["Always", "Never", "OnFailure"]),
                "serviceAccountName": names,
                "x": values,
            },
        ),
    }
)
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


WRITTEN = ("firedoor.dev/segment", "firedoor.dev/enforcing")


@given(pods, names)
def test_any_pod_keeps_what_it_had(given_pod: dict[str, Any], namespace: str) -> None:
    before = copy.deepcopy(given_pod)
    made = injected(given_pod, namespace)
    assert given_pod == before
    spec, old = made["spec"], before["spec"]
    assert [one["name"] for one in spec["initContainers"][:2]] == [CAPTURE, SIDECAR]
    for kind, skip in (("initContainers", 2), ("containers", 0)):
        for new, was in zip(spec[kind][skip:], old.get(kind, []), strict=True):
            assert {k: v for k, v in new.items() if k not in ("env", "volumeMounts", *PROBES)} == {
                k: v for k, v in was.items() if k not in ("env", "volumeMounts", *PROBES)
            }
            for kept in ("env", "volumeMounts"):
                assert new[kept][: len(was.get(kept, []))] == was.get(kept, [])
            for probe in PROBES:
                rest = {k: v for k, v in was.get(probe, {}).items() if k not in ("httpGet", "tcpSocket", "grpc")}
                assert rest.keys() <= new.get(probe, {}).keys()
    assert spec["volumes"][: len(old.get("volumes", []))] == old.get("volumes", [])
    for key in old.keys() - {"containers", "initContainers", "volumes"}:
        assert spec[key] == old[key]
    for key in before["metadata"].keys() - {"annotations", "labels"}:
        assert made["metadata"][key] == before["metadata"][key]
    labels = {key: value for key, value in made["metadata"]["labels"].items() if key not in WRITTEN}
    assert labels == (before["metadata"].get("labels") or {})
    # Again it is the same, and the patch makes it of what there was.
    assert injected(made, namespace) == made
    assert difference(made, made) == []
    assert applied(before, difference(before, made)) == made


@given(values, values)
def test_any_difference_is_a_patch(before: Any, after: Any) -> None:
    made = applied({"x": before}, difference({"x": before}, {"x": after}))
    assert json.dumps(made, sort_keys=True) == json.dumps({"x": after}, sort_keys=True)


@given(pods)
def test_what_is_injected_is_a_sidecars_configuration(given_pod: dict[str, Any]) -> None:
    """The very reader of sidecars and of `capture apply` takes it, whatever the probes of the pod."""
    spec = injected(given_pod)["spec"]
    capture, sidecar = spec["initContainers"][:2]
    assert capture["env"] == sidecar["env"]
    found = sidecar_config.load(None, {one["name"]: one["value"] for one in sidecar["env"]}, {})
    assert (found.workload, found.capture is not None and found.capture.uid) == ("pod", 990)
    kubelet = [
        one[probe]["httpGet"]["path"]
        for one in (*spec["initContainers"][2:], *spec["containers"])
        for probe in PROBES
        if one.get(probe, {}).get("httpGet", {}).get("port") == 14020
    ]
    assert kubelet == [f"/probe/{probe.name}" for probe in found.probes] or set(kubelet) == {
        f"/probe/{probe.name}" for probe in found.probes
    }


def test_without_capture_there_are_listeners_and_no_capability() -> None:
    given_pod = pod(capture="none", ports="9000/http=19000", outbound='[{"name": "x"}]')
    made = inject(given_pod, "inference", RULES, "example.org", ENABLED)
    (sidecar,) = made.pod["spec"]["initContainers"]
    assert sidecar["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert made.warnings[0].startswith("not enforcing: the app can be reached past its sidecar")
    assert made.pod["metadata"]["labels"]["firedoor.dev/enforcing"] == "false"
    assert injected(pod())["metadata"]["labels"]["firedoor.dev/enforcing"] == "true"
    env = {one["name"]: one["value"] for one in sidecar["env"]}
    (inbound,) = json.loads(env["FIREDOOR_SIDECAR_INBOUND"])
    assert (inbound["listen"], inbound["app"]) == ("0.0.0.0:19000", {"address": "127.0.0.1:9000"})
    assert env["FIREDOOR_SIDECAR_OUTBOUND"] == '[{"name": "x"}]'
    del env["FIREDOOR_SIDECAR_OUTBOUND"]
    assert [one.name for one in sidecar_config.load(None, env, {}).inbound] == ["p9000"]


ADDRESSES = st.sampled_from(
    ["10.0.0.0/8", "192.0.2.1", "::1", "fd00::/8", "::/0", "1.2.3.4/33", "::ffff:1.2.3.4", "10"]
)


@given(
    st.lists(
        st.builds(
            "{} {}{}{}: {}".format,
            st.sampled_from(["inbound", "outbound", "both"]),
            st.sampled_from(["tcp", "udp"]),
            st.sampled_from(["", " 1", " 9100,9101", " 65535", " 65536", " 0"]),
            st.just("") | st.lists(ADDRESSES, min_size=1, max_size=3).map(lambda some: f" from {','.join(some)}"),
            st.sampled_from(["metrics", "a: b, c", "#&*[]{}!|>'%@`", "x" * 200, "x" * 201, "é"]),
        )
        | st.text(max_size=20),
        max_size=3,
    )
)
def test_what_passes_by_a_sidecar_is_what_it_reads(words: list[str]) -> None:
    """Whatever stands there is refused with a sentence, or is the sidecar's configuration as it was meant."""
    said = ""
    try:
        made = injected(pod(**{"capture.exclude": "; ".join(words)}))
    except InjectionRefused as error:
        said = str(error)
    if said:
        assert said.startswith("firedoor.dev/capture.exclude")
        return
    env = {one["name"]: one["value"] for one in made["spec"]["initContainers"][1]["env"]}
    found = sidecar_config.load(None, env, {}).capture
    assert found is not None
    meant = [word.strip() for word in "; ".join(words).split(";") if word.strip()]
    ways = [f"{'inbound' if one.inbound else 'outbound'} {one.protocol}" for one in found.exclude]
    assert ways == [" ".join(word.split(" ")[:2]) for word in meant]
    assert [one.reason for one in found.exclude] == [word.partition(": ")[2] for word in meant]


def test_udp_and_names_are_what_a_sidecar_reads() -> None:
    made = inject(pod(udp="pass", dns="s3.example.org, **.cluster.local"), "inference", RULES, "example.org", ENABLED)
    env = {one["name"]: one["value"] for one in made.pod["spec"]["initContainers"][1]["env"]}
    found = sidecar_config.load(None, env, {})
    assert found.capture is not None
    assert found.dns is not None
    assert (found.capture.udp_passes, found.dns.names) == (True, ("s3.example.org", "**.cluster.local"))
    assert made.warnings[0] == "not all is enforced: something passes by the sidecar (firedoor.dev/udp)"
    for text, names in (("none", ()), (" , ", None)):
        env = {one["name"]: one["value"] for one in injected(pod(dns=text))["spec"]["initContainers"][1]["env"]}
        dns = sidecar_config.load(None, env, {}).dns
        assert dns is not None
        assert dns.names == names


def test_who_wants_none_has_none() -> None:
    given_pod = labelled("disabled")
    assert injected(given_pod) == given_pod
    assert injected(labelled("enabled")) != labelled("enabled")


def test_the_identity_is_of_segment_namespace_and_account() -> None:
    made = injected(pod(segment="chat", spec={"serviceAccountName": "vllm"}))
    env = {one["name"]: one["value"] for one in made["spec"]["initContainers"][1]["env"]}
    assert env["FIREDOOR_SIDECAR_CAPTURE_AS"] == "spiffe://example.org/segment/chat/ns/inference/sa/vllm"


def labelled(word: str) -> dict[str, Any]:
    found: dict[str, Any] = pod()
    found["metadata"]["labels"] = {"firedoor.dev/inject": word}
    return found


# Capabilities, once a container runtime has raised their letters as Unicode says.
UNICODE = ("NET_ADM\u0131N", "\u017fYS_ADMIN", "\u017fetuid")
REFUSED: dict[str, tuple[Any, str]] = {
    "a label that is misspelt": (labelled("false"), "must be enabled or disabled"),
    "the node's network": (pod(spec={"hostNetwork": True}), "uses the node's network (hostNetwork: true)"),
    "privileged": (pod(container={"securityContext": {"privileged": True}}), "it is given privileged"),
    "NET_ADMIN": (
        pod(container={"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}),
        "it is given the capability NET_ADMIN",
    ),
    "CAP_NET_RAW": (
        pod(container={"securityContext": {"capabilities": {"add": ["CAP_NET_RAW"]}}}),
        "it is given the capability NET_RAW",
    ),
    "the sidecar's user": (pod(container={"securityContext": {"runAsUser": 990}}), "runs as user 990"),
    "the sidecar's user, for all": (pod(spec={"securityContext": {"runAsUser": 990}}), "runs as user 990"),
    "one view of processes": (pod(spec={"shareProcessNamespace": True}), "see each other's processes"),
    "the sidecar's token": (
        pod(container={"volumeMounts": [{"name": "firedoor-token", "mountPath": "/t"}]}),
        "mounts a volume of the sidecar's",
    ),
    "a token like the sidecar's": (
        pod(
            spec={
                "volumes": [
                    {"name": "own", "projected": {"sources": [{"serviceAccountToken": {"audience": "firedoor"}}]}}
                ]
            }
        ),
        "volume own projects a token for firedoor, which proves who the pod is",
    ),
    **{
        name: (
            pod(container={"securityContext": {"capabilities": {"add": [name]}}}),
            f"it is given the capability {name}",
        )
        for name in ("DAC_READ_SEARCH", "PERFMON", "SYS_RAWIO")
    },
    **{
        f"{name}, by letters that become others": (
            pod(container={"securityContext": {"capabilities": {"add": [name]}}}),
            "container app is given a capability with another name than of letters A to Z",
        )
        for name in UNICODE
    },
    "a socket to write to": (
        pod(container={"volumeMounts": [{"name": "firedoor-auth", "mountPath": "/t"}]}),
        "mounts firedoor-auth to write to",
    ),
    "a volume of that name": (
        pod(spec={"volumes": [{"name": "firedoor-state"}]}),
        "its volume firedoor-state has a name",
    ),
    "a container of that name": (pod(container={"name": SIDECAR}), "has a name that only the sidecar's init"),
    "an unknown annotation": (pod(port="9000/http"), "there is no annotation firedoor.dev/port;"),
    "ports that are none": (pod(ports="http"), "must be PORT/PROTOCOL"),
    "a protocol that is none": (pod(ports="9000/udp"), "must be PORT/PROTOCOL"),
    "a port too high": (pod(ports="70000/tcp"), "must be PORT/PROTOCOL"),
    "a port twice": (pod(ports="9000/tcp,9000/http"), "names a port twice"),
    "a listener where all is captured": (pod(ports="9000/tcp=19000"), "is for pods with firedoor.dev/capture: none"),
    "no listener where nothing is": (pod(capture="none", ports="9000/tcp"), "9000/tcp needs a port of the sidecar's"),
    "plaintext where nothing is captured": (
        pod(capture="none", ports="9000/tcp/audit=19000"),
        "plaintext is taken where",
    ),
    "another capture": (pod(capture="some"), "'some' is none of its values"),
    "outbound where all is captured": (pod(outbound="[]"), "is for pods with firedoor.dev/capture: none"),
    "outbound that is no list": (pod(capture="none", outbound="x"), "must be a list of listeners"),
    "an exclusion of everything": (pod(**{"capture.exclude": "inbound tcp: x"}), "must say what passes and why"),
    "an exclusion without a reason": (pod(**{"capture.exclude": "inbound tcp 1"}), "must say what passes and why"),
    "an exclusion of a port that is none": (pod(**{"capture.exclude": "inbound tcp 70000: x"}), "a port above 65535"),
    "an exclusion of no network": (
        pod(**{"capture.exclude": "inbound tcp 1 from 10.0.0.1/8: x"}),
        "'10.0.0.1/8' must be an address, or a network",
    ),
    "an exclusion with a quote": (pod(**{"capture.exclude": 'inbound tcp 1: a "b"'}), "must say what passes and why"),
    "an exclusion with what a kubelet replaces": (
        pod(**{"capture.exclude": "inbound tcp 1: $(FIREDOOR_SIDECAR_CAPTURE_PROBES)"}),
        "must say what passes and why",
    ),
    "too many exclusions": (pod(**{"capture.exclude": 17 * "inbound tcp 1: x;"}), "has more than 16 exclusions"),
    "exclusions where nothing is captured": (
        pod(capture="none", **{"capture.exclude": "inbound tcp 1: x"}),
        "firedoor.dev/capture.exclude is for pods that are captured",
    ),
    "UDP where nothing is captured": (
        pod(capture="none", udp="pass"),
        "firedoor.dev/udp is for pods that are captured",
    ),
    "another word for UDP": (pod(udp="yes"), "'yes' is none of its values"),
    "a name that is none": (pod(dns="a.b, a..b"), "'a..b' must be a name such as"),
    "a name with a star inside": (pod(dns="a.**"), "'a.**' must be a name such as"),
    "too many names": (pod(dns=101 * "a,"), "has more than 100 names"),
    "a segment that is none": (pod(segment="A/b"), "is no name of a segment"),
    "no pod": ({"metadata": {}}, "this is no pod in a namespace"),
    "an account that leaves the ID": (pod(spec={"serviceAccountName": "../x"}), "is no name of a service account"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pod_that_is_refused(case: str) -> None:
    given_pod, words = REFUSED[case]
    with pytest.raises(InjectionRefused) as refused:
        injected(given_pod)
    assert words in str(refused.value)


# What a container says that is nobody but a user of its own.
STAYS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
TIGHT = {"runAsUser": 1001, **STAYS}
EXCLUSIONS = PATHS["/inject/required/exclusions"]
OPTIONAL = PATHS["/inject/required/optional"]


def tight(*, context: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **notes: str) -> Any:
    """Return a pod that may be where a sidecar is required, but for what is given."""
    return pod(container={"securityContext": TIGHT if context is None else context}, spec=spec, **notes)


OUT = tight()
OUT["metadata"]["labels"] = {"firedoor.dev/inject": "disabled"}
ALL_CAPTURED = "its namespace requires that all is captured; take that away, or have the namespace labelled"
UNNAMED = "has no runAsUser, so that its image names the user, which may be the sidecar's: set runAsUser, for it or"
# name: (the pod, what its namespace demands, words)
WHERE_REQUIRED: dict[str, tuple[Any, Demands, str]] = {
    "no sidecar": (OUT, OPTIONAL, "its namespace requires a sidecar in every pod (firedoor.dev/inject: required)"),
    "the node's network": (tight(spec={"hostNetwork": True}), OPTIONAL, "stand before; take that away"),
    "no capture": (
        tight(capture="none"),
        EXCLUSIONS,
        f"firedoor.dev/capture: none: {ALL_CAPTURED} firedoor.dev/capture: optional",
    ),
    "what passes by": (
        tight(**{"capture.exclude": "inbound tcp 1: x"}),
        REQUIRED,
        f"firedoor.dev/capture.exclude: {ALL_CAPTURED} firedoor.dev/capture: exclusions",
    ),
    "UDP": (tight(udp="pass"), REQUIRED, f"firedoor.dev/udp: {ALL_CAPTURED} firedoor.dev/capture: exclusions"),
    "a user that the image names": (
        tight(context={"runAsNonRoot": True, **STAYS}),
        OPTIONAL,
        f"container app {UNNAMED} for the pod, to a number other than 990",
    ),
    "the same, where nothing is captured": (tight(context={}, capture="none"), OPTIONAL, f"container app {UNNAMED}"),
    "an init container's": (
        tight(spec={"initContainers": [{"name": "first", "image": "x"}]}),
        OPTIONAL,
        f"container first {UNNAMED}",
    ),
    "root, which becomes whom it likes": (
        tight(context={"runAsUser": 0, "allowPrivilegeEscalation": False}),
        OPTIONAL,
        "container app may become the sidecar's user and go round it",
    ),
    "a program that is another user's": (
        tight(context={"runAsUser": 7, "capabilities": {"drop": ["ALL"]}}),
        OPTIONAL,
        "container app may become",
    ),
    "what drops a capability that no runtime knows": (
        tight(context={"runAsUser": 0, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["CAP_ALL"]}}),
        OPTIONAL,
        "container app may become",
    ),
    "a program whose file has the capability": (
        tight(context={"runAsUser": 7, "allowPrivilegeEscalation": False}),
        OPTIONAL,
        "container app may become",
    ),
}


@pytest.mark.parametrize("case", WHERE_REQUIRED)
def test_nobody_opts_out_where_a_sidecar_is_required(case: str) -> None:
    given_pod, demands, words = WHERE_REQUIRED[case]
    with pytest.raises(InjectionRefused) as refused:
        injected(given_pod, demands=demands)
    assert words in str(refused.value)
    assert ("or label it" in str(refused.value)) is False


def test_what_a_namespace_leaves_to_its_pods() -> None:
    """Each is what the next stricter one refuses."""
    passing = {"capture.exclude": "inbound tcp 1: x", "udp": "pass"}
    for demands, notes in ((REQUIRED, {}), (EXCLUSIONS, passing), (OPTIONAL, passing), (OPTIONAL, {"capture": "none"})):
        made = injected(tight(**notes), demands=demands)
        assert made["spec"]["initContainers"][-1]["name"] == SIDECAR
        assert injected(made, demands=demands) == made
    # The pod's own user is each container's that says none; and where it is enough to be asked, none need be said.
    whole = tight(context=STAYS, spec={"securityContext": {"runAsUser": 7}})
    assert injected(whole, demands=REQUIRED)
    assert injected(tight(context={}))


@pytest.mark.parametrize(
    ("word", "demands", "held"),
    [
        *(("required", ENABLED, False), ("required", REQUIRED, True)),
        *(("everywhere", ENABLED, True), ("everywhere", REQUIRED, True)),
        *(("nowhere", ENABLED, False), ("nowhere", REQUIRED, False)),
    ],
)
def test_where_users_are_held(word: str, demands: Demands, held: bool) -> None:
    rules = dataclasses.replace(RULES, strict_users=word)
    if held:
        with pytest.raises(InjectionRefused, match="has no runAsUser"):
            inject(pod(), "inference", rules, "example.org", demands)
    else:
        assert inject(pod(), "inference", rules, "example.org", demands).pod["spec"]["initContainers"]


def test_a_sidecar_of_the_version_before_is_ours_too() -> None:
    """While one follows another; but all of it is of one of them."""
    (before,) = RULES.accepted_images
    made = inject(pod(), "inference", dataclasses.replace(RULES, image=before), "example.org", ENABLED).pod
    assert injected(made) == made
    for number in (0, 1):
        mixed = copy.deepcopy(made)
        mixed["spec"]["initContainers"][number]["image"] = RULES.image
        with pytest.raises(InjectionRefused, match="not the one which would be injected now"):
            injected(mixed)


Change = Callable[[dict[str, Any]], object]
FORGED: dict[str, Change] = {
    "another image": lambda spec: spec["initContainers"][1].update(image="evil"),
    "another command": lambda spec: spec["initContainers"][1].update(command=["sleep"]),
    "another user of the rules": lambda spec: spec["initContainers"][0]["env"].append(
        {"name": "FIREDOOR_SIDECAR_CAPTURE_UID", "value": "1000"}
    ),
    "another identity": lambda spec: spec["initContainers"][1]["env"].__setitem__(
        slice(None),
        [{**one, "value": one["value"].replace("inference", "web")} for one in spec["initContainers"][1]["env"]],
    ),
    "no rules": lambda spec: spec["initContainers"].pop(0),
    "the other way round": lambda spec: spec["initContainers"].reverse(),
    "a sidecar that ends": lambda spec: spec["initContainers"][1].pop("restartPolicy"),
    "a sidecar that may do more": lambda spec: spec["initContainers"][1].update(securityContext={}),
    "a volume of the node": lambda spec: spec["volumes"][-3].update(emptyDir=None, hostPath={"path": "/"}),
    "no volume": lambda spec: spec["volumes"].pop(),
    "arguments": lambda spec: spec["initContainers"][1].update(args=["--help"]),
    "environment from elsewhere": lambda spec: spec["initContainers"][1].update(envFrom=[{"secretRef": {"name": "x"}}]),
    "a hook": lambda spec: spec["initContainers"][1].update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
    "one more capability": lambda spec: spec["initContainers"][1]["securityContext"]["capabilities"].update(
        add=["ALL"]
    ),
    "other programs": lambda spec: spec["initContainers"][1]["volumeMounts"].append(
        {"name": "mine", "mountPath": "/usr/lib"}
    ),
    "no mount": lambda spec: spec["initContainers"][1]["volumeMounts"].pop(),
    "one more source": lambda spec: spec["volumes"][-2]["projected"]["sources"].append({"secret": {"name": "x"}}),
    "a file over one of its own": lambda spec: spec["initContainers"][1].update(terminationMessagePath="/usr/bin/x"),
    "a device": lambda spec: spec["initContainers"][1].update(resources={"limits": {"example.org/gpu": "1"}}),
    "a claim": lambda spec: spec["initContainers"][0].update(resources={"claims": [{"name": "gpu"}]}),
    "something before it": lambda spec: spec["initContainers"].insert(0, {"name": "first", "image": "x"}),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_sidecar_that_is_not_ours_is_refused(case: str) -> None:
    """Or a name and an annotation would be enough to have none."""
    made = injected(pod(ports="9000/http"))
    FORGED[case](made["spec"])
    with pytest.raises(InjectionRefused):
        injected(made)


def test_what_an_api_server_adds_changes_nothing() -> None:
    """Defaults, and the volume of the service account's token."""
    made = injected(pod(ports="9000/http", container={"readinessProbe": {"httpGet": {"port": 9000}}}))
    for one in (*made["spec"]["initContainers"], *made["spec"]["containers"]):
        one["imagePullPolicy"] = "IfNotPresent"
        one["terminationMessagePath"] = "/dev/termination-log"
        one.setdefault("volumeMounts", []).append({"name": "kube-api-access", "mountPath": ACCOUNT})
    made["spec"]["volumes"].insert(0, {"name": "kube-api-access", "projected": {}})
    made["spec"]["initContainers"][1]["startupProbe"]["successThreshold"] = 1
    made["spec"]["volumes"][-2]["projected"]["defaultMode"] = 420
    assert injected(made) == made


def test_a_sidecar_without_its_label_is_given_it() -> None:
    """Packet filters go by it, and a template may bring the rest."""
    made = injected(pod())
    bare = copy.deepcopy(made)
    bare["metadata"] = {"name": "vllm", "annotations": {}}
    assert injected(bare) == made


def test_warnings_name_what_could_go_round() -> None:
    loose = inject(pod(), "inference", RULES, "example.org", ENABLED).warnings
    assert loose == (
        "container app may become the sidecar's user and go round it: set allowPrivilegeEscalation: false "
        "and drop the capabilities ALL",
    )
    tight = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert inject(pod(container={"securityContext": tight}), "inference", RULES, "example.org", ENABLED).warnings == ()


LOOSE: dict[str, tuple[dict[str, Any], bool]] = {
    "a user, no more": ({"runAsUser": 7, **STAYS}, False),
    "a user that a program with a capability changes": ({"runAsUser": 7, "allowPrivilegeEscalation": False}, True),
    "a user that a program changes": ({"runAsUser": 7, "capabilities": {"drop": ["ALL"]}}, True),
    "root that stays": ({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["all"]}}, False),
    "root": ({"allowPrivilegeEscalation": False}, True),
    "root that drops what no runtime knows": (
        {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["CAP_ALL"]}},
        True,
    ),
    "root that a program changes": ({"capabilities": {"drop": ["ALL"]}}, True),
    "root that is given it again": (
        {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["CAP_SETUID"]}},
        True,
    ),
}


@pytest.mark.parametrize("case", LOOSE)
def test_who_may_become_another_user(case: str) -> None:
    """Without `allowPrivilegeEscalation: false` a program's owner is who runs it."""
    given_context, warned = LOOSE[case]
    given_pod = pod(container={"securityContext": given_context})
    assert bool(inject(given_pod, "inference", RULES, "example.org", ENABLED).warnings) == warned


def test_names_are_ours_alone() -> None:
    made = injected(pod())["spec"]
    assert {one["name"] for one in made["initContainers"]} == NAMES
    assert {one["name"] for one in made["volumes"]} == VOLUMES


def test_the_label_says_the_segment() -> None:
    """Packet filters that are exported from flows select pods by it."""
    assert injected(pod())["metadata"]["labels"]["firedoor.dev/segment"] == "inference"
    assert injected(pod(segment="registry"))["metadata"]["labels"]["firedoor.dev/segment"] == "registry"
    labelled = pod()
    labelled["metadata"]["labels"] = {"firedoor.dev/segment": "registry"}
    assert "/segment/registry/" in injected(labelled)["metadata"]["annotations"]["firedoor.dev/status"]
    labelled["metadata"]["annotations"]["firedoor.dev/segment"] = "inference"
    with pytest.raises(InjectionRefused, match="is 'inference', and its label 'registry'"):
        injected(labelled)
