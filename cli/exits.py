# SPDX-License-Identifier: Apache-2.0
"""What the exit code of every `firedoor` command means. Scripts rely on it; a code never changes its meaning."""

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """The exit codes, with the sentence that `firedoor --help` prints."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> Self:
        """Carry the sentence beside the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    DONE = 0, "done; for explain: allowed, for lint and validate: nothing to repair, for demo: every row as expected"
    NO = 1, "the answer is no: denied, not ready, findings, a row of the demo that differs"
    USAGE = 2, "the command line, a configuration file or a policy file is wrong; the message names the place"
    UNREACHABLE = 3, "the broker or the sidecar does not answer"
    REFUSED = 4, "the broker or the sidecar refused"
    NOT_FOUND = 5, "there is no such entry, agent or segment"
    MISSING = 6, "an optional part is not installed; the message says which"
    FAULT = 70, "a fault in firedoor itself"
    INTERRUPTED = 130, "interrupted"


def table() -> str:
    """Return the codes as lines of help text."""
    return "\n".join(f"  {code.value:>3}  {code.sentence}" for code in Exit)
