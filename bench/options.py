# SPDX-License-Identifier: Apache-2.0
"""What `python -m bench` is told."""

import argparse
from dataclasses import dataclass
from pathlib import Path

TABLES = {
    "a": "data path: two sidecars against two Envoys",
    "b": "processor time of the broker for an X.509-SVID",
    "c": "time from `entry create` to the SVID at the workload",
    "d": "10,000 control streams",
    "e": "processor time to keep an agent informed of its entries",
    "f": "a directory of 200 services with 50 addresses, until every sidecar has it",
    "g": "what capture adds to a connection and to a request, in network namespaces (root)",
    "h": "time from a revocation until the connections of the revoked are closed",
    "cluster": "the directory of a cluster of 5,000 pods (programs of tests/peers)",
    "memory": "the memory of a, without its loads",
    "parts": "single steps: decisions, signatures",
    "pods": "time from a PodCertificateRequest to its certificate, in a cluster of 5,000 pods (`make peers`)",
    "registration": "time from a pod to its entry, in a cluster of 5,000 pods (`make peers`)",
}

DEFAULT = ",".join(name for name in TABLES if len(name) == 1)


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured."""

    only: tuple[str, ...]
    seconds: float
    rounds: int
    streams: int
    entries: tuple[int, ...]
    minutes: float
    output: str
    write: Path | None


def parse(words: list[str] | None = None) -> Options:
    """Read the command line."""
    text = "\n".join(f"  {name:<7} {what}" for name, what in TABLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure firedoor beside what it is compared with. Tables go to stdout, progress to stderr.",
        epilog=f"tables:\n{text}\n\nexample:\n  python -m bench --only a --seconds 10 --rounds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="A,B", default=DEFAULT, help=f"these tables (default: {DEFAULT})")
    parser.add_argument("--seconds", type=_positive, default=6, help="how long each load runs (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is repeated (default: 3)")
    parser.add_argument("--streams", type=int, default=10_000, help="control streams in table d (default: 10000)")
    parser.add_argument(
        "--entries",
        type=_numbers,
        metavar="N,M",
        default=(10, 1000, 5000),
        help="entries of the agent in table e, rising (default: 10,1000,5000)",
    )
    parser.add_argument(
        "--minutes",
        type=_positive,
        default=10,
        help="how long a server of table e may take until its agent has them; then it goes without (default: 10)",
    )
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables as Markdown")
    given = parser.parse_args(words)
    only = tuple(name.strip() for name in given.only.split(","))
    if unknown := [name for name in only if name not in TABLES]:
        parser.error(f"--only: no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if given.rounds < 1 or given.streams < 1:
        parser.error("--rounds and --streams are at least 1")
    return Options(
        only,
        given.seconds,
        given.rounds,
        given.streams,
        given.entries,
        given.minutes,
        given.output,
        given.write,
    )


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(map(int, text.split(",")))
    if not found or min(found) < 1 or list(found) != sorted(set(found)):
        raise argparse.ArgumentTypeError("must be numbers from 1, each larger than the one before")
    return found


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError("must be more than 0 and less than 3600")
    return value
