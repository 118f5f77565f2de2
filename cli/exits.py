# SPDX-License-Identifier: Apache-2.0
"""What the exit code of every `firedoor` command means. Scripts rely on it; a code never changes its meaning."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    MISSING = 6
    FAULT = 70
    INTERRUPTED = 130


# What `firedoor --help` prints.
SENTENCES = {
    Exit.DONE: "done; explain: allowed; lint and validate: nothing to repair; demo: every row as expected",
    Exit.NO: "the answer is no: denied, not ready, findings in a policy, rules or a row of the demo that differ, "
    "a rotation that waits for somebody",
    Exit.USAGE: "the command line, a configuration or a policy file is wrong, or what they name cannot be used",
    Exit.UNREACHABLE: "the broker or the sidecar does not answer",
    Exit.REFUSED: "the broker or the sidecar refused",
    Exit.NOT_FOUND: "there is no such entry, agent, segment or trust domain",
    Exit.MISSING: "an optional part is not installed; the message says which",
    Exit.FAULT: "a fault in firedoor itself",
    Exit.INTERRUPTED: "interrupted",
}


def table() -> str:
    """Return the codes as lines of help text."""
    return "\n".join(f"  {code.value:>3}  {SENTENCES[code]}" for code in Exit)
