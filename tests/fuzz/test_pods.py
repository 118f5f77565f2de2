# SPDX-License-Identifier: Apache-2.0
"""Whatever the kernel says of cgroups, and whoever answers for a kubelet: it is read, or refused with a sentence."""

import contextlib
import os
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor.sidecar.pod_cgroup import CgroupUnreadable, Places, PodContainer
from firedoor.sidecar.pod_objects import PodUnreadable, find_container, pod_of, read_pods
from tests.pods import NODE, container_id, pod, status

# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(100, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 300)
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

ROOTS = [Places.of(root) for root in ("/", "/kubelet", "/a-b/c")]
UID, ID = "0b3f5c1e-7a55-4c1a-9a52-2f7d1d1c9e11", "7f" * 32
PARTS = ["..", "kubepods", "kubepods.slice", "burstable", "kubepods-burstable.slice", "kubelet.slice", f"pod{UID}", ID]
PARTS += [f"kubepods-pod{UID.replace('-', '_')}.slice", f"crio-{ID}.scope", "system.slice", "containerd.service", "a-b"]
paths = st.lists(st.sampled_from(PARTS) | st.text(max_size=9), max_size=9).map("/".join)
texts = st.lists(paths.map(lambda path: f"0::/{path}"), max_size=3).map("\n".join)


@fuzz
@given(st.binary(max_size=400) | texts.map(lambda text: text.encode("utf-8", "replace")))
def test_cgroups(data: bytes) -> None:
    for places in ROOTS:
        with contextlib.suppress(CgroupUnreadable):
            found = places.find(data)
            assert found is None or re.fullmatch("[0-9a-f]{64}", found.container_id)
            assert found is None or found.container_id.encode() in data


KEYS = ("metadata", "spec", "status", "uid", "name", "namespace", "labels", "annotations", "ownerReferences", "kind")
KEYS += ("nodeName", "containerStatuses", "containerID", "image", "imageID", "state", "running", "phase", "items")
APP = container_id()
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from([NODE, f"containerd://{APP}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=24,
)


@fuzz
@given(anything, st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
def test_pods(found: object, where: list[str]) -> None:
    whole = pod("vllm-0", status("app", APP))
    place = whole
    for key in where[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            return
    place[where[-1]] = found
    for items in ([found, whole], found):
        with contextlib.suppress(PodUnreadable):
            pods = read_pods({"kind": "PodList", "items": items}, NODE)
            assert all(one.type == "k8s" for each in pods for one in each.selectors)
            find_container(pods, PodContainer(UID, APP))
    pod_of(found, NODE)
