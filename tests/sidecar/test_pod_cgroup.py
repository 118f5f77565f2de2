# SPDX-License-Identifier: Apache-2.0
"""Which container a cgroup names, by each driver and runtime; and that nobody names another one for himself."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar.pod_cgroup import CgroupUnreadable, Places, PodContainer
from firedoor.sidecar.proc import LARGEST_CGROUP

UID, OTHER = "0b3f5c1e-7a55-4c1a-9a52-2f7d1d1c9e11", "5f0e7d6c-1111-4222-8333-944455566677"
HASH = "8dbe5577f7c2d6a9b8a5a9b5f0b2d1c7"
ID, ID2 = "7f" * 32, "c0" * 32
UNDER = UID.replace("-", "_")
PLACES = Places.of("/")
BURSTABLE, EFFORT = (f"kubepods-{kind}.slice/kubepods-{kind}-pod{UNDER}.slice" for kind in ("burstable", "besteffort"))
SESSION = "user.slice/user-1001.slice/user@1001.service"

FOUND = {
    "systemd, containerd": f"/kubepods.slice/{BURSTABLE}/cri-containerd-{ID}.scope",
    "systemd, best effort": f"/kubepods.slice/{EFFORT}/cri-containerd-{ID}.scope",
    "systemd, guaranteed": f"/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope",
    "systemd, cri-o": f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{ID}.scope",
    "systemd, cri-o and crun": f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{ID}.scope/container",
    "systemd, docker": f"/kubepods.slice/kubepods-pod{UNDER}.slice/docker-{ID}.scope",
    "systemd, systemd inside": f"/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope/init.scope",
    "cgroupfs, containerd": f"/kubepods/burstable/pod{UID}/{ID}",
    "cgroupfs, guaranteed": f"/kubepods/pod{UID}/{ID}",
    "cgroupfs, cri-o": f"/kubepods/besteffort/pod{UID}/crio-{ID}",
    "mixed up": f"/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{ID}",
    "mixed up, at the top": f"/kubepods-pod{UNDER}.slice:cri-containerd:{ID}",
    "from a pod of the same class": f"/../../kubepods-burstable-pod{UNDER}.slice/cri-containerd-{ID}.scope",
    "from a pod of another class": f"/../../../{EFFORT}/crio-{ID}.scope",
    "from outside pods": f"/../../kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope",
    "from a pod, cgroupfs": f"/../../pod{UID}/{ID}",
    "from a guaranteed pod, cgroupfs": f"/../../burstable/pod{UID}/{ID}",
    "from a pod, mixed up": f"/../kubepods-burstable-pod{UNDER}.slice:cri-containerd:{ID}",
    "a cluster in a pod": f"/kubepods/pod{UID}/{ID}/kubelet/kubepods/burstable/pod{OTHER}/{ID2}",
    "a name of another pod below": f"/kubepods/pod{UID}/{ID}/pod{OTHER}/{ID2}",
    "any bytes below": f"/kubepods/pod{UID}/{ID}/\xff:\x01 (deleted)",
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case: str) -> None:
    assert PLACES.find(f"0::{FOUND[case]}\n".encode("latin-1")) == PodContainer(UID, ID)


def test_a_pod_of_a_file_has_a_hash() -> None:
    for path in (f"/kubepods/burstable/pod{HASH}/{ID}", f"/kubepods.slice/kubepods-pod{HASH}.slice/crio-{ID}.scope"):
        assert PLACES.find(f"0::{path}\n".encode()) == PodContainer(HASH, ID)


NONE = {
    "the machine's own": "/system.slice/sshd.service",
    "a user's session, with the names of a pod": f"/{SESSION}/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{ID}.scope",
    "a user's session, cgroupfs": f"/user.slice/kubepods/pod{UID}/{ID}",
    "a user's session, seen from a pod": f"/../../../../user.slice/user-1001.slice/kubepods/burstable/pod{UID}/{ID}",
    "a service with the names of a pod": f"/system.slice/x.service/kubepods-pod{UNDER}.slice:cri-containerd:{ID}",
    "the sidecar's own": "/",
    "below the sidecar's own": "/x/y",
    "a part of a way from its top": f"/burstable/pod{UID}/{ID}",
    "a pod at the top": f"/pod{UID}/{ID}",
    "empty parts": f"//kubepods/pod{UID}/{ID}",
}
AMONG_PODS = {
    "another container of the sidecar's own pod": f"/../cri-containerd-{ID}.scope",
    "the same, cgroupfs": f"/../{ID}",
    "the pod itself": f"/kubepods/burstable/pod{UID}",
    "the pod itself, systemd": f"/kubepods.slice/kubepods-pod{UNDER}.slice",
    "the pod itself, seen from another": f"/../../kubepods-pod{UNDER}.slice",
    "the runtime's helper": f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-conmon-{ID}.scope",
    "all pods": "/kubepods",
    "of another class than that above it": f"/kubepods.slice/{EFFORT}/crio-{ID}.scope".replace("best", "worst", 1),
    "systemd's dashes": f"/kubepods.slice/kubepods-pod{UID}.slice/crio-{ID}.scope",
    "cgroupfs' underscores": f"/kubepods/pod{UNDER}/{ID}",
    "upper case": f"/kubepods/pod{UID.upper()}/{ID}",
    "a short ID": f"/kubepods/pod{UID}/{ID[:12]}",
    "a long ID": f"/kubepods/pod{UID}/{ID}0",
    "a removed cgroup": f"/kubepods/pod{UID}/{ID} (deleted)",
    "something at the end": f"/kubepods/pod{UID}/{ID}\r",
    "upwards again": f"/kubepods/../kubepods/pod{UID}/{ID}",
}


@pytest.mark.parametrize("case", NONE)
def test_no_pod(case: str) -> None:
    assert PLACES.find(f"0::{NONE[case]}\n".encode()) is None


@pytest.mark.parametrize("case", AMONG_PODS)
def test_whoever_is_among_pods_and_in_no_container_is_not_taken_for_the_nodes_own(case: str) -> None:
    with pytest.raises(CgroupUnreadable, match="in none of a container that can be told"):
        PLACES.find(f"0::{AMONG_PODS[case]}\n".encode())


def test_a_kubelet_with_a_root_of_its_own() -> None:
    kind = Places.of("/kubelet")
    systemd = f"kubelet-kubepods.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope"
    for path in (f"/kubelet.slice/{systemd}", f"/../../../{systemd}", f"/kubelet/kubepods/pod{UID}/{ID}"):
        assert kind.find(f"0::{path}\n".encode()) == PodContainer(UID, ID)
    assert kind.find(f"0::/kubepods/pod{UID}/{ID}\n".encode()) is None
    assert PLACES.find(f"0::/kubelet/kubepods/pod{UID}/{ID}\n".encode()) is None
    dashed = f"/a_b.slice/a_b-kubepods.slice/a_b-kubepods-pod{UNDER}.slice/crio-{ID}.scope"
    assert Places.of("/a-b").find(f"0::{dashed}\n".encode()) == PodContainer(UID, ID)


@pytest.mark.parametrize("root", ["", "kubelet", "/a//b", "/a/", "/../a", "/a/./b", "/a b", "/" + 2000 * "a", "/a\n"])
def test_a_root_that_is_none(root: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Places.of(root)


V1 = f"""\
12:pids:/kubepods/burstable/pod{UID}/{ID}
5:cpu,cpuacct:/kubepods/burstable/pod{UID}/{ID}
1:name=systemd:/kubepods/burstable/pod{UID}/{ID}
0::/system.slice/containerd.service
"""


def test_several_hierarchies() -> None:
    assert PLACES.find(V1.encode()) == PodContainer(UID, ID)
    with pytest.raises(CgroupUnreadable, match="two containers"):
        PLACES.find(f"{V1}13:misc:/kubepods/burstable/pod{OTHER}/{ID2}\n".encode())
    assert PLACES.find(b"") is None


UNREADABLE = {
    "no fields": (b"kubepods\n", "cannot be read"),
    "two fields": (b"0:/\n", "cannot be read"),
    "no number": (b"x::/\n", "cannot be read"),
    "no path": (b"0::kubepods\n", "cannot be read"),
    "too many lines": (b"0::/\n" * 100, "too many hierarchies"),
    "too long": (b"0::/" + LARGEST_CGROUP * b"a", "too many words"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read(case: str) -> None:
    data, words = UNREADABLE[case]
    with pytest.raises(CgroupUnreadable, match=words):
        PLACES.find(data)


names = st.sampled_from(
    [
        "..",
        "kubepods",
        "kubepods.slice",
        "burstable",
        f"pod{UID}",
        f"pod{OTHER}",
        ID,
        ID2,
        "x",
        f"kubepods-pod{UNDER}.slice",
    ]
) | st.text(max_size=8).filter(lambda text: "/" not in text and "\n" not in text)


@given(st.lists(names, max_size=6))
def test_whatever_a_workload_makes_below_its_own_cgroup_it_stays_that(below: list[str]) -> None:
    for way in FOUND.values():
        text = "/".join(["0::" + way, *below]).encode("utf-8", "replace")
        assert PLACES.find(text) == PodContainer(UID, ID)


@given(st.lists(names, max_size=8))
def test_whatever_a_user_makes_below_a_session_it_is_no_pod(below: list[str]) -> None:
    for above in (
        "/user.slice/user-1001.slice/user@1001.service",
        "/../../../user.slice/user-1001.slice",
        "/x",
        "/system.slice/x.service",
    ):
        assert PLACES.find("/".join(["0::" + above, *below]).encode("utf-8", "replace")) is None


@given(
    st.binary(max_size=300)
    | st.lists(names, max_size=8).map(lambda parts: f"0::/{'/'.join(parts)}".encode("utf-8", "replace"))
)
def test_anything(data: bytes) -> None:
    with contextlib.suppress(CgroupUnreadable):
        found = PLACES.find(data)
        if found is not None:
            assert re.fullmatch("[0-9a-f]{64}", found.container_id)
            assert found.pod_uid in (UID, OTHER) or re.fullmatch("[0-9a-f-]{32,36}", found.pod_uid)
