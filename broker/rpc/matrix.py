# SPDX-License-Identifier: Apache-2.0
"""Who may call what. A method without a row here is refused, whoever calls.

`LOCAL` is the admin socket (root or the broker's own uid), `ADMIN` an SVID whose entry says `admin`, `AGENT` an
attested agent in good standing, `DOWNSTREAM` an SVID whose entry says `downstream`. The rows of SPIRE's services are
SPIRE's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Who(Enum):
    """A kind of caller."""

    ANYONE = "anyone"
    LOCAL = "local"
    ADMIN = "admin"
    AGENT = "agent"
    DOWNSTREAM = "downstream"


_ANYONE: Final = frozenset({Who.ANYONE})
_LOCAL: Final = frozenset({Who.LOCAL})
_MANAGE: Final = frozenset({Who.LOCAL, Who.ADMIN})
_READ: Final = frozenset({Who.LOCAL, Who.ADMIN, Who.AGENT})
_AGENT: Final = frozenset({Who.AGENT})
_DOWNSTREAM: Final = frozenset({Who.DOWNSTREAM})

_AGENT_API: Final = "/spire.api.server.agent.v1.Agent/"
_BUNDLE_API: Final = "/spire.api.server.bundle.v1.Bundle/"
_ENTRY_API: Final = "/spire.api.server.entry.v1.Entry/"
_SVID_API: Final = "/spire.api.server.svid.v1.SVID/"
_POLICY_API: Final = "/firedoor.admin.v1.PolicyAdmin/"
_DOWNSTREAM_API: Final = "/firedoor.admin.v1.DownstreamAdmin/"
_TRUST_DOMAIN_API: Final = "/spire.api.server.trustdomain.v1.TrustDomain/"
_AUTHORITY_API: Final = "/spire.api.server.localauthority.v1.LocalAuthority/"
_LOGGER_API: Final = "/spire.api.server.logger.v1.Logger/"
_DEBUG_API: Final = "/spire.api.server.debug.v1.Debug/"
_HEALTH_API: Final = "/grpc.health.v1.Health/"
_REFLECTION: Final = "ServerReflection/ServerReflectionInfo"

MATRIX: Final[Mapping[str, frozenset[Who]]] = MappingProxyType(
    {
        _AGENT_API + "AttestAgent": _ANYONE,
        _AGENT_API + "RenewAgent": _AGENT,
        _AGENT_API + "PostStatus": _AGENT,
        _AGENT_API + "CountAgents": _MANAGE,
        _AGENT_API + "ListAgents": _MANAGE,
        _AGENT_API + "GetAgent": _MANAGE,
        _AGENT_API + "DeleteAgent": _MANAGE,
        _AGENT_API + "BanAgent": _MANAGE,
        _AGENT_API + "CreateJoinToken": _MANAGE,
        _BUNDLE_API + "GetBundle": _ANYONE,
        _BUNDLE_API + "GetFederatedBundle": _READ,
        _BUNDLE_API + "PublishJWTAuthority": _DOWNSTREAM,
        _BUNDLE_API + "PublishWITAuthority": _DOWNSTREAM,
        _BUNDLE_API + "AppendBundle": _MANAGE,
        _BUNDLE_API + "CountBundles": _MANAGE,
        _BUNDLE_API + "ListFederatedBundles": _MANAGE,
        _BUNDLE_API + "BatchCreateFederatedBundle": _MANAGE,
        _BUNDLE_API + "BatchUpdateFederatedBundle": _MANAGE,
        _BUNDLE_API + "BatchSetFederatedBundle": _MANAGE,
        _BUNDLE_API + "BatchDeleteFederatedBundle": _MANAGE,
        _ENTRY_API + "GetAuthorizedEntries": _AGENT,
        _ENTRY_API + "SyncAuthorizedEntries": _AGENT,
        _ENTRY_API + "CountEntries": _MANAGE,
        _ENTRY_API + "ListEntries": _MANAGE,
        _ENTRY_API + "GetEntry": _MANAGE,
        _ENTRY_API + "BatchCreateEntry": _MANAGE,
        _ENTRY_API + "BatchUpdateEntry": _MANAGE,
        _ENTRY_API + "BatchDeleteEntry": _MANAGE,
        _SVID_API + "BatchNewX509SVID": _AGENT,
        _SVID_API + "NewJWTSVID": _AGENT,
        _SVID_API + "BatchNewWITSVID": _AGENT,
        _SVID_API + "NewDownstreamX509CA": _DOWNSTREAM,
        _SVID_API + "MintX509SVID": _MANAGE,
        _SVID_API + "MintJWTSVID": _MANAGE,
        _SVID_API + "MintWITSVID": _MANAGE,
        _TRUST_DOMAIN_API + "ListFederationRelationships": _MANAGE,
        _TRUST_DOMAIN_API + "GetFederationRelationship": _MANAGE,
        _TRUST_DOMAIN_API + "BatchCreateFederationRelationship": _MANAGE,
        _TRUST_DOMAIN_API + "BatchUpdateFederationRelationship": _MANAGE,
        _TRUST_DOMAIN_API + "BatchDeleteFederationRelationship": _MANAGE,
        _TRUST_DOMAIN_API + "RefreshBundle": _MANAGE,
        _AUTHORITY_API + "GetX509AuthorityState": _MANAGE,
        _AUTHORITY_API + "PrepareX509Authority": _MANAGE,
        _AUTHORITY_API + "ActivateX509Authority": _MANAGE,
        _AUTHORITY_API + "TaintX509Authority": _MANAGE,
        _AUTHORITY_API + "RevokeX509Authority": _MANAGE,
        _AUTHORITY_API + "TaintX509UpstreamAuthority": _MANAGE,
        _AUTHORITY_API + "RevokeX509UpstreamAuthority": _MANAGE,
        _AUTHORITY_API + "GetJWTAuthorityState": _MANAGE,
        _AUTHORITY_API + "PrepareJWTAuthority": _MANAGE,
        _AUTHORITY_API + "ActivateJWTAuthority": _MANAGE,
        _AUTHORITY_API + "TaintJWTAuthority": _MANAGE,
        _AUTHORITY_API + "RevokeJWTAuthority": _MANAGE,
        _AUTHORITY_API + "GetWITAuthorityState": _MANAGE,
        _AUTHORITY_API + "PrepareWITAuthority": _MANAGE,
        _AUTHORITY_API + "ActivateWITAuthority": _MANAGE,
        _AUTHORITY_API + "TaintWITAuthority": _MANAGE,
        _AUTHORITY_API + "RevokeWITAuthority": _MANAGE,
        _LOGGER_API + "GetLogger": _LOCAL,
        _LOGGER_API + "SetLogLevel": _LOCAL,
        _LOGGER_API + "ResetLogLevel": _LOCAL,
        _DEBUG_API + "GetInfo": _LOCAL,
        _POLICY_API + "GetPolicy": _MANAGE,
        _POLICY_API + "ApplyPolicy": _MANAGE,
        _DOWNSTREAM_API + "ListDownstreams": _MANAGE,
        _DOWNSTREAM_API + "RevokeDownstreamCa": _MANAGE,
        _HEALTH_API + "Check": _LOCAL,
        _HEALTH_API + "List": _LOCAL,
        _HEALTH_API + "Watch": _LOCAL,
        "/grpc.reflection.v1." + _REFLECTION: _LOCAL,
        "/grpc.reflection.v1alpha." + _REFLECTION: _LOCAL,
    }
)
