# SPDX-License-Identifier: Apache-2.0
"""The broker's own SVID and what its front verifies callers with: published to the core whenever one changes.

Without an SVID of its own a broker cannot serve sidecars. One whose keys are in a device stores it, with its key, so
that it can be started while the device is away: bundles are served at once, and signatures come later.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from firedoor import mtls
from firedoor.broker.downstream import own
from firedoor.broker.errors import AuthorityError, Starting, StorageError
from firedoor.broker.issuing import Pen, authorize_server
from firedoor.certs import (
    EVERY_ID,
    CertsError,
    KeyType,
    PrivateKey,
    SubjectKey,
    X509Svid,
    generate_key,
    parse_x509_svid,
    private_key_der,
)

if TYPE_CHECKING:
    from firedoor.broker.authority_kinds import AuthorityManager
    from firedoor.broker.db.rows import Revoked
    from firedoor.broker.state import State
    from firedoor.certs.keys import KeyStore

_log = logging.getLogger("firedoor.broker.identity")
# Seconds, as SPIRE's server has it. Not the TTL of others' SVIDs: connections to us would not outlive a short one.
TTL: Final = 3600
# The name of what is stored: a JSON list of the key and the chain, leaf first, base64 of DER.
_STORED: Final = "server-svid.json"


class ServerIdentity:
    """Keeps `spiffe://<td>/spire/server` fresh: at half life, and when its authority is not the one that signs."""

    def __init__(
        self,
        state: State,
        authority: AuthorityManager,
        core: mtls.Core,
        dns_names: tuple[str, ...] = (),
        store: KeyStore | None = None,
    ) -> None:
        self._state, self._authority, self._core, self._dns_names = state, authority, core, dns_names
        self._store, self._renewing = store, asyncio.Lock()
        self._svid: X509Svid | None = None
        self._key: PrivateKey | None = None
        self._published: object = None
        state.watch(self._changed)

    @property
    def is_ready(self) -> bool:
        """Whether there is one."""
        return self._svid is not None

    @property
    def svid(self) -> X509Svid:
        """The broker's own SVID. Raise Starting before there is one."""
        if self._svid is None:
            raise Starting("server is initializing")
        return self._svid

    async def start(self) -> None:
        """Get an SVID, or take the stored one while none can be signed. Raise as `refresh`, but for that."""
        try:
            await self.refresh()
        except AuthorityError as error:
            if self._store is None:
                raise
            stored = await asyncio.to_thread(self._stored, self._store)
            if stored is None:
                _log.error("there is no SVID of the broker's own yet, so no sidecar can connect: %s", error)
                return
            self._publish(*stored)
            self._svid, self._key = stored
            _log.warning("serving with the stored SVID, until %d at most: %s", stored[0].not_after, error)

    async def refresh(self) -> None:
        """Renew the SVID if it is time, and publish what changed. Raise BrokerError, CertsError or MtlsError."""
        async with self._renewing:
            now, issuer = self._state.clock.now(), self._authority.server_issuer()
            svid, key = self._svid, self._key
            renewed = svid is None or now >= svid.half_life or svid.authority_id != issuer.authority_id
            if svid is None or key is None or renewed:
                key = generate_key(KeyType.EC_P256)
                proof = authorize_server(self._state, TTL, self._dns_names)
                job = partial(Pen(issuer, now).sign, proof, SubjectKey.of(key.public_key()))
                svid = await self._authority.keys.sign(issuer.key, job)
            self._publish(svid, key)
            self._svid, self._key = svid, key
            if renewed and self._store is not None:
                await asyncio.to_thread(self._keep, self._store, svid, key)

    @staticmethod
    def _keep(store: KeyStore, svid: X509Svid, key: PrivateKey) -> None:
        written = [private_key_der(key), *svid.chain]
        try:
            store.replace(_STORED, json.dumps([base64.b64encode(der).decode() for der in written]).encode())
        except StorageError as error:
            _log.error("the broker's own SVID is not stored: %s", error)

    def _stored(self, store: KeyStore) -> tuple[X509Svid, PrivateKey] | None:
        """Return what is stored, if it can still be used."""
        with contextlib.suppress(StorageError, CertsError, ValueError, TypeError):
            if (data := store.load(_STORED)) is None:
                return None
            key_der, *chain = (base64.b64decode(text) for text in json.loads(data))
            svid, key = parse_x509_svid(chain), load_der_private_key(key_der, None)
            good = svid.id == self._state.server_id and svid.not_after > self._state.clock.now()
            if good and isinstance(key, ec.EllipticCurvePrivateKey):
                return svid, key
        return None

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
        named = {self._state.trust_domain, *self._state.roles.trust_domains}
        return {td.name: [root.der for root in known[td].x509_roots] for td in sorted(named) if td in known}


def _revocation(revoked: Revoked) -> mtls.Revocation:
    match revoked.kind:
        case "serial":
            return mtls.Revocation(serial=revoked.value, reason=revoked.reason)
        case "authority":
            return mtls.Revocation(authority_id=revoked.value, reason=revoked.reason)
        case _:
            return mtls.Revocation(pattern=revoked.value, issued_before=revoked.issued_before, reason=revoked.reason)
