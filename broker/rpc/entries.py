# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Entry service: what administrators write, and what agents may know of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from firedoor.broker.audit import redact_id
from firedoor.broker.db.entry_rows import delete_entry, insert_entry, update_entry
from firedoor.broker.db.rows import Revoked, revoke_issued
from firedoor.broker.db.settled import settled
from firedoor.broker.downstream import check_segments
from firedoor.broker.entry import Entry, is_node_alias, parse_entry, parse_segments, parse_spiffe_id
from firedoor.broker.errors import AlreadyExists, BrokerError, Conflict, InvalidRequest, NotAdmitted, NotFound
from firedoor.broker.messages import entry_message
from firedoor.broker.rpc.authorized_entries import AuthorizedEntries
from firedoor.broker.rpc.listing import batch, filter_selectors, matches, page
from firedoor.broker.rpc.masks import overlay, show
from firedoor.broker.rpc.promotion import check_entries, without_token
from firedoor.broker.rpc.status import OK, status_of
from firedoor.certs import CertsError, SpiffeId
from firedoor.segments import AdmissionRefused, Refused, check_entry
from firedoor.wire import entry_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.rpc.authorized_entries import Encoded
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

# Under gRPC's 4 MB with the largest entries that are allowed; more must come in several calls.
MAX_BATCH: Final = 10_000
# How often an update starts anew when another one came first.
_ATTEMPTS: Final = 5


class EntryService:
    """`spire.api.server.entry.v1.Entry`."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy
        self._authorized = AuthorizedEntries(state, policy)

    # --- administrators -----------------------------------------------------------------------------------------

    async def CountEntries(self, request: entry_pb2.CountEntriesRequest, _: Call) -> entry_pb2.CountEntriesResponse:
        """Count the entries that pass the filter."""
        given = request.filter if request.HasField("filter") else None
        return entry_pb2.CountEntriesResponse(count=len(self._filtered(given)))

    async def ListEntries(self, request: entry_pb2.ListEntriesRequest, call: Call) -> entry_pb2.ListEntriesResponse:
        """List the entries that pass the filter, a page at a time."""
        given = request.filter if request.HasField("filter") else None
        found, token = page(self._filtered(given), lambda entry: entry.id, request.page_size, request.page_token)
        mask = request.output_mask if request.HasField("output_mask") else None
        return entry_pb2.ListEntriesResponse(
            entries=[show(self._message(entry, call), mask) for entry in found], next_page_token=token
        )

    async def GetEntry(self, request: entry_pb2.GetEntryRequest, call: Call) -> types.Entry:
        """Show one entry."""
        if not request.id:
            raise InvalidRequest("missing entry ID")
        entry = self._present(request.id)
        return show(self._message(entry, call), request.output_mask if request.HasField("output_mask") else None)

    async def BatchCreateEntry(
        self, request: entry_pb2.BatchCreateEntryRequest, call: Call
    ) -> entry_pb2.BatchCreateEntryResponse:
        """Create entries, each by itself. What its segment does not admit is refused here already."""
        mask = request.output_mask if request.HasField("output_mask") else None
        results, records = [], []
        for message, outcome in zip(
            request.entries,
            await asyncio.gather(*(self._create(one, call) for one in batch(request.entries, MAX_BATCH))),
            strict=True,
        ):
            results.append(entry_pb2.BatchCreateEntryResponse.Result(status=outcome.status, entry=outcome.shown(mask)))
            records.append(self._record(outcome, message))
        call.audit["each"] = records
        return entry_pb2.BatchCreateEntryResponse(results=results)

    async def _create(self, message: types.Entry, call: Call) -> _Outcome:
        try:
            entry = _listing(parse_entry(message, self._state.trust_domain), call.segments, ())
            check_entries(self._state, call, [entry])
            entry = replace(entry, id=entry.id or str(uuid.uuid4()), created_at=self._state.clock.now())
            self._admit(entry)
            await self._state.change(
                lambda connection: insert_entry(connection, entry), lambda _: self._state.entries.put(entry)
            )
        except AlreadyExists as error:
            # SPIRE returns the entry that is there, so that a client can go on with it.
            similar = self._similar(message)
            shown = without_token(self._state, call, similar) if similar else None
            return _Outcome(status_of(error).in_batch(), shown)
        except (BrokerError, CertsError) as error:
            return _refusal(error)
        return _Outcome(OK.in_batch(), entry)

    async def BatchUpdateEntry(
        self, request: entry_pb2.BatchUpdateEntryRequest, call: Call
    ) -> entry_pb2.BatchUpdateEntryResponse:
        """Change the fields that the input mask names (all without one), each entry by itself."""
        input_mask = request.input_mask if request.HasField("input_mask") else None
        mask = request.output_mask if request.HasField("output_mask") else None
        results, records = [], []
        for message in batch(request.entries, MAX_BATCH):
            outcome = await self._update(message, input_mask, call)
            results.append(entry_pb2.BatchUpdateEntryResponse.Result(status=outcome.status, entry=outcome.shown(mask)))
            records.append(self._record(outcome, message))
        call.audit["each"] = records
        return entry_pb2.BatchUpdateEntryResponse(results=results)

    async def _update(self, message: types.Entry, mask: types.EntryMask | None, call: Call) -> _Outcome:
        for _ in range(_ATTEMPTS):
            present = self._state.entries.get(message.id)
            try:
                return await self._replace(message, mask, call)
            except (BrokerError, CertsError) as error:
                # Somebody else changed it in between: start from what is there now.
                if not isinstance(error, NotFound) or self._state.entries.get(message.id) is present:
                    return _refusal(error)
        return _refusal(Conflict("the entry is changing too often; try again"))

    async def _replace(self, message: types.Entry, mask: types.EntryMask | None, call: Call) -> _Outcome:
        if not message.id:
            raise InvalidRequest("missing entry ID")
        present = self._present(message.id)
        wanted = types.Entry()
        wanted.CopyFrom(overlay(entry_message(present), message, mask))
        wanted.id = present.id
        entry = replace(
            _listing(parse_entry(wanted, self._state.trust_domain), call.segments, present.segments),
            revision_number=present.revision_number + 1,
            created_at=present.created_at,
            origin=present.origin,
        )
        check_entries(self._state, call, [present, entry])
        self._check_by_hand(present)
        self._admit(entry)
        await self._state.change(
            lambda connection: update_entry(connection, entry), lambda _: self._state.entries.put(entry)
        )
        return _Outcome(OK.in_batch(), entry, before=present)

    async def BatchDeleteEntry(
        self, request: entry_pb2.BatchDeleteEntryRequest, call: Call
    ) -> entry_pb2.BatchDeleteEntryResponse:
        """Delete entries, each by itself, and revoke what was issued through them."""
        results, records = [], []
        outcomes = await asyncio.gather(*(self._delete(entry_id, call) for entry_id in batch(request.ids, MAX_BATCH)))
        for entry_id, outcome in zip(request.ids, outcomes, strict=True):
            results.append(entry_pb2.BatchDeleteEntryResponse.Result(status=outcome.status, id=entry_id))
            records.append({"entry_id": entry_id[:255], "keep_svids": call.keep_svids, **self._changes(outcome)})
        call.audit["each"] = records
        return entry_pb2.BatchDeleteEntryResponse(results=results)

    async def _delete(self, entry_id: str, call: Call) -> _Outcome:
        if not entry_id:
            return _Outcome(status_of(InvalidRequest("missing entry ID")).in_batch())
        try:
            return await settled(lambda: self._take_out(entry_id, call))
        except BrokerError as error:
            return _Outcome(status_of(error).in_batch())

    async def _take_out(self, entry_id: str, call: Call) -> _Outcome:
        # Whether the caller may is decided by what the entry is at its deletion.
        basis = self._state.database.basis("entries")
        now, present = self._state.clock.now(), self._state.entries.get(entry_id)
        check_entries(self._state, call, [present] if present else [])
        if present is not None:
            self._check_by_hand(present)

        def run(connection: Connection) -> list[Revoked]:
            delete_entry(connection, entry_id)
            if call.keep_svids:
                return []
            return revoke_issued(connection, "entry_id", entry_id, "entry_deleted", now)

        def apply(revoked: Sequence[Revoked]) -> None:
            self._state.entries.remove(entry_id)
            self._state.revoked(revoked)

        await self._state.change(run, apply, basis=basis)
        return _Outcome(OK.in_batch(), before=present)

    def _admit(self, entry: Entry) -> None:
        """Refuse an entry that its segment could never admit; which node it runs on is known at the signature only."""
        policy = self._policy.current.policy
        # Without segments nothing is issued at all; node aliases are in none.
        if policy is None or is_node_alias(entry):
            return
        try:
            check_entry(policy, entry.spiffe_id, entry=entry.selectors)
        except Refused as error:
            raise NotAdmitted(str(error), error.redacted if isinstance(error, AdmissionRefused) else "") from None
        if entry.downstream:
            check_segments(entry, policy)

    def _check_by_hand(self, entry: Entry) -> None:
        """Refuse a change that whoever made the entry would undo. Raise Conflict."""
        if entry.origin and entry.origin.startswith(self._state.registers):
            raise Conflict(f"entry {entry.id} is made from {entry.origin}, which would undo this: change it there")

    def _present(self, entry_id: str) -> Entry:
        entry = self._state.entries.get(entry_id)
        if entry is None:
            raise NotFound("entry not found")
        return entry

    def _similar(self, message: types.Entry) -> Entry | None:
        entry = parse_entry(message, self._state.trust_domain)
        same = (e for e in self._state.entries.with_spiffe_id(entry.spiffe_id) if e.similarity == entry.similarity)
        return next(same, None) or self._state.entries.get(entry.id)

    def _record(self, outcome: _Outcome, message: types.Entry) -> dict[str, Any]:
        if outcome.entry is None:
            return {"entry_id": message.id[:255], **outcome.record()}
        return {"entry_id": outcome.entry.id, **self._noted(outcome.entry), **self._changes(outcome)}

    def _changes(self, outcome: _Outcome) -> dict[str, Any]:
        """Return what an entry was before, if it was, and how it ended."""
        before = {"before": self._noted(outcome.before)} if outcome.before else {}
        return {**before, **outcome.record()}

    def _message(self, entry: Entry, call: Call) -> types.Entry:
        return entry_message(without_token(self._state, call, entry))

    def _noted(self, entry: Entry) -> dict[str, Any]:
        """Return what the audit log keeps of an entry: selectors by type and key, an unused join token hashed."""
        spent = entry.parent_id in self._state.agents
        return {
            "spiffe_id": str(entry.spiffe_id),
            "parent_id": str(entry.parent_id) if spent else redact_id(str(entry.parent_id)),
            "selectors": sorted(selector.redacted for selector in entry.selectors),
            "admin": entry.admin,
            "downstream": entry.downstream,
            "segments": list(entry.segments),
            "federates_with": [td.name for td in entry.federates_with],
            "x509_svid_ttl": entry.x509_svid_ttl,
            "expires_at": entry.expires_at,
        }

    def _filtered(
        self, given: entry_pb2.ListEntriesRequest.Filter | entry_pb2.CountEntriesRequest.Filter | None
    ) -> list[Entry]:
        if given is None:
            return list(self._state.entries)
        tests = _tests(given)
        return [entry for entry in self._state.entries if all(test(entry) for test in tests)]

    # --- agents -------------------------------------------------------------------------------------------------

    async def GetAuthorizedEntries(
        self, request: entry_pb2.GetAuthorizedEntriesRequest, call: Call
    ) -> entry_pb2.GetAuthorizedEntriesResponse:
        """Show an agent all that it is entitled to."""
        return self._authorized.get(request, call)

    def SyncAuthorizedEntries(
        self, requests: AsyncIterator[entry_pb2.SyncAuthorizedEntriesRequest], call: Call
    ) -> AsyncIterator[entry_pb2.SyncAuthorizedEntriesResponse | Encoded]:
        """Show an agent what it is entitled to: up to 500 entries at once, else revisions, then entries as asked."""
        return self._authorized.sync(requests, call)


def _listing(entry: Entry, segments: str | None, before: tuple[str, ...]) -> Entry:
    """Return the entry with the segments that are said, or those of before. Raise InvalidRequest."""
    if segments and not entry.downstream:
        raise InvalidRequest("segments are listed by downstream entries alone")
    if not entry.downstream:
        return entry
    return replace(entry, segments=before if segments is None else parse_segments(segments))


def _tests(
    given: entry_pb2.ListEntriesRequest.Filter | entry_pb2.CountEntriesRequest.Filter,
) -> list[Callable[[Entry], bool]]:
    tests: list[Callable[[Entry], bool]] = []
    if given.HasField("by_spiffe_id"):
        spiffe_id = _filter_id(given.by_spiffe_id, "SPIFFE ID")
        tests.append(lambda entry: entry.spiffe_id == spiffe_id)
    if given.HasField("by_parent_id"):
        parent_id = _filter_id(given.by_parent_id, "parent ID")
        tests.append(lambda entry: entry.parent_id == parent_id)
    if given.HasField("by_selectors"):
        selectors, how = filter_selectors(given.by_selectors), given.by_selectors.match
        tests.append(lambda entry: matches(how, entry.selectors, selectors))
    if given.HasField("by_federates_with"):
        if not given.by_federates_with.trust_domains:
            raise InvalidRequest("malformed federates with filter: empty trust domain set")
        names = {name.removeprefix("spiffe://") for name in given.by_federates_with.trust_domains}
        how_federated = given.by_federates_with.match
        tests.append(lambda entry: matches(how_federated, {td.name for td in entry.federates_with}, names))
    if given.HasField("by_hint"):
        tests.append(lambda entry: entry.hint == given.by_hint.value)
    if given.by_downstream.value:
        # SPIRE's tools send `false` whenever nobody asked for downstream entries; it stands for no filter there.
        tests.append(lambda entry: entry.downstream)
    return tests


def _filter_id(message: types.SPIFFEID, what: str) -> SpiffeId:
    try:
        return parse_spiffe_id(message)
    except CertsError as error:
        raise InvalidRequest(f"malformed {what} filter: {error}") from None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one entry of a batch. `noted` is the status's sentence for the audit log, where it differs."""

    status: types.Status
    entry: Entry | None = None
    noted: str = ""
    # What an update or a deletion found.
    before: Entry | None = None

    def shown(self, mask: types.EntryMask | None) -> types.Entry | None:
        return show(entry_message(self.entry), mask) if self.entry else None

    def record(self) -> dict[str, Any]:
        return {"status_code": self.status.code, "status_message": self.noted or self.status.message}


def _refusal(error: Exception) -> _Outcome:
    status = status_of(error)
    message = status.message
    if message.startswith("unable to find federated bundle"):
        message = f"failed to create entry: {message}"
    elif isinstance(error, InvalidRequest):
        message = f"failed to convert entry: {message}"
    noted = error.redacted if isinstance(error, NotAdmitted) else ""
    return _Outcome(replace(status, message=message).in_batch(), noted=noted)
