# SPDX-License-Identifier: Apache-2.0
"""What a PermissionDenied status says beyond its sentence: the details that tell an agent what to do next."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from firedoor.wire._generated.google_rpc_status_pb2 import Status
from firedoor.wire._generated.spire_api_types_status_pb2 import PermissionDeniedDetails
from firedoor.wire.well_known import Any

# Where gRPC carries a google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"
PERMISSION_DENIED = 7


def permission_denied_metadata(
    message: str, reason: PermissionDeniedDetails.Reason.ValueType
) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of a PermissionDenied status; `message` must be the status's own."""
    detail = Any()
    detail.Pack(PermissionDeniedDetails(reason=reason))
    status = Status(code=PERMISSION_DENIED, message=message, details=[detail])
    return ((DETAILS_KEY, status.SerializeToString()),)


def permission_denied_reason(
    trailing_metadata: Iterable[tuple[str, str | bytes]] | None,
) -> PermissionDeniedDetails.Reason.ValueType:
    """Return the reason that a status's trailing metadata gives, or UNKNOWN."""
    for key, value in trailing_metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return _reason(value)
    return PermissionDeniedDetails.UNKNOWN


def _reason(value: bytes) -> PermissionDeniedDetails.Reason.ValueType:
    details = PermissionDeniedDetails()
    try:
        for item in Status.FromString(value).details:
            if item.Unpack(details):
                return details.reason
    except DecodeError:
        return PermissionDeniedDetails.UNKNOWN
    return PermissionDeniedDetails.UNKNOWN
