# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the sidecar, split by whose fault it is.

    SidecarError
    ├── OperatorError            whoever configured this sidecar must act
    │   ├── ConfigError          the configuration, with every finding
    │   ├── StateError           the data directory
    │   ├── TokenMissing         a first attestation without a join token
    │   ├── NodeCertificateUnusable   the files of x509pop and sshpop
    │   ├── ChallengeNotServed   the address of http_challenge
    │   ├── PodTokenUnusable     the token of k8s_pod and k8s_psat
    │   └── CaptureError         the rules of capture
    │       ├── CaptureFailed    the kernel or this process cannot have them
    │       ├── ToolMissing      a program that writes them is not installed
    │       └── AppRefused       a program that could go round them
    ├── WorkloadError            a program on the auth socket
    │   ├── HeaderMissing
    │   ├── CallerRefused        the connection or the process behind it is gone or changed
    │   ├── NotEntitled
    │   ├── NotYours             an identity that the caller does not have
    │   ├── RequestRefused       a request that breaks a rule of the API
    │   ├── TooMany              one caller or client, or all together, have too many streams
    │   ├── NotServed            what this sidecar, or its server, does not do
    │   └── DelegateError        a program that asks for others
    │       ├── DelegateRefused  it is not trusted with that
    │       ├── ReferenceInvalid
    │       └── WorkloadGone     the process that it names has ended, or there is none
    ├── NotReady                 we, or our server, cannot answer yet
    │   └── Incomplete           a part of the answer has come
    └── ServerError              our server
        ├── AttestationRefused
        ├── AgentBanned
        ├── AgentLost            the server takes our identity no longer and we cannot prove ourselves again
        ├── ServerUnavailable    worth another try
        └── UpdateRefused        an update of the control stream breaks a rule; answered with a Nack

`code` is stable; `str()` is a sentence for the person who must act, without keys, tokens or selector values.
"""

from collections.abc import Sequence
from typing import ClassVar

import grpc


class SidecarError(Exception):
    """Base of all. Raise a leaf."""

    code: ClassVar[str] = "internal"
    # What a gRPC server of ours answers with.
    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class OperatorError(SidecarError):
    """Whoever configured this sidecar must act."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class ConfigError(OperatorError):
    """The configuration breaks rules. `findings` has a line for each, with file, line and key."""

    code = "config"

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = tuple(findings)


class StateError(OperatorError):
    """The data directory cannot be used."""

    code = "state"


class TokenMissing(OperatorError):
    """A first attestation needs a join token."""

    code = "token_missing"


class PodTokenUnusable(OperatorError):
    """The token that the kubelet projects cannot be read, or cannot attest."""

    code = "pod_token_unusable"


class NodeCertificateUnusable(OperatorError):
    """The node's certificate or its key cannot attest. The sentence begins with the setting and the file."""

    code = "node_certificate"


class ChallengeNotServed(OperatorError):
    """The server could not find the nonce here: nothing can listen where it would look."""

    code = "challenge_not_served"


class CaptureError(OperatorError):
    """The rules of capture are not written."""


class CaptureFailed(CaptureError):
    """The kernel does not take rules, or not from this process."""

    code = "capture_failed"


class ToolMissing(CaptureError):
    """A program that we run is not installed."""

    code = "tool_missing"


class AppRefused(CaptureError):
    """A program that could go round the rules."""

    code = "app_refused"


class WorkloadError(SidecarError):
    """A program on the auth socket asked for what it cannot have."""


class HeaderMissing(WorkloadError):
    """A request lacks the Workload API's security header, as one that a browser was tricked into would."""

    code = "header_missing"
    status = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self) -> None:
        super().__init__("security header missing from request")


class CallerRefused(WorkloadError):
    """The connection is not live, or the process behind it is gone or is no longer what it was."""

    code = "caller_refused"
    status = grpc.StatusCode.UNAUTHENTICATED


class NotEntitled(WorkloadError):
    """No entry gives this program an identity."""

    code = "not_entitled"
    status = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self) -> None:
        super().__init__("no identity issued")


class NotYours(WorkloadError):
    """A program named an identity that it does not have; whether anybody else has it is not said."""

    code = "not_yours"
    status = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self) -> None:
        super().__init__("the caller does not have that identity")


class RequestRefused(WorkloadError):
    """A request breaks a rule."""

    code = "bad_request"
    status = grpc.StatusCode.INVALID_ARGUMENT


class TooMany(WorkloadError):
    """One caller or client, or all together, have as many streams open as they may."""

    code = "too_many_streams"
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class NotServed(WorkloadError):
    """A request for what this sidecar, or its server, does not do."""

    code = "not_served"
    status = grpc.StatusCode.UNIMPLEMENTED


class DelegateError(WorkloadError):
    """A program asked for identities of others, and cannot have them."""


class DelegateRefused(DelegateError):
    """A program that the configuration does not trust with identities of others."""

    code = "delegate_refused"
    status = grpc.StatusCode.PERMISSION_DENIED


class ReferenceInvalid(DelegateError):
    """A reference that names no workload."""

    code = "reference_invalid"
    status = grpc.StatusCode.INVALID_ARGUMENT


class WorkloadGone(DelegateError):
    """The process that is asked for has ended, or there is none."""

    code = "workload_gone"
    status = grpc.StatusCode.NOT_FOUND


class NotReady(SidecarError):
    """An answer exists, but not yet."""

    code = "not_ready"
    status = grpc.StatusCode.UNAVAILABLE


class Incomplete(NotReady):
    """Some of an answer has come. `partial` is what there is, a message, for those who have waited long enough."""

    code = "incomplete"

    def __init__(self, partial: object) -> None:
        super().__init__("some identities are not issued yet")
        self.partial = partial


class ServerError(SidecarError):
    """Our server refused, failed, or sent what cannot be used."""

    status = grpc.StatusCode.UNAVAILABLE


class AttestationRefused(ServerError):
    """The server does not accept our evidence."""

    code = "attestation_refused"


class AgentBanned(ServerError):
    """The server has banned this agent: its identity is deleted, and the process ends."""

    code = "agent_banned"


class AgentLost(ServerError):
    """The server takes our agent SVID no longer."""

    code = "agent_lost"


class ServerUnavailable(ServerError):
    """The server does not answer, or not with what it should; worth another try."""

    code = "server_unavailable"


class UpdateRefused(ServerError):
    """An update breaks a rule of the control stream; what ran before goes on."""

    code = "update_refused"

    def __init__(self, nack: str, sentence: str) -> None:
        super().__init__(sentence)
        self.nack = nack
