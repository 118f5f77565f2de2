# SPDX-License-Identifier: Apache-2.0
"""SPIRE's TrustDomain service: with whom we federate, and fetching their bundles now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from firedoor.broker.errors import BrokerError, EndpointError, InvalidRequest, NotFound
from firedoor.broker.messages import bundle_message
from firedoor.broker.relationship import Relationship, parse_relationship
from firedoor.broker.rpc.bundles import parse_bundle
from firedoor.broker.rpc.listing import batch, page
from firedoor.broker.rpc.masks import overlay, show
from firedoor.broker.rpc.promotion import check_trust_domain
from firedoor.broker.rpc.status import OK, RpcStatus, status_of
from firedoor.certs import CertsError, SpiffeIdError, TrustBundle, TrustDomain
from firedoor.wire import trustdomain_pb2 as pb
from firedoor.wire import types
from firedoor.wire.well_known import Empty

if TYPE_CHECKING:
    from firedoor.broker.federation import Federation
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State

MAX_BATCH: Final = 256


class TrustDomainService:
    """`spire.api.server.trustdomain.v1.TrustDomain`."""

    def __init__(self, state: State, federation: Federation) -> None:
        self._state, self._federation = state, federation

    async def ListFederationRelationships(
        self, request: pb.ListFederationRelationshipsRequest, _: Call
    ) -> pb.ListFederationRelationshipsResponse:
        """List relationships, a page at a time."""
        known = self._federation.relationships.values()
        found, token = page(known, lambda one: one.trust_domain.name, request.page_size, request.page_token)
        mask = request.output_mask if request.HasField("output_mask") else None
        return pb.ListFederationRelationshipsResponse(
            federation_relationships=[show(self._message(one), mask) for one in found], next_page_token=token
        )

    async def GetFederationRelationship(
        self, request: pb.GetFederationRelationshipRequest, call: Call
    ) -> types.FederationRelationship:
        """Show one relationship with its bundle."""
        trust_domain = _read_trust_domain(request.trust_domain)
        call.audit["trust_domain"] = trust_domain.name
        one = self._federation.relationships.get(trust_domain)
        if one is None:
            raise NotFound("federation relationship does not exist")
        return show(self._message(one), request.output_mask if request.HasField("output_mask") else None)

    async def BatchCreateFederationRelationship(
        self, request: pb.BatchCreateFederationRelationshipRequest, call: Call
    ) -> pb.BatchCreateFederationRelationshipResponse:
        """Add relationships, each by itself; their bundles are fetched at once."""
        mask = request.output_mask if request.HasField("output_mask") else None

        async def create(message: types.FederationRelationship) -> Relationship:
            one, bundle = self._parse(message)
            check_trust_domain(self._state, call, one.trust_domain)
            await self._federation.create(one, bundle)
            return one

        result = pb.BatchCreateFederationRelationshipResponse.Result
        made = await self._each(request.federation_relationships, create, call, mask)
        return pb.BatchCreateFederationRelationshipResponse(
            results=[result(status=status, federation_relationship=shown) for status, shown in made]
        )

    async def BatchUpdateFederationRelationship(
        self, request: pb.BatchUpdateFederationRelationshipRequest, call: Call
    ) -> pb.BatchUpdateFederationRelationshipResponse:
        """Change what the input mask names (everything without one), each relationship by itself."""
        input_mask = request.input_mask if request.HasField("input_mask") else None
        mask = request.output_mask if request.HasField("output_mask") else None

        async def update(message: types.FederationRelationship) -> Relationship:
            present = self._federation.relationships.get(_read_trust_domain(message.trust_domain))
            if present is None:
                raise NotFound("failed to update federation relationship: federation relationship not found")
            one, bundle = self._parse(_overlay(present, message, input_mask))
            check_trust_domain(self._state, call, one.trust_domain)
            await self._federation.update(one, bundle)
            return one

        result = pb.BatchUpdateFederationRelationshipResponse.Result
        made = await self._each(request.federation_relationships, update, call, mask)
        return pb.BatchUpdateFederationRelationshipResponse(
            results=[result(status=status, federation_relationship=shown) for status, shown in made]
        )

    async def BatchDeleteFederationRelationship(
        self, request: pb.BatchDeleteFederationRelationshipRequest, call: Call
    ) -> pb.BatchDeleteFederationRelationshipResponse:
        """Forget relationships; what was fetched stays until the bundle is deleted."""
        results, records = [], []
        for name in batch(request.trust_domains, MAX_BATCH):
            try:
                if not name:
                    raise InvalidRequest("missing trust domain")
                trust_domain = _read_trust_domain(name)
                check_trust_domain(self._state, call, trust_domain)
                await self._federation.delete(trust_domain)
                status = OK
            except BrokerError as error:
                status = status_of(error)
            shown = name.removeprefix("spiffe://")
            results.append(
                pb.BatchDeleteFederationRelationshipResponse.Result(status=status.in_batch(), trust_domain=shown)
            )
            records.append({"trust_domain": shown[:255], "status_code": status.code.value[0]})
        call.audit["each"] = records
        return pb.BatchDeleteFederationRelationshipResponse(results=results)

    async def RefreshBundle(self, request: pb.RefreshBundleRequest, call: Call) -> Empty:
        """Fetch a bundle now."""
        trust_domain = _read_trust_domain(request.trust_domain)
        call.audit["trust_domain"] = trust_domain.name
        try:
            await self._federation.refresh(trust_domain)
        except EndpointError as error:
            raise EndpointError(f"failed to refresh bundle: {error}") from None
        return Empty()

    async def _each(
        self,
        messages: Sequence[types.FederationRelationship],
        work: Callable[[types.FederationRelationship], Awaitable[Relationship]],
        call: Call,
        mask: types.FederationRelationshipMask | None,
    ) -> list[tuple[types.Status, types.FederationRelationship | None]]:
        made: list[tuple[types.Status, types.FederationRelationship | None]] = []
        records: list[dict[str, Any]] = []
        for message in batch(messages, MAX_BATCH):
            try:
                one = await work(message)
                status: RpcStatus = OK
                made.append((OK.in_batch(), show(self._message(one), mask)))
            except (BrokerError, CertsError) as error:
                status = status_of(error)
                made.append((status.in_batch(), None))
            records.append(
                {
                    "trust_domain": message.trust_domain[:255],
                    "bundle_endpoint_url": message.bundle_endpoint_url[:2048],
                    "endpoint_spiffe_id": message.https_spiffe.endpoint_spiffe_id[:2048],
                    "status_code": status.code.value[0],
                }
            )
        call.audit["each"] = records
        return made

    def _parse(self, message: types.FederationRelationship) -> tuple[Relationship, TrustBundle | None]:
        try:
            one = parse_relationship(message)
            bundle = parse_bundle(message.trust_domain_bundle) if message.HasField("trust_domain_bundle") else None
        except (InvalidRequest, CertsError) as error:
            raise InvalidRequest(f"failed to convert federation relationship: {error}") from None
        if one.trust_domain == self._state.trust_domain:
            raise InvalidRequest("unable to create federation relationship for server trust domain")
        if bundle is not None and bundle.trust_domain != one.trust_domain:
            raise InvalidRequest(
                f'failed to convert federation relationship: trust domain bundle ("{bundle.trust_domain}") must match '
                f'the trust domain of the federation relationship ("{one.trust_domain}")'
            )
        return one, bundle

    def _message(self, one: Relationship) -> types.FederationRelationship:
        made, bundle = one.message(), self._state.bundles.get(one.trust_domain)
        if bundle is not None:
            made.trust_domain_bundle.CopyFrom(bundle_message(bundle))
        return made


def _overlay(
    present: Relationship, given: types.FederationRelationship, mask: types.FederationRelationshipMask | None
) -> types.FederationRelationship:
    """Return the whole relationship that is wanted."""
    if mask is None:
        return given
    made = overlay(present.message(), given, mask)
    # The mask's one name stands for either profile, which are fields of their own.
    chosen = given if mask.bundle_endpoint_profile else present.message()
    made.ClearField("https_web")
    made.ClearField("https_spiffe")
    profile = chosen.WhichOneof("bundle_endpoint_profile")
    if profile is not None:
        getattr(made, profile).CopyFrom(getattr(chosen, profile))
        getattr(made, profile).SetInParent()
    return made


def _read_trust_domain(name: str) -> TrustDomain:
    try:
        return TrustDomain.parse(name.removeprefix("spiffe://"))
    except SpiffeIdError as error:
        raise InvalidRequest(f"failed to parse trust domain: {error}") from None
