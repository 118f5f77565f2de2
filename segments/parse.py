# SPDX-License-Identifier: Apache-2.0
"""Documents in, a PolicySet out, or every reason why not.

The tables below are the language: each row is a field, how it is read, and what stands for it when it is left out.

>>> from firedoor.certs import TrustDomain
>>> text = '''
... apiVersion: firedoor.dev/v1alpha1
... kind: Segment
... metadata: {name: registry}
... spec:
...   function: registry
...   trust: high
...   members: ["spiffe://{td}/segment/registry/**"]
...   admission: {entry: ["unix:user:registry"], node: []}
... '''
>>> policy = load([Document("registry.yaml", text)], TrustDomain.parse("example.org"))
>>> policy.segments[0].name, [str(pattern) for pattern in policy.segments[0].members]
('registry', ['spiffe://example.org/segment/registry/**'])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

from firedoor.certs import TrustDomain
from firedoor.segments import service_values, values
from firedoor.segments.document import Document, Mapping, Node, Scalar, read
from firedoor.segments.errors import PolicyErrors
from firedoor.segments.findings import Position
from firedoor.segments.model import (
    API_VERSION,
    Action,
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
from firedoor.segments.schema import MAX_FINDINGS, Bad, Field, Reading, Shape, clip, list_of, nearest, one_of, scalar

# As many as the engine takes; a longer list is an attack or a generator gone wrong.
MAX_OBJECTS: Final = 16_384
# A service with more is several.
MAX_PORTS: Final = 64


def _expiry(node: Node, reading: Reading) -> Expiry:
    """`close`, or how long a stream may live on."""
    if isinstance(node, Scalar):
        return one_of({"close": Expiry()}, "`close` or {until-revoked: 12h}")(node, reading)
    return _UNTIL_REVOKED(node, reading)


def _action(node: Node, reading: Reading) -> Action:
    """One kind of action, `{http: {…}}`."""
    if not isinstance(node, Mapping) or len(node.entries) != 1:
        raise Bad("wrong_type", node, "an action is one of tcp, http or grpc", "write one a list item: - {http: {…}}")
    key, value = node.entries[0]
    if key.text not in _ACTIONS:
        raise Bad("unknown_field", key, f"there is no action `{clip(key.text)}`", nearest(key.text, _ACTIONS))
    made: Action = reading.inside(key.text, value, _ACTIONS[key.text])
    return made


def _subject(segment: str | None = None, ids: tuple[Any, ...] = ()) -> Subject:
    return Subject(segment, ids)


def _destination(port: int, segment: str | None = None, ids: tuple[Any, ...] = ()) -> tuple[Subject, int]:
    return Subject(segment, ids), port


def _service_port(port: int, service_port: int, **rest: Any) -> ServicePort:
    return ServicePort(port=port, service_port=service_port or port, **rest)


def _end(shape: Shape[Any]) -> Callable[[Node, Reading], Any]:
    """An end of a flow names a segment, IDs, or both; with neither it would match nothing."""

    def read_end(node: Node, reading: Reading) -> Any:
        made = shape(node, reading)
        subject = made if isinstance(made, Subject) else made[0]
        if subject.segment is None and not subject.ids:
            raise Bad("empty_subject", node, "this end names nobody", "add `segment:` or `id:`, or both")
        return made

    return read_end


_NO_ADDRESS: Final = MappingProxyType(dict.fromkeys(values.ADDRESS_FIELDS, values.no_address_field))
_SUBJECT_FIELDS: Final = (
    Field("segment", values.name, default=None),
    Field("id", values.one_or_more(values.pattern), default=(), into="ids"),
)

_TCP: Final = Shape("a tcp action", TcpAction, ())
_HTTP: Final = Shape(
    "an http action",
    HttpAction,
    (
        Field("methods", list_of(values.method, "HTTP methods", at_least=1), default=()),
        Field("paths", list_of(values.path, "path patterns", at_least=1), default=()),
        Field("authorities", list_of(values.authority, "authorities", at_least=1), default=()),
    ),
    _NO_ADDRESS,
)
_GRPC: Final = Shape(
    "a grpc action",
    GrpcAction,
    (
        Field("service", values.service),
        Field("methods", list_of(values.grpc_method, "gRPC methods", at_least=1), default=()),
    ),
)
_ACTIONS: Final[dict[str, Shape[Any]]] = {"tcp": _TCP, "http": _HTTP, "grpc": _GRPC}

_ADMISSION: Final = Shape(
    "admission",
    Admission,
    (
        Field("entry", list_of(values.selector, "selectors"), default=()),
        Field("node", list_of(values.selector, "selectors"), default=()),
        Field("mint", values.boolean, default=False),
        Field("breakglass", values.boolean, default=False),
    ),
)
_UNTIL_REVOKED: Final = Shape("expiry", Expiry, (Field("until-revoked", values.duration, into="until_revoked"),))
_TRUST: Final = {"low": Trust.LOW, "medium": Trust.MEDIUM, "high": Trust.HIGH}
_MODE: Final = {"audit": Mode.AUDIT, "enforce": Mode.ENFORCE}
_VOLUMES: Final = {"read-write": False, "read-only": True}
_AUDIT_LOSS: Final = {"count": AuditLoss.COUNT, "deny": AuditLoss.DENY}

_SEGMENT: Final[Shape[dict[str, Any]]] = Shape(
    "the spec of a Segment",
    dict,
    (
        Field("function", values.words(63), default=""),
        Field("trust", one_of(_TRUST, "a trust level"), default=Trust.LOW),
        Field("vlan", values.integer(1, 4094), default=None),
        Field("mode", one_of(_MODE, "a mode"), default=Mode.ENFORCE),
        Field("members", list_of(values.pattern, "ID patterns"), default=()),
        Field("admission", _ADMISSION),
        Field("fallback", values.boolean, default=False),
        Field("audit_loss", one_of(_AUDIT_LOSS, "what to do when records are lost"), default=AuditLoss.COUNT),
        Field("expiry", _expiry, default=Expiry()),
        Field("volumes", one_of(_VOLUMES, "what pods may do to volumes"), default=False, into="read_only"),
    ),
    _NO_ADDRESS,
)
_VALIDITY: Final = Shape(
    "valid",
    Validity,
    (Field("from", values.time, default=None, into="start"), Field("until", values.time, default=None)),
)
_FLOW: Final[Shape[dict[str, Any]]] = Shape(
    "the spec of a Flow",
    dict,
    (
        Field("owner", values.words(256), default=""),
        Field("reason", values.words(1024), default=""),
        Field("from", _end(Shape("from", _subject, _SUBJECT_FIELDS, _NO_ADDRESS)), into="source"),
        Field(
            "to",
            _end(Shape("to", _destination, (*_SUBJECT_FIELDS, Field("port", values.integer(1, 65535))), _NO_ADDRESS)),
            into="end",
        ),
        Field("allow", list_of(_action, "actions")),
        Field("valid", _VALIDITY, default=None),
    ),
    _NO_ADDRESS,
)
_SPEAKS: Final = {"tcp": Speaks.TCP, "http": Speaks.HTTP, "grpc": Speaks.GRPC}
_SERVICE_PORT: Final = Shape(
    "a port of a service",
    _service_port,
    (
        Field("port", values.integer(1, 65535)),
        Field("protocol", one_of(_SPEAKS, "a protocol"), default=Speaks.TCP),
        Field("expect", service_values.expected),
        Field("service_port", values.integer(1, 65535), default=0),
        Field("connect", service_values.hints, default=()),
    ),
)
_SERVICE: Final[Shape[dict[str, Any]]] = Shape(
    "the spec of a Service",
    dict,
    (
        Field("addresses", list_of(service_values.address, "IP addresses", at_least=1)),
        Field("ports", service_values.at_most(MAX_PORTS, list_of(_SERVICE_PORT, "ports", at_least=1), "ports")),
    ),
)
_METADATA: Final = Shape("metadata", str, (Field("name", values.name, into="object"),))


_Marks: TypeAlias = MappingProxyType[str, Position]
_Object: TypeAlias = Segment | Flow | Service
_Make: TypeAlias = Callable[[_Marks], _Object]


def _kind_of_document(spec: Shape[dict[str, Any]], make: Callable[..., _Object]) -> Shape[_Make]:
    def build(metadata: str, spec: dict[str, Any], **_: str) -> _Make:
        return lambda marks: make(name=metadata, marks=marks, **spec)

    fields = (
        Field("apiVersion", one_of({API_VERSION: API_VERSION}, "an apiVersion that is known here")),
        Field("kind", values.words(63)),
        Field("metadata", _METADATA),
        Field("spec", spec),
    )
    return Shape("a document", build, fields)


def _segment(name: str, function: str, **spec: Any) -> Segment:
    return Segment(name=name, function=function or name, **spec)


def _flow(end: tuple[Subject, int], **spec: Any) -> Flow:
    return Flow(destination=end[0], port=end[1], **spec)


_KINDS: Final = {
    "Segment": _kind_of_document(_SEGMENT, _segment),
    "Flow": _kind_of_document(_FLOW, _flow),
    "Service": _kind_of_document(_SERVICE, Service),
}


def load(documents: Iterable[Document], trust_domain: TrustDomain) -> PolicySet:
    """Read all documents, several objects in each, as one policy. Raise PolicyErrors with everything that is wrong."""
    return Loader(trust_domain).load(documents)


@final
class Loader:
    """Loads one set of documents after the other; a document that stood in the set before is not read again.

    So a change costs what it changes: the address of one service in a folder of hundreds is one file.
    """

    def __init__(self, trust_domain: TrustDomain) -> None:
        self._trust_domain = trust_domain
        self._known: dict[Document, tuple[_Object, ...]] = {}

    def load(self, documents: Iterable[Document]) -> PolicySet:
        """Read them as one policy. Raise PolicyErrors with everything that is wrong; what is known stays known then."""
        reading = Reading(self._trust_domain)
        found: dict[tuple[str, str], _Object] = {}
        known: dict[Document, tuple[_Object, ...]] = {}
        for document in documents:
            made: list[_Object] = []
            for one in self._known.get(document) or _objects(document, reading):
                made.append(one)
                try:
                    _keep(one, found)
                except Bad as bad:
                    reading.note(bad)
            known[document] = tuple(made)
        if reading.findings:
            raise PolicyErrors(reading.findings)
        self._known = known
        return _policy(self._trust_domain, found)


def _policy(trust_domain: TrustDomain, found: dict[tuple[str, str], _Object]) -> PolicySet:
    # By name: no two of one kind share theirs, so that objects are never compared.
    ordered = [one for _, one in sorted(found.items())]
    segments = (one for one in ordered if isinstance(one, Segment))
    flows = (one for one in ordered if isinstance(one, Flow))
    services = (one for one in ordered if isinstance(one, Service))
    return PolicySet(trust_domain, tuple(segments), tuple(flows), tuple(services))


def _objects(document: Document, reading: Reading) -> Iterator[_Object]:
    for node in _nodes(document, reading):
        try:
            made = _object(node, reading)
        except Bad as bad:
            reading.note(bad)
        else:
            yield made


def _nodes(document: Document, reading: Reading) -> list[Node]:
    try:
        return read(document)
    except PolicyErrors as errors:
        reading.findings.extend(errors.findings[: MAX_FINDINGS - len(reading.findings)])
        return []


def _object(node: Node, reading: Reading) -> _Object:
    reading.begin(node)
    return _kind(node)(node, reading)(MappingProxyType(reading.marks))


def _kind(node: Node) -> Shape[_Make]:
    if not isinstance(node, Mapping):
        raise Bad("wrong_type", node, "a document is a mapping", "begin with apiVersion, kind, metadata and spec")
    found = node.get("kind")
    if found is None:
        raise Bad("missing_field", node, "the document has no `kind`", f"add `kind:`, {nearest('', _KINDS)}")
    word = scalar(found, "text", "a kind")
    if word not in _KINDS:
        raise Bad("unknown_word", found, f"`{clip(word)}` is not a kind", nearest(word, _KINDS))
    return _KINDS[word]


def _keep(made: _Object, found: dict[tuple[str, str], _Object]) -> None:
    key = (type(made).__name__, made.name)
    at = made.at("metadata", "name")
    if key in found:
        first = found[key].at("metadata", "name")
        raise Bad("duplicate_name", at, f"{key[0]} {made.name} is declared here and in {first}", "rename one of them")
    if len(found) >= MAX_OBJECTS:
        message = f"there are more than {MAX_OBJECTS} segments, flows and services"
        raise Bad("too_many_objects", at, message, "use wider patterns")
    found[key] = made
