# SPDX-License-Identifier: Apache-2.0
"""A rotation as a person watches it: what each stage waits for, who is missing, and how it ended.

The broker drives rotations; whoever watches may go away and come back, and so may the broker.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from firedoor.cli.admin import broker
from firedoor.cli.errors import Refused, Unreachable
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.wire import admin_grpc, admin_pb2

KINDS = ("x509", "jwt", "wit")
ENDED = ("done", "aborted")
# The broker ends a stream of reports before that.
WATCH_SECONDS = 45.0
RETRY_SECONDS = 0.5
# Reports come faster than anybody reads.
LINE_SECONDS = 1.0
NAMED = 3
_STAGES = {
    "prepare": "makes the next authority",
    "spread": "waits until everybody trusts the next authority",
    "reissue": "waits until nobody runs on what the old authority signed",
    "retire": "waits until nobody needs the old authority, which is tainted",
    "done": "is done",
    "aborted": "was aborted",
}


class Watcher:
    """Follows the rotations of some kinds to their end."""

    def __init__(self, options: argparse.Namespace, kinds: Sequence[str], say: Callable[[str], None]) -> None:
        self._options, self._kinds, self._say = options, kinds, say
        self._stages: dict[str, tuple[str, float]] = {}
        self._lines: dict[str, tuple[str, float]] = {}
        self.latest: dict[str, admin_pb2.Rotation] = {}

    def follow(self) -> bool:
        """Watch until all have ended; False when a stage has waited for as long as it may. Raise CliError."""
        silent_since, said = time.monotonic(), False
        while True:
            try:
                with broker(self._options) as connection:
                    stub = admin_grpc.AuthorityAdminStub(connection.channel)
                    request = admin_pb2.WatchRotationsRequest()
                    for answer in connection.stream(stub.WatchRotations, request, seconds=WATCH_SECONDS):
                        silent_since, said = time.monotonic(), False
                        self._take(answer.rotations)
                        if all(self._has_ended(kind) for kind in self._kinds):
                            return True
                        if self._out_of_patience():
                            return False
            except Unreachable as error:
                if time.monotonic() - silent_since > self._options.timeout:
                    raise
                if not said:
                    _tell(f"{error}; the rotation goes on when it is back")
                    said = True
                time.sleep(RETRY_SECONDS)

    def _take(self, rotations: Iterable[admin_pb2.Rotation]) -> None:
        now = time.monotonic()
        for one in rotations:
            if one.kind not in self._kinds:
                continue
            self.latest[one.kind] = one
            entered = self._stages.get(one.kind, ("", 0.0))[0] != one.stage
            if entered:
                self._stages[one.kind] = one.stage, now
            line, (last, said_at) = sentence(one), self._lines.get(one.kind, ("", 0.0))
            if line != last and (entered or now - said_at >= LINE_SECONDS):
                self._lines[one.kind] = line, now
                self._say(line)

    def _has_ended(self, kind: str) -> bool:
        return kind in self.latest and self.latest[kind].stage in ENDED

    def _out_of_patience(self) -> bool:
        """Say whether a stage waits for longer than it should, and nobody told the broker to go on."""
        now = time.monotonic()
        return any(
            one.stage not in ENDED and not one.force and now - self._stages[kind][1] > self._options.timeout
            for kind, one in self.latest.items()
        )


def finish(options: argparse.Namespace, watcher: Watcher, *, ended: bool) -> int:
    """Say how it ended, and return the exit code. Raise Refused for a rotation that was aborted."""
    found = list(watcher.latest.values())
    if options.output == "json":
        show_json([as_json(one) for one in found])
    elif not ended:
        for one in found:
            show("\n".join(missing_lines(one)))
        show("the rotation waits on; `authority rotate` joins it again, --force goes on over these, --abort ends it")
    for one in found:
        if options.output == "text" and one.over_count:
            names = ", ".join(one.over) + (", ..." if one.over_count > len(one.over) else "")
            show(f"{one.kind}: went on without {one.over_count}: {names}")
        if one.stage == "aborted":
            raise Refused(f"the {one.kind} rotation was aborted: {one.reason}")
    return Exit.DONE if ended else Exit.NO


def sentence(one: admin_pb2.Rotation) -> str:
    """Return one line: what a rotation is about, and how far that is."""
    line = f"{one.kind}: {_STAGES.get(one.stage, one.stage)}"
    if one.stage in ENDED:
        return f"{line}: {one.new_authority_id} signs" if one.stage == "done" else line
    if one.missing_count and one.asked_count > 1:
        line += f" ({one.asked_count - one.missing_count} of {one.asked_count})"
    if one.missing_count:
        names = ", ".join(m.who for m in one.missing[:NAMED])
        line += f"; missing: {names}" + (", ..." if one.missing_count > NAMED else "")
    elif one.kind == "x509" and one.stage == "retire":
        # Also those of segments that say `until-revoked`; docs/rotation.md, "Streams".
        line += "; streams that began under it end with it"
    return f"{line}; {one.trouble}" if one.trouble else line


def missing_lines(one: admin_pb2.Rotation) -> list[str]:
    """Return a line for each who is missing."""
    lines = [f"{one.kind}: {m.who} {m.why}" + (f", until {when(m.until)}" if m.until else "") for m in one.missing]
    if one.missing_count > len(one.missing):
        lines.append(f"{one.kind}: and {one.missing_count - len(one.missing)} more")
    return lines


def as_json(one: admin_pb2.Rotation) -> dict[str, object]:
    """Return a rotation as scripts read it."""
    plain = {
        name: getattr(one, name)
        for name in ("kind", "stage", "by", "started_at", "since", "old_authority_id", "new_authority_id", "force")
    }
    return plain | {
        "patience": one.patience,
        "emergency": one.emergency,
        "missing": [{"who": m.who, "why": m.why, "until": m.until} for m in one.missing],
        "missing_count": one.missing_count,
        "asked_count": one.asked_count,
        "over": list(one.over),
        "over_count": one.over_count,
        "reason": one.reason,
        "trouble": one.trouble,
    }


def _tell(line: str) -> None:
    sys.stderr.write(f"firedoor: {line}\n")
    sys.stderr.flush()
