# SPDX-License-Identifier: Apache-2.0
"""The entry point: finds the subcommand's module by its name, and imports nothing else.

`firedoor --help` and `firedoor version` answer without loading gRPC. A module in `firedoor.cli.commands` has
`configure(parser)`, which adds its arguments, and sets `run` on each leaf: a function of the parsed arguments that
returns an exit code, or raises a CliError.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from firedoor.cli.errors import CliError, UsageError, part_missing
from firedoor.cli.exits import Exit, table

# Name, the module below `firedoor.cli.commands`, what `firedoor --help` says.
COMMANDS = (
    ("broker", "run, status, validate, backup, restore: the authority that issues identities and publishes policy"),
    ("sidecar", "run, validate, status, trust: the enforcement point beside a workload"),
    ("capture", "apply, remove, show, check: a network namespace goes through its sidecar alone"),
    ("run", "a command in a network namespace of its own, behind a sidecar"),
    ("token", "create: a join token that lets one sidecar attest"),
    ("entry", "create, update, list, show, delete: who gets which identity"),
    ("agent", "list, show, ban, evict: the sidecars that have attested"),
    ("authority", "list, show, rotate: the broker's authorities; downstream list, revoke: CAs of servers below it"),
    ("bundle", "show, list, set, delete, crl: the trust bundles that peers verify with, and revocation lists"),
    ("federation", "create, list, show, update, delete, refresh: whose bundles are fetched"),
    ("breakglass", "request, approve, take, end, list: emergency access by two people"),
    ("svid", "fetch, watch: the identities of the calling process; revoke, revoked: taking SVIDs back"),
    ("segment", "list, lint, apply, services: segments, flows, the directory; export, inventory: for Kubernetes"),
    ("explain", "which flow allows a request, or why nothing does"),
    ("demo", "a whole firedoor around real programs, on this machine"),
    ("completion", "bash, zsh, fish: what the shell needs to complete these words"),
    ("version", "the version"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return Exit.DONE if arguments else Exit.USAGE
    if arguments[0] == "--version":
        arguments[0] = "version"
    try:
        return _run(arguments)
    except CliError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        missing = part_missing(error)
        if missing is None:
            raise
        return _fail(missing)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.DONE
    except Exception:  # noqa: BLE001 - the last resort: Python's own exit code would mean "no"
        traceback.print_exc()
        return Exit.FAULT


def _fail(error: CliError) -> int:
    sys.stderr.write(f"firedoor: {error}\n")
    return error.exit


def _run(arguments: list[str]) -> int:
    name = arguments[0]
    if name not in dict(COMMANDS):
        raise UsageError(f"there is no command {name!r}; the commands are {', '.join(n for n, _ in COMMANDS)}")
    try:
        options = parser_of(name).parse_args(arguments[1:])
    except SystemExit as stop:  # argparse has printed its sentence, or the help
        return Exit(stop.code if isinstance(stop.code, int) else Exit.USAGE)
    return int(options.run(options))


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    module = importlib.import_module(f"firedoor.cli.commands.{name}")
    parser = argparse.ArgumentParser(prog=f"firedoor {name}", description=dict(COMMANDS)[name], allow_abbrev=False)
    module.configure(parser)
    return parser


def overview() -> str:
    """Return what `firedoor --help` prints."""
    width = max(len(name) for name, _ in COMMANDS)
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS)
    return (
        "usage: firedoor COMMAND ...\n\n"
        "Identity instead of IP addresses: every workload proves who it is, at both ends of every connection.\n\n"
        f"commands:\n{commands}\n\n"
        "`firedoor COMMAND --help` shows the arguments with an example; `--output json` is for programs.\n\n"
        f"exit codes:\n{table()}\n"
    )
