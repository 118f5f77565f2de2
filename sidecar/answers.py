# SPDX-License-Identifier: Apache-2.0
"""What is told about a workload, whoever asks: the program itself, or one that is trusted to ask for it.

Which API it is told by is a matter of the message that is filled in; what stands in it is decided here. Everything
raises SidecarError.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from firedoor.certs import SpiffeId, SpiffeIdError, TrustBundle
from firedoor.sidecar.demand import Subscription
from firedoor.sidecar.errors import Incomplete, NotEntitled, NotReady, RequestRefused
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import Identity
from firedoor.sidecar.streams import Selectors, patiently
from firedoor.sidecar.tokens import Token, Tokens, jwt_tokens
from firedoor.sidecar.view import Entry
from firedoor.wire import brokerapi_pb2, workload_pb2

T = TypeVar("T")
X509 = TypeVar("X509", workload_pb2.X509SVIDResponse, brokerapi_pb2.SubscribeToX509SVIDResponse)


class Answers:
    """Answers about workloads. `for_others`: to a program that asks for them, which gets no privileged identity.

    `anybody_verifies`: our own bundle, which is no secret, goes to workloads without an identity too.
    """

    def __init__(
        self,
        holder: Holder,
        now: Callable[[], float],
        tokens: Tokens,
        *,
        for_others: bool = False,
        anybody_verifies: bool = False,
    ) -> None:
        self.holder, self.now, self._tokens = holder, now, tokens
        self._for_others, self._anybody_verifies = for_others, anybody_verifies

    def entries(self, selectors: Selectors) -> Sequence[Entry]:
        """Return what a workload is entitled to, the oldest first."""
        view = self.holder.view
        if not view.synced:
            raise NotReady("the sidecar has not heard from its server yet")
        entries = view.matching(selectors, self.now())
        if self._for_others:
            entries = tuple(one for one in entries if not one.privileged)
        if not entries:
            raise NotEntitled
        return entries

    async def entries_soon(self, selectors: Selectors) -> Sequence[Entry]:
        """Return the same; wait a moment when the server has not been heard yet."""

        async def ask() -> Sequence[Entry]:
            return self.entries(selectors)

        return await patiently(self.holder, ask)

    def admitted(self, selectors: Selectors) -> Sequence[Entry]:
        """Return those of the entries that the server issues for."""
        refused = self.holder.not_admitted()
        entries = [one for one in self.entries(selectors) if one.id not in refused]
        if not entries:
            raise NotEntitled
        return entries

    def held(self, entries: Iterable[Entry], wanted: Subscription) -> Sequence[Identity]:
        """Return the identities of these entries that are held; `wanted` has the others fetched."""
        wanted.want(one.id for one in entries)
        held, now = self.holder.identities, self.now()
        return [held[one.id] for one in entries if one.id in held and held[one.id].live(now)]

    def whole(self, response: T, entries: Iterable[Entry], found: Sequence[Identity]) -> T:
        """Return an answer with these identities, unless more of them are to come."""
        if not found:
            raise NotReady("the identity is not issued yet")
        lacking = {one.id for one in entries} - {one.entry.id for one in found}
        if lacking - self.holder.refusals.keys():
            raise Incomplete(response)
        return response

    def x509(self, selectors: Selectors, wanted: Subscription, response: X509) -> X509:
        """Fill in a workload's X.509-SVIDs, and the bundles that it federates with."""
        entries = distinct_hints(self.admitted(selectors))
        found, view = self.held(entries, wanted), self.holder.view
        own = view.bundles[view.trust_domain].to_der()
        for one in found:
            response.svids.add(
                spiffe_id=str(one.svid.id),
                x509_svid=b"".join(one.svid.chain),
                x509_svid_key=one.key.private,
                bundle=own,
                hint=one.entry.hint,
            )
        response.crl.extend(self.holder.crls)
        response.federated_bundles.update(x509_bundles(self.federated(entries)))
        return self.whole(response, entries, found)

    def federated(self, entries: Iterable[Entry]) -> Sequence[TrustBundle]:
        """Return the bundles of other trust domains that these entries federate with."""
        view = self.holder.view
        return [one for one in view.trusted(entries) if one.trust_domain != view.trust_domain]

    def bundles(self, selectors: Selectors) -> Sequence[TrustBundle]:
        """Return what a workload may trust: our own bundle and those that its entries federate with."""
        try:
            entries = self.entries(selectors)
        except NotEntitled:
            if not self._anybody_verifies:
                raise
            entries = ()
        return self.holder.view.trusted(entries)

    async def bundles_soon(self, selectors: Selectors) -> Sequence[TrustBundle]:
        """Return the same; wait a moment when the server has not been heard yet."""

        async def ask() -> Sequence[TrustBundle]:
            return self.bundles(selectors)

        return await patiently(self.holder, ask)

    async def tokens(
        self, selectors: Selectors, spiffe_id: str, audience: Sequence[str], *, hints: bool = True
    ) -> Sequence[tuple[Entry, Token]]:
        """Return JWT-SVIDs of a workload: of one identity, or of all, with distinct hints unless told otherwise."""
        if not audience:
            raise RequestRefused("audience must be specified")
        entries = await self.entries_soon(selectors)
        if spiffe_id or hints:
            entries = named(entries, spiffe_id)
        return await jwt_tokens(self._tokens, entries, audience, lambda: self.entries(selectors))

    async def token(self, entry: Entry, audience: Sequence[str]) -> Token:
        """Return a JWT-SVID for an entry that a workload was found entitled to."""
        return await self._tokens.get(entry, audience)


def x509_bundles(bundles: Iterable[TrustBundle]) -> dict[str, bytes]:
    """Return bundles by trust domain ID, roots as concatenated DER."""
    return {str(one.trust_domain.id): one.to_der() for one in bundles}


def jwt_bundles(bundles: Iterable[TrustBundle]) -> dict[str, bytes]:
    """Return bundles by trust domain ID, as JWKS with keys for JWT-SVIDs alone."""
    return {str(one.trust_domain.id): one.to_jwt_json() for one in bundles}


def wit_bundles(bundles: Iterable[TrustBundle]) -> dict[str, str]:
    """Return bundles by trust domain ID, as JWKS with keys for WIT-SVIDs alone."""
    return {str(one.trust_domain.id): one.to_wit_json().decode() for one in bundles}


def distinct_hints(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out each entry whose hint an older one has: hints are unique in an answer."""
    seen: set[str] = set()
    kept = []
    for entry in entries:
        if entry.hint and entry.hint in seen:
            continue
        seen.add(entry.hint)
        kept.append(entry)
    return kept


def named(entries: Sequence[Entry], wanted: str) -> Sequence[Entry]:
    """Return the entries that give an ID; none named, all with distinct hints. Raise NotEntitled, RequestRefused."""
    if not wanted:
        return distinct_hints(entries)
    try:
        spiffe_id = SpiffeId.parse(wanted)
    except SpiffeIdError as error:
        raise RequestRefused(f"the requested SPIFFE ID is none: {error}") from None
    found = [one for one in entries if one.spiffe_id == spiffe_id]
    if not found:
        raise NotEntitled
    return found
