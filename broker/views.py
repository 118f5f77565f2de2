# SPDX-License-Identifier: Apache-2.0
"""What one sidecar is told: its own entries, the bundles that they federate with, its part of the policy, revocations.

Pure. Updates are full. What many views share (a policy part, the bundles of the same trust domains, revocations) is
encoded once, and an agent's entries when they change: serialized messages of one type that stand one after the other
are their merger (protobuf's encoding guide), and 10,000 views are a matter of joining bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Final

from firedoor.broker.authorized import Entitlement
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.entry import Entry
from firedoor.broker.messages import bundle_message, entry_message
from firedoor.broker.policy import Compiled
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.segments import Part
from firedoor.wire import control_pb2, policy_pb2
from firedoor.wire.views import encoded_view_hash

# The version of the conversation in firedoor/control/v1/control.proto.
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class _Shown:
    """An entry in an agent's view: encoded, as a field of Entries, and what its ID brings of the policy."""

    entry: Entry
    encoded: bytes
    part: Part


@dataclass(frozen=True, slots=True)
class View:
    """What one agent is told, encoded, without the generation; and what it was made of."""

    viewer: Viewer
    entitlement: Entitlement
    shown: Mapping[str, _Shown]
    entries: bytes
    common: bytes
    view_hash: bytes

    def update(self, generation: Generation) -> bytes:
        """Return the encoded FromBroker message with everything."""
        head = control_pb2.Update(
            generation=control_pb2.Generation(epoch=generation.epoch, number=generation.number),
            view_hash=self.view_hash,
        )
        return _from_broker(head.SerializeToString(deterministic=True) + self.entries + self.common)


class Viewer:
    """Builds the views of one state of bundles, policy, revocations and authorities below; make a new one with each."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        bundles: Mapping[TrustDomain, TrustBundle],
        policy: Compiled,
        revocations: Iterable[Revoked],
        intermediates: Mapping[bytes, frozenset[str]] | None,
        token_keys: Mapping[str, frozenset[str]],
    ) -> None:
        self._own, self._bundles, self.policy = trust_domain, dict(bundles), policy
        self._revoked = sorted(revocations, key=lambda one: (one.kind, one.value))
        made = control_pb2.Revocations(revocations=[_revocation(one) for one in self._revoked])
        self._revocations = _encoded(control_pb2.Part(revocations=made))
        # None: others than those that we know of are below our roots.
        self._listed, self._limited = intermediates, dict(token_keys)
        self._intermediates = [
            control_pb2.Intermediate(key_sha256=key, segments=sorted(segments))
            for key, segments in sorted((intermediates or {}).items())
        ]
        self._token_keys = [
            control_pb2.TokenKey(key_id=key_id, segments=sorted(segments))
            for key_id, segments in sorted(token_keys.items())
        ]
        # What comes after the entries, by trust domains and by the identity of the table that `Views` shares; the table
        # is kept so that its identity stays its own.
        self._shared: dict[tuple[frozenset[TrustDomain], int], tuple[policy_pb2.Table, bytes]] = {}

    def is_of(
        self,
        bundles: Mapping[TrustDomain, TrustBundle],
        policy: Compiled,
        revocations: Iterable[Revoked],
        intermediates: Mapping[bytes, frozenset[str]] | None,
        token_keys: Mapping[str, frozenset[str]],
    ) -> bool:
        """Say whether it was made of these."""
        if policy is not self.policy or bundles != self._bundles or intermediates != self._listed:
            return False
        if token_keys != self._limited:
            return False
        return sorted(revocations, key=lambda one: (one.kind, one.value)) == self._revoked

    def view(self, entitlement: Entitlement, before: View | None = None) -> View:
        """Return what an agent with this entitlement is told; `before` is what it was told last, by any viewer."""
        if before is not None and before.entitlement is entitlement and before.viewer is self:
            return before
        shown = self._shown(entitlement, before)
        encoded = _part(control_pb2.Part.ENTRIES_FIELD_NUMBER, b"".join(one.encoded for one in shown.values()))
        federated = frozenset(td for one in shown.values() for td in one.entry.federates_with)
        common = self._common(federated, self._table({one.part for one in shown.values()}))
        return View(self, entitlement, shown, encoded, common, encoded_view_hash(encoded + common))

    def _shown(self, entitlement: Entitlement, before: View | None) -> Mapping[str, _Shown]:
        """Return the entries in the order of their IDs; those that are as they were before are not made again."""
        known = before.shown if before is not None and before.viewer.policy is self.policy else {}
        shown = {}
        for entry_id in sorted(entitlement.workloads):
            entry, one = entitlement.workloads[entry_id], known.get(entry_id)
            shown[entry_id] = one if one is not None and one.entry is entry else self._show(entry)
        return shown

    def _show(self, entry: Entry) -> _Shown:
        policy, part = self.policy.policy, Part()
        if policy is not None:
            segment = policy.segment_of(entry.spiffe_id)
            part = self.policy.views.part(segment.name if segment else None, entry.spiffe_id)
        encoded = entry_message(entry).SerializeToString(deterministic=True)
        return _Shown(entry, _field(control_pb2.Entries.ENTRIES_FIELD_NUMBER, encoded), part)

    def _common(self, federated: frozenset[TrustDomain], table: policy_pb2.Table) -> bytes:
        key = (federated, id(table))
        if key not in self._shared:
            names = [td for td in (self._own, *sorted(federated)) if td in self._bundles]
            bundles = control_pb2.Bundles(
                bundles=[bundle_message(self._bundles[td]) for td in names],
                intermediates=self._intermediates,
                intermediates_complete=self._listed is not None,
                token_keys=self._token_keys,
            )
            policy = control_pb2.Part(policy=control_pb2.Policy(table=table))
            made = _encoded(control_pb2.Part(bundles=bundles)) + _encoded(policy) + self._revocations
            self._shared[key] = (table, made)
        return self._shared[key][1]

    def _table(self, parts: Iterable[Part]) -> policy_pb2.Table:
        return self.policy.views.with_part(reduce(or_, parts, Part()))


def _encoded(part: control_pb2.Part) -> bytes:
    """Return an encoded Update that has this part alone."""
    return control_pb2.Update(parts=[part]).SerializeToString(deterministic=True)


def _part(number: int, content: bytes) -> bytes:
    """Return an encoded Update that has one part alone, of this kind, from the kind's encoded message."""
    return _field(control_pb2.Update.PARTS_FIELD_NUMBER, _field(number, content))


def _from_broker(update: bytes) -> bytes:
    """Wrap an encoded Update in a FromBroker."""
    return _field(control_pb2.FromBroker.UPDATE_FIELD_NUMBER, update)


def _field(number: int, content: bytes) -> bytes:
    """Encode a field: its number and "length-delimited", the length, the content (protobuf's encoding guide)."""
    length = bytearray()
    left = len(content)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return bytes([number << 3 | 2]) + length + content


def _revocation(revoked: Revoked) -> control_pb2.Revocation:
    match revoked.kind:
        case "serial":
            return control_pb2.Revocation(serial=revoked.value, reason=revoked.reason)
        case "authority":
            return control_pb2.Revocation(authority_id=revoked.value, reason=revoked.reason)
        case _:
            before = control_pb2.IssuedBefore(pattern=revoked.value, time=revoked.issued_before)
            return control_pb2.Revocation(issued_before=before, reason=revoked.reason)
