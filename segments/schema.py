# SPDX-License-Identifier: Apache-2.0
"""Shapes: tables that say which fields a mapping has and how each is read.

A `Read` takes a node and returns a typed value or raises `Bad`. A `Shape` reads a whole mapping, goes on after a bad
field, so that a person sees everything at once, and names the nearest field for an unknown one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, final

from firedoor.certs import TrustDomain
from firedoor.segments.document import Mapping, Node, Scalar, ScalarType, Sequence
from firedoor.segments.findings import Finding, Position

T = TypeVar("T")
# Lists in the language are patterns, methods, selectors; more than this many is a mistake or an attack.
MAX_ITEMS: Final = 1000
MAX_FINDINGS: Final = 200


class Bad(Exception):
    """A value cannot be read. Never leaves the parser."""

    def __init__(self, code: str, node: Node | Position, message: str, fix: str) -> None:
        super().__init__(message)
        at = node if isinstance(node, Position) else node.at
        self.finding = Finding("error", code, at, message, fix)


@final
class Reading:
    """What one run of the parser knows: the trust domain, what it found wrong, and where each value stood."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self.trust_domain = trust_domain
        self.findings: list[Finding] = []
        self.marks: dict[str, Position] = {}
        self._path: list[str] = []

    def inside(self, step: str, node: Node, read: Read[T]) -> T:
        """Read a part, and remember its line under its path: `spec.members.0`."""
        self._path.append(step)
        self.marks[".".join(self._path)] = node.at
        try:
            return read(node, self)
        finally:
            self._path.pop()

    def begin(self, document: Node) -> None:
        """Start a new document."""
        self.marks = {"": document.at}

    def note(self, bad: Bad) -> None:
        """Keep what was wrong and go on."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(bad.finding)

    def last(self, wrong: list[Bad]) -> Bad:
        """Keep all but the last of what was wrong in one value, and return that for raising."""
        *others, last = wrong
        for bad in others:
            self.note(bad)
        return last


Read = Callable[[Node, Reading], T]
_MISSING: Final[Any] = object()


@final
@dataclass(frozen=True, slots=True)
class Field:
    """One row of a shape. Without a default the field must stand there. `into` is its name in the built type."""

    name: str
    read: Read[Any]
    default: Any = _MISSING
    into: str = ""


@final
@dataclass(frozen=True, slots=True)
class Shape(Generic[T]):
    """A mapping with known fields, made into a `T`. `elsewhere` says why some that people look for do not exist."""

    title: str
    build: Callable[..., T]
    fields: tuple[Field, ...]
    elsewhere: MappingOf[str, Callable[[Scalar], Bad]] = field(default_factory=dict)

    def __call__(self, node: Node, reading: Reading) -> T:
        """Read the mapping. Raise Bad when a field is missing or wrong, after noting all others that are."""
        if not isinstance(node, Mapping):
            raise Bad("wrong_type", node, f"{self.title} is a mapping of fields", f"write {self._example()}")
        wrong = self._unknown(node)
        values: dict[str, Any] = {}
        for row in self.fields:
            try:
                values[row.into or row.name] = self._value(row, node, reading)
            except Bad as bad:
                wrong.append(bad)
        if wrong:
            raise reading.last(wrong)
        return self.build(**values)

    def _value(self, row: Field, node: Mapping, reading: Reading) -> Any:
        found = node.get(row.name)
        if found is not None:
            return reading.inside(row.name, found, row.read)
        if row.default is _MISSING:
            raise Bad("missing_field", node, f"{self.title} has no `{row.name}`", f"add `{row.name}:`")
        return row.default

    def _unknown(self, node: Mapping) -> list[Bad]:
        names = [row.name for row in self.fields]
        return [
            self.elsewhere[key.text](key) if key.text in self.elsewhere else _unknown_field(self.title, key, names)
            for key, _ in node.entries
            if key.text not in names
        ]

    def _example(self) -> str:
        return "{" + ", ".join(f"{row.name}: …" for row in self.fields[:3]) + "}"


def _unknown_field(title: str, key: Scalar, names: list[str]) -> Bad:
    return Bad("unknown_field", key, f"{title} has no field `{clip(key.text)}`", nearest(key.text, names))


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, or all of them.

    >>> nearest("membres", ["members", "mode"])
    'did you mean `members`?'
    """
    words = sorted(known)
    close = difflib.get_close_matches(word[:64].lower(), {name.lower(): name for name in words}, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{next(name for name in words if name.lower() == close[0])}`?"
    return "known here: " + ", ".join(f"`{name}`" for name in words) if words else "remove it"


def clip(text: str) -> str:
    """Shorten what a person wrote for a message of one line."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def scalar(node: Node, wanted: ScalarType, what: str) -> str:
    """Return the text of a single value of the wanted type. Raise Bad."""
    if not isinstance(node, Scalar):
        raise Bad("wrong_type", node, f"{what} is wanted here, not a {_name(node)}", f"write {what}")
    if node.type == wanted:
        return node.text
    if wanted == "text" and node.type != "null":
        raise Bad(
            "quote_it",
            node,
            f"YAML takes `{clip(node.text)}` for a value that is not text",
            f'write "{clip(node.text)}" in quotes if that is what you mean',
        )
    raise Bad("wrong_type", node, f"{what} is wanted here", f"write {what}")


def _name(node: Node) -> str:
    return "list" if isinstance(node, Sequence) else "mapping"


def list_of(item: Read[T], what: str, *, at_least: int = 0) -> Read[tuple[T, ...]]:
    """Read a list whose items are all different."""

    def read(node: Node, reading: Reading) -> tuple[T, ...]:
        if not isinstance(node, Sequence):
            raise Bad("wrong_type", node, f"a list of {what} is wanted here", "write [ … ]")
        if len(node.items) > MAX_ITEMS:
            raise Bad("too_many_items", node, f"the list has more than {MAX_ITEMS} items", "split it")
        if len(node.items) < at_least:
            raise Bad("empty_list", node, f"the list of {what} is empty", "add an item, or remove the field")
        return _items(node, reading, item)

    return read


def _items(node: Sequence, reading: Reading, item: Read[T]) -> tuple[T, ...]:
    values: dict[T, None] = {}
    wrong: list[Bad] = []
    for number, part in enumerate(node.items):
        try:
            value = reading.inside(str(number), part, item)
        except Bad as bad:
            wrong.append(bad)
            continue
        if value in values:
            wrong.append(Bad("duplicate_item", part, "this item stands in the list twice", "remove one of them"))
        values[value] = None
    if wrong:
        raise reading.last(wrong)
    return tuple(values)


def one_of(words: MappingOf[str, T], what: str) -> Read[T]:
    """Read one of some fixed words."""

    def read(node: Node, _: Reading) -> T:
        word = scalar(node, "text", what)
        if word not in words:
            raise Bad("unknown_word", node, f"`{clip(word)}` is not {what}", nearest(word, words))
        return words[word]

    return read
