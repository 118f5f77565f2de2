# SPDX-License-Identifier: Apache-2.0
"""Segments, flows, services: parsed, linted, compiled to the decision table. Pure: no socket, clock, file, environment.

A policy comes in as `Document`s and becomes a `PolicySet`; the broker signs what `check_admission()` admits, and the
data path runs on `compile_table()`. What a flow allows is decided by the engine in `firedoor.mtls` alone, never here.
"""

from firedoor.segments.admission import Admitted, check_admission, check_breakglass, check_entry, check_mint
from firedoor.segments.changes import Change, diff, promoted
from firedoor.segments.document import Document
from firedoor.segments.errors import (
    AdmissionEmpty,
    AdmissionRefused,
    CallerError,
    MintRefused,
    NoSegment,
    OurError,
    PodNotAsked,
    PolicyErrors,
    QuestionError,
    Refused,
    SegmentsError,
    SettingsError,
    TableError,
)
from firedoor.segments.explain import Decided, Explanation, explain, nearest_answer
from firedoor.segments.findings import Finding, Position, Severity
from firedoor.segments.linter import accept, lint, usable
from firedoor.segments.listeners import ListenerFlows, Protocol, flows_for_listener, membership_of
from firedoor.segments.membership import Membership
from firedoor.segments.model import (
    API_VERSION,
    Action,
    Address,
    Admission,
    AuditLoss,
    Expiry,
    Flow,
    GrpcAction,
    HttpAction,
    Mode,
    PolicySet,
    Segment,
    Service,
    ServicePort,
    Speaks,
    Subject,
    TcpAction,
    Trust,
    Validity,
)
from firedoor.segments.parse import Loader, load
from firedoor.segments.paths import PathPattern
from firedoor.segments.questions import (
    Asked,
    Question,
    examples,
    expected_examples,
    parse_action,
    parse_destination,
)
from firedoor.segments.table import compile_table, read_table, table_bytes, table_hash
from firedoor.segments.views import Part, Views, view

__all__ = [
    "API_VERSION",
    "Action",
    "Address",
    "Admission",
    "AdmissionEmpty",
    "AdmissionRefused",
    "Admitted",
    "Asked",
    "AuditLoss",
    "CallerError",
    "Change",
    "Decided",
    "Document",
    "Expiry",
    "Explanation",
    "Finding",
    "Flow",
    "GrpcAction",
    "HttpAction",
    "ListenerFlows",
    "Loader",
    "Membership",
    "MintRefused",
    "Mode",
    "NoSegment",
    "OurError",
    "Part",
    "PathPattern",
    "PodNotAsked",
    "PolicyErrors",
    "PolicySet",
    "Position",
    "Protocol",
    "Question",
    "QuestionError",
    "Refused",
    "Segment",
    "SegmentsError",
    "Service",
    "ServicePort",
    "SettingsError",
    "Severity",
    "Speaks",
    "Subject",
    "TableError",
    "TcpAction",
    "Trust",
    "Validity",
    "Views",
    "accept",
    "check_admission",
    "check_breakglass",
    "check_entry",
    "check_mint",
    "compile_table",
    "diff",
    "examples",
    "expected_examples",
    "explain",
    "flows_for_listener",
    "lint",
    "load",
    "membership_of",
    "nearest_answer",
    "parse_action",
    "parse_destination",
    "promoted",
    "read_table",
    "table_bytes",
    "table_hash",
    "usable",
    "view",
]
