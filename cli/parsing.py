# SPDX-License-Identifier: Apache-2.0
"""How a subcommand declares its arguments, and how their text becomes values."""

import argparse
import re
from collections.abc import Callable

from firedoor.cli.errors import UsageError

Run = Callable[[argparse.Namespace], int]

_DURATION = re.compile(r"(\d+)(s|m|h|d)?")
_UNIT_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Group:
    """The words below a command, such as `create` below `entry`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """Make the words of `parser`; one of them must be given."""
        self._words = parser.add_subparsers(dest="word", required=True, metavar="WORD")

    def leaf(self, word: str, summary: str, example: str, run: Run) -> argparse.ArgumentParser:
        """Add a word that does something, with its example and `--output`."""
        parser = self._words.add_parser(word, help=summary, allow_abbrev=False)
        finish(parser, summary, example, run)
        return parser

    def group(self, word: str, summary: str) -> "Group":
        """Add a word that has words below it."""
        return Group(self._words.add_parser(word, help=summary, description=summary, allow_abbrev=False))


def finish(parser: argparse.ArgumentParser, summary: str, example: str, run: Run) -> None:
    """Give a leaf its summary, its example, `--output` and what it runs."""
    parser.description = summary[:1].upper() + summary[1:] + "."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines())
    parser.add_argument("--output", choices=("text", "json"), default="text", help="text for people, json for programs")
    parser.set_defaults(run=run)


def duration(text: str) -> int:
    """Read "90", "90s", "15m", "1h" or "30d" as seconds.

    >>> duration("15m")
    900
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90s, 15m, 1h or 30d")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def segment_port(text: str) -> tuple[str, int]:
    """Read SEGMENT:PORT or spiffe://ID:PORT.

    >>> segment_port("registry:9000")
    ('registry', 9000)
    """
    name, _, port = text.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--to {text!r} is not SEGMENT:PORT, such as registry:9000, nor spiffe://ID:PORT")
    return name, int(port)
