# SPDX-License-Identifier: Apache-2.0
"""What the server says this sidecar is entitled to, read from an update or put together from polls. Pure.

A `View` is whole: entries, bundles, decision table and revocations of one generation. What breaks a rule of the
control stream raises UpdateRefused, whose code goes back to the broker in a Nack, and nothing changes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from firedoor import certs
from firedoor.certs import CertsError, IdPattern, Intermediates, KeyLimits, Selector, SpiffeId, TrustBundle, TrustDomain
from firedoor.mtls import Revocation
from firedoor.segments import Membership, membership_of
from firedoor.sidecar import bundles
from firedoor.sidecar.errors import UpdateRefused
from firedoor.sidecar.parts import by_kind
from firedoor.wire import control_pb2, policy_pb2, types, views

Generation = tuple[int, int]
_SHA256_BYTES = 32
_PARTS = ("entries", "bundles", "policy", "revocations", "crls")


@dataclass(frozen=True, slots=True)
class Entry:
    """One identity that this agent may hold."""

    id: str
    spiffe_id: SpiffeId
    selectors: frozenset[Selector]
    federates_with: tuple[TrustDomain, ...]
    hint: str
    created_at: int
    # 0: never.
    expires_at: int
    # Whatever changes it makes another certificate necessary.
    revision: tuple[object, ...]
    # Pushed into a store by the agent, never given to local workloads.
    store_svid: bool
    # An administrator of the server, or a server below it: given to the workload itself, and to nobody for it.
    privileged: bool = False
    # Whether an SVID is fetched before anybody asks.
    prefetch: bool = True

    @property
    def order(self) -> tuple[int, str]:
        """The order in which a workload's identities are listed."""
        return self.created_at, self.id


@dataclass(frozen=True)
class View:
    """Everything of one generation. `table` is a serialised decision table; empty denies everything."""

    trust_domain: TrustDomain
    # Whether the entries are the server's word; without it nobody is entitled to anything, and nobody is refused.
    synced: bool = False
    # None: no generation and no local policy either.
    generation: Generation | None = None
    hash: bytes = b""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    bundles: Mapping[TrustDomain, TrustBundle] = field(default_factory=dict)
    table: bytes = b""
    revocations: tuple[control_pb2.Revocation, ...] = ()
    # The revocation lists for local programs, as they came: see crls.py.
    crls: tuple[control_pb2.Crl, ...] = ()
    # The segments of each CA below our own roots, by SHA-256 of its key; None: the server keeps no list.
    intermediates: Mapping[bytes, frozenset[str]] | None = None
    # The segments of each key for tokens in our own bundle that is not the server's own, by its ID.
    token_keys: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def matching(self, selectors: frozenset[Selector], now: float) -> tuple[Entry, ...]:
        """Return the entries that a workload with these selectors is entitled to, the oldest first."""
        near = (one for selector in selectors for one in self._by_selector.get(selector, ()))
        found = (one for one in near if one.selectors <= selectors and not one.store_svid)
        return tuple(
            sorted((one for one in found if not one.expires_at or one.expires_at > now), key=lambda e: e.order)
        )

    def trusted(self, entries: Iterable[Entry]) -> list[TrustBundle]:
        """Return the bundles for holders of these entries: our own and those that the entries federate with."""
        domains = {self.trust_domain, *(domain for entry in entries for domain in entry.federates_with)}
        return [self.bundles[one] for one in sorted(domains) if one in self.bundles]

    def giving(self, spiffe_id: SpiffeId) -> Sequence[Entry]:
        """Return the entries that give an ID."""
        return self._by_id.get(spiffe_id, ())

    @cached_property
    def listed(self) -> Intermediates | None:
        """Which CAs below our own roots may sign for which segments; None when nobody keeps a list."""
        if self.intermediates is None:
            return None
        by_key = {key.hex(): segments for key, segments in self.intermediates.items()}
        return Intermediates(self.trust_domain, by_key, self.segment_of)

    @property
    def not_admitted(self) -> set[TrustDomain]:
        """Whose certificates no admission was asked for: issuers that the broker does not hold to its segments."""
        unlisted = {self.trust_domain} if self.intermediates is None and self.synced else set()
        return {one for one in self.bundles if one != self.trust_domain} | unlisted

    @property
    def limits(self) -> KeyLimits:
        """For which segments keys of our own bundle may sign tokens."""
        return KeyLimits(self.trust_domain, self.token_keys, self.segment_of)

    def segment_of(self, spiffe_id: SpiffeId) -> str | None:
        """Return the segment of an ID; None when it is in none, or there is no policy."""
        return self._membership.segment_of(spiffe_id) if self._membership is not None else None

    @cached_property
    def _membership(self) -> Membership | None:
        return membership_of(policy_pb2.Table.FromString(self.table)) if self.table else None

    @cached_property
    def selector_keys(self) -> frozenset[str]:
        """Which keys any entry asks for, so that no executable is read and hashed for nothing."""
        return frozenset(selector.key for one in self.entries.values() for selector in one.selectors)

    @cached_property
    def _by_selector(self) -> Mapping[Selector, Sequence[Entry]]:
        """Each entry under the rarest of its selectors, so that few are looked at for one program."""
        seen = Counter(selector for one in self.entries.values() for selector in one.selectors)
        found: dict[Selector, list[Entry]] = {}
        for one in self.entries.values():
            if one.selectors:
                found.setdefault(min(one.selectors, key=seen.__getitem__), []).append(one)
        return found

    @cached_property
    def _by_id(self) -> Mapping[SpiffeId, Sequence[Entry]]:
        found: dict[SpiffeId, list[Entry]] = {}
        for one in self.entries.values():
            found.setdefault(one.spiffe_id, []).append(one)
        return found

    def with_entries(self, entries: Iterable[Entry]) -> "View":
        """Return the same with other entries."""
        return replace(self, entries={one.id: one for one in entries})

    def with_bundles(self, bundles: Iterable[TrustBundle]) -> "View":
        """Return the same with other bundles."""
        return replace(self, bundles={one.trust_domain: one for one in bundles})


def check_update(update: control_pb2.Update, running: Generation | None) -> None:
    """Raise UpdateRefused for an update, full or not, that is older than what runs or that a newer broker means."""
    generation = views.generation_key(update.generation)
    if running is not None and generation < running:
        raise UpdateRefused("generation_went_back", f"generation {generation} is older than {running}, which runs here")
    for part in (*update.parts, *update.delta.put):
        if part.WhichOneof("kind") is None:
            raise UpdateRefused("unknown_part", "the update has a part of a kind that this sidecar does not know")
    _check_fields(update)


def read_update(
    update: control_pb2.Update,
    trust_domain: TrustDomain,
    running: Generation | None,
    known: Mapping[str, Entry] = MappingProxyType({}),
) -> View:
    """Read a full update; `known` are entries that it has as they were read before. Raise UpdateRefused."""
    check_update(update, running)
    if update.HasField("base") or update.HasField("delta"):
        raise UpdateRefused("unexpected_delta", "the update is built upon another one")
    # A broker of before, or one that took us for a sidecar of before, hashes all parts at once.
    if update.view_hash not in (views.parts_hash(update.parts), views.view_hash(update.parts)):
        raise UpdateRefused("view_hash_mismatch", "the update is not the one that its hash was made of")
    return read_checked(update, trust_domain, known)


def read_checked(
    update: control_pb2.Update, trust_domain: TrustDomain, known: Mapping[str, Entry] = MappingProxyType({})
) -> View:
    """Read a full update that was checked, or made of a delta that was. Raise UpdateRefused."""
    generation = views.generation_key(update.generation)
    parts = _parts(update)
    found = [bundles.from_wire(one) for one in parts["bundles"].bundles.bundles]
    wire_entries = parts["entries"].entries.entries
    entries = [known.get(one.id) or read_entry(one, trust_domain) for one in wire_entries]
    if trust_domain not in {one.trust_domain for one in found if one.x509_roots}:
        raise UpdateRefused("bundle_missing", f"the update has no X.509 authority of {trust_domain} itself")
    revocations = tuple(parts["revocations"].revocations.revocations)
    for revocation in revocations:
        _check_revocation(revocation, trust_domain)
    view = View(
        trust_domain,
        synced=True,
        generation=generation,
        hash=update.view_hash,
        table=parts["policy"].policy.table.SerializeToString(deterministic=True),
        revocations=revocations,
        crls=tuple(parts["crls"].crls.crls),
        intermediates=_intermediates(parts["bundles"].bundles),
        token_keys={one.key_id: frozenset(one.segments) for one in parts["bundles"].bundles.token_keys},
    )
    return view.with_entries(entries).with_bundles(found)


def _parts(update: control_pb2.Update) -> dict[str, control_pb2.Part]:
    found = by_kind(update.parts)
    return {kind: found.get(kind, control_pb2.Part()) for kind in _PARTS}


def _check_fields(update: control_pb2.Update) -> None:
    """Refuse what an older sidecar would pass over: a newer broker's field may take away what the others give.

    SPIRE's messages are left out, which grow by themselves, and the decision table, which has a version.
    """
    for message in _ours(update):
        if len(UnknownFieldSet(message)):
            kind = message.DESCRIPTOR.name
            raise UpdateRefused("unknown_field", f"the update has a field of {kind} that this sidecar does not know")


def _ours(update: control_pb2.Update) -> Iterator[Message]:
    """Yield every message of the control stream's own."""
    yield update
    if update.HasField("delta"):
        yield update.delta
        yield update.delta.removed
        yield from _revocations(update.delta.removed.revocations)
    for part in (*update.parts, *update.delta.put):
        yield part
        yield getattr(part, part.WhichOneof("kind") or "")
        yield from part.bundles.intermediates
        yield from part.bundles.token_keys
        yield from part.crls.crls
        yield from _revocations(part.revocations.revocations)


def _revocations(found: Iterable[control_pb2.Revocation]) -> Iterator[Message]:
    for one in found:
        yield one
        yield one.issued_before


def _intermediates(part: control_pb2.Bundles) -> dict[bytes, frozenset[str]] | None:
    if not part.intermediates_complete:
        return None
    found: dict[bytes, frozenset[str]] = {}
    for one in part.intermediates:
        if len(one.key_sha256) != _SHA256_BYTES:
            raise UpdateRefused("malformed_intermediate", "a CA is listed by what is no SHA-256 of its key")
        found[one.key_sha256] = found.get(one.key_sha256, frozenset()) | frozenset(one.segments)
    return found


def _check_revocation(one: control_pb2.Revocation, trust_domain: TrustDomain) -> None:
    try:
        certs_revocation(one, trust_domain)
    except CertsError as error:
        raise UpdateRefused("malformed_revocation", f"a revocation cannot be used: {error}") from error


def read_entry(entry: types.Entry, trust_domain: TrustDomain) -> Entry:
    """Read an entry. Raise UpdateRefused."""
    if not entry.id:
        raise UpdateRefused("malformed_entry", "an entry has no ID")
    try:
        owner = TrustDomain.parse(entry.spiffe_id.trust_domain)
        return Entry(
            id=entry.id,
            spiffe_id=owner.with_path(entry.spiffe_id.path),
            selectors=_selectors(entry, trust_domain, owner),
            federates_with=tuple(bundles.read_trust_domain(name) for name in entry.federates_with),
            hint=entry.hint,
            created_at=entry.created_at,
            expires_at=entry.expires_at,
            revision=(entry.revision_number, entry.created_at, str(entry.spiffe_id.path)),
            store_svid=entry.store_svid,
            privileged=entry.admin or entry.downstream,
            prefetch=not (entry.store_svid or entry.additional_attributes.disable_x509_svid_prefetch),
        )
    except CertsError as error:
        raise UpdateRefused("malformed_entry", f"entry {entry.id!r} cannot be used: {error}") from error


def _selectors(entry: types.Entry, trust_domain: TrustDomain, owner: TrustDomain) -> frozenset[Selector]:
    if owner != trust_domain or not entry.spiffe_id.path:
        raise UpdateRefused("foreign_entry", f"entry {entry.id!r} names no workload of {trust_domain}")
    # An empty set is among everybody's selectors.
    if not entry.selectors:
        raise UpdateRefused("malformed_entry", f"entry {entry.id!r} has no selectors and would match every program")
    return frozenset(Selector.of(one.type, one.value) for one in entry.selectors)


def core_revocation(one: control_pb2.Revocation) -> Revocation:
    """Return one revocation as the core takes it."""
    kind = one.WhichOneof("kind")
    if kind == "serial":
        return Revocation(serial=one.serial, reason=one.reason)
    if kind == "authority_id":
        return Revocation(authority_id=one.authority_id, reason=one.reason)
    return Revocation(pattern=one.issued_before.pattern, issued_before=one.issued_before.time, reason=one.reason)


def certs_revocation(one: control_pb2.Revocation, trust_domain: TrustDomain) -> certs.Revocation:
    """Return one revocation as `certs` takes it. Raise PatternError, or UpdateRefused when its kind is unknown."""
    kind = one.WhichOneof("kind")
    if kind is None:
        raise UpdateRefused("unknown_revocation", "the update has a revocation of an unknown kind")
    if kind == "serial":
        return certs.Revocation(serial=one.serial, reason=one.reason)
    if kind == "authority_id":
        return certs.Revocation(authority_id=one.authority_id, reason=one.reason)
    pattern = IdPattern.parse(one.issued_before.pattern, trust_domain, allow_reserved=True)
    return certs.Revocation(pattern=pattern, issued_before=one.issued_before.time, reason=one.reason)
