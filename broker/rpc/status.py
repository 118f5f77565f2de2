# SPDX-License-Identifier: Apache-2.0
"""The one mapping from errors to gRPC status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from grpc import StatusCode

from firedoor.broker import errors as e
from firedoor.certs import CertsError
from firedoor.cluster.errors import ClusterError
from firedoor.segments import SegmentsError
from firedoor.wire import details, types

_STATUS: Final[Mapping[type[e.BrokerError], StatusCode]] = MappingProxyType(
    {
        e.BrokerError: StatusCode.INTERNAL,
        e.CallerError: StatusCode.INVALID_ARGUMENT,
        e.NotFound: StatusCode.NOT_FOUND,
        e.AlreadyExists: StatusCode.ALREADY_EXISTS,
        e.Conflict: StatusCode.FAILED_PRECONDITION,
        e.Unsupported: StatusCode.UNIMPLEMENTED,
        e.RateLimited: StatusCode.RESOURCE_EXHAUSTED,
        e.TooSlow: StatusCode.DEADLINE_EXCEEDED,
        e.Unauthenticated: StatusCode.UNAUTHENTICATED,
        e.AgentError: StatusCode.PERMISSION_DENIED,
        # SPIRE answers NotFound here: an agent drops the entry instead of giving up.
        e.NotEntitled: StatusCode.NOT_FOUND,
        e.WorkloadError: StatusCode.PERMISSION_DENIED,
        e.BrokerFault: StatusCode.INTERNAL,
        e.DatabaseError: StatusCode.UNAVAILABLE,
        e.StorageError: StatusCode.UNAVAILABLE,
        e.AuthorityError: StatusCode.UNAVAILABLE,
        e.PolicyUnavailable: StatusCode.FAILED_PRECONDITION,
        e.Starting: StatusCode.UNAVAILABLE,
    }
)

_Details = types.PermissionDeniedDetails
_REASON: Final[Mapping[type[e.BrokerError], types.PermissionDeniedDetails.Reason.ValueType]] = MappingProxyType(
    {
        e.AgentExpired: _Details.AGENT_EXPIRED,
        e.AgentNotAttested: _Details.AGENT_NOT_ATTESTED,
        e.AgentNotActive: _Details.AGENT_NOT_ACTIVE,
        e.AgentBanned: _Details.AGENT_BANNED,
        e.AgentMustReattest: _Details.AGENT_MUST_REATTEST,
    }
)


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """What a call ends with."""

    code: StatusCode
    message: str
    trailing: tuple[tuple[str, str | bytes], ...] = ()

    def in_batch(self) -> types.Status:
        """Return it as one result of a batch carries it."""
        number: int = self.code.value[0]
        # SPIRE says "OK" where nothing is wrong, and its tools print it.
        return types.Status(code=number, message=self.message or self.code.name)


OK: Final = RpcStatus(StatusCode.OK, "")
CANCELLED: Final = RpcStatus(StatusCode.CANCELLED, "the caller went away; what was begun was finished")
INTERNAL: Final = RpcStatus(StatusCode.INTERNAL, "internal error; the broker's log says more")


def status_of(error: Exception) -> RpcStatus:
    """Return the status for an error of ours; anything else is internal and says nothing."""
    if isinstance(error, (CertsError, ClusterError, SegmentsError)):
        return RpcStatus(StatusCode[error.grpc_status], str(error))
    if not isinstance(error, e.BrokerError):
        return INTERNAL
    code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    reason = next((_REASON[kind] for kind in type(error).__mro__ if kind in _REASON), None)
    trailing = () if reason is None else details.permission_denied_metadata(str(error), reason)
    return RpcStatus(code, str(error), trailing)
