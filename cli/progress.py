# SPDX-License-Identifier: Apache-2.0
"""What a person sees while something takes long: one line on a terminal's stderr, gone when it is done."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Sooner it would only flicker.
PATIENCE_SECONDS = 1.0
STEP_SECONDS = 0.5
_CLEAR = "\r\x1b[K"


@contextmanager
def waiting(sentence: str) -> Iterator[None]:
    """Show the sentence with the time that it takes, from the second second on. Nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    shower = threading.Thread(target=_show, args=(sentence, done), daemon=True)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()


def _show(sentence: str, done: threading.Event) -> None:
    started = time.monotonic()
    if done.wait(PATIENCE_SECONDS):
        return
    while True:
        sys.stderr.write(f"{_CLEAR}{sentence} ({time.monotonic() - started:.0f} s)")
        sys.stderr.flush()
        if done.wait(STEP_SECONDS):
            break
    sys.stderr.write(_CLEAR)
    sys.stderr.flush()
