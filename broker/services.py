# SPDX-License-Identifier: Apache-2.0
"""Which services a broker's two servers answer: SPIRE's and ours on both, what is for its own host on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from firedoor.broker.rpc.authorities import AuthorityAdminService
from firedoor.broker.rpc.break_glass import BreakGlassService
from firedoor.broker.rpc.bundles import BundleService
from firedoor.broker.rpc.debug import DebugService
from firedoor.broker.rpc.downstream import Downstream, DownstreamAdminService
from firedoor.broker.rpc.entries import EntryService
from firedoor.broker.rpc.entry_origins import EntryAdminService
from firedoor.broker.rpc.health import HealthService
from firedoor.broker.rpc.local_authorities import LocalAuthorityService
from firedoor.broker.rpc.loggers import LoggerService
from firedoor.broker.rpc.policy_admin import PolicyAdminService
from firedoor.broker.rpc.reflection import reflections
from firedoor.broker.rpc.revocations import RevocationAdminService
from firedoor.broker.rpc.svids import SvidService, Ttls
from firedoor.broker.rpc.trust_domains import TrustDomainService
from firedoor.broker.tokens import TokenSigner, WitSigner
from firedoor.wire import (
    admin_pb2,
    agent_pb2,
    bundle_pb2,
    debug_pb2,
    entry_pb2,
    health_pb2,
    localauthority_pb2,
    logger_pb2,
    svid_pb2,
    trustdomain_pb2,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from firedoor.broker.broker import Broker
    from firedoor.broker.condition import Condition
    from firedoor.broker.issuing import Signer
    from firedoor.broker.limits import Limits
    from firedoor.broker.rpc.agents import AgentService


def on_both(broker: Broker, agents: AgentService, signer: Signer, limits: Limits) -> dict[ServiceDescriptor, object]:
    """Return what the network and the admin socket serve; who may call what is in rpc/matrix.py."""
    state, policy, metrics, config = broker.state, broker.policy, broker.metrics, broker.config
    tokens = TokenSigner(state, broker.jwt_authority, metrics, config.jwt_issuer)
    wits = WitSigner(state, broker.wit_authority, metrics)
    ttls = Ttls(config.x509_svid_ttl, config.jwt_svid_ttl)
    downstream = Downstream(state, policy, signer, limits, config.ca_ttl, broker.pusher.missing)
    svids = SvidService(state, policy, signer, tokens, wits, limits, metrics, ttls, downstream)
    authorities = LocalAuthorityService(broker.authority, broker.jwt_authority, broker.wit_authority)
    return {
        _service(agent_pb2, "Agent"): agents,
        _service(entry_pb2, "Entry"): EntryService(state, policy),
        _service(svid_pb2, "SVID"): svids,
        _service(bundle_pb2, "Bundle"): BundleService(state, downstream, broker.fetches),
        _service(localauthority_pb2, "LocalAuthority"): authorities,
        _service(trustdomain_pb2, "TrustDomain"): TrustDomainService(state, broker.federation),
        _service(admin_pb2, "PolicyAdmin"): PolicyAdminService(state, policy, broker.pusher, lambda: broker.directory),
        _service(admin_pb2, "AuthorityAdmin"): AuthorityAdminService(state, broker.managers, broker.rotations),
        _service(admin_pb2, "EntryAdmin"): EntryAdminService(state),
        _service(admin_pb2, "DownstreamAdmin"): DownstreamAdminService(state, policy),
        _service(admin_pb2, "BreakGlass"): BreakGlassService(broker.breakglass, broker.clock),
        _service(admin_pb2, "RevocationAdmin"): RevocationAdminService(state, policy),
    }


def on_admin_socket(
    broker: Broker, common: Mapping[ServiceDescriptor, object], condition: Callable[[], Condition]
) -> dict[ServiceDescriptor, object]:
    """Return what the admin socket serves: all the network does, and what only its own host may ask."""
    found = {
        **common,
        _service(logger_pb2, "Logger"): LoggerService(),
        _service(debug_pb2, "Debug"): DebugService(broker.state, broker.identity),
        _service(health_pb2, "Health"): HealthService(condition),
    }
    return {**found, **reflections(found)}


def _service(module: Any, name: str) -> ServiceDescriptor:
    found: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return found
