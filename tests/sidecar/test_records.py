# SPDX-License-Identifier: Apache-2.0
"""Getting decision records written: to files that rotate and fill, to readers that stall and go."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firedoor.sidecar import records
from firedoor.sidecar.records import NotWrittenError, Output, RotatingFile, Sink, Stream, output_for
from tests.waiting import PATIENCE, until

LINE = b'{"n": 1}\n'


def at_once(_: int) -> None:
    """Never wait for an output."""


def rotating(tmp_path: Path, lines: int, keep: int = 2) -> RotatingFile:
    return RotatingFile(tmp_path / "log" / "d.jsonl", len(LINE) * lines, keep)


def files(tmp_path: Path) -> dict[str, int]:
    return {one.name: one.read_bytes().count(b"\n") for one in sorted((tmp_path / "log").iterdir())}


def test_rotation_by_size(tmp_path: Path) -> None:
    output = rotating(tmp_path, 3)
    for _ in range(11):
        output.write(LINE, at_once)
    output.close()
    assert files(tmp_path) == {"d.jsonl": 2, "d.jsonl.1": 3, "d.jsonl.2": 3}


def test_restart_goes_on_in_the_same_file_and_ends_a_broken_line(tmp_path: Path) -> None:
    for _ in range(2):
        output = rotating(tmp_path, 10)
        output.write(LINE, at_once)
        output.close()
        with (tmp_path / "log/d.jsonl").open("ab") as file:
            file.write(b'{"half')
    lines = (tmp_path / "log/d.jsonl").read_bytes().splitlines()
    assert lines == [b'{"n": 1}', b'{"half', b'{"n": 1}', b'{"half']


def test_a_path_that_is_no_regular_file_is_a_stream(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(output_for(tmp_path / "fifo", 1, 1), Stream)
    assert isinstance(output_for(tmp_path / "not there yet", 1, 1), RotatingFile)


class Ring:
    """What the core does with records."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.added, self.lost = capacity, 0, 0
        self._waiting: list[bytes] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Have numbered records wait, as far as there is room."""
        with self._lock:
            for _ in range(count):
                self.added += 1
                if len(self._waiting) < self.capacity:
                    self._waiting.append(b'{"n": %d}\n' % self.added)
                else:
                    self.lost += 1
            os.eventfd_write(self._wake, 1)

    def record_fd(self) -> int:
        return self._wake

    def drain_records(self, limit: int) -> bytes:
        with self._lock:
            batch, self._waiting = self._waiting[:limit], self._waiting[limit:]
            if not self._waiting and select.select([self._wake], [], [], 0)[0]:
                os.eventfd_read(self._wake)
            return b"".join(batch)

    def stats(self) -> dict[str, int]:
        return {"records_waiting": len(self._waiting), "records_lost": self.lost}

    def close(self) -> None:
        os.close(self._wake)


Start = Callable[[Output, Ring], Sink]


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs sinks, and stops them."""
    started: list[tuple[Sink, Ring]] = []

    def run(output: Output, ring: Ring) -> Sink:
        sink = Sink(ring, output)
        started.append((sink, ring))
        sink.start()
        return sink

    yield run
    for sink, ring in started:
        sink.stop(0.1)
        ring.close()


class Full:
    """An output that can be full."""

    def __init__(self) -> None:
        self.full = True
        self.data = b""
        self.tries = 0

    def write(self, lines: bytes, writable: records.Writable) -> None:
        self.tries += 1
        if self.full:
            self.data += lines[: len(LINE)]
            raise NotWrittenError(len(LINE), OSError(28, os.strerror(28)))
        self.data += lines

    def close(self) -> None:
        pass


def test_records_wait_for_room_and_losses_are_counted(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(records, "RETRY_SECONDS", 0.01)
    output, ring = Full(), Ring(5)
    sink = start(output, ring)
    ring.add(5)
    until(lambda: output.tries > 2, "another try")
    ring.add(10)
    output.full = False
    until(lambda: sink.written + ring.lost == 15, "all that was not lost")
    assert ring.lost > 0
    assert caplog.text.count("cannot be written") == 1
    assert "No space left" in caplog.records[0].reason  # type: ignore[attr-defined]
    until(lambda: "are written again" in caplog.text)
    lines = output.data.splitlines()
    assert len(lines) == len(set(lines)) == sink.written


def read_lines(fd: int, count: int) -> list[bytes]:
    """Read so many lines from a pipe, whenever they come; nothing may be there after them."""
    data = b""
    while data.count(b"\n") < count:
        assert select.select([fd], [], [], PATIENCE)[0], f"{count} lines, of which came {data.count(LINE[-1:])}"
        data += os.read(fd, 1 << 16)
    assert not select.select([fd], [], [], 0)[0]
    return data.splitlines(keepends=True)


def test_a_reader_that_stalls_holds_up_nobody_and_misses_nothing_but_what_is_counted(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "STALLED_SECONDS", 0.05)
    reader, writer = os.pipe()
    try:
        ring = Ring(2000)
        sink = start(Stream(writer), ring)

        def told() -> bool:
            ring.add(100)
            return "nobody reads them" in str([vars(one) for one in caplog.records])

        until(told, "a full pipe, and a line that says so")
        until(lambda: ring.add(100) or ring.lost, "a full ring")
        lines = read_lines(reader, ring.added - ring.lost)
        assert len(lines) == len(set(lines))
        until(lambda: sink.written == len(lines), "all counted")
        assert all(line.endswith(b"}\n") for line in lines)
    finally:
        sink.stop(0.1)
        os.close(reader)
        os.close(writer)


def is_full(fifo: Path) -> bool:
    """Say whether a FIFO that somebody reads takes nothing more."""
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [fd], [], 0)[1]
    finally:
        os.close(fd)


def test_a_reader_that_is_gone_and_another_in_its_place(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(records, "STALLED_SECONDS", 60.0)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    ring = Ring(20_000)
    sink = start(output_for(fifo, 1, 1), ring)
    ring.add(1)
    until(lambda: caplog.text.count("cannot be written") == 1, "that nobody reads yet")
    first = os.open(fifo, os.O_RDONLY)
    until(lambda: sink.written == 1, "the first record")
    ring.add(15_000)
    until(lambda: is_full(fifo), "a full pipe")
    assert os.read(first, 1000).startswith(b'{"n": 1}\n')
    os.close(first)
    until(lambda: caplog.text.count("cannot be written") == 2, "that it is gone")
    before = sink.written
    second = os.open(fifo, os.O_RDONLY)
    try:
        numbers = [int(line.strip(b'{"n: }\n')) for line in read_lines(second, 15_001 - before)]
    finally:
        os.close(second)
    # The line that the first one got a half of comes again, whole; what it got whole does not.
    assert numbers == list(range(before + 1, 15_002))
    until(lambda: sink.written == 15_001, "all counted")
    assert ring.lost == 0


def test_the_end_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    ring = Ring(20_000)
    sink = Sink(ring, Stream(writer))
    sink.start()
    ring.add(15_000)
    until(lambda: sink.held, "a full pipe")
    sink.stop(0.2)
    (found,) = [one for one in caplog.records if "before the end" in one.message]
    assert found.count == 15_000 - sink.written  # type: ignore[attr-defined]
    for fd in (reader, writer):
        os.close(fd)
    ring.close()
