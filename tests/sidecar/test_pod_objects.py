# SPDX-License-Identifier: Apache-2.0
"""What is read of a pod, which selectors it has, and which container a cgroup may mean."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar.pod_cgroup import PodContainer
from firedoor.sidecar.pod_objects import MAX_PODS, Pod, PodUnreadable, find_container, read_pod, read_pods
from tests.pods import NODE, container_id, pod, status

APP, SIDE, OLD = container_id(), container_id(), container_id()
HASH = "8dbe5577f7c2d6a9b8a5a9b5f0b2d1c7"


def whole(**metadata: Any) -> dict[str, Any]:
    side = status("side", SIDE, "registry.example/side:2")
    made = pod("vllm-0", status("app", APP), side)
    made["metadata"] |= {"labels": {"app": "vllm", "empty": ""}, **metadata}
    made["metadata"]["ownerReferences"] = [{"kind": "StatefulSet", "name": "vllm", "uid": "77c1"}]
    made["status"]["initContainerStatuses"] = [status("init", OLD, "registry.example/init:3")]
    return made


def listed(*items: Any) -> tuple[Pod, ...]:
    return read_pods({"kind": "PodList", "items": list(items)}, NODE)


def test_selectors() -> None:
    made = whole()
    (found,) = listed(made)
    app = found.container(APP)
    assert app is not None
    digest = {name: f"@sha256:{name:0>64}" for name in ("app", "side", "init")}
    assert {str(one) for one in found.selectors_in(app)} == {
        "k8s:ns:inference",
        "k8s:sa:vllm",
        f"k8s:node-name:{NODE}",
        "k8s:pod-name:vllm-0",
        f"k8s:pod-uid:{made['metadata']['uid']}",
        "k8s:pod-label:app:vllm",
        "k8s:pod-label:empty:",
        "k8s:pod-owner:StatefulSet:vllm",
        "k8s:pod-owner-uid:StatefulSet:77c1",
        "k8s:pod-image-count:2",
        "k8s:pod-image:registry.example/app:1",
        f"k8s:pod-image:registry.example/app{digest['app']}",
        "k8s:pod-image:registry.example/side:2",
        f"k8s:pod-image:registry.example/side{digest['side']}",
        "k8s:pod-init-image-count:1",
        "k8s:pod-init-image:registry.example/init:3",
        f"k8s:pod-init-image:registry.example/init{digest['init']}",
        "k8s:container-name:app",
        "k8s:container-image:registry.example/app:1",
        f"k8s:container-image:registry.example/app{digest['app']}",
    }
    assert not any("container-" in str(one) for one in found.selectors)


def test_what_a_selector_cannot_hold_is_left_out() -> None:
    (found,) = listed(whole(labels={"a": "x\ny", "b": "y" * 5000, "c": 7}))
    assert not any("pod-label" in str(one) for one in found.selectors)


def seen(made: dict[str, Any], container: str) -> PodContainer:
    return PodContainer(made["metadata"]["uid"], container)


def test_a_container_is_found_in_its_own_pod() -> None:
    one, two = whole(), pod("other", status("app", container_id()))
    pods = listed(two, one)
    for container in (APP, SIDE, OLD):
        found = find_container(pods, seen(one, container))
        assert found is not None
        assert found[0].name == "vllm-0"
    assert find_container(pods, seen(two, APP)) is None
    assert find_container(pods, seen(one, container_id())) is None


def states(made: dict[str, Any], **state: Any) -> dict[str, Any]:
    made["status"]["containerStatuses"][0].update(state)
    return made


@pytest.mark.parametrize(
    "made",
    [
        states(whole(), state={"terminated": {}}),
        states(whole(), state={"waiting": {}}),
        states(whole(), state={}),
        states(whole(), containerID=""),
        states(whole(), containerID=APP),
        states(whole(), containerID=f"containerd://{APP}/x"),
        {**whole(), "status": {**whole()["status"], "phase": "Succeeded"}},
        {**whole(), "status": {**whole()["status"], "phase": "Failed"}},
        {**whole(), "spec": {"nodeName": "gpu-2", "serviceAccountName": "vllm"}},
        {**whole(), "spec": {"serviceAccountName": "vllm"}},
    ],
)
def test_what_does_not_run_here_is_not_found(made: dict[str, Any]) -> None:
    assert find_container(listed(made), seen(made, APP)) is None


def test_a_pod_that_is_being_deleted_runs_until_it_ends() -> None:
    made = whole(deletionTimestamp="2026-01-01T00:00:00Z")
    assert find_container(listed(made), seen(made, APP)) is not None


def test_a_pod_of_a_file_is_named_by_its_hash() -> None:
    """The kubelet has the hash as its UID; the API server has an object that stands for it, with another UID."""
    notes = {"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH}
    mirror, of_file = whole(annotations=notes), whole(uid=HASH)
    for made in (mirror, of_file):
        assert find_container(listed(made), PodContainer(HASH, APP)) is not None
    # Anybody may write annotations; what runs in the pod, only the kubelet.
    claims = pod("claims", status("app", container_id()), annotations=notes)
    assert find_container(listed(claims), PodContainer(HASH, APP)) is None
    half = whole(annotations={"kubernetes.io/config.hash": HASH})
    assert find_container(listed(half), PodContainer(HASH, APP)) is None


def test_a_container_that_two_pods_claim_is_nobodys() -> None:
    one = whole()
    assert find_container(listed(one, whole(uid=one["metadata"]["uid"], namespace="web")), seen(one, APP)) is None


def test_a_container_that_was_put_into_a_running_pod_is_none_of_its_own() -> None:
    made = whole()
    debug = made["status"]["ephemeralContainerStatuses"] = [status("debug", container_id())]
    (found,) = listed(made)
    assert found.ephemeral == {debug[0]["containerID"].rpartition("/")[2]}
    assert find_container((found,), seen(made, *found.ephemeral)) is None


def test_lists() -> None:
    assert read_pods({"kind": "PodList", "items": None}, NODE) == ()
    for answer in (
        {},
        {"kind": "Status"},
        {"kind": "PodList"},
        {"kind": "NodeList", "items": []},
        {"kind": "PodList", "items": "x"},
    ):
        with pytest.raises(PodUnreadable, match="no list of pods"):
            read_pods(answer, NODE)
    with pytest.raises(PodUnreadable, match="more than"):
        read_pods({"kind": "PodList", "items": [{}] * (MAX_PODS + 1)}, NODE)
    # What is no pod takes nothing from the others.
    assert [one.name for one in listed({}, None, 7, {"metadata": []}, whole(), {"metadata": {"name": "x"}})] == [
        "vllm-0"
    ]


@pytest.mark.parametrize("key", ["uid", "name", "namespace"])
@pytest.mark.parametrize("value", ["", "a/b", "a b", "\n", "é", 7, None, {}])
def test_names_that_are_none(key: str, value: object) -> None:
    with pytest.raises(PodUnreadable):
        read_pod(whole(**{key: value}), NODE)


KEYS = ("metadata", "spec", "status", "uid", "name", "namespace", "labels", "ownerReferences", "kind", "nodeName")
KEYS += ("containerStatuses", "initContainerStatuses", "containerID", "image", "imageID", "state", "running", "phase")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from([NODE, "a", f"x://{APP}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


@given(anything, st.sampled_from(["metadata", "spec", "status"]))
def test_anything(found: object, key: str) -> None:
    for item in (found, {**whole(), key: found}):
        with contextlib.suppress(PodUnreadable):
            made = read_pod(item, NODE)
            assert all(one.type == "k8s" for one in made.selectors)
            find_container([made], PodContainer(made.uid, APP))
