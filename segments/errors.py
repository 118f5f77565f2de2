# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in `firedoor.segments`, split by whose fault it is.

    SegmentsError
    ├── CallerError               what was asked for breaks a rule or is not permitted
    │   ├── PolicyErrors          a set of documents that is no policy; holds every finding
    │   ├── SettingsError         a configuration of broker or sidecar that cannot be used; holds every finding
    │   ├── QuestionError         a destination or an action, typed by a person, that cannot be read
    │   ├── ExportError           a policy that cannot be written in the form that is asked for
    │   ├── InventoryError        a list of a cluster's objects that cannot be read
    │   └── Refused               the ID's segment does not let this SVID be signed
    │       ├── NoSegment         the ID belongs to no segment
    │       ├── AdmissionRefused  a selector that the segment's admission rule asks for is missing
    │       ├── AdmissionEmpty    the segment's admission rule asks for nothing, which only the fallback's may
    │       ├── PodNotAsked       the agent is a pod, and the segment's admission rule asks nothing of pods
    │       ├── MintRefused       the segment does not say `admission.mint: true`
    │       └── BreakGlassRefused the segment does not say `admission.breakglass: true`
    └── OurError
        └── TableError            a decision table of ours cannot be read back

`code` is stable; `str()` is a sentence for the person who must act. Every `Refused` has `redacted`, its sentence
without the value of a selector: logs and answers to agents take that one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from firedoor.certs import Selector, SpiffeId
from firedoor.segments.findings import Finding, in_order

Fault = Literal["caller", "us"]
Side = Literal["entry", "node"]


class SegmentsError(Exception):
    """Base of all. Raise a leaf."""

    fault: ClassVar[Fault] = "us"
    code: ClassVar[str] = "internal"
    # The name of the gRPC status that a server answers with.
    grpc_status: ClassVar[str] = "INTERNAL"


class CallerError(SegmentsError):
    """The caller's value breaks a rule."""

    fault = "caller"
    code = "invalid"
    grpc_status = "INVALID_ARGUMENT"


class PolicyErrors(CallerError):
    """A set of documents is no policy. `findings` are in the order of file and line, and never empty."""

    code = "policy_invalid"

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(in_order(findings))
        super().__init__("\n".join(str(found) for found in self.findings))

    def __reduce__(self) -> tuple[type[PolicyErrors], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)


class SettingsError(CallerError):
    """A configuration cannot be used. `findings` has a line for each problem, with file, line and key."""

    code = "settings_invalid"

    def __init__(self, findings: Iterable[str]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(self.findings))

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        return type(self), (self.findings,)


class QuestionError(CallerError):
    """A destination or an action cannot be read."""

    code = "question_invalid"


class ExportError(CallerError):
    """The policy cannot be written in this form, or what is said of the cluster cannot be."""

    code = "export_impossible"


class InventoryError(CallerError):
    """A list of a cluster's objects cannot be read."""

    code = "inventory_invalid"


class Refused(CallerError):
    """No SVID is signed for this ID: its segment does not admit it, or there is none."""

    code = "refused"
    grpc_status = "PERMISSION_DENIED"

    def __init__(self, message: str, spiffe_id: SpiffeId) -> None:
        super().__init__(message)
        self.spiffe_id = spiffe_id

    @property
    def redacted(self) -> str:
        """The sentence as logs may keep it."""
        return str(self)


class NoSegment(Refused):
    """The ID belongs to no segment."""

    code = "no_segment"

    def __init__(self, spiffe_id: SpiffeId) -> None:
        super().__init__(
            f"{spiffe_id} belongs to no segment; declare a Segment with a pattern for it in `members`", spiffe_id
        )

    def __reduce__(self) -> tuple[type[NoSegment], tuple[SpiffeId]]:
        return type(self), (self.spiffe_id,)


class AdmissionRefused(Refused):
    """The segment's admission rule asks for a selector that is not there.

    `side` says where it must come from: `entry`, the entry's own selectors, or `node`, what the broker attested for the
    agent. `str()` names the whole selector, which the policy's author wrote, for the operator; `redacted` is the same
    sentence without its value, for logs and for agents.
    """

    code = "admission_refused"

    def __init__(self, spiffe_id: SpiffeId, segment: str, side: Side, missing: Selector) -> None:
        self.segment, self.side, self.missing = segment, side, missing
        super().__init__(_not_admitted(spiffe_id, segment, side, str(missing)), spiffe_id)

    @property
    def redacted(self) -> str:
        """The sentence with the selector's type and key alone."""
        return _not_admitted(self.spiffe_id, self.segment, self.side, self.missing.redacted)

    def __reduce__(self) -> tuple[type[AdmissionRefused], tuple[SpiffeId, str, Side, Selector]]:
        return type(self), (self.spiffe_id, self.segment, self.side, self.missing)


def _not_admitted(spiffe_id: SpiffeId, segment: str, side: Side, missing: str) -> str:
    where = "the entry's own" if side == "entry" else "those that the broker attested for the agent"
    return f"segment {segment} admits {spiffe_id} only with the {side} selector {missing}, which is not among {where}"


class AdmissionEmpty(Refused):
    """The segment asks for nothing and is not the fallback: lint refuses such a policy, and it admits nobody."""

    code = "admission_empty"

    def __init__(self, spiffe_id: SpiffeId, segment: str) -> None:
        super().__init__(f"segment {segment} has an empty admission rule, so it does not admit {spiffe_id}", spiffe_id)
        self.segment = segment

    def __reduce__(self) -> tuple[type[AdmissionEmpty], tuple[SpiffeId, str]]:
        return type(self), (self.spiffe_id, self.segment)


class PodNotAsked(Refused):
    """The agent is the sidecar of a pod, which says itself what its workload is: only `node` selectors prove that."""

    code = "pod_not_asked"

    def __init__(self, spiffe_id: SpiffeId, segment: str) -> None:
        super().__init__(
            f"segment {segment} has no node selector, and what a pod's sidecar says of its own workload does not admit "
            f'{spiffe_id}; its admission would need node: ["k8s_pod:cluster:<name>", "k8s_pod:ns:<namespace>"]',
            spiffe_id,
        )
        self.segment = segment

    def __reduce__(self) -> tuple[type[PodNotAsked], tuple[SpiffeId, str]]:
        return type(self), (self.spiffe_id, self.segment)


class MintRefused(Refused):
    """The segment does not let an SVID be minted without a workload."""

    code = "mint_refused"

    def __init__(self, spiffe_id: SpiffeId, segment: str) -> None:
        super().__init__(
            f"segment {segment} does not let {spiffe_id} be minted without a workload; "
            f"its admission would have to say `mint: true`",
            spiffe_id,
        )
        self.segment = segment

    def __reduce__(self) -> tuple[type[MintRefused], tuple[SpiffeId, str]]:
        return type(self), (self.spiffe_id, self.segment)


class BreakGlassRefused(Refused):
    """The segment is not for break-glass."""

    code = "breakglass_refused"

    def __init__(self, spiffe_id: SpiffeId, segment: str) -> None:
        super().__init__(
            f"segment {segment} is not for break-glass, so nobody gets {spiffe_id} that way; "
            f"its admission would have to say `breakglass: true`",
            spiffe_id,
        )
        self.segment = segment

    def __reduce__(self) -> tuple[type[BreakGlassRefused], tuple[SpiffeId, str]]:
        return type(self), (self.spiffe_id, self.segment)


class OurError(SegmentsError):
    """Something of ours is damaged."""


class TableError(OurError):
    """A decision table cannot be read back."""

    code = "table_damaged"
