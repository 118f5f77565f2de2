# SPDX-License-Identifier: Apache-2.0
"""Clock, back-off, renewal times, records, logs, metrics."""

import asyncio
import contextlib
import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from firedoor.sidecar import metrics
from firedoor.sidecar.backoff import FIRST_SECONDS, LONGEST_SECONDS, SHORTEST_SECONDS, Backoff
from firedoor.sidecar.clock import NOTABLE_LEAP_SECONDS, Clock, Leaps
from firedoor.sidecar.identities import renewal_time
from firedoor.sidecar.logs import Json, Text


class Times:
    """Two clocks that the test sets."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1000.0, 50.0
        self.steps: list[float] = []
        self.clock = Clock(lambda: self.wall, lambda: self.monotonic, self.steps.append)

    def pass_by(self, seconds: float, wall: float | None = None) -> float:
        self.monotonic += seconds
        self.wall += seconds if wall is None else wall
        return self.clock.now()


def test_a_machine_that_was_suspended_is_noticed_once() -> None:
    times = Times()
    leaps = Leaps(lambda: times.wall, lambda: times.monotonic)
    times.pass_by(100)
    assert leaps.since() == 0
    times.pass_by(2, wall=3600)
    assert leaps.since() == pytest.approx(3598)
    assert leaps.since() == 0
    # Adjusted, or set back: nothing was slept through.
    times.pass_by(2, wall=2 + NOTABLE_LEAP_SECONDS)
    assert leaps.since() == 0
    times.pass_by(2, wall=-3600)
    assert leaps.since() == 0


def test_clock_follows_the_wall() -> None:
    times = Times()
    assert times.pass_by(5) == 1005
    assert times.pass_by(5, wall=500) == 1505


def test_clock_never_goes_back() -> None:
    times = Times()
    assert times.pass_by(5, wall=-3600) == 1005
    assert times.pass_by(5) == 1010
    assert times.steps == [pytest.approx(3605)]


def test_small_steps_are_not_told() -> None:
    times = Times()
    assert times.pass_by(1, wall=-200) == 1001
    assert times.steps == []


def test_clock_is_told_again_after_it_caught_up() -> None:
    times = Times()
    times.pass_by(1, wall=-3600)
    times.pass_by(1, wall=7200)
    times.pass_by(1, wall=-3600)
    assert len(times.steps) == 2


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_backoff_grows_to_its_bound_and_begins_anew() -> None:
    backoff = Backoff(uniform=middle)
    waits = [backoff.failed() for _ in range(20)]
    assert waits[0] == FIRST_SECONDS
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_SECONDS
    backoff.reset()
    assert backoff.failed() == FIRST_SECONDS


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [(None, LONGEST_SECONDS), (10.0, 5.0), (0.1, SHORTEST_SECONDS), (-5.0, LONGEST_SECONDS)],
    ids=["nothing_expires", "before_expiry", "no_busy_loop", "expired_already"],
)
def test_backoff_tries_again_before_expiry(expires_in: float | None, expected: float) -> None:
    backoff = Backoff(uniform=middle)
    for _ in range(20):
        backoff.failed()
    assert backoff.failed(expires_in) == expected


def test_renewal_at_half_life_with_jitter() -> None:
    times = [renewal_time(1000, 1100) for _ in range(200)]
    assert 1045 <= min(times) < 1048
    assert 1052 < max(times) <= 1055


@pytest.mark.parametrize("not_after", [1001, 1000, 0], ids=["short", "now", "long_ago"])
def test_renewal_is_never_at_once(not_after: int) -> None:
    assert renewal_time(1000, not_after) == 1001


def record(**fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": "hello %s", "args": ("you",), "levelname": "INFO", "created": 0.5})
    vars(made).update(fields)
    return made


def test_text_and_json_lines() -> None:
    assert Text().format(record(who="a\nb")) == '1970-01-01T00:00:00.500Z info    hello you who="a\\nb"'
    assert json.loads(Json().format(record(n=1))) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "info",
        "message": "hello you",
        "n": 1,
    }


async def get(address: str, request: bytes) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = ""
    # A request that is too long is not read to its end, so that the close may be a reset.
    with contextlib.suppress(ConnectionError):
        answer = (await reader.read()).decode()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return head.split("\r\n")[0].removeprefix("HTTP/1.1 "), body


async def test_metrics_server() -> None:
    missing = ["an SVID"]
    values = {"denied": 3.0, "connections": 2.0}
    server = metrics.MetricsServer(metrics.Snapshot(lambda: values, lambda: [("spiffe://a/b", 7)]), lambda: missing)
    await server.start("127.0.0.1:0")
    try:
        assert await get(server.address, b"GET /live HTTP/1.1\r\n\r\n") == ("200 OK", "live\n")
        assert await get(server.address, b"GET /ready HTTP/1.1\r\n\r\n") == (
            "503 Service Unavailable",
            "missing: an SVID\n",
        )
        missing.clear()
        assert await get(server.address, b"GET /ready HTTP/1.1\r\n\r\n") == ("200 OK", "ready\n")
        _, text = await get(server.address, b"GET /metrics?x HTTP/1.1\r\n\r\n")
        assert "firedoor_denied_total 3.0" in text
        assert "firedoor_connections 2.0" in text
        assert 'firedoor_svid_expiry_seconds{spiffe_id="spiffe://a/b"} 7.0' in text
        # The official reader takes it.
        found = {one.name: one for one in text_string_to_metric_families(text)}
        assert {name: one.type for name, one in found.items()} == {
            "firedoor_denied": "counter",
            "firedoor_connections": "gauge",
            "firedoor_svid_expiry_seconds": "gauge",
        }
        assert found["firedoor_svid_expiry_seconds"].samples[0].labels == {"spiffe_id": "spiffe://a/b"}
        assert (await get(server.address, b"GET /x HTTP/1.1\r\n\r\n"))[0] == "404 Not Found"
        assert (await get(server.address, b"POST /live HTTP/1.1\r\n\r\n"))[0] == "405 Method Not Allowed"
        assert (await get(server.address, b"GET " + b"x" * 9000 + b"\r\n\r\n"))[0] == ""
    finally:
        await server.stop()
