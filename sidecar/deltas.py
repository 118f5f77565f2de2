# SPDX-License-Identifier: Apache-2.0
"""Updates that say what changed: which views the server may build upon, and how one is made whole again. Pure.

Strict: what a delta removes is there, no key comes twice, and the result has the hash that the server made of its own.
A sidecar never runs on anything else; it refuses, and is sent all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firedoor.certs import TrustDomain
from firedoor.sidecar.errors import UpdateRefused
from firedoor.sidecar.parts import by_kind
from firedoor.wire import control_pb2, views

# Views of before that the server may build upon: it may not have heard the latest news of us yet.
MAX_SAID = 4
# In the order of a view's parts.
KINDS = ("entries", "bundles", "policy", "revocations", "crls")
# Not every view has them.
OPTIONAL = frozenset({"crls"})


class Bases:
    """What runs, and what the server was last told that runs, each a full update."""

    def __init__(self) -> None:
        self._running: control_pb2.Update | None = None
        # By hash, the latest last. Those that do not run any more are kept encoded: they are seldom used.
        self._said: dict[bytes, control_pb2.Update | bytes] = {}

    def runs(self, update: control_pb2.Update) -> None:
        """Take it that a full update runs now."""
        before, self._running = self._running, update
        for view_hash, said in self._said.items():
            if said is before and before is not None and before.view_hash != update.view_hash:
                self._said[view_hash] = before.SerializeToString()
        if update.view_hash in self._said:
            self._said[update.view_hash] = update

    def forget(self) -> None:
        """Take it that nothing runs that was pushed."""
        self._running = None
        self._said.clear()

    def said(self, view_hash: bytes) -> None:
        """Take it that the server is told that this runs."""
        if self._running is None or self._running.view_hash != view_hash:
            return
        self._said.pop(view_hash, None)
        self._said[view_hash] = self._running
        if len(self._said) > MAX_SAID:
            del self._said[next(iter(self._said))]

    def runs_with(self, view_hash: bytes) -> bool:
        """Say whether what runs has this hash."""
        return self._running is not None and self._running.view_hash == view_hash

    def find(self, view_hash: bytes) -> control_pb2.Update:
        """Return a base. Raise UpdateRefused."""
        if self._running is not None and self._running.view_hash == view_hash:
            return self._running
        found = self._said.get(view_hash)
        if found is None:
            raise UpdateRefused(views.UNKNOWN_BASE, "the update is built upon a view that this sidecar does not have")
        return control_pb2.Update.FromString(found) if isinstance(found, bytes) else found


def whole(base: control_pb2.Update, update: control_pb2.Update, trust_domain: TrustDomain) -> control_pb2.Update:
    """Return the full update that a delta makes of its base. Raise UpdateRefused.

    Fields that this version does not know must have been looked for; what the result says is not checked.
    """
    if update.parts:
        raise _malformed("has parts beside a delta")
    delta = update.delta
    if not delta.put and not delta.HasField("removed") and update.view_hash == base.view_hash:
        made = control_pb2.Update()
        made.CopyFrom(base)
        made.generation.CopyFrom(update.generation)
        return made
    put, before = by_kind(delta.put), by_kind(base.parts)
    kinds = [kind for kind in KINDS if kind not in OPTIONAL or kind in before]
    if put.keys() - set(kinds) or (delta.removed.crls and "crls" not in kinds):
        raise _malformed("changes revocation lists of a view that has none")
    parts = [_part(kind, before.get(kind), put.get(kind), delta.removed, trust_domain) for kind in kinds]
    made = control_pb2.Update(generation=update.generation, view_hash=update.view_hash, parts=parts)
    # Before anything is computed of it.
    if made.ByteSize() > views.MAX_VIEW_BYTES:
        raise UpdateRefused("view_too_large", f"the view grows to more than {views.MAX_VIEW_BYTES >> 20} MiB")
    if update.view_hash != views.parts_hash(made.parts):
        raise UpdateRefused(
            "view_hash_mismatch", "the update makes another view than the one that its hash was made of"
        )
    return made


def _malformed(sentence: str) -> UpdateRefused:
    return UpdateRefused("malformed_delta", f"the update {sentence}")


@dataclass(frozen=True, slots=True)
class _List:
    """A list of a part: where it stands, what its messages are known by, and its field in Keys."""

    name: str
    of: Callable[[control_pb2.Part], Any]
    key: Callable[[Any], Any]
    # What a key in Keys stands for.
    removed: Callable[[Any], Any] = lambda key: key


_LISTS: Mapping[str, Sequence[_List]] = {
    "entries": (_List("entries", lambda part: part.entries.entries, lambda one: one.id),),
    "bundles": (
        _List("bundles", lambda part: part.bundles.bundles, lambda one: one.trust_domain),
        _List("intermediates", lambda part: part.bundles.intermediates, lambda one: one.key_sha256),
        _List("token_keys", lambda part: part.bundles.token_keys, lambda one: one.key_id),
    ),
    "policy": (
        _List("segments", lambda part: part.policy.table.segments, lambda one: one.name),
        _List("flows", lambda part: part.policy.table.flows, lambda one: one.name),
        _List("services", lambda part: part.policy.table.services, lambda one: one.name),
    ),
    "revocations": (
        _List(
            "revocations", lambda part: part.revocations.revocations, views.revocation_key, removed=views.revocation_key
        ),
    ),
    "crls": (_List("crls", lambda part: part.crls.crls, lambda one: one.authority_id),),
}


def _part(
    kind: str,
    before: control_pb2.Part | None,
    put: control_pb2.Part | None,
    removed: control_pb2.Keys,
    trust_domain: TrustDomain,
) -> control_pb2.Part:
    """Return a part as it is to be."""
    old = before or control_pb2.Part()
    # What is in no list stands as the delta has it.
    made = control_pb2.Part()
    made.CopyFrom(old if put is None else put)
    getattr(made, kind).SetInParent()
    for one in _LISTS[kind]:
        coming, going = _keyed(one, one.of(put) if put is not None else ()), getattr(removed, one.name)
        if coming or going:
            held = _merged(one, _keyed(one, one.of(old)), coming, [one.removed(key) for key in going])
            own_first = sorted(held, key=lambda key: (key != trust_domain.name, key))
            del one.of(made)[:]
            one.of(made).extend(held[key] for key in (own_first if one.name == "bundles" else sorted(held)))
        elif put is not None:
            one.of(made).extend(one.of(old))
    return made


def _merged(one: _List, held: dict[Any, Any], coming: dict[Any, Any], going: Iterable[Any]) -> dict[Any, Any]:
    for key in going:
        if key in coming:
            raise _malformed(f"both puts and removes one of the {one.name}")
        if held.pop(key, None) is None:
            raise _malformed(f"removes one of the {one.name} that is not there")
    return held | coming


def _keyed(listed: _List, messages: Iterable[Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for one in messages:
        key = listed.key(one)
        if key in found:
            raise _malformed(f"leaves two of the {listed.name} with one key")
        found[key] = one
    return found
