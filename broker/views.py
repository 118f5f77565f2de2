# SPDX-License-Identifier: Apache-2.0
"""What one sidecar is told: its own entries, the bundles that they federate with, its part of the policy, revocations.

Pure. Updates are full; what many views share (a policy part, the bundles of the same trust domains) is built once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from firedoor.broker.authorized import Entitlement
from firedoor.broker.db.rows import Generation, Revoked
from firedoor.broker.messages import bundle_message, entry_message
from firedoor.broker.policy import Compiled
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.wire import control_pb2, policy_pb2
from firedoor.wire.views import view_hash

# The version of the conversation in firedoor/control/v1/control.proto.
VERSION: Final = 1


class Viewer:
    """Builds the views of one state; make a new one when bundles, policy or revocations change."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        bundles: Mapping[TrustDomain, TrustBundle],
        policy: Compiled,
        revocations: Iterable[Revoked],
    ) -> None:
        self._own, self._bundles, self._policy = trust_domain, bundles, policy
        revoked = sorted(revocations, key=lambda one: (one.kind, one.value))
        self._revocations = control_pb2.Part(
            revocations=control_pb2.Revocations(revocations=[_revocation(one) for one in revoked])
        )
        self._bundle_parts: dict[frozenset[TrustDomain], control_pb2.Part] = {}
        # By the identity of the table that `Views` shares; the table is kept so that its identity stays its own.
        self._policy_parts: dict[int, tuple[policy_pb2.Table, control_pb2.Part]] = {}

    def update(self, entitlement: Entitlement, generation: Generation) -> bytes:
        """Return the encoded FromBroker message with everything for one agent."""
        parts = self._parts(entitlement)
        update = control_pb2.Update(
            generation=control_pb2.Generation(epoch=generation.epoch, number=generation.number),
            view_hash=view_hash(parts),
            parts=parts,
        )
        return control_pb2.FromBroker(update=update).SerializeToString(deterministic=True)

    def _parts(self, entitlement: Entitlement) -> list[control_pb2.Part]:
        entries = sorted(entitlement.workloads.values(), key=lambda entry: entry.id)
        federated = frozenset(td for entry in entries for td in entry.federates_with)
        return [
            control_pb2.Part(entries=control_pb2.Entries(entries=[entry_message(entry) for entry in entries])),
            self._bundle_part(federated),
            self._policy_part(entitlement),
            self._revocations,
        ]

    def _bundle_part(self, federated: frozenset[TrustDomain]) -> control_pb2.Part:
        made = self._bundle_parts.get(federated)
        if made is None:
            names = [td for td in (self._own, *sorted(federated)) if td in self._bundles]
            bundles = [bundle_message(self._bundles[td]) for td in names]
            made = self._bundle_parts[federated] = control_pb2.Part(bundles=control_pb2.Bundles(bundles=bundles))
        return made

    def _policy_part(self, entitlement: Entitlement) -> control_pb2.Part:
        ids = {entry.spiffe_id for entry in entitlement.workloads.values()}
        policy = self._policy.policy
        found = (policy.segment_of(spiffe_id) for spiffe_id in ids) if policy is not None else ()
        table = self._policy.views.view({segment.name for segment in found if segment is not None}, ids)
        if id(table) not in self._policy_parts:
            self._policy_parts[id(table)] = (table, control_pb2.Part(policy=control_pb2.Policy(table=table)))
        return self._policy_parts[id(table)][1]


def _revocation(revoked: Revoked) -> control_pb2.Revocation:
    match revoked.kind:
        case "serial":
            return control_pb2.Revocation(serial=revoked.value, reason=revoked.reason)
        case "authority":
            return control_pb2.Revocation(authority_id=revoked.value, reason=revoked.reason)
        case _:
            before = control_pb2.IssuedBefore(pattern=revoked.value, time=revoked.issued_before)
            return control_pb2.Revocation(issued_before=before, reason=revoked.reason)
