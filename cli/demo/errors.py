# SPDX-License-Identifier: Apache-2.0
"""What ends the demo early."""

from firedoor.cli.errors import CliError
from firedoor.cli.exits import Exit


class DemoError(CliError):
    """A part of the demo does not start; the sentence names it and where its log is."""

    code = "demo"
    exit = Exit.FAULT
