# SPDX-License-Identifier: Apache-2.0
"""As much of Go's text/template as ClusterSPIFFEIDs are written in: no loops, variables or inner templates. Pure.

    {{ .PodMeta.Namespace }}  {{ index .PodMeta.Labels "app" }}  {{ .PodSpec.NodeName | printf "n-%s" }}
    {{- if eq .PodMeta.Labels.tier "gold" }}a{{ else if .PodSpec.Hostname }}b{{ else }}c{{ end -}}
    {{ with .PodMeta.Labels.app }}{{ . }}{{ end }}

Values are texts, whole numbers, truth values and mappings of texts. What a template may cost is bounded by its length
and that of texts on the way: by `with`, what a function made goes to the next one, and would double each time. Whatever
else is written is refused when the template is read, with a sentence.

>>> render(parse("spiffe://{{.TrustDomain}}/{{ .Labels.app }}"), {"TrustDomain": "example.org", "Labels": {"app": "a"}})
'spiffe://example.org/a'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

MAX_TEMPLATE: Final = 4096
MAX_RENDERED: Final = 8192
_MAX_DEPTH: Final = 16
# What a key that is not in a mapping gives; printed as Go does, which no SPIFFE ID can hold.
_NO_VALUE: Final = "<no value>"


class TemplateError(Exception):
    """A template, or what becomes of it, is not taken. `str()` says why."""


@final
class _Missing:
    def __str__(self) -> str:
        return _NO_VALUE


_MISSING: Final = _Missing()


@final
@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@final
@dataclass(frozen=True, slots=True)
class _Literal:
    value: str | int | bool


@final
@dataclass(frozen=True, slots=True)
class _Field:
    """`.a.b`, or the same of what stands before it in parentheses."""

    names: tuple[str, ...]
    of: _Operand | None = None


@final
@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: tuple[_Operand, ...]


@final
@dataclass(frozen=True, slots=True)
class _Choice:
    """`if`, or `with`, which makes its value the dot."""

    condition: _Operand
    then: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]
    rebinds: bool


_Operand = _Literal | _Field | _Call
_Node = _Text | _Choice | _Literal | _Field | _Call
Template = tuple[_Node, ...]
# What stands in an action, up to its end. Nothing follows it and no character begins two of its kinds, so that it costs
# its length.
_INSIDE: Final = re.compile(r'(?:"(?:[^"\\\n]|\\.)*"|`[^`]*`|(?!\}\})[^"`])*', re.S)
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\\n]|\\.)*\")|(?P<raw>`[^`]*`)|(?P<number>[0-9]{1,9}(?![\w.]))"
    r"|(?P<field>(?:\.[A-Za-z_][A-Za-z0-9_]*)+)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[().|]))"
)
_ESCAPE: Final = re.compile(r"\\(.)", re.S)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_REFUSED: Final = ("range", "define", "template", "block", "break", "continue")


def parse(text: str) -> Template:
    """Read a template. Raise TemplateError."""
    if len(text) > MAX_TEMPLATE:
        raise TemplateError(f"a template has at most {MAX_TEMPLATE} characters")
    return _Parser(text).whole()


def render(template: Template, values: object) -> str:
    """Write a template out with values. Raise TemplateError."""
    written: list[str] = []
    _write(template, values, written)
    found = "".join(written)
    if len(found) > MAX_RENDERED:
        raise TemplateError("what becomes of it is too long")
    return found


# --- reading ------------------------------------------------------------------------------------------------------


class _Parser:
    """Reads one template."""

    def __init__(self, text: str) -> None:
        self._pieces = _pieces(text)
        self._at = 0
        self._depth = 0

    def whole(self) -> Template:
        found, word = self._nodes()
        if word:
            raise TemplateError(f"{{{{{word}}}}} has no beginning")
        return found

    def _nodes(self) -> tuple[tuple[_Node, ...], str]:
        """Read nodes up to the end, or to an `else` or `end` that is not theirs, which is returned too."""
        found: list[_Node] = []
        while self._at < len(self._pieces):
            is_action, piece = self._pieces[self._at]
            self._at += 1
            if not is_action:
                found.append(_Text(piece))
                continue
            word = (re.match(r"[a-z]*", piece) or [""])[0]
            if word in ("end", "else"):
                return tuple(found), piece
            if word in ("if", "with"):
                found.append(self._choice(piece))
            elif word in _REFUSED:
                raise TemplateError(f"{{{{{word}}}}} is not understood here: write if, with, fields and functions")
            else:
                found.append(_pipeline(piece))
        return tuple(found), ""

    def _choice(self, piece: str) -> _Choice:
        """Read `if` or `with`, up to its end."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise TemplateError(f"{{{{if}}}} and {{{{with}}}} stand at most {_MAX_DEPTH} deep")
        word, _, condition = piece.partition(" ")
        asked = _pipeline(condition)
        then, ended = self._nodes()
        otherwise: tuple[_Node, ...] = ()
        if ended.startswith("else"):
            more = ended.removeprefix("else").strip()
            if more:
                # `else if` shares the end with what it belongs to.
                otherwise = (self._choice(more),) if more.startswith(("if ", "with ")) else _unknown(ended)
                self._depth -= 1
                return _Choice(asked, then, otherwise, word == "with")
            otherwise, ended = self._nodes()
        if ended != "end":
            raise TemplateError(f"{{{{{word}}}}} has no {{{{end}}}}")
        self._depth -= 1
        return _Choice(asked, then, otherwise, word == "with")


def _unknown(piece: str) -> tuple[_Node, ...]:
    raise TemplateError(f"{{{{{piece[:40]}}}}} is not understood: write else, or else if")


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Divide into texts and actions, trimmed where the marks say so."""
    found: list[tuple[bool, str]] = []
    at, trimmed = 0, False
    while (start := text.find("{{", at)) >= 0:
        end = _end(text, start + 2)
        before, inside = text[at:start], text[start + 2 : end]
        before = before.lstrip() if trimmed else before
        marked = inside[:1] == "-" and inside[1:2].isspace()
        found.append((False, before.rstrip() if marked else before))
        inside = inside[1:] if marked else inside
        trimmed = inside[-1:] == "-" and inside[-2:-1].isspace()
        inside = (inside[:-1] if trimmed else inside).strip()
        found.append((True, "" if inside.startswith("/*") else inside))
        at = end + 2
    found.append((False, text[at:].lstrip() if trimmed else text[at:]))
    return [piece for piece in found if piece[1]]


def _end(text: str, at: int) -> int:
    """Return where an action is closed. Raise TemplateError."""
    begins = re.compile(r"(?:-\s)?\s*").match(text, at)
    inner = begins.end() if begins else at
    if text.startswith("/*", inner):
        closed = text.find("*/", inner + 2)
        end = text.find("}}", closed + 2) if closed >= 0 else -1
        if end < 0 or text[closed + 2 : end].strip() not in ("", "-"):
            raise TemplateError("a comment is not closed")
        return end
    inside = _INSIDE.match(text, at)
    end = inside.end() if inside else at
    if not text.startswith("}}", end):
        raise TemplateError("{{ is not closed")
    return end


def _pipeline(piece: str) -> _Operand:
    tokens = _tokens(piece)
    found = _commands(tokens, 0)
    if tokens:
        raise TemplateError(f"{tokens[0][1][:40]!r} is not understood in {{{{{piece[:80]}}}}}")
    return found


def _tokens(piece: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(piece):
        token = _TOKEN.match(piece, at)
        if token is None:
            if not piece[at:].strip():
                break
            said = "variables are not understood" if piece[at:].lstrip().startswith("$") else "it is not understood"
            raise TemplateError(f"{said}: {{{{{piece[:80]}}}}}")
        found.append((token.lastgroup or "", token[token.lastgroup or 0]))
        at = token.end()
    return found


def _commands(tokens: list[tuple[str, str]], depth: int) -> _Operand:
    """Read `a | b | c`: what stands before is the last argument of what comes."""
    found, steps = _command(tokens, depth), 0
    while tokens and tokens[0] == ("mark", "|"):
        steps += 1
        if steps > _MAX_DEPTH:
            raise TemplateError(f"a pipeline has at most {_MAX_DEPTH} steps")
        tokens.pop(0)
        following = _command(tokens, depth)
        if not isinstance(following, _Call):
            raise TemplateError("what stands behind | is a function")
        found = _Call(following.name, (*following.arguments, found))
    return _checked(found)


def _command(tokens: list[tuple[str, str]], depth: int) -> _Operand:
    if not tokens:
        raise TemplateError("an action is empty")
    kind, text = tokens[0]
    if kind != "word" or text in ("true", "false"):
        return _operand(tokens, depth)
    tokens.pop(0)
    if text not in _FUNCTIONS:
        raise TemplateError(f"there is no function {text[:40]!r}; known are {', '.join(sorted(_FUNCTIONS))}")
    arguments = []
    while tokens and tokens[0] not in (("mark", "|"), ("mark", ")")):
        arguments.append(_operand(tokens, depth))
    return _Call(text, tuple(arguments))


def _operand(tokens: list[tuple[str, str]], depth: int) -> _Operand:
    kind, text = tokens.pop(0)
    match kind:
        case "string":
            return _Literal(_unescaped(text[1:-1]))
        case "raw":
            return _Literal(text[1:-1])
        case "number":
            return _Literal(int(text))
        case "field":
            return _Field(tuple(text[1:].split(".")))
        case "word" if text in ("true", "false"):
            return _Literal(text == "true")
        case "mark" if text == ".":
            return _Field(())
        case "mark" if text == "(" and depth < _MAX_DEPTH:
            inner = _commands(tokens, depth + 1)
            if not tokens or tokens.pop(0) != ("mark", ")"):
                raise TemplateError("a parenthesis is not closed")
            if tokens and tokens[0][0] == "field":
                return _Field(tuple(tokens.pop(0)[1][1:].split(".")), inner)
            return inner
        case _:
            raise TemplateError(f"{text[:40]!r} stands where a value should")


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise TemplateError(f"\\{found[1]} is not understood in a text")
        return _ESCAPES[found[1]]

    return _ESCAPE.sub(one, text)


def _checked(found: _Operand) -> _Operand:
    if isinstance(found, _Call):
        least, most = _FUNCTIONS[found.name][:2]
        if not least <= len(found.arguments) <= most:
            raise TemplateError(f"{found.name} takes {least} arguments" + (" or more" if most > least else ""))
    return found


# --- writing ------------------------------------------------------------------------------------------------------


def _write(nodes: Sequence[_Node], dot: Any, written: list[str]) -> None:
    for node in nodes:
        if isinstance(node, _Text):
            written.append(node.text)
        elif isinstance(node, _Choice):
            value = _value(node.condition, dot)
            chosen = _true(value)
            inner = value if node.rebinds and chosen else dot
            _write(node.then if chosen else node.otherwise, inner, written)
        else:
            written.append(_printed(_value(node, dot)))


def _value(operand: _Operand, dot: Any) -> Any:
    if isinstance(operand, _Literal):
        return operand.value
    if isinstance(operand, _Call):
        # `and` and `or` look no further than they have to, as Go's.
        if operand.name in ("and", "or"):
            return _logic(operand, dot)
        made = _FUNCTIONS[operand.name][2](*(_value(one, dot) for one in operand.arguments))
        if isinstance(made, str) and len(made) > MAX_RENDERED:
            raise TemplateError(f"what {operand.name} makes is too long")
        return made
    found = dot if operand.of is None else _value(operand.of, dot)
    for name in operand.names:
        found = _field(found, name)
    return found


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Fields):
        return value.field(name)
    if isinstance(value, Mapping):
        return value.get(name, _MISSING)
    raise TemplateError(f"there is no field {name[:40]} of a single value")


class Fields:
    """A mapping whose names are fixed: another one is a mistake, and no missing key."""

    def __init__(self, what: str, values: Mapping[str, Any]) -> None:
        self._what, self._values = what, values

    def field(self, name: str) -> Any:
        """Return one. Raise TemplateError."""
        if name not in self._values:
            known = ", ".join(f".{one}" for one in self._values)
            raise TemplateError(f"{self._what} has no .{name[:40]} here; known are {known}")
        return self._values[name]


def _logic(call: _Call, dot: Any) -> Any:
    value: Any = _MISSING
    for one in call.arguments:
        value = _value(one, dot)
        if _true(value) == (call.name == "or"):
            break
    return value


def _true(value: Any) -> bool:
    return not isinstance(value, _Missing) and bool(value)


def _printed(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | _Missing):
        return str(value)
    raise TemplateError("a whole mapping cannot be written: name one of its keys")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if not isinstance(value, Mapping) or not isinstance(key, str):
            raise TemplateError("index looks a text up in a mapping, such as .PodMeta.Labels")
        # Go's: of a mapping of texts, the empty one.
        value = value.get(key, "")
    return value


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str):
        raise TemplateError("printf begins with a text")
    left = list(values)

    def one(found: re.Match[str]) -> str:
        if found[1] == "%":
            return "%"
        if found[1] not in ("s", "v", "d") or not left:
            raise TemplateError("printf understands %s, %v, %d and %%, each with a value")
        return _printed(left.pop(0))

    written = re.sub(r"%(.?)", one, form, flags=re.S)
    if left:
        raise TemplateError("printf has more values than places for them")
    return written


def _compare(left: Any, right: Any) -> tuple[Any, Any]:
    if type(left) is not type(right) or isinstance(left, Mapping):
        raise TemplateError("what is compared must be two texts, two numbers or two truth values")
    return left, right


def _equal(first: Any, *others: Any) -> bool:
    return any(left == right for left, right in (_compare(first, other) for other in others))


def _ordered(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda left, right: holds(*_compare(left, right))


def _length(value: Any) -> int:
    if not isinstance(value, str | Mapping):
        raise TemplateError("len is of a text or a mapping")
    # Go counts bytes.
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else len(value)


_SOME: Final = 16
_FUNCTIONS: Final[Mapping[str, tuple[int, int, Callable[..., Any]]]] = {
    "and": (1, _SOME, lambda *_: None),
    "or": (1, _SOME, lambda *_: None),
    "not": (1, 1, lambda value: not _true(value)),
    "eq": (2, _SOME, _equal),
    "ne": (2, 2, lambda left, right: not _equal(left, right)),
    "lt": (2, 2, _ordered(lambda left, right: left < right)),
    "le": (2, 2, _ordered(lambda left, right: left <= right)),
    "gt": (2, 2, _ordered(lambda left, right: left > right)),
    "ge": (2, 2, _ordered(lambda left, right: left >= right)),
    "index": (2, _SOME, _index),
    "len": (1, 1, _length),
    "print": (1, _SOME, lambda *values: "".join(map(_printed, values))),
    "printf": (1, _SOME, _printf),
}
