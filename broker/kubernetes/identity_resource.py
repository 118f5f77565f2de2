# SPDX-License-Identifier: Apache-2.0
"""The custom resource WorkloadIdentity, as the API server checks and explains it.

It is cluster-scoped: what it says beside an ID, DNS names and whom pods federate with, no segment's admission decides.
`.ci/crds.py` writes it to deploy/kubernetes/crds.
"""

from __future__ import annotations

from typing import Final

from firedoor.broker.entry import MAX_DNS_NAMES, MAX_FEDERATES
from firedoor.broker.kubernetes.identities import DEFAULT_ID, KIND, MAX_TEMPLATE, PLACEHOLDERS, PLURAL
from firedoor.segments.resources import (
    Schema,
    column,
    condition_column,
    conditions,
    definition,
    matching,
    name,
    record,
    rule,
    several,
    text,
    word,
)
from firedoor.segments.well_known import SEGMENT

_WORDS: Final = "|".join(PLACEHOLDERS)
_KNOWN: Final = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
_STEP: Final = rf"([A-Za-z0-9._-]|\{{({_WORDS})\}})+"
_ID_SAID: Final = f"write an ID such as {DEFAULT_ID}; placeholders are {_KNOWN}"
_DNS_SAID: Final = f"write a DNS name in lower case, such as {{sa}}.{{ns}}.svc; placeholders are {_KNOWN}"
_DURATION: Final = matching("^[1-9][0-9]{0,7}[smhd]$", "write a duration like 90s, 30m, 12h or 7d")
_MOST: Final = 20


def _labels(description: str) -> Schema:
    operator = word("How the label must be.", "In", "NotIn", "Exists", "DoesNotExist")
    requirement = record(
        "One requirement.",
        {
            "key": text("The label's key.", 317),
            "operator": operator,
            "values": several("Values; In and NotIn have some.", text("A value.", 63), most=_MOST),
        },
        rule(
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values, Exists and DoesNotExist take none",
        ),
        required=("key", "operator"),
    )
    equal: Schema = {
        "type": "object",
        "description": "Labels that it must have, with these values.",
        "additionalProperties": {"type": "string", "maxLength": 63},
        "maxProperties": _MOST,
    }
    expressions = several("Requirements, all of them.", requirement, most=_MOST)
    return record(description, {"matchLabels": equal, "matchExpressions": expressions})


_SPEC: Final = record(
    "Which pods get which identity. Whether a pod may have it, the admission of its segment decides.",
    {
        "podSelector": _labels("Labels of the pods; all pods when it is left out."),
        "namespaceSelector": _labels("Labels of their namespaces; all namespaces when it is left out."),
        "segment": name(f"What {{segment}} stands for; what the pod says by {SEGMENT} when it is left out."),
        "id": text(
            f"The SPIFFE ID; {DEFAULT_ID} when it is left out.",
            MAX_TEMPLATE,
            matching(rf"^spiffe://\{{td\}}(/{_STEP})+$", _ID_SAID),
        ),
        "ttl": text("How long an X.509-SVID lives; the broker's default when it is left out.", 9, _DURATION),
        "jwtTtl": text("How long a JWT-SVID lives; the broker's default when it is left out.", 9, _DURATION),
        "federatesWith": several(
            "Trust domains whose bundles the pods get.",
            text("A trust domain.", 255, matching("^[a-z0-9._-]+$", "write a trust domain, such as partner.example")),
            most=MAX_FEDERATES,
        ),
        "dnsNames": several(
            "DNS names in the certificate.",
            text("A DNS name.", 253, matching(rf"^([a-z0-9.*-]|\{{({_WORDS})\}})+$", _DNS_SAID)),
            most=MAX_DNS_NAMES,
        ),
        "hint": text("Tells several identities of one pod apart.", 1024),
    },
    rule(
        "!(has(self.segment) && has(self.id)) || self.id.contains('{segment}')",
        "segment has no effect: id does not name {segment}",
    ),
)
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_STATUS: Final = record(
    "What became of it; written by the broker that holds the Lease.",
    {
        "pods": {**_COUNT, "description": "How many pods it selects."},
        "entries": {**_COUNT, "description": "For how many of them its entry is there."},
        "conditions": conditions("Accepted: it can be read. Registered: each pod that it selects has its entry."),
    },
)


def identity_definition() -> Schema:
    """Return the CustomResourceDefinition."""
    columns = [
        column("Segment", ".spec.segment"),
        column("Pods", ".status.pods", "integer"),
        column("Entries", ".status.entries", "integer"),
        condition_column("Accepted"),
        condition_column("Registered"),
        column("ID", ".spec.id", wide=True),
        column("Age", ".metadata.creationTimestamp", "date"),
    ]
    return definition(KIND, PLURAL, _SPEC, _STATUS, columns)
