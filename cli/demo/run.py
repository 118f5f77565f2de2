# SPDX-License-Identifier: Apache-2.0
"""The demo from beginning to end: a folder, the users, everything up, the rows, everything down."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firedoor.cli.demo import files, users, view
from firedoor.cli.demo.kept import Kept
from firedoor.cli.demo.processes import Children
from firedoor.cli.demo.rows import Row, judge
from firedoor.cli.demo.stage import Stage, commands, set_up
from firedoor.cli.demo.table import table
from firedoor.cli.demo.world import MAX_FOLDER_BYTES, SERVICES, World
from firedoor.cli.errors import UsageError
from firedoor.cli.exits import Exit

# Between two rounds of the rows while the demo stays up.
ROUND_SECONDS = 0.5


def run(*, once: bool, as_json: bool, folder: str | None) -> int:
    """Run the demo and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    with _folder(folder) as top:
        world = _world(top)
        with Children(top / "logs") as children:
            _say(f"firedoor demo in {top}")
            stage = set_up(world, children, _say)
            written = files.write_commands(world, commands(world))
            rows = table(Kept(stage))
            if once:
                return _once(rows, stage, view.JsonLines() if as_json else view.LiveTable())
            _how_to_go_on(world, written)
            return _stay(rows, stage, view.JsonLines() if as_json else view.LiveTable())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    """Give the folder of this run; one that we made ourselves is removed at the end."""
    if given is not None:
        top = Path(given).absolute()
        top.mkdir(parents=True, exist_ok=True)
        if any(top.iterdir()):
            raise UsageError(f"--dir {top} is not empty: name a new folder")
        top.chmod(0o755)
        _check_length(top)
        yield top
        return
    top = Path(tempfile.mkdtemp(prefix="firedoor-demo-"))
    try:
        # The workloads' users have to come through; what is secret below it has a mode of its own.
        top.chmod(0o755)
        _check_length(top)
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _check_length(top: Path) -> None:
    if len(str(top).encode()) > MAX_FOLDER_BYTES:
        raise UsageError(
            f"{top} is too long a path for the sockets below it: choose one of {MAX_FOLDER_BYTES} bytes at most"
        )


def _world(top: Path) -> World:
    """Choose the users: one each as root, else all are ours."""
    segments = tuple(SERVICES)
    own = dict.fromkeys(segments, users.our_uid())
    if not users.is_root():
        return World(top, own, separate=False)
    chosen = users.pick(segments)
    obstacle = users.obstacle(chosen[segments[0]], top)
    if obstacle is not None:
        _say(f"{obstacle}: everything runs as one user, and the rows that need several are not shown")
        return World(top, own, separate=False)
    return World(top, chosen, separate=True)


def _once(rows: list[Row], stage: Stage, shown: view.View) -> int:
    pairs: list[view.Pair] = [(row, None) for row in rows]
    try:
        for place, row in enumerate(rows):
            time.sleep(max(0.0, row.wait()))
            pairs[place] = (row, judge(row, stage))
            shown.show(pairs, pairs[place])
    finally:
        shown.close()
    differ = [row for row, result in pairs if not view.agrees((row, result))]
    for row in differ:
        _say(f"not as expected: {row.source} -> {row.destination}, {row.action}")
    _say(f"{len(pairs) - len(differ)} of {len(pairs)} rows as expected")
    return Exit.NO if differ else Exit.DONE


def _how_to_go_on(world: World, written: Path) -> None:
    _say(f"\nChange a file in {world.policy} and watch the table. In another terminal:")
    for words in files.worth_trying(world):
        _say(f"  firedoor {words}")
    _say(f"All commands of this run: {written}\nCtrl-C ends it.\n")


def _stay(rows: list[Row], stage: Stage, shown: view.View) -> int:
    """Try the rows again and again, until Ctrl-C; show a row when something else comes of it."""
    pairs: list[view.Pair] = [(row, None) for row in rows]
    try:
        while True:
            for place, row in enumerate(rows):
                if row.wait() > 0 or (row.only_once and pairs[place][1] is not None):
                    continue
                before, pairs[place] = pairs[place], (row, judge(row, stage))
                if shown.every_time or not view.same(before, pairs[place]):
                    shown.show(pairs, pairs[place])
            time.sleep(ROUND_SECONDS)
    except KeyboardInterrupt:
        return Exit.DONE
    finally:
        shown.close()
