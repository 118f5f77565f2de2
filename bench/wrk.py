# SPDX-License-Identifier: Apache-2.0
"""The load generator: runs wrk and reads what it prints."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bench.processes import Failed

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run came to. Times are seconds."""

    requests: int
    seconds: float
    read_bytes: float
    p50: float
    p99: float
    errors: int

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def run(url: str, *, seconds: float, connections: int, close: bool = False, prefix: Sequence[str] = ()) -> Load:
    """Ask for a URL as fast as it is answered, run by `prefix` (such as nsenter). Raise Failed."""
    command = [*prefix, "wrk", "--latency", "--threads", "1", "--connections", str(connections), "--timeout", "10s"]
    command += ["--duration", f"{max(1, round(seconds))}s"]
    if close:
        command += ["--header", "Connection: close"]
    done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    return parse(done.stdout)


def parse(text: str) -> Load:
    """Read wrk's output, the form of `--latency`. Raise Failed when a number is missing."""
    total = _find(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h), ([\d.]+)([KMGT]?B) read", text)
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, socket_errors.groups())) if socket_errors else 0
    return Load(
        requests=int(total[1]),
        seconds=float(total[2]) * _UNITS[total[3]],
        read_bytes=float(total[4]) * _SIZES[total[5]],
        p50=_percentile(text, "50%"),
        p99=_percentile(text, "99%"),
        errors=errors + (int(refused[1]) if refused else 0),
    )


def _percentile(text: str, which: str) -> float:
    found = _find(rf"^\s+{which}\s+([\d.]+)(us|ms|s|m|h) *$", text)
    return float(found[1]) * _UNITS[found[2]]


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise Failed(f"wrk printed something else than expected: {text.strip()[:500]!r}")
    return found
