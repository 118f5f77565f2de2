# SPDX-License-Identifier: Apache-2.0
"""The three kinds of signing authorities: certificates, JWT-SVIDs, WIT-SVIDs."""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from functools import partial
from typing import ClassVar, Final, Literal

from sqlalchemy import Connection

from firedoor.broker.authority import Beside, BesideOf, Manager, alone, change_bundle
from firedoor.broker.core_signing import sign_in_core
from firedoor.broker.db.intermediate_rows import Intermediate, insert_intermediate
from firedoor.broker.db.rows import Revoked, put_revocations
from firedoor.broker.errors import AuthorityError, Conflict, InvalidRequest
from firedoor.broker.upstream import with_roots
from firedoor.certs import (
    Authority,
    BundleError,
    CertsError,
    JwtIssuer,
    JwtKey,
    KeyType,
    PrivateKey,
    Status,
    TrustBundle,
    X509Issuer,
    generate_key,
    issue_ca,
    issue_x509,
    key_hash,
    public_key_der,
    verify_x509_svid,
)
from firedoor.certs.authority import SlotName, key_id
from firedoor.certs.certificate import read_certificate

# A root stays in the bundle for a day after its end, as in SPIRE, so that nobody's clock makes a difference.
_PRUNE_AFTER: Final = 86400
_PRUNE_EVERY: Final = 3600
# SPIRE's form of a key ID: 190 bits that nobody meets twice.
_KEY_ID_LETTERS: Final = string.ascii_letters + string.digits
_KEY_ID_LENGTH: Final = 32
_UNKNOWN: Final = (
    "sidecars that know only authorities from before cannot verify this broker: give them its bundle by hand "
    "(`firedoor bundle show` here, `firedoor sidecar trust` there; docs/recovery.md)"
)
_KNOWN: Final = (
    "sidecars are shown a certificate of authority %s, which they know, for %d s: who connects meanwhile learns of "
    "the one that signs now"
)
# For so long, in seconds; sidecars try again every half minute. And so long before its end it is not used any more.
_KNOWN_FOR: Final = 3600
_MARGIN: Final = 60
_log = logging.getLogger("firedoor.broker.authority")


class AuthorityManager(Manager[X509Issuer]):
    """X.509 authorities. It also takes out of the bundle what has long ended, of either kind."""

    kind = "x509"
    label = "X.509"
    what = "root CA"
    _prune_at = 0
    # Above the authority that was made last.
    _roots: tuple[bytes, ...] = ()

    async def _work(self) -> None:
        """Do what is due now."""
        await super()._work()
        if self._upstream is not None and (follow := await asyncio.to_thread(self._upstream.poll)):
            await change_bundle(self._state, follow)
        now = self._state.clock.now()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY
            await change_bundle(self._state, lambda bundle: bundle.pruned(now - _PRUNE_AFTER))

    # Signs the broker's own SVID, and nothing else, until sidecars know the authority that replaced a lost one.
    _known: X509Issuer | None = None
    _known_until = 0

    def server_issuer(self) -> X509Issuer:
        """Return what signs the broker's own SVID. Raise AuthorityError when there is nothing that can."""
        if self._known is not None and self._state.clock.now() < self._known_until:
            return self._known
        self._known = None
        return self.issuer()

    async def _keep_known(self, old: Authority | None) -> None:
        now = self._state.clock.now()
        if self._upstream is not None or old is None or old.status is not Status.OLD:
            return
        if self.keys.is_device:
            # It gives no key out to be kept, and the next one takes its place there.
            return
        if self.is_lost(old.authority_id) or old.not_after - _MARGIN <= now:
            return
        self._known = await self.keys.run(partial(self._load, old))
        self._known_until = min(old.not_after - _MARGIN, now + _KNOWN_FOR)

    def _warn_unknown(self) -> None:
        if self._known is not None:
            _log.warning(_KNOWN, self._known.authority_id, self._known_until - self._state.clock.now())
        elif self._upstream is None:
            _log.error(_UNKNOWN)

    def _note_expired(self, authority: Authority) -> None:
        super()._note_expired(authority)
        if self._upstream is None:
            _log.error(_UNKNOWN)

    def _make(self, slot: SlotName, at: int) -> Authority:
        key = self.keys.generate(key_id(self.kind, slot), self._key_type)
        if self._upstream is None:
            made = issue_ca(self._state.trust_domain, key, at=at, random=secrets.token_bytes, ttl=self._ttl)
            self._roots = (made.der,)
            return Authority.x509(slot, made.der, issued_at=at)
        minted = self._upstream.mint(key, self._ttl, at)
        self._roots = minted.roots
        authority = Authority.x509(slot, minted.chain[0], issued_at=at, upstream=minted.chain[1:])
        self._try(self._join(authority, key), at)
        return authority

    def _try(self, issuer: X509Issuer, at: int) -> None:
        """Look at what it would sign with a peer's eyes. Raise AuthorityError."""
        td = self._state.trust_domain
        key = generate_key(KeyType.EC_P256).public_key()
        leaf = issue_x509(td.with_path("/spire/server"), key, issuer, at=at, random=secrets.token_bytes, ttl=60)
        try:
            verify_x509_svid(leaf.chain, {td: TrustBundle.of(td, self._roots)}, at)
        except CertsError as error:
            raise AuthorityError(f"what the authority upstream signed cannot be used: {error}") from None

    def _beside(self, authority: Authority) -> Beside:
        """A CA below another is listed for sidecars: it may sign for every ID."""
        facts = read_certificate(authority.public)
        if self._upstream is None:
            return super()._beside(authority)
        key = key_hash(facts.raw.public_key())  # type: ignore[arg-type]
        one = Intermediate(facts.serial, key, "", facts.authority_key_id, authority.issued_at, authority.not_after)
        return Beside(
            lambda connection: insert_intermediate(connection, one, ()),
            lambda: self._state.put_intermediate(one, ()),
        )

    async def taint(self, authority_id: str, beside: BesideOf = alone) -> Authority:
        """Have everybody replace what the old authority signed. Raise InvalidRequest or Conflict."""
        if self._upstream is not None:
            raise Conflict("local authority can't be tainted if there is an upstream authority")
        return await super().taint(authority_id, beside)

    async def taint_upstream(self, key_id: str) -> None:
        """Have everybody replace what is below an authority upstream. Raise InvalidRequest or Conflict."""
        async with self._lock:
            self._check_upstream(key_id)
            await self._taint_root(key_id)
            self._audit.event("upstream_authority_tainted", authority_id=key_id)

    async def _taint_root(self, key_id: str) -> None:
        try:
            await change_bundle(self._state, lambda bundle: bundle.with_tainted(key_id))
        except BundleError:
            raise InvalidRequest("the bundle has no root with this subject key ID") from None

    async def revoke_upstream(self, key_id: str) -> None:
        """Take a tainted authority upstream out of the bundle: nothing below it is valid. Raise as `taint_upstream`."""
        async with self._lock:
            self._check_upstream(key_id)
            bundle = self._state.bundles[self._state.trust_domain]
            found = [root for root in bundle.x509_roots if root.authority_id == key_id]
            if not found:
                raise InvalidRequest("the bundle has no root with this subject key ID")
            if not all(root.tainted for root in found):
                raise Conflict("it is not possible to revoke an untainted root CA")
            one = Revoked("authority", key_id, 0, "authority_revoked", max(root.not_after for root in found))
            await change_bundle(
                self._state,
                lambda bundle: bundle.without(key_id),
                lambda connection: _put_revocation(connection, one),
                lambda: self._state.revoked([one]),
            )
            self._audit.event("upstream_authority_revoked", authority_id=key_id)

    def _check_upstream(self, key_id: str) -> None:
        if self._upstream is None:
            raise Conflict("upstream authority is not configured")
        if not key_id:
            raise InvalidRequest("provided subject key id is not valid: no subject key ID provided")
        if key_id == upstream_id(self.active()):
            raise InvalidRequest(
                "provided subject key id is not valid: unable to use upstream authority signing current authority"
            )

    def _join(self, authority: Authority, key: PrivateKey) -> X509Issuer:
        td, sign = self._state.trust_domain, sign_in_core(key)
        return X509Issuer.load(td, authority.public, key, authority.upstream, sign=sign)

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        return with_roots(bundle, self._roots)

    def _without(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        # Below an authority upstream it is not in the bundle itself.
        return bundle if self._upstream is not None else bundle.with_tainted(authority_id).without(authority_id)

    def _tainted(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        return bundle.with_tainted(authority_id)

    async def revoke(self, authority_id: str, beside: BesideOf = alone) -> Authority:
        """Take the tainted authority's root out of the bundle, and revoke it for what runs already.

        Raise InvalidRequest or Conflict.
        """
        if self._upstream is not None:
            raise Conflict("local authority can't be revoked if there is an upstream authority")
        async with self._lock:
            other = self._revocable(authority_id)
            if other.status is not Status.TAINTED:
                raise Conflict("failed to revoke X.509 authority: it is not possible to revoke an untainted root CA")
            one = Revoked("authority", authority_id, 0, "authority_revoked", other.not_after)
            await self._change(
                self._slots.revoke(authority_id),
                lambda bundle: bundle.without(authority_id),
                Beside(lambda connection: _put_revocation(connection, one), lambda: self._state.revoked([one])),
                beside(other),
            )
            await self._forget_key(other.key_id)
            self._audited("authority_revoked", other)
            return other

    def _revocable(self, authority_id: str) -> Authority:
        if not authority_id:
            raise InvalidRequest("invalid authority ID: no authority ID provided")
        if authority_id == self.active().authority_id:
            raise InvalidRequest("invalid authority ID: unable to use current authority")
        other = self._slots.other
        if other is None or other.authority_id != authority_id or other.status in (Status.PREPARED, Status.REVOKED):
            raise InvalidRequest("invalid authority ID: only Old local authority can be revoked")
        return other


class JwtAuthorityManager(Manager[JwtIssuer]):
    """JWT authorities: a key and its ID."""

    kind: ClassVar[Literal["jwt", "wit"]] = "jwt"
    label = "JWT"
    what = "key"

    def _make(self, slot: SlotName, at: int) -> Authority:
        public = public_key_der(self.keys.generate(key_id(self.kind, slot), self._key_type).public_key())
        made = "".join(secrets.choice(_KEY_ID_LETTERS) for _ in range(_KEY_ID_LENGTH))
        if self._upstream is not None:
            self._upstream.publish(self.kind, JwtKey(made, public, at + self._ttl))
        return Authority.of_tokens(self.kind, slot, made, public, issued_at=at, not_after=at + self._ttl)

    def _join(self, authority: Authority, key: PrivateKey) -> JwtIssuer:
        return JwtIssuer.load(
            self._state.trust_domain, authority.authority_id, authority.public, key, not_after=authority.not_after
        )

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        return bundle.with_jwt_key(JwtKey(authority.authority_id, authority.public, authority.not_after))

    def _without(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        return bundle.without_keys({authority_id})

    def _tainted(self, bundle: TrustBundle, authority_id: str) -> TrustBundle:
        return bundle.with_tainted_key(authority_id)

    def _keys_of(self, bundle: TrustBundle) -> tuple[JwtKey, ...]:
        return bundle.jwt_keys

    async def revoke(self, authority_id: str, beside: BesideOf = alone) -> JwtKey:
        """Take a tainted key out of the bundle; also one of somebody below us. Raise InvalidRequest or Conflict."""
        async with self._lock:
            key = self._revocable(authority_id)
            if not key.tainted:
                raise Conflict(
                    f"failed to revoke {self.label} authority: it is not possible to revoke an untainted key"
                )
            other = self._slots.other if self._slots.other and self._slots.other.authority_id == authority_id else None
            slots = self._slots.revoke(authority_id) if other else self._slots
            written = [beside(other)] if other is not None else []
            await self._change(slots, lambda bundle: bundle.without_key(authority_id), *written)
            if other is not None:
                await self._forget_key(other.key_id)
            self._audit.event("authority_revoked", kind=self.kind, authority_id=authority_id)
            return key

    def _revocable(self, authority_id: str) -> JwtKey:
        if not authority_id:
            raise InvalidRequest("invalid authority ID: no authority ID provided")
        other = self._slots.other
        if other is not None and other.authority_id == authority_id and other.status is Status.PREPARED:
            raise InvalidRequest("invalid authority ID: unable to use a prepared key")
        if authority_id == self.active().authority_id:
            raise InvalidRequest("invalid authority ID: unable to use current authority")
        for key in self._keys_of(self._state.bundles[self._state.trust_domain]):
            if key.key_id == authority_id:
                return key
        raise InvalidRequest(f"invalid authority ID: no {self.label} authority found with provided authority ID")


class WitAuthorityManager(JwtAuthorityManager):
    """WIT authorities: like those for JWTs, in keys and slots of their own. Neither signs the other's tokens."""

    kind = "wit"
    label = "WIT"

    def _published(self, bundle: TrustBundle, authority: Authority) -> TrustBundle:
        return bundle.with_wit_key(JwtKey(authority.authority_id, authority.public, authority.not_after))

    def _keys_of(self, bundle: TrustBundle) -> tuple[JwtKey, ...]:
        return bundle.wit_keys


def upstream_id(authority: Authority) -> str:
    """Return the subject key ID of the root above an authority, empty when it is a root itself."""
    if authority.kind != "x509":
        return ""
    top = read_certificate(authority.upstream[-1] if authority.upstream else authority.public)
    return "" if top.subject == top.issuer else top.authority_key_id


def _put_revocation(connection: Connection, one: Revoked) -> None:
    put_revocations(connection, [one])
