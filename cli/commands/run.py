# SPDX-License-Identifier: Apache-2.0
"""`firedoor run`: a command in a network namespace of its own, behind a sidecar of its own."""

import argparse
import os
from pathlib import Path

from firedoor.cli.errors import UsageError
from firedoor.cli.parsing import finish

EXAMPLE = """\
$ firedoor run --config sidecar.yaml --uid 1001 -- python3 -m http.server 8080"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    finish(parser, "run a command that is reached, and reaches others, through a sidecar alone", EXAMPLE, run)
    parser.add_argument("--config", metavar="FILE", required=True, help="the sidecar's configuration, with `run`")
    parser.add_argument("--uid", metavar="UID", required=True, help="as whom the command runs")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="after --, with its arguments")


def run(options: argparse.Namespace) -> int:
    """Run it to its end, and return its exit code."""
    from firedoor.cli.daemon import capture_errors, usage_error
    from firedoor.segments.setting_values import integer
    from firedoor.sidecar import config
    from firedoor.sidecar.errors import ConfigError
    from firedoor.sidecar.listeners import HIGHEST_UID
    from firedoor.sidecar.namespace import run as namespace

    command = tuple(options.command[1:] if options.command[:1] == ["--"] else options.command)
    if not command:
        raise UsageError("which command? it stands after --")
    try:
        uid = integer(0, HIGHEST_UID)(options.uid)
    except ValueError as error:
        raise UsageError(f"--uid {options.uid!r} {error}") from None
    try:
        found = config.load(Path(options.config), os.environ, {})
        order = namespace.Order(file=options.config, uid=uid, command=command)
        with capture_errors():
            return namespace.run(found, order, config.defaults(found, os.environ))
    except ConfigError as error:
        raise usage_error(error.findings) from None
