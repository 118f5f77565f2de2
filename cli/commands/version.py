# SPDX-License-Identifier: Apache-2.0
"""`firedoor version`."""

import argparse
import platform

import firedoor
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import finish

EXAMPLE = "$ firedoor version"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    finish(parser, "print the version", EXAMPLE, run)


def run(options: argparse.Namespace) -> int:
    """Print the version."""
    if options.output == "json":
        show_json({"version": firedoor.__version__, "python": platform.python_version()})
    else:
        show(f"firedoor {firedoor.__version__}")
    return Exit.DONE
