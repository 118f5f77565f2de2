# SPDX-License-Identifier: Apache-2.0
"""Path patterns: which HTTP paths are meant, by whole segments of the decoded path.

`*` is one segment that is not empty; `**` stands last and is one or more segments of which the first is not empty, so
that `/models/**` matches neither `/models` nor `/models/`. Patterns are written decoded: what a request could only
carry in an ambiguous form (which the data path refuses) cannot be written either. Matching itself is the engine's.

>>> everything, models = PathPattern.parse("/**"), PathPattern.parse("/models/*")
>>> everything.covers(models), models.covers(everything)
(True, False)

The Rust core obeys the same vectors, tests/vectors/policy/path_patterns.json.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, final

# Bytes; request targets that are longer are refused long before.
MAX_PATTERN: Final = 2048
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")

# The code, and a sentence with its remedy.
PROBLEMS: Final = {
    "pattern_too_long": (f"the path pattern is longer than {MAX_PATTERN} bytes", "shorten it, with * or **"),
    "not_absolute": ("a path pattern begins with a slash", "put / in front"),
    "bad_character": (
        "a path pattern holds no control character, backslash, ? or #",
        "leave out the query; it is not matched",
    ),
    "escape": ("a path pattern is written decoded", "write the character itself in place of %xx"),
    "empty_segment": ("a path pattern holds no //", "write one slash; requests with // are refused"),
    "dot_segment": ("a path pattern holds no . or .. segment", "write the path that is meant"),
    "partial_wildcard": ("a wildcard stands for whole path segments", "write * for one segment, ** for the rest"),
    "rest_not_last": ("** stands only at the end of a path pattern", "write * for each segment in the middle"),
}


class PathProblem(Exception):
    """A text is not a path pattern; `code` is a key of PROBLEMS. A part of the parser, which makes a finding of it."""

    def __init__(self, code: str) -> None:
        super().__init__(PROBLEMS[code][0])
        self.code = code


@final
@dataclass(frozen=True, order=True, slots=True, init=False, repr=False)
class PathPattern:
    """A set of paths. Made by `parse()`."""

    steps: tuple[str, ...]

    def __init__(self) -> None:
        raise TypeError("PathPattern is made by PathPattern.parse()")

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Check a pattern. Raise PathProblem with the first rule that it breaks."""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_PATTERN:
            raise PathProblem("pattern_too_long")
        if not text.startswith("/"):
            raise PathProblem("not_absolute")
        if any(unicodedata.category(char) in ("Cc", "Cs") or char in "\\?#" for char in text):
            raise PathProblem("bad_character")
        if _ESCAPE.search(text):
            raise PathProblem("escape")
        steps = tuple(text[1:].split("/"))
        for position, step in enumerate(steps):
            _check_step(step, last=position == len(steps) - 1)
        made = object.__new__(cls)
        object.__setattr__(made, "steps", steps)
        return made

    def covers(self, other: PathPattern) -> bool:
        """Say whether every path that `other` matches is matched by this pattern too."""
        for position, mine in enumerate(self.steps):
            if position >= len(other.steps):
                return False
            theirs = other.steps[position]
            if mine == "**":
                return theirs != ""
            if mine == "*" and theirs in ("", "**"):
                return False
            if mine not in ("*", theirs):
                return False
        return len(self.steps) == len(other.steps)

    def __str__(self) -> str:
        return "/" + "/".join(self.steps)

    def __repr__(self) -> str:
        return f"PathPattern({str(self)!r})"


def _check_step(step: str, *, last: bool) -> None:
    if not step and not last:
        raise PathProblem("empty_segment")
    if step == "**" and not last:
        raise PathProblem("rest_not_last")
    if "*" in step and step not in ("*", "**"):
        raise PathProblem("partial_wildcard")
    # Some servers strip ";parameters" before they resolve dots, so the data path refuses `..;x` too.
    if step.split(";")[0] in (".", ".."):
        raise PathProblem("dot_segment")
