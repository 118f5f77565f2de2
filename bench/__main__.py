# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: measures, prints the tables, and writes them down when told to."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import (
    captured,
    cluster,
    cutting,
    datapath,
    directory,
    issuing,
    memory,
    parts,
    pods,
    reach,
    registration,
    report,
    streams,
    sync,
)
from bench.options import Options, parse
from bench.processes import Failed, environment
from bench.progress import say
from bench.table import Table

MEASURE: dict[str, Callable[[Options, Path], Iterator[Table]]] = {
    "a": datapath.tables,
    "b": issuing.tables,
    "c": reach.tables,
    "d": streams.tables,
    "e": sync.tables,
    "f": directory.tables,
    "g": captured.tables,
    "h": cutting.tables,
    "cluster": cluster.tables,
    "memory": memory.tables,
    "parts": parts.tables,
    "pods": pods.tables,
    "registration": registration.tables,
}


def main() -> int:
    """Run what is asked for; 1 when a measurement failed."""
    options, made, failed = parse(), [], False
    # Compiled once, so that no program that is measured compiles itself.
    code = "import firedoor.broker.run, firedoor.sidecar.process"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    for name in options.only:
        try:
            for table in _measured(name, options):
                made.append(table)
                if options.output == "text":
                    print(table.text(), flush=True)
        except Failed as error:
            failed = True
            say(f"{name}: failed: {error}")
    if options.output == "json":
        print(json.dumps({"machine": report.machine(), "tables": [table.as_json() for table in made]}, indent=2))
    if options.write and not failed:
        report.write(options.write, made, options)
        say(f"written to {options.write}")
    return int(failed)


def _measured(name: str, options: Options) -> Iterator[Table]:
    # Not below a long TMPDIR: socket paths have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="firedoor-bench-", dir="/tmp"))
    try:
        yield from MEASURE[name](options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
