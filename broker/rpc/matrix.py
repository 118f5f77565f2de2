# SPDX-License-Identifier: Apache-2.0
"""Who may call what. A method without a row here is refused, whoever calls.

`LOCAL` is the admin socket (root or the broker's own uid), `ADMIN` an SVID whose entry says `admin`, `AGENT` an
attested agent in good standing, `DOWNSTREAM` an SVID whose entry says `downstream`; `OPERATOR`, `POLICY` and `VIEWER`
are roles of the configuration (roles.py), as `ADMIN` can be. The rows of SPIRE's services are SPIRE's own, with these
roles beside them.
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
    OPERATOR = "operator"
    POLICY = "policy"
    VIEWER = "viewer"


_ANYONE: Final = frozenset({Who.ANYONE})
_LOCAL: Final = frozenset({Who.LOCAL})
# What would make somebody an administrator, or issues an SVID for any ID.
_ADMIN: Final = frozenset({Who.LOCAL, Who.ADMIN})
_OPERATE: Final = _ADMIN | {Who.OPERATOR}
# At the admin socket nobody has a name, and two who are there could be one.
_NAMED: Final = frozenset({Who.ADMIN, Who.OPERATOR})
_DECIDE: Final = _ADMIN | {Who.POLICY}
_VIEW: Final = _ADMIN | {Who.OPERATOR, Who.POLICY, Who.VIEWER}
_READ: Final = _VIEW | {Who.AGENT}
_AGENT: Final = frozenset({Who.AGENT})
_DOWNSTREAM: Final = frozenset({Who.DOWNSTREAM})

_AGENT_API: Final = "/spire.api.server.agent.v1.Agent/"
_BREAKGLASS_API: Final = "/firedoor.admin.v1.BreakGlass/"
_BUNDLE_API: Final = "/spire.api.server.bundle.v1.Bundle/"
_ENTRY_API: Final = "/spire.api.server.entry.v1.Entry/"
_SVID_API: Final = "/spire.api.server.svid.v1.SVID/"
_POLICY_API: Final = "/firedoor.admin.v1.PolicyAdmin/"
_ROTATION_API: Final = "/firedoor.admin.v1.AuthorityAdmin/"
_ENTRY_ADMIN_API: Final = "/firedoor.admin.v1.EntryAdmin/"
_DOWNSTREAM_API: Final = "/firedoor.admin.v1.DownstreamAdmin/"
_REVOCATION_API: Final = "/firedoor.admin.v1.RevocationAdmin/"
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
        _AGENT_API + "CountAgents": _VIEW,
        _AGENT_API + "ListAgents": _VIEW,
        _AGENT_API + "GetAgent": _VIEW,
        _AGENT_API + "DeleteAgent": _OPERATE,
        _AGENT_API + "BanAgent": _OPERATE,
        _AGENT_API + "CreateJoinToken": _OPERATE,
        _BUNDLE_API + "GetBundle": _ANYONE,
        _BUNDLE_API + "GetFederatedBundle": _READ,
        _BUNDLE_API + "PublishJWTAuthority": _DOWNSTREAM,
        _BUNDLE_API + "PublishWITAuthority": _DOWNSTREAM,
        _BUNDLE_API + "AppendBundle": _ADMIN,
        _BUNDLE_API + "CountBundles": _VIEW,
        _BUNDLE_API + "ListFederatedBundles": _VIEW,
        _BUNDLE_API + "BatchCreateFederatedBundle": _OPERATE,
        _BUNDLE_API + "BatchUpdateFederatedBundle": _OPERATE,
        _BUNDLE_API + "BatchSetFederatedBundle": _OPERATE,
        _BUNDLE_API + "BatchDeleteFederatedBundle": _OPERATE,
        _ENTRY_API + "GetAuthorizedEntries": _AGENT,
        _ENTRY_API + "SyncAuthorizedEntries": _AGENT,
        _ENTRY_API + "CountEntries": _VIEW,
        _ENTRY_API + "ListEntries": _VIEW,
        _ENTRY_API + "GetEntry": _VIEW,
        _ENTRY_API + "BatchCreateEntry": _OPERATE,
        _ENTRY_API + "BatchUpdateEntry": _OPERATE,
        _ENTRY_API + "BatchDeleteEntry": _OPERATE,
        _SVID_API + "BatchNewX509SVID": _AGENT,
        _SVID_API + "NewJWTSVID": _AGENT,
        _SVID_API + "BatchNewWITSVID": _AGENT,
        _SVID_API + "NewDownstreamX509CA": _DOWNSTREAM,
        _SVID_API + "MintX509SVID": _ADMIN,
        _SVID_API + "MintJWTSVID": _ADMIN,
        _SVID_API + "MintWITSVID": _ADMIN,
        _TRUST_DOMAIN_API + "ListFederationRelationships": _VIEW,
        _TRUST_DOMAIN_API + "GetFederationRelationship": _VIEW,
        _TRUST_DOMAIN_API + "BatchCreateFederationRelationship": _OPERATE,
        _TRUST_DOMAIN_API + "BatchUpdateFederationRelationship": _OPERATE,
        _TRUST_DOMAIN_API + "BatchDeleteFederationRelationship": _OPERATE,
        _TRUST_DOMAIN_API + "RefreshBundle": _OPERATE,
        _AUTHORITY_API + "GetX509AuthorityState": _VIEW,
        _AUTHORITY_API + "PrepareX509Authority": _OPERATE,
        _AUTHORITY_API + "ActivateX509Authority": _OPERATE,
        _AUTHORITY_API + "TaintX509Authority": _OPERATE,
        _AUTHORITY_API + "RevokeX509Authority": _OPERATE,
        _AUTHORITY_API + "TaintX509UpstreamAuthority": _OPERATE,
        _AUTHORITY_API + "RevokeX509UpstreamAuthority": _OPERATE,
        _AUTHORITY_API + "GetJWTAuthorityState": _VIEW,
        _AUTHORITY_API + "PrepareJWTAuthority": _OPERATE,
        _AUTHORITY_API + "ActivateJWTAuthority": _OPERATE,
        _AUTHORITY_API + "TaintJWTAuthority": _OPERATE,
        _AUTHORITY_API + "RevokeJWTAuthority": _OPERATE,
        _AUTHORITY_API + "GetWITAuthorityState": _VIEW,
        _AUTHORITY_API + "PrepareWITAuthority": _OPERATE,
        _AUTHORITY_API + "ActivateWITAuthority": _OPERATE,
        _AUTHORITY_API + "TaintWITAuthority": _OPERATE,
        _AUTHORITY_API + "RevokeWITAuthority": _OPERATE,
        _LOGGER_API + "GetLogger": _LOCAL,
        _LOGGER_API + "SetLogLevel": _LOCAL,
        _LOGGER_API + "ResetLogLevel": _LOCAL,
        _DEBUG_API + "GetInfo": _LOCAL,
        _POLICY_API + "ListServices": _VIEW,
        _POLICY_API + "GetPolicy": _VIEW,
        _POLICY_API + "ApplyPolicy": _DECIDE,
        _ROTATION_API + "ListAuthorities": _VIEW,
        _ROTATION_API + "StartRotation": _OPERATE,
        _ROTATION_API + "WatchRotations": _VIEW,
        _ROTATION_API + "AbortRotation": _OPERATE,
        _ENTRY_ADMIN_API + "ListOrigins": _VIEW,
        _DOWNSTREAM_API + "ListDownstreams": _VIEW,
        _DOWNSTREAM_API + "RevokeDownstreamCa": _OPERATE,
        _BREAKGLASS_API + "RequestAccess": _NAMED,
        _BREAKGLASS_API + "ApproveAccess": _NAMED,
        _BREAKGLASS_API + "TakeAccess": _NAMED,
        _BREAKGLASS_API + "EndAccess": _NAMED,
        _BREAKGLASS_API + "ListAccess": _VIEW,
        _REVOCATION_API + "ListRevocations": _VIEW,
        _REVOCATION_API + "RevokeSvids": _OPERATE,
        _REVOCATION_API + "ListCrls": _VIEW,
        _HEALTH_API + "Check": _LOCAL,
        _HEALTH_API + "List": _LOCAL,
        _HEALTH_API + "Watch": _LOCAL,
        "/grpc.reflection.v1." + _REFLECTION: _LOCAL,
        "/grpc.reflection.v1alpha." + _REFLECTION: _LOCAL,
    }
)
