# SPDX-License-Identifier: Apache-2.0
"""What one sidecar is told: its own entries, the bundles that they federate with, its part of the policy, revocations.

Pure. What many views share (a policy part, the bundles of the same trust domains, revocations) is encoded and hashed
once, and so is how it differs from what they shared before; an agent's entries are, each, when they change. A change
then costs each agent that it does not touch the joining of a few bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from firedoor.broker import view_entries
from firedoor.broker.authorized import Entitlement
from firedoor.broker.db.crl_rows import SignedCrl
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.entry import Entry
from firedoor.broker.messages import bundle_message, entry_message
from firedoor.broker.policy import Compiled
from firedoor.broker.view_entries import Shown, ShownEntries
from firedoor.broker.view_parts import (
    SharedPart,
    bundles_part,
    crls_part,
    encode_field,
    policy_part,
    revocation_item,
    revocations_part,
)
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.segments import Part
from firedoor.segments.directory import Derived, Directory
from firedoor.wire import control_pb2
from firedoor.wire.views import joined_hash, sha256

# The version of the conversation in firedoor/control/v1/control.proto.
VERSION: Final = 1
_NO_SERVICES: Final[Mapping[str, Derived]] = {}


@dataclass(frozen=True, slots=True)
class _Common:
    """What comes after the entries."""

    parts: Sequence[SharedPart]
    encoded: bytes


@dataclass(frozen=True, slots=True)
class View:
    """What one agent is told, without the generation; and what it was made of. It holds nothing that others share."""

    # The numbers of the viewer that made it and of its policy.
    viewer: int
    policy: int
    entitlement: Entitlement
    shown: ShownEntries
    # Which trust domains its bundles are of, and what it has of the policy.
    needs: tuple[frozenset[TrustDomain], Part]
    view_hash: bytes
    # Whether revocation lists are a part of it.
    crls: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """What views are made from beside entries."""

    bundles: Mapping[TrustDomain, TrustBundle]
    policy: Compiled
    revocations: Mapping[tuple[str, str], Revoked]
    # The segments of each CA below; None: others than those that we know of are below our roots.
    intermediates: Mapping[bytes, frozenset[str]] | None
    token_keys: Mapping[str, frozenset[str]]
    # Sorted by authority.
    crls: tuple[SignedCrl, ...]
    # Services beside the policy's, by name; replaced as a whole where one changes.
    directory: Mapping[str, Derived] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bundles: Mapping[TrustDomain, TrustBundle],
        policy: Compiled,
        revocations: Iterable[Revoked],
        intermediates: Mapping[bytes, frozenset[str]] | None,
        token_keys: Mapping[str, frozenset[str]],
        crls: Iterable[SignedCrl] = (),
        directory: Mapping[str, Derived] | None = None,
    ) -> Shared:
        """Take them as they are now."""
        revoked = {(one.kind, one.value): one for one in revocations}
        derived = _NO_SERVICES if directory is None else directory
        return cls(dict(bundles), policy, revoked, intermediates, dict(token_keys), tuple(crls), derived)

    def same_bundles(self, other: Shared) -> bool:
        """Say whether bundles, CAs below and keys for tokens are the same."""
        mine, its = (self.bundles, self.intermediates, self.token_keys), (other.bundles, other.intermediates)
        return mine == (*its, other.token_keys)

    def same(self, other: Shared) -> bool:
        """Say whether all of it is the same."""
        policy = self.policy is other.policy and self.directory is other.directory
        revoked = self.revocations == other.revocations and self.crls == other.crls
        return policy and self.same_bundles(other) and revoked


class Viewer:
    """Builds the views of one state of bundles, policy, revocations and authorities below; make a new one with each.

    It takes over from the one before what did not change.
    """

    _numbers: Final = itertools.count()

    def __init__(self, trust_domain: TrustDomain, shared: Shared, before: Viewer | None = None) -> None:
        self.number = next(self._numbers)
        self._own, self.shared = trust_domain, shared
        of_policy = before if before is not None and before.shared.policy is shared.policy else None
        of_bundles = before if before is not None and before.shared.same_bundles(shared) else None
        self.policy_number: int = of_policy.policy_number if of_policy else self.number
        self.directory: Directory = of_policy.directory if of_policy else shared.policy.directory
        # What the policy's parts were with another directory: most are the same.
        self._earlier: tuple[Directory, dict[Part, SharedPart]] = self.directory, {}
        # Shared with the viewers before and after that have the same of them.
        self.policies: dict[Part, SharedPart] = of_policy.policies if of_policy else {}
        if of_policy is None or of_policy.shared.directory is not shared.directory:
            self._earlier = self.directory, self.policies
            self.directory = Directory(shared.policy.views, shared.directory, self.directory)
            self.policies = {}
        self.bundles: dict[frozenset[TrustDomain], SharedPart] = of_bundles.bundles if of_bundles else {}
        # Each as it was, and encoded with its key.
        self.revoked: dict[tuple[str, str], tuple[Revoked, tuple[bytes, bytes]]] = {}
        self.revocations = self._revoked(before)
        self.crls = self._lists(before)
        self._commons: dict[tuple[frozenset[TrustDomain], Part, bool], _Common] = {}
        # How a part differs from another one.
        self._differences: dict[tuple[SharedPart, SharedPart], bytes] = {}

    def _revoked(self, before: Viewer | None) -> SharedPart:
        known = before.revoked if before else {}
        if before is not None and before.shared.revocations == self.shared.revocations:
            self.revoked = known
            return before.revocations
        for key in sorted(self.shared.revocations):
            one, old = self.shared.revocations[key], known.get(key)
            if old is None or old[0] != one:
                old = one, revocation_item(revocation_message(one))
            self.revoked[key] = old
        return revocations_part(item for _, item in self.revoked.values())

    def _lists(self, before: Viewer | None) -> SharedPart:
        if before is not None and before.shared.crls == self.shared.crls:
            return before.crls
        return crls_part(map(crl_message, self.shared.crls))

    def view(self, entitlement: Entitlement, before: View | None = None, *, crls: bool = False) -> View:
        """Return what an agent with this entitlement is told; `before` is what it was told last, by any viewer.

        `crls`: whether it knows what revocation lists are.
        """
        if before is None or before.policy != self.policy_number:
            before = None
        elif before.entitlement is entitlement and before.viewer == self.number and before.crls == crls:
            return before
        known = before.shown if before else view_entries.NONE
        shown = known.now(entitlement, before.entitlement if before else None, self._show)
        needs = before.needs if before and shown is known else shown.needs
        hashed = joined_hash(shown.digest, (part.digest for part in self._common(needs, crls).parts))
        return View(self.number, self.policy_number, entitlement, shown, needs, hashed, crls)

    def whole(self, view: View, generation: Generation, *, by_parts: bool, spread: int | None = None) -> bytes:
        """Return the encoded FromBroker message with everything; `by_parts`: with the hash made of those of parts."""
        parts = view.shown.encoded() + self._common(view.needs, view.crls).encoded
        head = control_pb2.Update(
            generation=generation_message(generation), view_hash=view.view_hash if by_parts else sha256(parts)
        )
        tail = control_pb2.Update(spread_ms=spread).SerializeToString()
        return _from_broker(head.SerializeToString(deterministic=True) + parts + tail)

    def delta(
        self,
        view: View,
        generation: Generation,
        base: View,
        base_generation: Generation,
        by: Viewer | None,
        spread: int | None = None,
    ) -> bytes | None:
        """Return the encoded FromBroker message with what a view has that a base had not, which a viewer made.

        None without that viewer, unless the two are the same, and where only one has revocation lists.
        """
        changes = b""
        if base.view_hash != view.view_hash:
            if by is None or base.crls != view.crls:
                return None
            changes = view.shown.since(base.shown) + self._common_since(view, base, by)
        hashed = encode_field(control_pb2.Update.VIEW_HASH_FIELD_NUMBER, view.view_hash)
        delta = encode_field(control_pb2.Delta.BASE_HASH_FIELD_NUMBER, base.view_hash) + changes
        encoded = encode_field(control_pb2.Update.DELTA_FIELD_NUMBER, delta)
        return _from_broker(_scalars(generation, base_generation, spread) + hashed + encoded)

    def whole_size(self, view: View) -> int:
        """Return about how many bytes the whole is."""
        return view.shown.size + len(self._common(view.needs, view.crls).encoded)

    def _common_since(self, view: View, base: View, by: Viewer) -> bytes:
        mine, its = self._common(view.needs, view.crls), by._common(base.needs, base.crls)
        pairs = zip(mine.parts, its.parts, strict=True)
        return b"".join(self._since(now, before) for now, before in pairs if now is not before)

    def _since(self, now: SharedPart, before: SharedPart) -> bytes:
        if (now, before) not in self._differences:
            self._differences[now, before] = now.since(before)
        return self._differences[now, before]

    def _show(self, entry: Entry) -> Shown:
        policy, part = self.shared.policy.policy, Part()
        if policy is not None:
            segment = policy.segment_of(entry.spiffe_id)
            part = self.shared.policy.views.part(segment.name if segment else None, entry.spiffe_id)
        encoded = entry_message(entry).SerializeToString(deterministic=True)
        return Shown(entry, encode_field(control_pb2.Entries.ENTRIES_FIELD_NUMBER, encoded), sha256(encoded), part)

    def _common(self, needs: tuple[frozenset[TrustDomain], Part], crls: bool) -> _Common:
        key = (*needs, crls)
        found = self._commons.get(key)
        if found is None:
            federated, part = needs
            parts = [self._bundles_of(federated), self._policy(part), self.revocations]
            parts += [self.crls] if crls else []
            found = self._commons[key] = _Common(parts, b"".join(one.encoded for one in parts))
        return found

    def _bundles_of(self, federated: frozenset[TrustDomain]) -> SharedPart:
        if federated not in self.bundles:
            shared = self.shared
            names = [td for td in (self._own, *sorted(federated - {self._own})) if td in shared.bundles]
            made = control_pb2.Bundles(
                bundles=[bundle_message(shared.bundles[td]) for td in names],
                intermediates=[
                    control_pb2.Intermediate(key_sha256=key, segments=sorted(segments))
                    for key, segments in sorted((shared.intermediates or {}).items())
                ],
                intermediates_complete=shared.intermediates is not None,
                token_keys=[
                    control_pb2.TokenKey(key_id=key_id, segments=sorted(segments))
                    for key_id, segments in sorted(shared.token_keys.items())
                ],
            )
            self.bundles[federated] = bundles_part(made)
        return self.bundles[federated]

    def _policy(self, part: Part) -> SharedPart:
        if part not in self.policies:
            self.policies[part] = self._policy_with(part)
        return self.policies[part]

    def _policy_with(self, part: Part) -> SharedPart:
        """Return a part of the policy with the services that were derived, as before if none of them is another."""
        derived, (directory, earlier) = self.directory.items(part), self._earlier
        if part in earlier and directory.items(part) == derived:
            return earlier[part]
        head, (segments, flows, services) = self.shared.policy.views.part_items(part)
        if derived:
            # Where a document has the name, it counts; sorted as a whole, as a sidecar has them.
            services = dict(sorted({**derived, **services}.items()))
        return policy_part(head, (segments, flows, services))


@lru_cache(maxsize=64)
def _scalars(generation: Generation, base: Generation, spread: int | None) -> bytes:
    """Return the fields of an Update that are the same for most agents."""
    generations = generation_message(generation), generation_message(base)
    made = control_pb2.Update(generation=generations[0], base=generations[1], spread_ms=spread)
    return made.SerializeToString(deterministic=True)


def _from_broker(update: bytes) -> bytes:
    """Wrap an encoded Update in a FromBroker."""
    return encode_field(control_pb2.FromBroker.UPDATE_FIELD_NUMBER, update)


def generation_message(generation: Generation) -> control_pb2.Generation:
    """Return a generation as sidecars and administrators are told it."""
    return control_pb2.Generation(epoch=generation.epoch, number=generation.number)


def revocation_message(revoked: Revoked) -> control_pb2.Revocation:
    """Return a revocation as sidecars are told it."""
    match revoked.kind:
        case "serial":
            return control_pb2.Revocation(serial=revoked.value, reason=revoked.reason)
        case "authority":
            return control_pb2.Revocation(authority_id=revoked.value, reason=revoked.reason)
        case _:
            before = control_pb2.IssuedBefore(pattern=revoked.value, time=revoked.issued_before)
            return control_pb2.Revocation(issued_before=before, reason=revoked.reason)


def crl_message(signed: SignedCrl) -> control_pb2.Crl:
    """Return a revocation list as sidecars and administrators are told it."""
    return control_pb2.Crl(authority_id=signed.authority_id, der=signed.der, signers=signed.signers)
