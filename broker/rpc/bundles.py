# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Bundle service: our own bundle for everybody, those of others for who must verify them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from sqlalchemy import Connection

from firedoor.broker.db.entry_rows import delete_entry, update_entry
from firedoor.broker.db.rows import Revoked, delete_bundle, put_bundle, revoke_issued
from firedoor.broker.db.settled import settled
from firedoor.broker.entry import Entry
from firedoor.broker.errors import AlreadyExists, BrokerError, Conflict, InvalidRequest, NotFound
from firedoor.broker.fetched import check_readable
from firedoor.broker.messages import bundle_message
from firedoor.broker.rpc.listing import batch, page
from firedoor.broker.rpc.masks import overlay, show
from firedoor.broker.rpc.own_bundle import append
from firedoor.broker.rpc.promotion import check_entries, check_trust_domain
from firedoor.broker.rpc.status import OK, status_of
from firedoor.certs import CertsError, JwtKey, TrustBundle, TrustDomain, X509Root
from firedoor.mtls import MtlsError
from firedoor.wire import bundle_pb2, types

if TYPE_CHECKING:
    from firedoor.broker.followers import Fetches
    from firedoor.broker.rpc.downstream import Downstream
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

T = TypeVar("T")
MAX_BATCH: Final = 256
_MAX_HINT: Final = 366 * 86400


class BundleService:
    """`spire.api.server.bundle.v1.Bundle`."""

    def __init__(self, state: State, downstream: Downstream, fetches: Fetches) -> None:
        self._state, self._downstream, self._fetches = state, downstream, fetches

    async def GetBundle(self, request: bundle_pb2.GetBundleRequest, call: Call) -> types.Bundle:
        """Show the trust domain's own bundle, and note which agent has it: those without a stream say nothing."""
        mask, own = request.output_mask if request.HasField("output_mask") else None, self._own()
        if mask is None or (mask.x509_authorities and mask.jwt_authorities):
            self._fetches.note(call.caller, own.sequence)
        return show(bundle_message(own), mask)

    async def GetFederatedBundle(self, request: bundle_pb2.GetFederatedBundleRequest, _: Call) -> types.Bundle:
        """Show the bundle of another trust domain."""
        trust_domain = self._foreign(request.trust_domain, "getting")
        bundle = self._state.bundles.get(trust_domain)
        if bundle is None:
            raise NotFound("bundle not found")
        return show(bundle_message(bundle), request.output_mask if request.HasField("output_mask") else None)

    async def CountBundles(self, _request: bundle_pb2.CountBundlesRequest, _: Call) -> bundle_pb2.CountBundlesResponse:
        """Count all bundles, our own among them."""
        return bundle_pb2.CountBundlesResponse(count=len(self._state.bundles))

    async def ListFederatedBundles(
        self, request: bundle_pb2.ListFederatedBundlesRequest, _: Call
    ) -> bundle_pb2.ListFederatedBundlesResponse:
        """List the bundles of other trust domains, a page at a time."""
        others = [bundle for td, bundle in self._state.bundles.items() if td != self._state.trust_domain]
        found, token = page(others, lambda bundle: bundle.trust_domain.name, request.page_size, request.page_token)
        mask = request.output_mask if request.HasField("output_mask") else None
        return bundle_pb2.ListFederatedBundlesResponse(
            bundles=[show(bundle_message(bundle), mask) for bundle in found], next_page_token=token
        )

    async def BatchCreateFederatedBundle(
        self, request: bundle_pb2.BatchCreateFederatedBundleRequest, call: Call
    ) -> bundle_pb2.BatchCreateFederatedBundleResponse:
        """Add bundles that are not there yet."""
        result = bundle_pb2.BatchCreateFederatedBundleResponse.Result
        mask = request.output_mask if request.HasField("output_mask") else None
        results = [
            result(status=status, bundle=show(bundle_message(bundle), mask) if bundle else None)
            for status, bundle in await self._put_all(request.bundle, call, self._absent)
        ]
        return bundle_pb2.BatchCreateFederatedBundleResponse(results=results)

    async def BatchSetFederatedBundle(
        self, request: bundle_pb2.BatchSetFederatedBundleRequest, call: Call
    ) -> bundle_pb2.BatchSetFederatedBundleResponse:
        """Write bundles, whether they are there or not."""
        result = bundle_pb2.BatchSetFederatedBundleResponse.Result
        mask = request.output_mask if request.HasField("output_mask") else None
        results = [
            result(status=status, bundle=show(bundle_message(bundle), mask) if bundle else None)
            for status, bundle in await self._put_all(request.bundle, call, lambda _: None)
        ]
        return bundle_pb2.BatchSetFederatedBundleResponse(results=results)

    async def BatchUpdateFederatedBundle(
        self, request: bundle_pb2.BatchUpdateFederatedBundleRequest, call: Call
    ) -> bundle_pb2.BatchUpdateFederatedBundleResponse:
        """Change what the input mask names (everything without one) of bundles that are there."""
        result = bundle_pb2.BatchUpdateFederatedBundleResponse.Result
        input_mask = request.input_mask if request.HasField("input_mask") else None
        mask = request.output_mask if request.HasField("output_mask") else None

        def whole(message: types.Bundle) -> types.Bundle:
            present = self._state.bundles.get(self._foreign(message.trust_domain, "updating"))
            if present is None:
                raise NotFound("bundle not found")
            return overlay(bundle_message(present), message, input_mask)

        results = [
            result(status=status, bundle=show(bundle_message(bundle), mask) if bundle else None)
            for status, bundle in await self._put_all(request.bundle, call, lambda _: None, whole)
        ]
        return bundle_pb2.BatchUpdateFederatedBundleResponse(results=results)

    async def BatchDeleteFederatedBundle(
        self, request: bundle_pb2.BatchDeleteFederatedBundleRequest, call: Call
    ) -> bundle_pb2.BatchDeleteFederatedBundleResponse:
        """Delete bundles. Entries that federate with one forbid it, are deleted too, or forget it, as the mode says."""
        if request.mode not in bundle_pb2.BatchDeleteFederatedBundleRequest.Mode.values():
            raise InvalidRequest(f"failed to parse deletion mode: unhandled delete mode {request.mode}")
        call.audit["mode"] = bundle_pb2.BatchDeleteFederatedBundleRequest.Mode.Name(request.mode)
        results, records = [], []
        for name in batch(request.trust_domains, MAX_BATCH):
            try:
                foreign = self._foreign(name, "removing")
                await self._alone(lambda: self._delete(foreign, request.mode, call))  # noqa: B023 - awaited at once
                status = OK.in_batch()
            except BrokerError as error:
                status = status_of(error).in_batch()
            results.append(bundle_pb2.BatchDeleteFederatedBundleResponse.Result(status=status, trust_domain=name))
            records.append({"trust_domain": name[:255], "status_code": status.code})
        call.audit["each"] = records
        return bundle_pb2.BatchDeleteFederatedBundleResponse(results=results)

    async def _alone(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Change a bundle of others while no fetch does, and again when another broker came first."""
        return await self._state.foreign_bundles.run(lambda: settled(attempt))

    async def _delete(self, trust_domain: TrustDomain, mode: int, call: Call) -> None:
        state, now = self._state, self._state.clock.now()
        check_trust_domain(state, call, trust_domain)
        basis = state.database.basis("bundles", "entries")
        users = [entry for entry in state.entries if trust_domain in entry.federates_with]
        if users and mode == bundle_pb2.BatchDeleteFederatedBundleRequest.RESTRICT:
            raise Conflict(
                "failed to delete federated bundle: "
                f"cannot delete bundle; federated with {len(users)} registration entries"
            )
        check_entries(state, call, users)
        gone = mode == bundle_pb2.BatchDeleteFederatedBundleRequest.DELETE
        alone = [_without(entry, trust_domain) for entry in users]

        def run(connection: Connection) -> list[Revoked]:
            revoked: list[Revoked] = []
            for entry in alone:
                if gone:
                    delete_entry(connection, entry.id)
                    revoked += revoke_issued(connection, "entry_id", entry.id, "entry_deleted", now)
                else:
                    update_entry(connection, entry)
            delete_bundle(connection, trust_domain)
            return revoked

        def apply(revoked: Sequence[Revoked]) -> None:
            for entry in alone:
                if gone:
                    state.entries.remove(entry.id)
                else:
                    state.entries.put(entry)
            state.revoked(revoked)
            state.drop_bundle(trust_domain)

        await state.change(run, apply, basis=basis)

    async def _put_all(
        self,
        messages: Any,
        call: Call,
        check: Callable[[TrustDomain], None],
        whole: Callable[[types.Bundle], types.Bundle] = lambda message: message,
    ) -> list[tuple[types.Status, TrustBundle | None]]:
        results: list[tuple[types.Status, TrustBundle | None]] = []
        records: list[dict[str, Any]] = []
        for message in batch(messages, MAX_BATCH):
            records.append({"trust_domain": message.trust_domain[:255]})
            try:
                bundle = await self._alone(
                    lambda: self._put(message, call, check, whole, records[-1])  # noqa: B023 - awaited at once
                )
                results.append((OK.in_batch(), bundle))
            except (BrokerError, CertsError) as error:
                results.append((status_of(error).in_batch(), None))
        call.audit["each"] = [
            {**record, "status_code": status.code} for record, (status, _) in zip(records, results, strict=True)
        ]
        return results

    async def _put(
        self,
        message: types.Bundle,
        call: Call,
        check: Callable[[TrustDomain], None],
        whole: Callable[[types.Bundle], types.Bundle],
        record: dict[str, Any],
    ) -> TrustBundle:
        basis = self._state.database.basis("bundles", "entries")
        bundle = self._parse(whole(message))
        check(bundle.trust_domain)
        check_trust_domain(self._state, call, bundle.trust_domain)
        before = self._state.bundles.get(bundle.trust_domain)
        record |= {"before": _authorities(before), "after": _authorities(bundle)}

        def run(connection: Connection) -> None:
            put_bundle(connection, bundle)

        await self._state.change(run, lambda _: self._state.put_bundle(bundle), basis=basis)
        return bundle

    def _absent(self, trust_domain: TrustDomain) -> None:
        if trust_domain in self._state.bundles:
            raise AlreadyExists("bundle already exists")

    def _parse(self, message: types.Bundle) -> TrustBundle:
        self._foreign(message.trust_domain, "setting")
        return parse_bundle(message)

    # --- our own ------------------------------------------------------------------------------------------------

    async def AppendBundle(self, request: bundle_pb2.AppendBundleRequest, call: Call) -> types.Bundle:
        """Add authorities to our own bundle; what is in it stays as it is."""
        mask = request.output_mask if request.HasField("output_mask") else None
        call.audit["authorities"] = await append(self._state, request)
        return show(bundle_message(self._own()), mask)

    # --- keys of authorities below us ---------------------------------------------------------------------------

    async def PublishJWTAuthority(
        self, request: bundle_pb2.PublishJWTAuthorityRequest, call: Call
    ) -> bundle_pb2.PublishJWTAuthorityResponse:
        """Put a key for JWT-SVIDs into our own bundle; return all that are in it."""
        if not request.HasField("jwt_authority"):
            raise InvalidRequest("missing JWT authority")
        await self._downstream.publish("jwt", request.jwt_authority, call)
        return bundle_pb2.PublishJWTAuthorityResponse(jwt_authorities=bundle_message(self._own()).jwt_authorities)

    async def PublishWITAuthority(
        self, request: bundle_pb2.PublishWITAuthorityRequest, call: Call
    ) -> bundle_pb2.PublishWITAuthorityResponse:
        """Put a key for WIT-SVIDs into our own bundle; return all that are in it."""
        if not request.HasField("wit_authority"):
            raise InvalidRequest("missing WIT authority")
        await self._downstream.publish("wit", request.wit_authority, call)
        return bundle_pb2.PublishWITAuthorityResponse(wit_authorities=bundle_message(self._own()).wit_authorities)

    def _foreign(self, name: str, what: str) -> TrustDomain:
        try:
            trust_domain = TrustDomain.parse(name.removeprefix("spiffe://"))
        except CertsError as error:
            raise InvalidRequest(f"trust domain argument is not valid: {error}") from None
        if trust_domain == self._state.trust_domain:
            if what == "removing":
                raise InvalidRequest("removing the bundle for the server trust domain is not allowed")
            raise InvalidRequest(f"{what} a federated bundle for the server's own trust domain is not allowed")
        return trust_domain

    def _own(self) -> TrustBundle:
        bundle = self._state.bundles.get(self._state.trust_domain)
        if bundle is None:
            raise NotFound("bundle not found")
        return bundle


def _authorities(bundle: TrustBundle | None) -> list[str]:
    """Return what the audit log keeps of a bundle: the IDs of its authorities."""
    if bundle is None:
        return []
    keys = (key.key_id[:255] for key in (*bundle.jwt_keys, *bundle.wit_keys))
    return [*(root.authority_id for root in bundle.x509_roots), *keys]


def _without(entry: Entry, trust_domain: TrustDomain) -> Entry:
    others = tuple(other for other in entry.federates_with if other != trust_domain)
    return replace(entry, federates_with=others, revision_number=entry.revision_number + 1)


def parse_bundle(message: types.Bundle) -> TrustBundle:
    """Read a bundle from the wire. Raise InvalidRequest or CertsError."""
    trust_domain = TrustDomain.parse(message.trust_domain.removeprefix("spiffe://"))
    if not 0 <= message.refresh_hint <= _MAX_HINT:
        raise InvalidRequest("the refresh hint is not a number of seconds up to a year")
    roots = TrustBundle.of(trust_domain, [authority.asn1 for authority in message.x509_authorities])
    tainted = {authority.asn1 for authority in message.x509_authorities if authority.tainted}
    given = replace(
        roots,
        jwt_keys=tuple(JwtKey(key.key_id, key.public_key, max(0, key.expires_at)) for key in message.jwt_authorities),
        wit_keys=tuple(JwtKey(key.key_id, key.public_key, max(0, key.expires_at)) for key in message.wit_authorities),
        sequence=message.sequence_number,
        refresh_hint=message.refresh_hint,
    )
    try:
        # What comes back from the database after a restart is what is in force from the beginning.
        read = TrustBundle.parse(trust_domain, given.to_json())
        check_readable(read)
    except (CertsError, ValueError, UnsupportedAlgorithm, MtlsError):
        raise InvalidRequest("a key or certificate of the bundle cannot be read") from None
    return replace(read, x509_roots=tuple(X509Root(root.der, root.der in tainted) for root in read.x509_roots))
