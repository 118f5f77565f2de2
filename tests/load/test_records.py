# SPDX-License-Identifier: Apache-2.0
"""Records and counted losses are all decisions, whatever becomes of the program that reads the records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.load.conftest import Estate, policy
from tests.load.programs import KeepAlive
from tests.load.traffic import Traffic
from tests.waiting import until

RATE = 1000
# Small, so that it is full after seconds.
QUEUE = 1024
# What a killed `cat` had read and not written, and what was in the pipe (pipe(7): 64 KiB), in records of 400 bytes.
UNREAD = (128 + 64) * 1024 // 400


class Reader:
    """A program that reads the records of a FIFO into a file."""

    def __init__(self, fifo: Path, file: Path) -> None:
        self.file = file
        with file.open("wb") as output:
            self.process = subprocess.Popen(["cat", fifo], stdout=output)

    def lines(self) -> list[bytes]:
        """Return the whole lines that it has written."""
        return self.file.read_bytes().splitlines(keepends=True)

    def records(self) -> list[dict[str, object]]:
        """Return what it has read. A half line can only be the last one's."""
        whole = self.lines()
        if whole and not whole[-1].endswith(b"\n"):
            whole.pop()
        return [json.loads(line) for line in whole]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Watched:
    """The inbound sidecar with a FIFO for its records."""

    def __init__(self, estate: Estate, stack: ExitStack) -> None:
        self.estate, self._stack = estate, stack
        self.fifo = estate.folder / "records"
        self.readers: list[Reader] = []
        self._marks = 0

    def read(self) -> Reader:
        """Start another reader."""
        found = Reader(self.fifo, self.estate.folder / f"read-{len(self.readers)}")
        self.readers.append(found)
        self._stack.callback(found.kill)
        return found

    def count(self, name: str) -> int:
        status = self.estate.status("server")
        assert status is not None
        return status.counters[name]

    def lost_more_than(self, before: int) -> None:
        until(lambda: self.count("records_lost") > before, "a loss")

    def settled(self) -> None:
        """Wait until nothing is on its way any more."""
        until(self._all_told, "the last record")
        read = self.readers[-1]
        until(lambda: not read.lines() or read.lines()[-1].endswith(b"\n"), "a whole line")

    def drained(self, traffic: Traffic) -> None:
        """Have one more request recorded, and wait until that record was read: all of before was read before it."""
        self._marks += 1
        target = f"/models/mark-{self._marks}"
        last = KeepAlive(self.estate.http, target=target)
        traffic.call(last.request(0))
        traffic.call(last.close())
        self.settled()
        until(lambda: any(target.encode() in line for line in reversed(self.readers[-1].lines())), "the last record")

    def _all_told(self) -> bool:
        if (status := self.estate.status("server")) is None:
            return False
        counted = status.counters
        # What is no longer in the queue may be in the hands of the thread that writes.
        return counted["decisions"] == counted["records_written"] + counted["records_lost"]

    def found(self) -> list[dict[str, object]]:
        return [one for reader in self.readers for one in reader.records()]


@pytest.fixture(scope="module")
def watched(estate: Estate) -> Iterator[Watched]:
    os.mkfifo(estate.folder / "records")
    with ExitStack() as stack:
        found = Watched(estate, stack)
        found.read()
        estate.begin(server=("--records-path", str(found.fifo), "--records-queue", str(QUEUE)))
        yield found


def test_a_reader_that_stalls(watched: Watched, traffic: Traffic, pool: KeepAlive) -> None:
    reader = watched.readers[-1]
    load = traffic.start("keep-alive", RATE, pool.request)
    until(lambda: watched.count("records_written") > RATE, "a second's records")
    reader.process.send_signal(signal.SIGSTOP)
    watched.lost_more_than(0)
    reader.process.send_signal(signal.SIGCONT)
    until(lambda: watched.count("records_waiting") < QUEUE // 2, "room")
    done = load.stop()
    print(done)
    assert done.failures == []
    watched.settled()
    assert watched.count("decisions") == done.sent == watched.estate.app.requests
    # Where the reader is held up again, more of them; each is counted.
    lost = watched.count("records_lost")
    assert lost > 0
    until(lambda: len(watched.found()) + lost == done.sent, f"the rest of {done.sent}, of which {lost} are lost")
    assert all(one["decision"] == "allowed" for one in watched.found())


def test_a_reader_that_is_killed(watched: Watched, traffic: Traffic, pool: KeepAlive) -> None:
    watched.drained(traffic)
    before = {name: watched.count(name) for name in ("decisions", "records_lost", "records_written")}
    read = len(watched.found())
    load = traffic.start("keep-alive", RATE, pool.request)
    until(lambda: watched.count("records_written") > before["records_written"] + RATE, "a second's records")
    watched.readers[-1].kill()
    watched.lost_more_than(before["records_lost"])
    watched.read()
    until(lambda: watched.count("records_waiting") < QUEUE // 2, "room")
    done = load.stop()
    print(done)
    assert done.failures == []
    watched.settled()
    now = {name: watched.count(name) - old for name, old in before.items()}
    assert now["decisions"] == done.sent == now["records_written"] + now["records_lost"]
    # What the killed reader took with it is all that can be missing.
    last = until(lambda: len(watched.found()) - read >= now["records_written"] - UNREAD, "the rest")
    assert last
    assert len(watched.found()) - read <= now["records_written"]


def test_what_must_be_recorded_is_denied_while_it_cannot_be(
    watched: Watched, traffic: Traffic, pool: KeepAlive
) -> None:
    estate = watched.estate
    watched.drained(traffic)
    read = len(watched.found())
    before = {name: watched.count(name) for name in ("decisions", "records_lost", "allowed")}
    estate.change(policy(more="audit_loss: deny"))
    seen = estate.app.requests
    load = traffic.start("keep-alive", RATE, pool.request)
    until(lambda: watched.count("allowed") > before["allowed"] + RATE, "a second's requests")
    watched.readers[-1].process.send_signal(signal.SIGSTOP)
    until(lambda: watched.count("denied_audit_loss") > 0, "a denial")
    watched.readers[-1].process.send_signal(signal.SIGCONT)
    passed = watched.count("allowed")
    until(lambda: watched.count("allowed") > passed + RATE, "requests that pass again")
    done = load.stop()
    print(done)
    watched.settled()
    allowed = watched.count("allowed") - before["allowed"]
    lost = watched.count("records_lost") - before["records_lost"]
    decisions = watched.count("decisions") - before["decisions"]
    assert {failure.why for failure in done.failures} == {"ValueError: HTTP/1.1 403 Forbidden"}
    assert decisions == done.sent
    # Not one request got through that left no record; of those that did not, the losses are counted.
    until(lambda: len(watched.found()) - read + lost == decisions, "the rest")
    fresh = watched.found()[read:]
    assert sum(one["decision"] == "allowed" for one in fresh) == allowed == done.answered == estate.app.requests - seen
    assert {one["reason"] for one in fresh if one["decision"] == "denied"} == {"audit_loss"}
