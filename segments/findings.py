# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a policy, and where: file, line, a stable code, a sentence, and what to write instead.

>>> print(Finding("error", "empty_allow", Position("flows.yaml", 7), "flow x allows nothing", "add an action"))
flows.yaml:7: error[empty_allow]: flow x allows nothing; add an action
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A line of a document; lines count from 1, 0 stands for the document as a whole."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a policy. A policy with an error is not used; a warning is for a person to judge."""

    severity: Severity
    code: str
    at: Position
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.at}: {self.severity}[{self.code}]: {self.message}; {self.fix}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by place, errors first where a line has several, without repetitions."""
    return sorted(set(findings), key=lambda found: (found.at, found.severity, found.code, found.message))
