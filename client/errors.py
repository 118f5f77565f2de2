# SPDX-License-Identifier: Apache-2.0
"""What can go wrong for a program that asks its sidecar, split by whose fault it is.

    FiredoorError
    ├── CallerError              this program
    │   ├── SocketUnknown        no auth socket is named, or by a name that is none
    │   ├── RequestRefused       the sidecar takes no such question
    │   ├── BadArgument          a value that was handed in breaks a rule
    │   └── ClientClosed
    ├── WorkloadError            whoever registers this program must act
    │   ├── NoIdentity           no entry gives it an identity, or not that one
    │   └── CallerRefused        the sidecar could not attest it
    ├── PeerError                somebody who calls a server of ours
    │   ├── PeerUnknown          no identity was presented, or none that verifies
    │   └── PeerRefused          it is verified, and not one that may
    └── SidecarError             the sidecar
        ├── SidecarUnavailable   it does not answer; worth another try
        ├── NotServed            it does not have that profile
        ├── SvidExpired          it has renewed nothing in time
        └── AnswerUnusable       what it answered breaks the standard

`code` is stable, `str()` says what happened, `hint` what to do. Neither ever holds a key or a token.
"""

from typing import ClassVar

import grpc


class FiredoorError(Exception):
    """Base of all. Raise a leaf."""

    code: ClassVar[str] = "internal"
    hint: ClassVar[str] = ""
    # What a server of ours answers its own caller with.
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class CallerError(FiredoorError):
    """The program asked wrongly."""


class SocketUnknown(CallerError):
    """No auth socket is named."""

    code = "socket_unknown"
    hint = "set SPIFFE_ENDPOINT_SOCKET to unix:///path/of/auth.sock, or pass socket="


class RequestRefused(CallerError):
    """The sidecar takes no such question."""

    code = "request_refused"
    hint = "compare the arguments with docs/client.md"


class BadArgument(CallerError):
    """A value that was handed in breaks a rule."""

    code = "bad_argument"
    hint = "compare the arguments with docs/client.md"


class ClientClosed(CallerError):
    """It was closed before."""

    code = "client_closed"
    hint = "keep one client open for as long as the program runs"


class WorkloadError(FiredoorError):
    """Whoever registers this program must act."""

    status = grpc.StatusCode.UNAVAILABLE


class NoIdentity(WorkloadError):
    """No entry gives this program an identity, or not the one that it named."""

    code = "no_identity"
    hint = "make an entry whose selectors this program has: firedoor entry create"


class CallerRefused(WorkloadError):
    """The sidecar could not attest this program."""

    code = "caller_refused"
    hint = "connect again; do not change user or pass the connection on after connecting"


class PeerError(FiredoorError):
    """Somebody who calls a server of ours."""


class PeerUnknown(PeerError):
    """No identity was presented, or none that verifies."""

    code = "peer_unknown"
    hint = "the peer must present an SVID of a trust domain that this program's bundles hold"
    status = grpc.StatusCode.UNAUTHENTICATED


class PeerRefused(PeerError):
    """It is verified, and not one that may."""

    code = "peer_refused"
    hint = "name the peer's ID where this server says who may call"
    status = grpc.StatusCode.PERMISSION_DENIED


class SidecarError(FiredoorError):
    """The sidecar failed us."""

    status = grpc.StatusCode.UNAVAILABLE


class SidecarUnavailable(SidecarError):
    """It does not answer; worth another try."""

    code = "sidecar_unavailable"
    hint = "see that the sidecar runs and that its auth socket can be reached: firedoor sidecar status"


class NotServed(SidecarError):
    """It does not have that profile."""

    code = "not_served"
    hint = "the sidecar, or the agent in its place, is of a kind or version that does not serve this"


class SvidExpired(SidecarError):
    """It has renewed nothing in time."""

    code = "svid_expired"
    hint = "see why the sidecar renews nothing: firedoor sidecar status"


class AnswerUnusable(SidecarError):
    """What it answered breaks the standard."""

    code = "answer_unusable"
    hint = "this is no fault of the program; report it with the versions of both"


_BY_CODE: dict[grpc.StatusCode, type[FiredoorError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: NoIdentity,
    grpc.StatusCode.UNAUTHENTICATED: CallerRefused,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
}


def translated(error: grpc.RpcError) -> FiredoorError:
    """Return what a failed call to the sidecar means."""
    code: grpc.StatusCode = error.code()
    details: str | None = error.details()
    return _BY_CODE.get(code, SidecarUnavailable)(details or code.name)
