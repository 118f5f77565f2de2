# SPDX-License-Identifier: Apache-2.0
"""`firedoor demo`: a whole firedoor around real programs."""

import argparse

from firedoor.cli.errors import PartMissing
from firedoor.cli.exits import Exit
from firedoor.cli.parsing import finish

EXAMPLE = """\
$ firedoor demo --once
$ firedoor demo --dir ./try"""

# What the extra brings; each is looked for before anything starts.
_EXTRA = ("boto3", "grpc_health", "mcp", "moto.server", "rich", "sqlalchemy", "yaml")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    finish(parser, "start a broker, sidecars and real programs, and show who reaches whom", EXAMPLE, run)
    parser.add_argument("--once", action="store_true", help="try every row once; exit 0 when all are as expected")
    parser.add_argument("--dir", metavar="D", help="keep configuration, policy and commands in this new folder")


def run(options: argparse.Namespace) -> int:
    """Check that the extra is installed, then run."""
    import importlib.util
    import os

    for name in _EXTRA:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise PartMissing(f"the demo needs {name.partition('.')[0]}: pip install 'firedoor[demo]'")
    # Programs are started as other users, which takes a fork. gRPC's handlers of it restart its threads in the child,
    # and abort it now and then before it is that program. gRPC reads this when it is first imported.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from firedoor.cli.demo.run import run as run_demo

    return Exit(run_demo(once=options.once, as_json=options.output == "json", folder=options.dir))
