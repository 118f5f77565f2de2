# SPDX-License-Identifier: Apache-2.0
"""The document that holds the tables: RESULTS.md. What it says was run is what was run."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.options import DEFAULT, TABLES, Options
from bench.table import Table

HEAD = """\
# Results

Written by `{command}` on {day}; {machine}.

Everything here runs on one machine, load generator and server included, so that requests a second say less than
processor time a request does. Ratios are medians over rounds in which both sides took turns, so that what else the
machine did meets both. Run it again: `make bench`, or `.venv/bin/python -m bench --help`.
"""


def machine() -> str:
    """Say on what this runs: processor, count, kernel, interpreter. Nothing that names the machine."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = found.group(1).strip() if found else platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {processor}, {memory:.0f} GiB, Linux {kernel}, Python {platform.python_version()}"


def write(path: Path, tables: Sequence[Table], options: Options) -> None:
    """Write the document, whole or not at all."""
    command = " ".join(["python -m bench", *sys.argv[1:]])
    day = datetime.now(UTC).date().isoformat()
    parts = [HEAD.format(command=command, day=day, machine=machine()), *(table.markdown() for table in tables)]
    if left_out := [f"({name}) {TABLES[name]}" for name in DEFAULT.split(",") if name not in options.only]:
        parts.append(f"Not measured this time: {', '.join(left_out)}.\n")
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(parts))
    fresh.replace(path)
