# SPDX-License-Identifier: Apache-2.0
"""The custom resources of Kubernetes: Segment, Flow and Service, with the fields that documents have.

The API server checks each object by itself, and says what a person should write. What takes the whole set to see (a
segment that is not declared, two claims to one ID) is lint's, when the set is read. Two fields are narrower than in
files, for a resource's field has one type: `id` is a list, and `expiry` is a mapping (left out, it is `close`).

`.ci/crds.py` writes them to deploy/kubernetes/crds; tests hold them to the parser's tables.
"""

from __future__ import annotations

from typing import Any, Final

from firedoor.segments.model import API_VERSION
from firedoor.segments.names import NAME

Schema = dict[str, Any]
GROUP, VERSION = API_VERSION.split("/")

_NAME: Final = f"^{NAME}$"
_NAME_SAID: Final = "a name has up to 63 of a-z, 0-9 and dashes inside"
# The API server bounds what its checks may cost by how much there could be to check, so that some bounds are lower than
# in files: lengths of patterns, actions of a flow, peers of a port.
_MAX_TEXT: Final = 1024
_STEP: Final = r"[A-Za-z0-9._-]+"
_ID: Final = rf"^spiffe://(\{{td\}}|[a-z0-9._-]{{1,255}})(/(\*|{_STEP}))*/(\*\*|\*|{_STEP})$"
_ID_SAID: Final = (
    "write an ID pattern such as spiffe://{td}/segment/<segment>/**: * is one whole path segment, ** the rest; "
    "an address proves nothing and cannot be named"
)
_SELECTOR: Final = "^[^:]+:.+$"
_SELECTOR_SAID: Final = "a selector is type:value, such as k8s_pod:ns:inference"


def rule(expression: str, message: str) -> Schema:
    """Return a check in CEL, with the sentence that a person reads."""
    return {"rule": expression, "message": message}


def matching(pattern: str, message: str) -> Schema:
    """Return a check that a text matches a pattern of RE2."""
    return rule(f"self.matches(r'{pattern}')", message)


def text(description: str, most: int, *rules: Schema) -> Schema:
    """Return a line of text."""
    made: Schema = {"type": "string", "description": description, "maxLength": most}
    return {**made, "x-kubernetes-validations": list(rules)} if rules else made


def word(description: str, *words: str) -> Schema:
    """Return one of some words."""
    return {"type": "string", "description": description, "enum": list(words)}


def number(description: str, least: int, most: int) -> Schema:
    """Return a whole number within bounds."""
    return {"type": "integer", "description": description, "minimum": least, "maximum": most}


def boolean(description: str) -> Schema:
    """Return a truth value."""
    return {"type": "boolean", "description": description}


def several(description: str, item: Schema, *, least: int = 0, most: int = 1000) -> Schema:
    """Return a list whose items are all different."""
    kind = "set" if item["type"] == "string" else "atomic"
    made: Schema = {"type": "array", "description": description, "items": item, "maxItems": most}
    return {**made, "x-kubernetes-list-type": kind, **({"minItems": least} if least else {})}


def record(description: str, fields: dict[str, Schema], *rules: Schema, required: tuple[str, ...] = ()) -> Schema:
    """Return a mapping of fields."""
    made: Schema = {"type": "object", "description": description, "properties": fields}
    made |= {"required": list(required)} if required else {}
    return {**made, "x-kubernetes-validations": list(rules)} if rules else made


def _ids(description: str, *, least: int = 0, most: int = 1000) -> Schema:
    item = text("An ID pattern.", _MAX_TEXT, matching(_ID, _ID_SAID))
    return several(description, item, least=least, most=most)


def _selectors(description: str) -> Schema:
    return several(description, text("A selector, type:value.", 1024, matching(_SELECTOR, _SELECTOR_SAID)), most=100)


def name(description: str) -> Schema:
    """Return a name of ours."""
    return text(description, 63, matching(_NAME, _NAME_SAID))


_ADMISSION: Final = record(
    "Which selectors an SVID of the segment needs, all of them. Only `node` resists a compromised node.",
    {
        "entry": _selectors("Selectors that the entry must have; as trustworthy as the agent that says it saw them."),
        "node": _selectors("Selectors that the broker itself attested for the agent, such as k8s_pod:ns:inference."),
        "mint": boolean("Lets SVIDs be minted for members without a workload; audited."),
        "breakglass": boolean("Keeps the segment for people whom another person approved. It stands alone."),
    },
    rule(
        "!(has(self.breakglass) && self.breakglass) || !(has(self.entry) || has(self.node) || has(self.mint))",
        "breakglass stands alone: remove entry, node and mint",
    ),
)
_SEGMENT: Final = record(
    "A named zone: who belongs to it, and what a certificate of it needs.",
    {
        "function": text("What it is for, for people; the name when it is left out.", 63),
        "trust": word("How much its workloads are trusted; low when it is left out.", "low", "medium", "high"),
        "vlan": number("A VLAN number, for people; it decides nothing.", 1, 4094),
        "mode": word("Whether what no flow allows is denied (enforce) or only recorded (audit).", "audit", "enforce"),
        "members": _ids("Patterns of the SPIFFE IDs that belong to it; {td} is the broker's own trust domain."),
        "admission": _ADMISSION,
        "fallback": boolean("It takes the IDs of our trust domain that no other segment claims. One segment may."),
        "audit_loss": word("When records cannot be kept: count what is lost, or deny new requests.", "count", "deny"),
        "expiry": record(
            "How long a stream may outlive the SVID that opened it. Left out, it is closed with it.",
            {
                "until-revoked": text(
                    "At most so long, while nothing of it is revoked: 12h, and 30d at most.",
                    9,
                    matching("^[1-9][0-9]{0,7}[smhd]$", "write a duration like 90s, 30m, 12h or 7d"),
                )
            },
            required=("until-revoked",),
        ),
        "volumes": word(
            "What its pods may do to volumes that outlive them; guards refuse other pods.", "read-write", "read-only"
        ),
    },
    rule(
        "!(has(self.fallback) && self.fallback && has(self.trust) && self.trust == 'high')",
        "the fallback takes whatever no other segment claims, so its trust cannot be high",
    ),
    rule(
        "(has(self.fallback) && self.fallback) || (has(self.admission.entry) && size(self.admission.entry) > 0) || "
        "(has(self.admission.node) && size(self.admission.node) > 0) || "
        "(has(self.admission.mint) && self.admission.mint) || "
        "(has(self.admission.breakglass) && self.admission.breakglass)",
        'admission asks for nothing, so everybody would be admitted: add node: ["k8s_pod:ns:<namespace>"]',
    ),
    required=("admission",),
)

_SOMEBODY: Final = rule("has(self.segment) || has(self.id)", "this end names nobody: add segment, or id, or both")


def _end(description: str, more: dict[str, Schema]) -> Schema:
    fields = {
        "segment": name("The segment that the ID must be of."),
        "id": _ids("ID patterns, one of which must match.", least=1, most=100),
    }
    return record(description, {**fields, **more}, _SOMEBODY, required=tuple(more))


def _texts(description: str, item: str, most: int, *rules: Schema) -> Schema:
    return several(description, text(item, most, *rules), least=1, most=100)


_ACTION: Final = record(
    "One kind of action.",
    {
        "tcp": record("Any connection of an opaque listener.", {}),
        "http": record(
            "Requests of an http listener; a list that is left out does not restrict.",
            {
                "methods": _texts(
                    "HTTP methods.",
                    "A method, in upper case.",
                    32,
                    matching("^[A-Z][A-Z0-9_-]*$", "an HTTP method is written in upper case, such as GET"),
                ),
                "paths": _texts(
                    "Path patterns.",
                    "A path pattern, written decoded: * is one whole segment, ** the rest.",
                    _MAX_TEXT,
                    matching(r"^/[^?#\\]*$", "a path pattern begins with a slash and has no query, # or backslash"),
                ),
                "authorities": _texts(
                    "Authorities, as clients send them.",
                    "host or host:port, in lower case.",
                    260,
                    matching(
                        "^[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?(:[1-9][0-9]{0,4})?$",
                        "an authority is host or host:port, in lower case",
                    ),
                ),
            },
        ),
        "grpc": record(
            "Calls of one gRPC service; without methods, all of them.",
            {
                "service": text(
                    "Its full name.",
                    255,
                    matching(
                        "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*$",
                        "write the service's full name: package.Service",
                    ),
                ),
                "methods": _texts(
                    "Its methods.",
                    "A method's name alone.",
                    128,
                    matching("^[A-Za-z_][A-Za-z0-9_]*$", "write the method's name alone: ModelInfer"),
                ),
            },
            required=("service",),
        ),
    },
    rule(
        "[has(self.tcp), has(self.http), has(self.grpc)].filter(one, one).size() == 1",
        "an action is one of tcp, http and grpc: write one a list item",
    ),
)
_PORT: Final = number("The service port: what the receiving listener declares.", 1, 65535)
_FLOW: Final = record(
    "A named, owned, reasoned permission. What no flow allows is denied.",
    {
        "owner": {**text("Who answers for it.", 256), "minLength": 1},
        "reason": {**text("Why it is there.", 1024), "minLength": 1},
        "from": _end("Who asks.", {}),
        "to": _end("Who is asked, and at which port.", {"port": _PORT}),
        "allow": several("What is allowed; any one suffices.", _ACTION, least=1, most=50),
        "valid": record(
            "When it holds; either may be left out.",
            {
                "from": {
                    "type": "string",
                    "format": "date-time",
                    "description": "From then on, such as 2026-05-01T08:00:00Z.",
                },
                "until": {"type": "string", "format": "date-time", "description": "Until just before then."},
            },
            rule(
                "!has(self.from) || !has(self.until) || self.from < self.until",
                "the flow never holds: until is not after from",
            ),
        ),
    },
    required=("owner", "reason", "from", "to", "allow"),
)

_SERVICE_PORT: Final = record(
    "A port that clients connect to.",
    {
        "port": number("Where apps connect.", 1, 65535),
        "protocol": word("What it is served as; tcp when it is left out.", "tcp", "http", "grpc"),
        "expect": _ids("The peers that may answer there.", least=1, most=16),
        "service_port": number("What flows name: the receiving side's own; `port` when it is left out.", 1, 65535),
        "connect": several(
            "Where those peers' sidecars listen, host:port; where the app wanted to go when it is left out.",
            text("host:port.", 300, matching(r"^.+:[1-9][0-9]{0,4}$", "write host:port, such as gpu-1.internal:19000")),
            least=1,
            most=64,
        ),
    },
    required=("port", "expect"),
)
_SERVICE: Final = record(
    "Who is expected behind some addresses. It permits nothing: the verified ID decides.",
    {
        "addresses": several(
            "IP addresses that clients connect to.",
            text(
                "An IP address.",
                45,
                rule("isIP(self)", "write an IP address, such as 10.20.0.5 or fd00:20::5"),
                rule(
                    "!isIP(self) || !(ip(self).isLoopback() || ip(self).isLinkLocalUnicast() || "
                    "ip(self).isUnspecified() || ip(self).isLinkLocalMulticast())",
                    "a loopback, link-local or unspecified address names no service",
                ),
            ),
            least=1,
        ),
        "ports": several("Its ports.", _SERVICE_PORT, least=1, most=64),
    },
    required=("addresses", "ports"),
)

_CONDITION: Final = record(
    "What is so about the object.",
    {
        "type": text("What it is about.", 316),
        "status": word("Whether it is so.", "True", "False", "Unknown"),
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "description": "The generation that was looked at.",
            "minimum": 0,
        },
        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When it last changed."},
        "reason": text("Why, in one word.", 1024),
        "message": text("Why, for people.", 32768),
    },
    required=("type", "status", "lastTransitionTime", "reason", "message"),
)


def conditions(description: str) -> Schema:
    """Return the conditions of a status."""
    return {
        "type": "array",
        "description": description,
        "items": _CONDITION,
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }


_STATUS: Final = record(
    "What became of it; written by brokers.",
    {
        "conditions": conditions(
            "Accepted: it is part of the policy in force. Enforced: every sidecar has acknowledged it."
        )
    },
)


def column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Schema:
    """Return a column of `kubectl get`; a wide one only with `--output wide`."""
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}


def condition_column(kind: str) -> Schema:
    """Return the column of a condition."""
    return column(kind, f'.status.conditions[?(@.type=="{kind}")].status')


_AGE: Final = column("Age", ".metadata.creationTimestamp", "date")
_COLUMNS: Final = {
    "Segment": [
        column("Trust", ".spec.trust"),
        column("Mode", ".spec.mode"),
        condition_column("Accepted"),
        condition_column("Enforced"),
        column("Members", ".spec.members", wide=True),
        _AGE,
    ],
    "Flow": [
        column("From", ".spec.from.segment"),
        column("To", ".spec.to.segment"),
        column("Port", ".spec.to.port", "integer"),
        column("Owner", ".spec.owner"),
        condition_column("Accepted"),
        condition_column("Enforced"),
        column("Reason", ".spec.reason", wide=True),
        _AGE,
    ],
    "Service": [
        column("Addresses", ".spec.addresses"),
        condition_column("Accepted"),
        condition_column("Enforced"),
        _AGE,
    ],
}
SPECS: Final = {"Segment": _SEGMENT, "Flow": _FLOW, "Service": _SERVICE}


def definitions() -> tuple[Schema, ...]:
    """Return the CustomResourceDefinitions, cluster-scoped: names of segments and flows stand once."""
    return tuple(definition(kind, f"{kind.lower()}s", SPECS[kind], _STATUS, _COLUMNS[kind]) for kind in SPECS)


def definition(kind: str, plural: str, spec: Schema, status: Schema, columns: list[Schema]) -> Schema:
    """Return the CustomResourceDefinition of a cluster-scoped kind."""
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "categories": ["firedoor"],
    }
    whole = record(
        spec["description"],
        {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        rule(f"self.metadata.name.matches(r'{_NAME}')", _NAME_SAID),
        required=("spec",),
    )
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": whole},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Cluster", "names": names, "versions": [version]},
    }
