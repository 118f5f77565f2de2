# SPDX-License-Identifier: Apache-2.0
"""What `broker` and `sidecar` share: a flag for each key of the configuration, and errors that name the place."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from firedoor.cli.errors import PartMissing, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json

if TYPE_CHECKING:
    from firedoor.broker.config import Config as BrokerConfig
    from firedoor.segments.settings import Option

Config = TypeVar("Config")
Load = Callable[[Path | None, Mapping[str, str], Mapping[str, str | None]], Config]


def add_options(parser: argparse.ArgumentParser, options: Iterable["Option"], environment: str) -> None:
    """Add `--config` and a flag for each key."""
    parser.add_argument("--config", metavar="FILE", help=f"YAML; a flag wins over {environment}KEY, that over the file")
    for option in options:
        parser.add_argument(option.flag, dest=option.name, metavar=option.metavar, help=option.help)


def load_config(load: Load[Config], options: Iterable["Option"], given: argparse.Namespace, environment: str) -> Config:
    """Load the configuration from file, environment and flags."""
    file = given.config or os.environ.get(f"{environment}CONFIG")
    flags = {option.name: getattr(given, option.name) for option in options}
    return load(Path(file) if file else None, os.environ, flags)


def broker_config(given: argparse.Namespace) -> "BrokerConfig":
    """Load the broker's. Raise UsageError."""
    from firedoor.broker import config
    from firedoor.broker.errors import ConfigError

    try:
        return load_config(config.load, config.OPTIONS, given, config.ENVIRONMENT)
    except ConfigError as error:
        raise usage_error(error.findings) from None


def report(findings: Iterable[object], output: str) -> int:
    """Print what `validate` found, and return the exit code."""
    lines = [str(found) for found in findings]
    if output == "json":
        show_json({"findings": lines})
    else:
        show("\n".join(lines) or "nothing to repair")
    return Exit.USAGE if lines else Exit.DONE


def usage_error(lines: Iterable[str]) -> UsageError:
    """Say each finding on a line of its own, with the file, line and key that it names."""
    found = list(lines)
    return UsageError(found[0] if len(found) == 1 else "the configuration is wrong:\n  " + "\n  ".join(found))


@contextmanager
def capture_errors() -> Iterator[None]:
    """Say what capture of a network namespace refuses, as the command line does."""
    from firedoor.sidecar.errors import CaptureError, ToolMissing

    try:
        yield
    except ToolMissing as error:
        raise PartMissing(str(error)) from None
    except CaptureError as error:
        raise UsageError(str(error)) from None
