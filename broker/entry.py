# SPDX-License-Identifier: Apache-2.0
"""Registration entries: which selectors, attested below which parent, get which SPIFFE ID (SPIRE's semantics).

`parse_entry` is the only door from the wire. The sentences are SPIRE's where SPIRE has one: its tools look for them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from firedoor.broker.errors import InvalidRequest
from firedoor.certs import IssueError, Selector, SelectorError, SpiffeId, SpiffeIdError, TrustDomain, check_dns_name
from firedoor.segments.names import is_name
from firedoor.wire import types

MAX_HINT_BYTES: Final = 1024
MAX_SELECTORS: Final = 256
# A certificate has at most 32 alternative names (certs), one of them the SPIFFE ID.
MAX_DNS_NAMES: Final = 31
MAX_FEDERATES: Final = 64
# What a downstream entry may list.
MAX_SEGMENTS: Final = 64
# A year. No SVID outlives its authority anyway; this keeps sums inside 32 bits.
MAX_TTL: Final = 366 * 86400
_ID: Final = re.compile(r"[a-zA-Z0-9_.-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registration entry. TTLs are seconds, 0 for the broker's default; `expires_at` 0 is never."""

    id: str
    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: frozenset[Selector]
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    dns_names: tuple[str, ...] = ()
    admin: bool = False
    downstream: bool = False
    # For which segments a downstream authority may issue; none stands for the fallback segment.
    segments: tuple[str, ...] = ()
    store_svid: bool = False
    hint: str = ""
    expires_at: int = 0
    revision_number: int = 0
    created_at: int = 0
    # None: the request gave no additional attributes.
    attributes: Attributes | None = None
    # What made it, when nobody did by hand: kubernetes:<cluster>/<kind>/<name>.
    origin: str = ""

    @property
    def similarity(self) -> bytes:
        """SHA-256 over SPIFFE ID, parent and selector set: no two entries share it."""
        parts = [str(self.spiffe_id), str(self.parent_id), *sorted(map(str, self.selectors))]
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def expired(self, now: int) -> bool:
        """Say whether the entry is past its own end."""
        return 0 < self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Attributes:
    """SPIRE's additional attributes."""

    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False


def server_id(trust_domain: TrustDomain) -> SpiffeId:
    """Return the broker's own ID, which is also the parent of node aliases."""
    return trust_domain.with_path("/spire/server")


def is_reserved(spiffe_id: SpiffeId) -> bool:
    """Say whether the ID is the broker's or an agent's, never a workload's."""
    return spiffe_id.path == "/spire" or spiffe_id.path.startswith("/spire/")


def check_workload_id(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> SpiffeId:
    """Return the ID of a workload of ours. Raise InvalidRequest with SPIRE's sentences."""
    if spiffe_id.trust_domain != trust_domain:
        raise InvalidRequest(f'"{spiffe_id}" is not a member of trust domain "{trust_domain}"')
    if not spiffe_id.path or is_reserved(spiffe_id):
        why = "path is in the reserved namespace" if spiffe_id.path else "path is empty"
        raise InvalidRequest(f'"{spiffe_id}" is not a workload in trust domain "{trust_domain}"; {why}')
    return spiffe_id


def is_agent(spiffe_id: SpiffeId) -> bool:
    """Say whether the ID is in the space of agent IDs."""
    return spiffe_id.path.startswith("/spire/agent/")


def is_node_alias(entry: Entry) -> bool:
    """Say whether the entry names nodes instead of workloads: nothing is ever issued for it.

    Such are the entries below the server itself, and the one that a join token's `agent_id` makes.
    """
    if entry.parent_id.path == "/spire/server":
        return True
    return is_agent(entry.parent_id) and {(s.type, s.value) for s in entry.selectors} == {
        ("spiffe_id", str(entry.parent_id))
    }


def parse_entry(message: types.Entry, trust_domain: TrustDomain) -> Entry:
    """Check an entry from the wire. Raise InvalidRequest. Revision and creation time are the caller's to set."""
    if message.id and not _ID.fullmatch(message.id):
        raise InvalidRequest("invalid entry ID: it holds letters, digits, dash, dot and underscore, at most 255")
    selectors = parse_selectors(message.selectors)
    if message.store_svid and len({selector.type for selector in selectors}) > 1:
        raise InvalidRequest("invalid registration entry: selector types must be the same when store SVID is enabled")
    return Entry(
        id=message.id,
        spiffe_id=_workload_id(message.spiffe_id, trust_domain),
        parent_id=_member(message.parent_id, trust_domain, "parent"),
        selectors=selectors,
        x509_svid_ttl=_ttl(message.x509_svid_ttl, "X509"),
        jwt_svid_ttl=_ttl(message.jwt_svid_ttl, "JWT"),
        federates_with=_federates(message.federates_with, trust_domain),
        dns_names=check_dns_names(message.dns_names),
        admin=message.admin,
        downstream=message.downstream,
        store_svid=message.store_svid,
        hint=_hint(message.hint),
        expires_at=_expiry(message.expires_at),
        attributes=_attributes(message),
    )


def parse_segments(text: str) -> tuple[str, ...]:
    """Read the names of segments, separated by commas. Raise InvalidRequest."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > MAX_SEGMENTS:
        raise InvalidRequest(f"a downstream entry lists at most {MAX_SEGMENTS} segments")
    for name in names:
        if not is_name(name):
            raise InvalidRequest(f"{name[:64]!r} is no segment's name")
    return tuple(sorted(set(names)))


def parse_spiffe_id(message: types.SPIFFEID) -> SpiffeId:
    """Check an ID in two parts, as SPIRE sends it. Raise SpiffeIdError."""
    return TrustDomain.parse(message.trust_domain.removeprefix("spiffe://")).with_path(message.path)


def parse_selectors(messages: Iterable[types.Selector]) -> frozenset[Selector]:
    """Check a selector list. Raise InvalidRequest, also when it is empty. No message holds a value."""
    found: set[Selector] = set()
    for message in messages:
        if len(found) >= MAX_SELECTORS:
            raise InvalidRequest(f"an entry has at most {MAX_SELECTORS} selectors")
        try:
            found.add(Selector.of(message.type, message.value))
        except SelectorError as error:
            raise InvalidRequest(_SELECTOR_TEXTS.get(error.code, str(error))) from None
    if not found:
        raise InvalidRequest("selector list is empty")
    return frozenset(found)


_SELECTOR_TEXTS: Final = {
    "missing_type": "missing selector type",
    "colon_in_type": "selector type contains ':'",
    "missing_value": "missing selector value",
}


def check_dns_names(names: Sequence[str]) -> tuple[str, ...]:
    """Check DNS names of a certificate; the first label may be `*`. Raise InvalidRequest."""
    if len(names) > MAX_DNS_NAMES:
        raise InvalidRequest(f"an entry has at most {MAX_DNS_NAMES} DNS names")
    for name in names:
        try:
            check_dns_name(name)
        except IssueError as error:
            raise InvalidRequest(f"invalid DNS name: {error}") from None
    wildcards = {name[1:] for name in names if name.startswith("*.")}
    for name in names:
        if not name.startswith("*.") and name[name.find(".") :] in wildcards:
            raise InvalidRequest(f"invalid DNS name: {name} overlaps with a wildcard")
    return tuple(dict.fromkeys(names))


def _member(message: types.SPIFFEID, trust_domain: TrustDomain, what: str) -> SpiffeId:
    try:
        spiffe_id = parse_spiffe_id(message)
    except SpiffeIdError as error:
        raise InvalidRequest(f"invalid {what} ID: {error}") from None
    if spiffe_id.trust_domain != trust_domain:
        raise InvalidRequest(f'invalid {what} ID: "{spiffe_id}" is not a member of trust domain "{trust_domain.name}"')
    if not spiffe_id.path:
        raise InvalidRequest(f"invalid {what} ID: path is empty")
    return spiffe_id


def _workload_id(message: types.SPIFFEID, trust_domain: TrustDomain) -> SpiffeId:
    try:
        return check_workload_id(parse_spiffe_id(message), trust_domain)
    except (SpiffeIdError, InvalidRequest) as error:
        raise InvalidRequest(f"invalid spiffe ID: {error}") from None


def _ttl(seconds: int, what: str) -> int:
    if not 0 <= seconds <= MAX_TTL:
        raise InvalidRequest(f"invalid {what} SVID TTL: it is between 0 and {MAX_TTL} seconds")
    return seconds


def _hint(hint: str) -> str:
    if len(hint.encode()) > MAX_HINT_BYTES:
        raise InvalidRequest(f"hint is too long, max length is {MAX_HINT_BYTES} characters")
    return hint


def _expiry(at: int) -> int:
    if at < 0:
        raise InvalidRequest("invalid expiry: it is a Unix time, or 0 for never")
    return at


def _federates(names: Sequence[str], trust_domain: TrustDomain) -> tuple[TrustDomain, ...]:
    if len(names) > MAX_FEDERATES:
        raise InvalidRequest(f"an entry federates with at most {MAX_FEDERATES} trust domains")
    found: dict[TrustDomain, None] = {}
    for name in names:
        try:
            other = TrustDomain.parse(name.removeprefix("spiffe://"))
        except SpiffeIdError as error:
            raise InvalidRequest(f"invalid federated trust domain: {error}") from None
        if other == trust_domain:
            raise InvalidRequest("invalid federated trust domain: it is the server's own")
        found[other] = None
    return tuple(sorted(found))


def _attributes(message: types.Entry) -> Attributes | None:
    if not message.HasField("additional_attributes"):
        return None
    given = message.additional_attributes
    return Attributes(given.disable_x509_svid_prefetch, given.jwt_svid_include_jti)
