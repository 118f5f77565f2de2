# SPDX-License-Identifier: Apache-2.0
"""The whole command line as one value, read from the parsers: for completion and for docs/cli.md."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from firedoor.cli.errors import part_missing
from firedoor.cli.main import COMMANDS, parser_of

# A metavar that lists all values, such as memory|disk.
_VALUES = re.compile(r"[a-z0-9-]+(?:\|[a-z0-9-]+)+")


@dataclass(frozen=True, slots=True)
class Argument:
    """A flag, or without names what stands in its place."""

    names: tuple[str, ...]
    # What its value looks like; empty for a switch.
    metavar: str
    choices: tuple[str, ...]
    help: str
    required: bool
    repeated: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One word of the command line with what stands below it: words, or arguments."""

    path: tuple[str, ...]
    summary: str
    example: str
    arguments: tuple[Argument, ...]
    words: tuple["Command", ...]

    def walk(self) -> Iterator["Command"]:
        """Yield it and all below it."""
        yield self
        for word in self.words:
            yield from word.walk()

    @property
    def flags(self) -> tuple[Argument, ...]:
        """The arguments that have names."""
        return tuple(argument for argument in self.arguments if argument.names)


def read() -> Command:
    """Read every command; one whose part is not installed has nothing below it."""
    return Command(("firedoor",), "", "", (), tuple(_top(name, summary) for name, summary in COMMANDS))


def _top(name: str, summary: str) -> Command:
    try:
        return _command(("firedoor", name), summary, parser_of(name))
    except ModuleNotFoundError as error:
        if part_missing(error) is None:
            raise
        return Command(("firedoor", name), summary, "", (), ())


def _command(path: tuple[str, ...], summary: str, parser: argparse.ArgumentParser) -> Command:
    words: list[Command] = []
    arguments: list[Argument] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            words += [_command((*path, name), helps.get(name, ""), below) for name, below in action.choices.items()]
        elif not isinstance(action, argparse._HelpAction):  # noqa: SLF001
            arguments.append(_argument(action, parser))
    if not words and parser.description:
        summary = parser.description[:1].lower() + parser.description[1:].rstrip(".")
    return Command(path, summary, (parser.epilog or "").partition("\n")[2], tuple(arguments), tuple(words))


def _argument(action: argparse.Action, parser: argparse.ArgumentParser) -> Argument:
    given = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper())
    metavar = "" if action.nargs == 0 else given
    choices = tuple(metavar.split("|")) if _VALUES.fullmatch(metavar) else ()
    described = action.help or ""
    return Argument(
        tuple(action.option_strings),
        metavar,
        choices,
        described % {**vars(action), "prog": parser.prog},
        action.required and bool(action.option_strings),
        isinstance(action, argparse._AppendAction) or action.nargs == "+",  # noqa: SLF001
    )
