# SPDX-License-Identifier: Apache-2.0
"""Our types as SPIRE's messages."""

from __future__ import annotations

from firedoor.broker.agent import Agent
from firedoor.broker.entry import Entry
from firedoor.certs import JwtSvid, Selector, SpiffeId, TrustBundle, WitSvid, X509Svid
from firedoor.wire import types


def id_message(spiffe_id: SpiffeId) -> types.SPIFFEID:
    """Return an ID in two parts."""
    return types.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)


def selector_messages(selectors: frozenset[Selector]) -> list[types.Selector]:
    """Return selectors in a fixed order."""
    return [types.Selector(type=selector.type, value=selector.value) for selector in sorted(selectors)]


def entry_message(entry: Entry) -> types.Entry:
    """Return an entry with every field."""
    message = types.Entry(
        id=entry.id,
        spiffe_id=id_message(entry.spiffe_id),
        parent_id=id_message(entry.parent_id),
        selectors=selector_messages(entry.selectors),
        x509_svid_ttl=entry.x509_svid_ttl,
        jwt_svid_ttl=entry.jwt_svid_ttl,
        federates_with=[trust_domain.name for trust_domain in entry.federates_with],
        admin=entry.admin,
        downstream=entry.downstream,
        expires_at=entry.expires_at,
        dns_names=entry.dns_names,
        revision_number=entry.revision_number,
        store_svid=entry.store_svid,
        hint=entry.hint,
        created_at=entry.created_at,
    )
    if entry.attributes is not None:
        # Set even when both are false: that they were given at all is told apart.
        message.additional_attributes.SetInParent()
        message.additional_attributes.disable_x509_svid_prefetch = entry.attributes.disable_x509_svid_prefetch
        message.additional_attributes.jwt_svid_include_jti = entry.attributes.jwt_svid_include_jti
    return message


def agent_message(agent: Agent) -> types.Agent:
    """Return an agent with every field."""
    return types.Agent(
        id=id_message(agent.id),
        attestation_type=agent.attestation_type,
        x509svid_serial_number=agent.serial,
        x509svid_expires_at=agent.not_after,
        selectors=selector_messages(agent.selectors),
        banned=agent.banned,
        can_reattest=agent.can_reattest,
        agent_version=agent.agent_version,
    )


def bundle_message(bundle: TrustBundle) -> types.Bundle:
    """Return a bundle with every field."""
    return types.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[types.X509Certificate(asn1=root.der, tainted=root.tainted) for root in bundle.x509_roots],
        jwt_authorities=[
            types.JWTKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted)
            for key in bundle.jwt_keys
        ],
        wit_authorities=[
            types.WITKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted)
            for key in bundle.wit_keys
        ],
        refresh_hint=bundle.refresh_hint,
        sequence_number=bundle.sequence,
    )


def svid_message(svid: X509Svid, hint: str = "") -> types.X509SVID:
    """Return an SVID without its key, which we never had."""
    return types.X509SVID(cert_chain=svid.chain, id=id_message(svid.id), expires_at=svid.not_after, hint=hint)


def token_message(svid: JwtSvid, hint: str = "") -> types.JWTSVID:
    """Return a JWT-SVID, token and all."""
    return types.JWTSVID(
        token=svid.token, id=id_message(svid.id), expires_at=svid.expires_at, issued_at=svid.issued_at, hint=hint
    )


def wit_message(svid: WitSvid, hint: str = "") -> types.WITSVID:
    """Return a WIT-SVID."""
    return types.WITSVID(
        token=svid.token, id=id_message(svid.id), expires_at=svid.expires_at, issued_at=svid.issued_at, hint=hint
    )
