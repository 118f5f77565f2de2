# SPDX-License-Identifier: Apache-2.0
r"""Which container of which pod a process runs in, by its cgroup: what the kubelet and the runtime called it. Pure.

    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope  systemd
    /kubepods/burstable/pod<uid>/<id>                                                                    cgroupfs
    /system.slice/containerd.service/kubepods-burstable-pod<uid>.slice:cri-containerd:<id>               mixed up

The kernel writes the path, root alone makes what is at its top, and whoever has a part of the tree of his own (a pod, a
user's session) chooses every name below that. So a path is read from its beginning, and what follows the container's
own part says nothing. `/proc/<pid>/mountinfo` is not asked: any user has a mount namespace for the asking, and may
mount there what he likes.

The kernel tells paths from the root of the reader's own cgroup namespace. A sidecar in a container sees other pods by
way of their common ancestor, whose name is not told:

    /../../kubepods-besteffort-pod<uid>.slice/cri-containerd-<id>.scope

Everything up to there is an ancestor of the sidecar's own container, in which only the kubelet makes cgroups.

>>> uid, container = "0b3f5c1e-7a55-4c1a-9a52-2f7d1d1c9e11", 32 * "ab"
>>> places = Places.of("/")
>>> places.find(f"0::/kubepods/burstable/pod{uid}/{container}/x\n".encode()) == PodContainer(uid, container)
True
>>> places.find(f"0::/user.slice/kubepods/burstable/pod{uid}/{container}\n".encode()) is None
True
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from firedoor.sidecar.proc import LARGEST_CGROUP

_MAX_LINES: Final = 64
_MAX_ROOT_BYTES: Final = 1024
_CLASSES: Final = ((), ("burstable",), ("besteffort",))
_HEX: Final = "[0-9a-f]"
_ID: Final = _HEX + "{64}"


def _uid(dash: str) -> str:
    """Return the pattern of a UID. Pods of files on the node have a hash in its place."""
    return rf"(?P<uid>{_HEX}{{8}}(?:{dash}{_HEX}{{4}}){{3}}{dash}{_HEX}{{12}}|{_HEX}{{32}})"


_SLICE: Final = re.compile(rf"(?P<name>[^/]+)-pod{_uid('_')}\.slice")
_FOLDER: Final = re.compile(rf"pod{_uid('-')}")
_SCOPE: Final = re.compile(rf"(?:cri-containerd|crio|docker)-(?P<id>{_ID})\.scope")
_BARE: Final = re.compile(rf"(?:crio-)?(?P<id>{_ID})")
_COLONS: Final = re.compile(rf"(?P<name>[^/:]+)-pod{_uid('_')}\.slice:cri-containerd:(?P<id>{_ID})")
_OF_PODS: Final = (_SLICE, _FOLDER, _SCOPE, _BARE, _COLONS)
_CONTAINERD: Final = ("system.slice", "containerd.service")
_UP: Final = ".."
_ROOT: Final = re.compile(r"(/[A-Za-z0-9_.@-]+)+|/")


class CgroupUnreadable(Exception):
    """What the kernel says of a process's cgroups cannot be, or says two things."""


@dataclass(frozen=True, slots=True)
class PodContainer:
    """A container, by the runtime's ID for it, in a pod, by its UID (or hash) as the API has it."""

    pod_uid: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where a kubelet has its pods: the ways down to a pod, by driver. Made by `of`."""

    slices: tuple[tuple[str, ...], ...]
    folders: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, root: str) -> "Places":
        """Take the kubelet's own setting, cgroupRoot. Raise ValueError."""
        if not _ROOT.fullmatch(root) or len(root) > _MAX_ROOT_BYTES:
            raise ValueError("must be an absolute path of a cgroup, as the kubelet's cgroupRoot is")
        names = tuple(part for part in root.split("/") if part)
        if {".", _UP} & set(names):
            raise ValueError("must be an absolute path without `.` and `..`")
        ways = [(*names, "kubepods", *kind) for kind in _CLASSES]
        return cls(tuple(tuple(_slices(way)) for way in ways), tuple(ways))

    def find(self, text: bytes) -> PodContainer | None:
        """Read `/proc/<pid>/cgroup`; None when that is no process of a pod. Raise CgroupUnreadable.

        Raised, too, for whoever is among pods and in no container of one: a helper of the runtime, or another container
        of the sidecar's own pod, whose cgroup does not say which pod that is.
        With several hierarchies (cgroup v1) a runtime puts a container into all that it uses, at the same place.
        """
        found = {one for path in _paths(text) if (one := self._container(path)) is not None}
        if len(found) > 1:
            raise CgroupUnreadable("the process is in the cgroups of two containers")
        return next(iter(found), None)

    def _container(self, path: str) -> PodContainer | None:
        parts = path.split("/")[1:]
        above = next((n for n, part in enumerate(parts) if part != _UP), len(parts))
        rest, partly = tuple(parts[above:]), above > 0
        found = _in_slices(rest, self.slices, partly=partly) or _in_folders(rest, self.folders, partly=partly)
        if found is None and self._among_pods(rest, partly=partly):
            raise CgroupUnreadable("the process is in the cgroups of pods, and in none of a container that can be told")
        return found

    def _among_pods(self, rest: tuple[str, ...], *, partly: bool) -> bool:
        """Say whether this lies below what kubelet and runtime make: its process is none of the node's own."""
        if partly and rest and any(one.fullmatch(rest[0]) for one in _OF_PODS):
            return True
        ways = (*self.slices, *self.folders)
        # The first of either is that of all pods.
        tops = ways if partly else (self.slices[0], self.folders[0])
        return any(
            rest[: len(way) - start] == way[start:] for way in tops for start in range(len(way) if partly else 1)
        )


def _slices(names: tuple[str, ...]) -> Iterator[str]:
    """Name cgroups as systemd does: a slice has the names of those above it, and no other dash."""
    escaped = [name.replace("-", "_") for name in names]
    return ("-".join(escaped[: n + 1]) + ".slice" for n in range(len(escaped)))


def _paths(text: bytes) -> Iterator[str]:
    if len(text) > LARGEST_CGROUP:
        raise CgroupUnreadable("the cgroups of the process are told in too many words")
    # Names may be any bytes; those that count are ASCII. The kernel takes no newline in a name.
    lines = text.decode("latin-1").split("\n")
    if len(lines) > _MAX_LINES:
        raise CgroupUnreadable("the process is in too many hierarchies of cgroups")
    for line in lines:
        if line:
            number, *rest = line.split(":", 2)
            if not number.isdecimal() or len(rest) != 2 or not rest[1].startswith("/"):
                raise CgroupUnreadable("a line about the cgroups of the process cannot be read")
            yield rest[1]


def _after(rest: tuple[str, ...], way: tuple[str, ...], *, partly: bool) -> tuple[str, ...] | None:
    """Return what follows a way, or a last part of it when the beginning is not told; None when it goes elsewhere."""
    for start in range(len(way) + 1) if partly else (0,):
        left = way[start:]
        if rest[: len(left)] == left and len(rest) > len(left):
            return rest[len(left) :]
    return None


def _in_slices(rest: tuple[str, ...], ways: tuple[tuple[str, ...], ...], *, partly: bool) -> PodContainer | None:
    for way in ways:
        after = _after(rest, way, partly=partly)
        name = way[-1].removesuffix(".slice")
        if after and len(after) > 1 and (pod := _SLICE.fullmatch(after[0])) and pod["name"] == name:
            return _made(pod["uid"], _SCOPE.fullmatch(after[1]))
        for service in (_CONTAINERD, ()):
            after = _after(rest, service, partly=partly)
            if after and (pod := _COLONS.fullmatch(after[0])) and pod["name"] == name:
                return _made(pod["uid"], pod)
    return None


def _in_folders(rest: tuple[str, ...], ways: tuple[tuple[str, ...], ...], *, partly: bool) -> PodContainer | None:
    for way in ways:
        after = _after(rest, way, partly=partly)
        if after and len(after) > 1 and (pod := _FOLDER.fullmatch(after[0])):
            return _made(pod["uid"], _BARE.fullmatch(after[1]))
    return None


def _made(uid: str, container: re.Match[str] | None) -> PodContainer | None:
    """Return the container; None for the runtime's own helpers beside it, such as `crio-conmon-<id>.scope`."""
    return PodContainer(uid.replace("_", "-"), container["id"]) if container else None
