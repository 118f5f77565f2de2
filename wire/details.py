# SPDX-License-Identifier: Apache-2.0
"""What a status says beyond its sentence: the details that tell a program what to do next.

>>> error_info(error_info_metadata(5, "there is no process 7", "WORKLOAD_NOT_FOUND", "spiffe.io"))
('WORKLOAD_NOT_FOUND', 'spiffe.io')
"""

from collections.abc import Iterable

from google.protobuf.message import DecodeError, Message

from firedoor.wire._generated.google_rpc_error_details_pb2 import ErrorInfo
from firedoor.wire._generated.google_rpc_status_pb2 import Status
from firedoor.wire._generated.spire_api_types_status_pb2 import PermissionDeniedDetails
from firedoor.wire.well_known import Any

# Where gRPC carries a google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"
NOT_FOUND = 5
PERMISSION_DENIED = 7


def permission_denied_metadata(
    message: str, reason: PermissionDeniedDetails.Reason.ValueType
) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of a PermissionDenied status; `message` must be the status's own."""
    return _metadata(PERMISSION_DENIED, message, PermissionDeniedDetails(reason=reason))


def permission_denied_reason(
    trailing_metadata: Iterable[tuple[str, str | bytes]] | None,
) -> PermissionDeniedDetails.Reason.ValueType:
    """Return the reason that a status's trailing metadata gives, or UNKNOWN."""
    found = PermissionDeniedDetails()
    return found.reason if _find(trailing_metadata, found) else PermissionDeniedDetails.UNKNOWN


def error_info_metadata(code: int, message: str, reason: str, domain: str) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of a status; code and message must be the status's own."""
    return _metadata(code, message, ErrorInfo(reason=reason, domain=domain))


def error_info(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, str] | None:
    """Return the reason and its domain that a status's trailing metadata gives, if any."""
    found = ErrorInfo()
    return (found.reason, found.domain) if _find(trailing_metadata, found) else None


def _metadata(code: int, message: str, detail: Message) -> tuple[tuple[str, bytes], ...]:
    packed = Any()
    packed.Pack(detail)
    status = Status(code=code, message=message, details=[packed])
    return ((DETAILS_KEY, status.SerializeToString()),)


def _find(trailing_metadata: Iterable[tuple[str, str | bytes]] | None, wanted: Message) -> bool:
    """Fill in the first detail of this kind, and say whether there was one."""
    values = [value for key, value in trailing_metadata or () if key == DETAILS_KEY and isinstance(value, bytes)]
    if not values:
        return False
    try:
        return any(item.Unpack(wanted) for item in Status.FromString(values[0]).details)
    except DecodeError:
        return False
