# SPDX-License-Identifier: Apache-2.0
"""What ends a command early. Each is one sentence on stderr that says what to repair, and an exit code.

CliError
  ├─ caller:   UsageError, NotFound
  ├─ upstream: Unreachable, Refused
  └─ us:       PartMissing (an extra that is not installed)
"""

from typing import ClassVar

from firedoor.cli.exits import Exit


class CliError(Exception):
    """Base of all. `str()` is the sentence."""

    code: ClassVar[str] = "error"
    exit: ClassVar[Exit] = Exit.FAULT


class UsageError(CliError):
    """An argument or a file has to be repaired."""

    code = "usage"
    exit = Exit.USAGE


class NotFound(CliError):
    """What the arguments name does not exist."""

    code = "not_found"
    exit = Exit.NOT_FOUND


class Unreachable(CliError):
    """Nobody answers at the socket."""

    code = "unreachable"
    exit = Exit.UNREACHABLE


class Refused(CliError):
    """The other side understood and said no."""

    code = "refused"
    exit = Exit.REFUSED


class PartMissing(CliError):
    """An optional part is not installed."""

    code = "part_missing"
    exit = Exit.MISSING


# Which extra brings a module.
_EXTRAS = {
    "yaml": "sidecar",
    "prometheus_client": "broker",
    "sqlalchemy": "broker",
    "alembic": "broker",
}


def part_missing(missing: ModuleNotFoundError) -> PartMissing | None:
    """Say which extra brings a module that is not there; None when it is none of theirs."""
    extra = _EXTRAS.get((missing.name or "").partition(".")[0])
    return PartMissing(f"{missing.name} is not installed: pip install 'firedoor[{extra}]'") if extra else None
