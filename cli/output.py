# SPDX-License-Identifier: Apache-2.0
r"""Answers on stdout: text for people, JSON for programs. Nothing else of a command writes to stdout.

>>> table(("NAME", "PORT"), [("models", "9000"), ("tools", "9200")])
'NAME    PORT\nmodels  9000\ntools   9200'
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


def show(text: str) -> None:
    """Print an answer for people, and end its last line; nothing gives an empty line."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def show_json(value: object, *, lines: bool = False) -> None:
    """Print an answer for programs: one indented document, or one line when it is a row of several."""
    sys.stdout.write(json.dumps(value, indent=None if lines else 2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows out in columns as wide as their widest cell."""
    whole = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in whole)


def when(seconds: int) -> str:
    """Write Unix seconds as RFC 3339 in UTC; 0 as "-"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else "-"
