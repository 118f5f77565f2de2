# SPDX-License-Identifier: Apache-2.0
"""Showing the rows: a table for people, one JSON object a row for programs."""

from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from firedoor.cli import output
from firedoor.cli.demo.rows import Result, Row
from firedoor.cli.output import show, show_json

_COLOUR = {"allowed": "green", "denied": "cyan", "cut": "magenta", "skipped": "dim", "failed": "bold red"}

Pair = tuple[Row, Result | None]


def expected(row: Row, result: Result | None) -> str:
    """Return what the row expects here: a row that needs other users is expected to be skipped without root."""
    return "skipped" if result is not None and result.observed == "skipped" else row.expected


def agrees(pair: Pair) -> bool:
    """Say whether a row came out as expected."""
    row, result = pair
    return result is not None and result.observed == expected(row, result)


def same(one: Pair, other: Pair) -> bool:
    """Say whether the same came of a row both times, latency aside."""
    if one[1] is None or other[1] is None:
        return False
    return (one[1].observed, one[1].saw, one[1].why) == (other[1].observed, other[1].saw, other[1].why)


class View(Protocol):
    """Something that shows rows. `every_time`: it wants each result, not only those that differ."""

    every_time: bool

    def show(self, pairs: list[Pair], latest: Pair) -> None:
        """Take all rows and the one that has just been tried."""

    def close(self) -> None:
        """Show the last state, if that is not done yet."""


class JsonLines:
    """One object a line, as each row is known."""

    every_time = False

    def show(self, pairs: list[Pair], latest: Pair) -> None:
        """Print the row that has just been tried."""
        row, result = latest
        assert result is not None
        show_json(
            {
                "from": row.source,
                "to": row.destination,
                "action": row.action,
                "expected": expected(row, result),
                "observed": result.observed,
                "saw": result.saw,
                "why": result.why,
                "latency_ms": None if result.ms is None else round(result.ms, 1),
            },
            lines=True,
        )

    def close(self) -> None:
        """Nothing is left to print."""


class LiveTable:
    """A table that is drawn again at each row; on something that is no terminal it is drawn once, at the end."""

    every_time = True

    def __init__(self) -> None:
        self._console = Console()
        self._pairs: list[Pair] = []
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")
            self._live.start()

    def show(self, pairs: list[Pair], latest: Pair) -> None:
        """Draw all rows."""
        self._pairs = pairs
        if self._live is not None:
            self._live.update(draw(pairs), refresh=True)

    def close(self) -> None:
        """Draw the last state."""
        if self._live is not None:
            self._live.stop()
        elif self._pairs:
            show(output.table(HEAD, [cells(pair) for pair in self._pairs]))


HEAD = ("FROM", "TO", "ACTION", "EXPECTED", "OBSERVED", "CLIENT SAW", "LATENCY", "WHY")


def cells(pair: Pair) -> tuple[str, ...]:
    """Return a row as words."""
    row, result = pair
    if result is None:
        return (row.source, row.destination, row.action, row.expected, "...", "", "", "")
    latency = "" if result.ms is None else f"{result.ms:.0f} ms"
    return (
        row.source,
        row.destination,
        row.action,
        expected(row, result),
        result.observed,
        result.saw,
        latency,
        result.why,
    )


def draw(pairs: list[Pair]) -> Table:
    """Lay the rows out in colour."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in HEAD:
        made.add_column(name, overflow="fold", justify="right" if name == "LATENCY" else "left")
    for pair in pairs:
        result, words = pair[1], [escape(word) for word in cells(pair)]
        if result is None:
            made.add_row(*words, style="dim")
            continue
        colour = _COLOUR[result.observed] if agrees(pair) else "bold red"
        words[4] = f"[{colour}]{words[4]}[/]"
        made.add_row(*words)
    return made
