# SPDX-License-Identifier: Apache-2.0
"""YAML, read strictly, into a small tree that knows its lines.

A policy decides who may talk to whom, so what two readers could take differently is refused: anchors and aliases,
merge keys, tags, directives, keys that stand twice, keys that are not text. Plain words keep YAML's meaning (`true`,
`310`), and where text is wanted a plain word that YAML takes for something else must be quoted.

>>> node, = read(Document("x.yaml", "kind: Flow"))
>>> node.entries[0][1].text, str(node.entries[0][1].at)
('Flow', 'x.yaml:1')
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import yaml

from firedoor.segments.errors import PolicyErrors
from firedoor.segments.findings import Finding, Position

# A cluster of a thousand flows is about 300 KiB.
MAX_BYTES: Final = 4 * 1024 * 1024
# The language itself is 7 deep.
MAX_DEPTH: Final = 16
MAX_NODES: Final = 500_000
MAX_SCALAR: Final = 4096

# The C parser is ten times faster; both are the same library's and tests hold them together.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Final[Any] = yaml.SafeLoader("")
# YAML 1.2 section 5.1 leaves these out; a byte order mark inside a file hides from a reviewer, as do bidi controls.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)
_YAML: Final = "tag:yaml.org,2002:"

ScalarType = Literal["text", "boolean", "integer", "null", "other"]
_TYPES: Final[dict[str, ScalarType]] = {"str": "text", "bool": "boolean", "int": "integer", "null": "null"}


@final
@dataclass(frozen=True, slots=True)
class Document:
    """A file's text under the name that errors give it. One may hold several YAML documents."""

    name: str
    text: str


@final
@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value. `type` is what YAML takes it for: always text when quoted."""

    at: Position
    text: str
    type: ScalarType


@final
@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    at: Position
    items: tuple[Node, ...]


@final
@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping with text keys, each of which stands once."""

    at: Position
    entries: tuple[tuple[Scalar, Node], ...]

    def get(self, key: str) -> Node | None:
        """Return the value under the key."""
        return next((value for name, value in self.entries if name.text == key), None)


Node = Scalar | Sequence | Mapping


def read(document: Document) -> list[Node]:
    """Read the YAML documents of one text; empty ones are left out. Raise PolicyErrors."""
    _check_text(document)
    reader = _Reader(document.name, document.text)
    try:
        return reader.documents()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        at = Position(document.name, mark.line + 1 if mark else 0)
        fix = "correct it; text that holds { } [ ] # : or * is best written in quotes"
        raise _refusal("bad_yaml", at, f"this is not YAML: {problem}", fix) from None


def _check_text(document: Document) -> None:
    if len(document.text) > MAX_BYTES or len(document.text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _refusal(
            "too_large",
            Position(document.name, 0),
            f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB",
            "split it; a folder may hold many files",
        )
    if found := _UNPRINTABLE.search(document.text):
        raise _refusal(
            "bad_character",
            Position(document.name, document.text.count("\n", 0, found.start()) + 1),
            f"the character U+{ord(found.group()):04X} cannot be seen and has no place in a policy",
            "remove it",
        )


class _Reader:
    """Builds trees from the parser's events, without recursion over the input's depth beyond MAX_DEPTH."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._nodes = 0

    def documents(self) -> list[Node]:
        found: list[Node] = []
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if event.version or event.tags:
                    raise self._no(event, "directive", "directives (%YAML, %TAG) are not read", "remove the line")
                node = self._node(next(self._events), 1)
                if not (isinstance(node, Scalar) and node.type == "null"):
                    found.append(node)
        return found

    def _node(self, event: Any, depth: int) -> Node:
        self._check(event, depth)
        at = self._at(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, at)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return Sequence(at, tuple(items))
        entries: dict[str, tuple[Scalar, Node]] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(self._node(event, depth + 1), entries)
            entries[key.text] = (key, self._node(next(self._events), depth + 1))
        return Mapping(at, tuple(entries.values()))

    def _check(self, event: Any, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._no(event, "too_many_nodes", f"the file has more than {MAX_NODES} values", "split it")
        if depth > MAX_DEPTH:
            raise self._no(event, "too_deep", f"values are nested more than {MAX_DEPTH} deep", "flatten them")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._no(
                event, "alias", "anchors (&) and aliases (*) are not read", "write the value out, or quote the text"
            )
        if event.tag is not None:
            raise self._no(event, "tag", "tags (!) are not read", "remove the tag, or quote the text")

    def _scalar(self, event: Any, at: Position) -> Scalar:
        if len(event.value) > MAX_SCALAR:
            raise self._no(event, "too_long", f"a value is longer than {MAX_SCALAR} characters", "shorten it")
        if not event.implicit[0]:
            return Scalar(at, event.value, "text")
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))
        return Scalar(at, event.value, _TYPES.get(tag.removeprefix(_YAML), "other"))

    def _key(self, key: Node, entries: dict[str, tuple[Scalar, Node]]) -> Scalar:
        if not isinstance(key, Scalar):
            raise _refusal("bad_key", key.at, "a key is a single word", "write `name: value`")
        if key.text == "<<":
            raise _refusal("merge_key", key.at, "merge keys (<<) are not read", "write the fields out")
        if key.text in entries:
            first = entries[key.text][0].at.line
            raise _refusal(
                "duplicate_key", key.at, f"the key `{key.text}` stands here and in line {first}", "keep one of them"
            )
        return key

    def _at(self, event: Any) -> Position:
        return Position(self._name, event.start_mark.line + 1)

    def _no(self, event: Any, code: str, message: str, fix: str) -> PolicyErrors:
        return _refusal(code, self._at(event), message, fix)


def _refusal(code: str, at: Position, message: str, fix: str) -> PolicyErrors:
    return PolicyErrors([Finding("error", code, at, message, fix)])
