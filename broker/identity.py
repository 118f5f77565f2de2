# SPDX-License-Identifier: Apache-2.0
"""The broker's own SVID and what its front verifies callers with: published to the core whenever one changes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from firedoor import mtls
from firedoor.broker.downstream import own
from firedoor.broker.errors import Starting
from firedoor.broker.issuing import Pen, authorize_server
from firedoor.certs import EVERY_ID, KeyType, PrivateKey, SubjectKey, X509Svid, generate_key, private_key_der

if TYPE_CHECKING:
    from firedoor.broker.authority_kinds import AuthorityManager
    from firedoor.broker.db.rows import Revoked
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.identity")
# Seconds, as SPIRE's server has it. Not the TTL of others' SVIDs: connections to us would not outlive a short one.
TTL: Final = 3600


class ServerIdentity:
    """Keeps `spiffe://<td>/spire/server` fresh: at half life, and when its authority is not the one that signs."""

    def __init__(self, state: State, authority: AuthorityManager, core: mtls.Core) -> None:
        self._state, self._authority, self._core = state, authority, core
        self._svid: X509Svid | None = None
        self._key: PrivateKey | None = None
        self._published: object = None
        state.watch(self._changed)

    @property
    def svid(self) -> X509Svid:
        """The broker's own SVID. Raise Starting before there is one."""
        if self._svid is None:
            raise Starting("server is initializing")
        return self._svid

    def refresh(self) -> None:
        """Renew the SVID if it is time, and publish what changed. Raise BrokerError, CertsError or MtlsError."""
        now, issuer = self._state.clock.now(), self._authority.issuer()
        svid, key = self._svid, self._key
        if svid is None or key is None or now >= svid.half_life or svid.authority_id != issuer.authority_id:
            key = generate_key(KeyType.EC_P256)
            svid = Pen(issuer, now).sign(authorize_server(self._state, TTL), SubjectKey.of(key.public_key()))
        self._publish(svid, key)
        self._svid, self._key = svid, key

    def _changed(self) -> None:
        if self._svid is None or self._key is None:
            return
        try:
            self._publish(self._svid, self._key)
        except mtls.MtlsError as error:
            _log.error("the front keeps what it had: %s", error)

    def _publish(self, svid: X509Svid, key: PrivateKey) -> None:
        """Hand the core the bundles of who may call, our SVID and the revocations, unless it has them."""
        bundles = self._callers_bundles()
        ours = own(self._state)
        wanted = (svid.serial, bundles, tuple(self._state.revocations), ours)
        if wanted == self._published:
            return
        others = [name for name in bundles if name != self._state.trust_domain.name]
        held = mtls.Svid(id=str(svid.id), chain=svid.chain, key=private_key_der(key), federates_with=others)
        material = mtls.Material(
            trust_domain=self._state.trust_domain.name,
            bundles=bundles,
            svids=[held],
            revocations=[_revocation(one) for one in self._state.revocations.values()],
            # An authority below us can make up any ID, an administrator's too: nobody below one is anybody here.
            intermediates=[(key, {EVERY_ID}) for key in ours],
            generation=(self._state.generation.epoch, self._state.generation.number),
        )
        self._core.publish(material)
        self._published = wanted

    def _callers_bundles(self) -> dict[str, list[bytes]]:
        """Return our roots, and those of other trust domains that administrators are of: nobody else's may call."""
        known = self._state.bundles
        named = {self._state.trust_domain, *(one.trust_domain for one in self._state.admin_ids)}
        return {td.name: [root.der for root in known[td].x509_roots] for td in sorted(named) if td in known}


def _revocation(revoked: Revoked) -> mtls.Revocation:
    match revoked.kind:
        case "serial":
            return mtls.Revocation(serial=revoked.value, reason=revoked.reason)
        case "authority":
            return mtls.Revocation(authority_id=revoked.value, reason=revoked.reason)
        case _:
            return mtls.Revocation(pattern=revoked.value, issued_before=revoked.issued_before, reason=revoked.reason)
