# SPDX-License-Identifier: Apache-2.0
"""The settings of broker and sidecar: a flag before the environment before the file, which is YAML, read strictly.

A table of options says which keys there are. `layered()` lays the three sources over each other; a `Section` is then
read key by key. Every problem is collected with its place (`sidecar.yaml:12: inbound[0].app.uid: ...`), so that one run
shows all.

>>> findings = Findings()
>>> file = read_mapping("x.yaml", "{a: 1, log: {level: loud}, b: 2}")
>>> options = (Option("X_", "a", "N", "a number"), Option("X_", "log.level", "WORD", "how much is logged"))
>>> section = layered(file, options, {"X_A": "2"}, {}, findings)
>>> section.parse("a", int, 0)
2
>>> section.section("log").parse("level", setting_values.choice("low", "high"), "low")
'low'
>>> findings.lines
['x.yaml:1: b: no such key; known are a, log', 'x.yaml:1: log.level: must be one of low, high']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from firedoor.segments import document as yaml_text
from firedoor.segments import setting_values
from firedoor.segments.errors import PolicyErrors, SettingsError
from firedoor.segments.findings import Position

T = TypeVar("T")

# What a kubelet adds to the name of a Service.
_LINK: Final = re.compile(
    r"_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT(_[0-9]{1,5}_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
NOTHING: Final = yaml_text.Mapping(Position("the configuration", 0), ())


@dataclass(frozen=True, slots=True)
class Option:
    """One key: how its variable begins, its name with dots, what its value looks like, and what it is for."""

    environment: str
    key: str
    metavar: str
    help: str
    several: bool = False

    @property
    def flag(self) -> str:
        """The name as a flag: `--records-path`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def name(self) -> str:
        """The name as flags are handed in: `records_path`."""
        return self.key.replace(".", "_")

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return self.environment + self.name.upper()


class Findings:
    """What is wrong, in the order in which it was seen."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, at: object, key: str, message: str) -> None:
        """Note a problem of one key."""
        line = f"{at}: {key}: {message}" if key else f"{at}: {message}"
        if line not in self.lines:
            self.lines.append(line)

    def raise_if_any(self) -> None:
        """Raise SettingsError with all of them."""
        if self.lines:
            raise SettingsError(self.lines)


def read_mapping(name: str, text: str) -> yaml_text.Mapping:
    """Read a configuration: one mapping, or nothing. Raise SettingsError."""
    nodes = _read(name, text)
    if not nodes:
        return yaml_text.Mapping(Position(name, 0), ())
    if len(nodes) > 1 or not isinstance(nodes[0], yaml_text.Mapping):
        raise SettingsError([f"{nodes[-1].at}: a configuration is one mapping of keys to values"])
    return nodes[0]


def _read(name: str, text: str) -> list[yaml_text.Node]:
    try:
        return yaml_text.read(yaml_text.Document(name, text))
    except PolicyErrors as error:
        raise SettingsError([f"{found.at}: {found.message}; {found.fix}" for found in error.findings]) from None


def layered(
    file: yaml_text.Mapping,
    options: Sequence[Option],
    env: Mapping[str, str],
    flags: Mapping[str, str | None],
    findings: Findings,
) -> Section:
    """Put what the environment and the flags say in place of what the file says. Raise SettingsError."""
    given = _variables(options, env, findings)
    given |= {o.name: (o.flag, text) for o in options if (text := flags.get(o.name)) is not None}
    tree: dict[str, yaml_text.Node] = {key.text: value for key, value in file.entries}
    names = {key.text: key for key, _ in file.entries}
    for option in options:
        if option.name in given:
            _place(tree, option.key, _parse(*given[option.name], several=option.several))
    entries = tuple((names.get(key, _word(key, node)), node) for key, node in tree.items())
    return Section(yaml_text.Mapping(file.at, entries), "", [option.key for option in options], findings)


def _variables(options: Sequence[Option], env: Mapping[str, str], findings: Findings) -> dict[str, tuple[str, str]]:
    known, given = {option.variable: option for option in options}, {}
    prefix = options[0].environment
    for variable in sorted(name for name in env if name.startswith(prefix)):
        if variable in known:
            given[known[variable].name] = (variable, env[variable])
        elif variable != f"{prefix}CONFIG" and not _of_a_service(variable, env):
            findings.add("environment", variable, f"no such setting{setting_values.nearest(variable, known)}")
    return given


def _of_a_service(variable: str, env: Mapping[str, str]) -> bool:
    """Say whether a kubelet has told us of a Service by it, whose name begins as our settings do."""
    names = (variable[:at] for at, sign in enumerate(variable) if sign == "_" and _LINK.fullmatch(variable, at))
    return any(f"{name}_SERVICE_HOST" in env and f"{name}_SERVICE_PORT" in env for name in names)


def _parse(place: str, text: str, *, several: bool) -> yaml_text.Node:
    """Read a flag's or an environment variable's text; a list may be written `a,b` or as YAML."""
    at = Position(place, 0)
    if several:
        if text.lstrip().startswith(("[", "{")):
            return _read(place, text)[0]
        words = [word.strip() for word in text.split(",") if word.strip()]
        return yaml_text.Sequence(at, tuple(yaml_text.Scalar(at, word, "text") for word in words))
    return yaml_text.Scalar(at, text, "text")


def _place(tree: dict[str, yaml_text.Node], key: str, node: yaml_text.Node) -> None:
    outer, _, inner = key.partition(".")
    if not inner:
        tree[outer] = node
        return
    old = tree.get(outer)
    entries = old.entries if isinstance(old, yaml_text.Mapping) else ()
    below, names = {name.text: value for name, value in entries}, {name.text: name for name, _ in entries}
    _place(below, inner, node)
    put = tuple((names.get(text, _word(text, value)), value) for text, value in below.items())
    tree[outer] = yaml_text.Mapping(old.at if old else node.at, put)


def _word(text: str, node: yaml_text.Node) -> yaml_text.Scalar:
    return yaml_text.Scalar(node.at, text, "text")


class Section:
    """One mapping, read key by key; what nobody asks for is an error. A known key `a.b` lies in the section `a`."""

    def __init__(self, node: yaml_text.Node, prefix: str, known: Collection[str], findings: Findings) -> None:
        self.node, self.prefix, self.findings, self._known = node, prefix, findings, known
        self._entries: dict[str, yaml_text.Node] = {}
        if not isinstance(node, yaml_text.Mapping):
            findings.add(node.at, prefix, "must be a mapping of keys to values")
            return
        here = dict.fromkeys(key.partition(".")[0] for key in known)
        for name, value in node.entries:
            if name.text in here:
                self._entries[name.text] = value
            else:
                hint = setting_values.nearest(name.text, here)
                findings.add(name.at, self.path(name.text), f"no such key{hint}")

    def path(self, key: str) -> str:
        """Return a key's full name."""
        return f"{self.prefix}.{key}" if self.prefix else key

    def get(self, key: str) -> yaml_text.Node | None:
        """Return the value under a key; an empty one counts as absent."""
        node = self._entries.get(key)
        return None if isinstance(node, yaml_text.Scalar) and node.type == "null" else node

    def at(self, key: str) -> Position:
        """Return where a key is set, or the section when it is not."""
        return (self.get(key) or self.node).at

    def section(self, key: str) -> Section:
        """Return the section under a key, an empty one when there is none."""
        inner = [name.partition(".")[2] for name in self._known if name.startswith(f"{key}.")]
        return Section(self.get(key) or yaml_text.Mapping(self.node.at, ()), self.path(key), inner, self.findings)

    def parse(self, key: str, parser: Callable[[str], T], default: T) -> T:
        """Read a single value; `parser` raises one of SETTING_ERRORS with a sentence."""
        node = self.get(key)
        return default if node is None else self._scalar(key, node, parser, default)

    def require(self, key: str, parser: Callable[[str], T], placeholder: T, hint: str = "") -> T:
        """Read a single value that must be there; the placeholder stands for it until the findings are raised."""
        if self.get(key) is None:
            self.findings.add(self.node.at, self.path(key), f"is missing{hint}")
        return self.parse(key, parser, placeholder)

    def each(self, key: str, parser: Callable[[str], T]) -> tuple[T, ...]:
        """Read a list of single values."""
        found = []
        for index, node in enumerate(self.items(key)):
            value = self._scalar(f"{key}[{index}]", node, parser, None)
            if value is not None:
                found.append(value)
        return tuple(found)

    def items(self, key: str) -> Iterator[yaml_text.Node]:
        """Yield a list's nodes."""
        node = self.get(key)
        if isinstance(node, yaml_text.Sequence):
            yield from node.items
        elif node is not None:
            self.findings.add(node.at, self.path(key), "must be a list")

    def require_some(self, key: str, what: str) -> None:
        """Note a list that is missing or empty."""
        node = self.get(key)
        if node is None or (isinstance(node, yaml_text.Sequence) and not node.items):
            self.findings.add(self.node.at, self.path(key), f"is missing or empty: {what}")

    def _scalar(self, key: str, node: yaml_text.Node, parser: Callable[[str], T], default: T) -> T:
        if not isinstance(node, yaml_text.Scalar):
            self.findings.add(node.at, self.path(key), "must be a single value")
            return default
        try:
            return parser(node.text)
        except setting_values.SETTING_ERRORS as error:
            self.findings.add(node.at, self.path(key), str(error))
        return default
