# SPDX-License-Identifier: Apache-2.0
"""The line that is shown while something takes long."""

import io
import threading

import pytest

from firedoor.cli import progress


class Screen(io.StringIO):
    """A terminal, or not, that says when something was written to it."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_a_terminal_shows_it_and_is_clean_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    with progress.waiting("waiting for others"):
        assert screen.written.wait(10)
    assert "waiting for others (0 s)" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr("sys.stderr", screen)
    # What is over first is not a matter of how fast this machine is; nor is the end held up by that patience.
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 3600.0)
    with progress.waiting("waiting for others"):
        pass
    assert screen.getvalue() == ""


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=False)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    with progress.waiting("waiting for others"):
        assert not screen.written.wait(0.1)
    assert screen.getvalue() == ""
