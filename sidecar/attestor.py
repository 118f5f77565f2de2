# SPDX-License-Identifier: Apache-2.0
"""Workload attestor `unix`: what a local process is, as selectors.

    unix:uid:1001  unix:user:app  unix:gid:1001  unix:group:app  unix:supplementary_gid:27
    unix:supplementary_group:video  unix:path:/usr/bin/app  unix:sha256:<hex>

The same keys turn an entry's selectors into the rules by which the core knows local clients of outbound listeners.
"""

import asyncio
import grp
import pwd
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from firedoor.certs import Selector, SelectorError
from firedoor.mtls import ClientRule
from firedoor.sidecar import proc
from firedoor.sidecar.errors import CallerRefused

T = TypeVar("T")

TYPE = "unix"
# The last value is "no user" (chown(2)).
HIGHEST_ID = 2**32 - 2


class LiveCaller(Protocol):
    """A caller of a Unix front: the process that connected, held by a handle of the kernel."""

    @property
    def pid(self) -> int | None: ...  # noqa: D102
    @property
    def uid(self) -> int | None: ...  # noqa: D102
    @property
    def gid(self) -> int | None: ...  # noqa: D102
    def alive(self) -> bool: ...  # noqa: D102


class WorkloadAttestor(Protocol):
    """Says what a caller of a Unix front is."""

    async def attest(self, caller: LiveCaller, keys: Collection[str], counted: Hashable = None) -> frozenset[Selector]:
        """Return a caller's selectors. Raise SidecarError.

        `keys` says which costly ones any entry asks for, `counted` what `counted_as` has just said of this caller.
        """

    def counted_as(self, caller: LiveCaller) -> Hashable:
        """Return who shares the caller's limits: cheap, and not to be chosen by it. Raise CallerRefused."""


@dataclass(frozen=True, slots=True)
class Names:
    """Turns IDs to names and back; None when there is no such account."""

    user: Callable[[int], str | None] = field(default=lambda uid: _found(lambda: pwd.getpwuid(uid).pw_name))
    group: Callable[[int], str | None] = field(default=lambda gid: _found(lambda: grp.getgrgid(gid).gr_name))
    uid: Callable[[str], int | None] = field(default=lambda name: _found(lambda: pwd.getpwnam(name).pw_uid))
    gid: Callable[[str], int | None] = field(default=lambda name: _found(lambda: grp.getgrnam(name).gr_gid))


def _found(lookup: Callable[[], T]) -> T | None:
    try:
        return lookup()
    except (KeyError, ValueError, OverflowError):
        return None


def selectors_of(ids: proc.Ids, path: str | None, sha256: str | None, names: Names) -> frozenset[Selector]:
    """Say what a process is. What a selector cannot hold (a path with a newline) is left out."""
    values = [f"uid:{ids.uid}", f"gid:{ids.gid}", *(f"supplementary_gid:{gid}" for gid in ids.groups)]
    values += _named("user", names.user(ids.uid)) + _named("group", names.group(ids.gid))
    for gid in ids.groups:
        values += _named("supplementary_group", names.group(gid))
    values += _named("path", path) + _named("sha256", sha256)
    return frozenset(_selectors(values))


def _named(key: str, value: str | None) -> list[str]:
    return [f"{key}:{value}"] if value else []


def _selectors(values: Iterable[str]) -> Iterable[Selector]:
    for value in values:
        try:
            yield Selector.of(TYPE, value)
        except SelectorError:
            continue


class UnixAttestor:
    """Attests callers of the auth socket."""

    def __init__(self, names: Names | None = None, hasher: proc.Hasher | None = None) -> None:
        self._names = names or Names()
        self._hasher = hasher or proc.Hasher()

    async def attest(self, caller: LiveCaller, keys: Collection[str], _: Hashable = None) -> frozenset[Selector]:
        """Return a caller's selectors; `keys` says which costly ones (path, sha256) any entry asks for.

        Raises CallerRefused when the process is gone, or is no longer the user that it was when it connected.
        """
        pid, uid, gid = caller.pid, caller.uid, caller.gid
        if pid is None or uid is None or gid is None or pid <= 0:
            raise CallerRefused("the kernel does not say which process is calling")
        if not caller.alive():
            raise CallerRefused("the calling process has ended")
        try:
            ids = proc.read_ids(pid)
            path = proc.read_path(pid) if "path" in keys else None
            digest = await asyncio.to_thread(self._hasher.sha256, pid) if "sha256" in keys else None
            again = proc.read_ids(pid)
        except proc.ProcError as error:
            raise CallerRefused(str(error)) from error
        if not caller.alive():
            raise CallerRefused("the calling process has ended")
        if ids != again or (ids.uid, ids.gid) != (uid, gid):
            raise CallerRefused("the calling process has changed its user or groups since it connected")
        return selectors_of(ids, path, digest, self._names)

    def counted_as(self, caller: LiveCaller) -> Hashable:
        """Return the user."""
        return caller.uid


class _Nobody(Exception):
    """No local client can be known to match."""


def rule_of(selectors: Iterable[Selector], names: Names) -> ClientRule | None:
    """Return the rule that says the same as an entry's selectors; None when no local client can be known to match.

    A selector of another type, of an unknown key, of an account that does not exist, or two that exclude each other,
    match nobody.
    """
    try:
        return _rule(selectors, names)
    except _Nobody:
        return None


def _rule(selectors: Iterable[Selector], names: Names) -> ClientRule:
    found: dict[str, set[str]] = {}
    for selector in selectors:
        key, _, value = selector.value.partition(":")
        if selector.type != TYPE:
            raise _Nobody
        found.setdefault(key, set()).add(value)
    uid = _one(_ids(found.pop("uid", set()), found.pop("user", set()), names.uid))
    gid = _one(_ids(found.pop("gid", set()), found.pop("group", set()), names.gid))
    groups = _ids(found.pop("supplementary_gid", set()), found.pop("supplementary_group", set()), names.gid)
    path, digest = _one(found.pop("path", set())), _one(found.pop("sha256", set()))
    if found or (uid is None and gid is None and not groups and path is None and digest is None):
        raise _Nobody
    return ClientRule(uid=uid, gid=gid, supplementary_gids=sorted(groups), path=path, sha256=digest)


def _one(values: set[T]) -> T | None:
    if len(values) > 1:
        raise _Nobody
    return next(iter(values), None)


def _ids(numbers: set[str], names: set[str], lookup: Callable[[str], int | None]) -> set[int]:
    found = {_number(number) for number in numbers}
    for name in names:
        known = lookup(name)
        if known is None:
            raise _Nobody
        found.add(known)
    return found


def _number(text: str) -> int:
    """Read an ID, written in the one way in which the attestor writes it: "01" or "+1" name nobody there either."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or str(int(text)) != text or int(text) > HIGHEST_ID:
        raise _Nobody
    return int(text)


def decidable_by_uid(selectors: Iterable[Selector]) -> bool:
    """Say whether the uid alone decides: all that the kernel tells about a client of a loopback TCP listener."""
    return all(one.type == TYPE and one.value.partition(":")[0] in ("uid", "user") for one in selectors)
