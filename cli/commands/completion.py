# SPDX-License-Identifier: Apache-2.0
"""`firedoor completion`: what a shell needs to complete the words and flags of every command."""

import argparse

from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import finish

EXAMPLE = """\
$ source <(firedoor completion bash)
$ firedoor completion zsh > ~/.zsh/completions/_firedoor
$ firedoor completion fish > ~/.config/fish/completions/firedoor.fish"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    finish(parser, "print a script that completes firedoor in your shell", EXAMPLE, run)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from firedoor.cli import completion, tree

    script = completion.SHELLS[options.shell](tree.read())
    if options.output == "json":
        show_json({"shell": options.shell, "script": script})
    else:
        show(script)
    return Exit.DONE
