# SPDX-License-Identifier: Apache-2.0
"""Which programs could go round capture: the sidecar's user, root, and what has the means to become one of them.

>>> uid_refusals(990, 990)
["it has the sidecar's uid 990, and what that user sends is not captured"]
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firedoor.sidecar.errors import AppRefused, CaptureFailed

# Bits as in linux/capability.h.
_DANGEROUS = {
    1: ("CAP_DAC_OVERRIDE", "read the sidecar's keys"),
    2: ("CAP_DAC_READ_SEARCH", "read the sidecar's keys"),
    7: ("CAP_SETUID", "become the sidecar's user"),
    8: ("CAP_SETPCAP", "take further capabilities"),
    12: ("CAP_NET_ADMIN", "take the rules away"),
    # AF_PACKET sockets pass no hook of the packet filter.
    13: ("CAP_NET_RAW", "send packets that no rule sees"),
    16: ("CAP_SYS_MODULE", "load code into the kernel"),
    17: ("CAP_SYS_RAWIO", "write to the kernel's memory"),
    19: ("CAP_SYS_PTRACE", "take the sidecar over"),
    21: ("CAP_SYS_ADMIN", "enter another network namespace"),
    31: ("CAP_SETFCAP", "give capabilities to a file and run it"),
    39: ("CAP_BPF", "change what the kernel does with packets"),
}
_LINE = re.compile(r"^(Uid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):[\t ]*([0-9a-f\t ]+)$", re.M)


@dataclass(frozen=True, slots=True)
class Privileges:
    """What a process may do, from /proc/PID/status."""

    # Real, effective, saved and of the file system.
    uids: frozenset[int]
    # Effective, permitted, inheritable and ambient together.
    held: int
    # What a set-user-ID program may still give it.
    bounding: int
    no_new_privileges: bool


def parse(status: str) -> Privileges:
    """Read `/proc/<pid>/status`. Raise CaptureFailed."""
    found = dict(_LINE.findall(status))
    try:
        masks = {name: int(found[name].strip(), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        return Privileges(
            uids=frozenset(int(word) for word in found["Uid"].split()),
            held=masks["CapInh"] | masks["CapPrm"] | masks["CapEff"] | masks["CapAmb"],
            bounding=masks["CapBnd"],
            no_new_privileges=found.get("NoNewPrivs", "0").strip() == "1",
        )
    except (KeyError, ValueError):
        raise CaptureFailed("the status of the process cannot be read") from None


def read(pid: int | str) -> Privileges:
    """Return what a process may do. Raise CaptureFailed."""
    try:
        return parse(Path(f"/proc/{pid}/status").read_text())
    except OSError as error:
        raise CaptureFailed(f"process {pid} cannot be read: {error.strerror}") from error


def refusals(one: Privileges, sidecar_uid: int) -> list[str]:
    """Say how a process could go round, a clause each."""
    found = [sentence for uid in sorted(one.uids) for sentence in uid_refusals(uid, sidecar_uid)]
    return found + [f"it has {name} and could {what}" for name, what in _held(one.held)]


def uid_refusals(uid: int, sidecar_uid: int) -> list[str]:
    """Say why a user cannot be captured."""
    if uid == 0:
        return ["it is root, and could take the rules away or become the sidecar's user"]
    if uid == sidecar_uid:
        return [f"it has the sidecar's uid {uid}, and what that user sends is not captured"]
    return []


def warnings(one: Privileges) -> list[str]:
    """Say what a process could still gain by a set-user-ID program or one with file capabilities."""
    if one.no_new_privileges:
        return []
    return [
        f"a set-user-ID program could give it {name}: set no_new_privs" for name, _ in list(_held(one.bounding))[:1]
    ]


def check(whom: str, found: Iterable[str]) -> None:
    """Raise AppRefused when there is a reason."""
    reasons = list(dict.fromkeys(found))
    if reasons:
        raise AppRefused(f"{whom} could go round: {'; '.join(reasons)}")


def _held(mask: int) -> list[tuple[str, str]]:
    return [names for bit, names in _DANGEROUS.items() if mask >> bit & 1]


def may_administer_network(one: Privileges) -> bool:
    """Say whether a process has CAP_NET_ADMIN; for ourselves, before anything is tried."""
    return bool(one.held >> 12 & 1)
