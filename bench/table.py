# SPDX-License-Identifier: Apache-2.0
"""Tables of results: as aligned text for a terminal, as Markdown for RESULTS.md, as JSON for programs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """One table. `goal` says what is asked, `notes` how it was measured."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    goal: str = ""
    notes: Sequence[str] = ()
    # The same as numbers, for programs.
    data: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return it for a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(row[at]) for row in lines) for at in range(len(self.header))] if self.rows else []
        body = ["  ".join(_padded(row, widths)).rstrip() for row in lines] if self.rows else []
        return "\n".join([f"{self.name}  {self.title}", *self._remarks(), *body]) + "\n"

    def markdown(self) -> str:
        """Return it for a document."""
        head = [f"## ({self.name}) {self.title}", "", *(f"{line}\n" for line in self._remarks())]
        if not self.rows:
            return "\n".join(head)
        rule = ["---", *("---:" for _ in self.header[1:])]
        return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in (self.header, rule, *self.rows))]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {"table": self.name, "title": self.title, "goal": self.goal, "notes": list(self.notes), **self.data}

    def _remarks(self) -> list[str]:
        return [*([f"Goal: {self.goal}"] if self.goal else []), *self.notes]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
