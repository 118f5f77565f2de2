# SPDX-License-Identifier: Apache-2.0
"""SPIRE's Debug service: the broker's own SVID, and what it has in numbers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cryptography import x509

from firedoor.broker.messages import id_message
from firedoor.certs import SpiffeId
from firedoor.certs.names import show_name
from firedoor.wire import debug_pb2

if TYPE_CHECKING:
    from firedoor.broker.identity import ServerIdentity
    from firedoor.broker.rpc.gate import Call
    from firedoor.broker.state import State


class DebugService:
    """`spire.api.server.debug.v1.Debug`."""

    def __init__(self, state: State, identity: ServerIdentity) -> None:
        self._state, self._identity = state, identity
        self._started = time.monotonic()

    async def GetInfo(self, _request: debug_pb2.GetInfoRequest, _: Call) -> debug_pb2.GetInfoResponse:
        """Show the chain of the broker's own SVID up to its root, and the counts."""
        state = self._state
        return debug_pb2.GetInfoResponse(
            svid_chain=[_certificate(der) for der in self._chain()],
            uptime=int(time.monotonic() - self._started),
            agents_count=len(state.agents),
            # SPIRE counts the own one too.
            federated_bundles_count=len(state.bundles),
            entries_count=len(state.entries),
        )

    def _chain(self) -> list[bytes]:
        svid = self._identity.svid
        roots = self._state.bundles[self._state.trust_domain].x509_roots
        return [*svid.chain, *(root.der for root in roots if root.authority_id == svid.authority_id)]


def _certificate(der: bytes) -> debug_pb2.GetInfoResponse.Cert:
    found = x509.load_der_x509_certificate(der)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return debug_pb2.GetInfoResponse.Cert(
        id=id_message(SpiffeId.parse(uri)),
        expires_at=int(found.not_valid_after_utc.timestamp()),
        subject=show_name(found.subject),
    )
