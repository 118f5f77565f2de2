# SPDX-License-Identifier: Apache-2.0
"""What `broker` and `sidecar` share: a flag for each key of the configuration, and errors that name the place."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from firedoor.cli.errors import UsageError

Config = TypeVar("Config")


class Option(Protocol):
    """One key of a configuration, as `broker.config` and `sidecar.config` list them."""

    @property
    def flag(self) -> str:
        """The name as a flag."""

    @property
    def name(self) -> str:
        """The name as `load` takes it."""

    @property
    def metavar(self) -> str:
        """What the value looks like."""

    @property
    def help(self) -> str:
        """What it is for."""


Load = Callable[[Path | None, Mapping[str, str], Mapping[str, str | None]], Config]


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option], environment: str) -> None:
    """Add `--config` and a flag for each key."""
    parser.add_argument("--config", metavar="FILE", help=f"YAML; a flag wins over {environment}KEY, that over the file")
    for option in options:
        parser.add_argument(option.flag, dest=option.name, metavar=option.metavar, help=option.help)


def load_config(load: Load[Config], options: Iterable[Option], given: argparse.Namespace, environment: str) -> Config:
    """Load the configuration from file, environment and flags."""
    file = given.config or os.environ.get(f"{environment}CONFIG")
    flags = {option.name: getattr(given, option.name) for option in options}
    return load(Path(file) if file else None, os.environ, flags)


def usage_error(lines: Iterable[str]) -> UsageError:
    """Say each finding on a line of its own, with the file, line and key that it names."""
    found = list(lines)
    return UsageError(found[0] if len(found) == 1 else "the configuration is wrong:\n  " + "\n  ".join(found))
