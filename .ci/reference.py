# SPDX-License-Identifier: Apache-2.0
"""Write docs/cli.md from the parsers; with `--check` say whether it is current."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Defaults as they are for root, whoever runs this.
os.environ |= {
    "FIREDOOR_BROKER_ADMIN_SOCKET": "/run/firedoor/broker/admin.sock",
    "FIREDOOR_SIDECAR_ADMIN_SOCKET": "/run/firedoor/sidecar/admin.sock",
    "SPIFFE_ENDPOINT_SOCKET": "unix:/run/firedoor/sidecar/auth.sock",
}

from firedoor.cli import exits, tree

PLACE = Path(__file__).resolve().parent.parent / "docs/cli.md"
HEAD = """\
# The command line

Made from the parsers by `.ci/reference.py`. Every command takes `--help`, and `--output json` for programs. Those that
administer a broker reach it at `--admin-socket` as root or its own user, from elsewhere at `--server HOST:PORT` as an
identity (`--identity AUTH_SOCKET`) that has a [role](administration.md#roles). `firedoor completion` completes
all of this in a shell.

"""


def main() -> int:
    """Write the file, or compare it."""
    text = HEAD + "\n".join(page(tree.read())) + "\n"
    if "--check" not in sys.argv:
        PLACE.write_text(text, encoding="utf-8")
    elif not PLACE.exists() or PLACE.read_text(encoding="utf-8") != text:
        print("docs/cli.md is not current: .venv/bin/python .ci/reference.py", file=sys.stderr)
        return 1
    return 0


def page(top: tree.Command) -> Iterator[str]:
    """Yield the lines."""
    yield "| command | |"
    yield "|---|---|"
    leaves = [one for one in top.walk() if not one.words]
    for leaf in leaves:
        name = " ".join(leaf.path)
        yield f"| [`{name}`](#{name.replace(' ', '-')}) | {cell(leaf.summary)} |"
    yield "\n| exit code | |\n|---|---|"
    yield from (f"| {code.value} | {exits.SENTENCES[code]} |" for code in exits.Exit)
    for leaf in leaves:
        yield from section(leaf)


def section(leaf: tree.Command) -> Iterator[str]:
    """Yield what there is to know of one command."""
    yield f"\n## {' '.join(leaf.path)}\n\n{sentence(leaf.summary)}\n\n| argument | |\n|---|---|"
    for argument in leaf.arguments:
        shown = " ".join([", ".join(argument.names), argument.metavar]).strip()
        marks = [
            word for word, holds in (("needed", argument.required), ("can be repeated", argument.repeated)) if holds
        ]
        yield f"| `{cell(shown)}` | {cell('; '.join([*filter(None, [argument.help]), *marks]))} |"
    lines = [line.removeprefix("  ") for line in leaf.example.splitlines()]
    yield "\n".join(["", "```console", *lines, "```"])


def sentence(summary: str) -> str:
    """Return a summary as a sentence."""
    return summary[:1].upper() + summary[1:] + "."


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
