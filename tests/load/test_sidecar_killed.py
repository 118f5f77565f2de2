# SPDX-License-Identifier: Apache-2.0
"""A sidecar is killed under load and started again, with the broker there and without. Its join token is spent."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import Program
from tests.load.conftest import Estate
from tests.load.programs import KeepAlive, Where, get_once, say_once
from tests.load.traffic import Failure, Load, Traffic
from tests.waiting import until

# Starts that are killed at a random moment.
STARTS = 8
DISK = ("--keep-workload-keys", "disk")


@pytest.fixture(scope="module")
def running(estate: Estate) -> Estate:
    """The sidecar before the programs keeps its workload keys on disk, that of those who ask does not."""
    estate.begin(server=DISK)
    return estate


Broken = Callable[[], list[Failure]]


@pytest.fixture
def loads(running: Estate, traffic: Traffic, pool: KeepAlive) -> Broken:
    """Everything that the listeners carry, under way; returns how requests failed."""
    every = [
        traffic.start("keep-alive", 100, pool.request),
        traffic.start("a connection a request", 20, lambda n: get_once(running.http, n)),
        traffic.start("opaque", 20, lambda n: say_once(running.opaque, n)),
    ]

    def stop() -> list[Failure]:
        done: list[Load] = [one.stop() for one in every]
        print(*done, sep="\n")
        assert all(one.answered > 0 for one in done)
        return [failure for one in done for failure in one.failures]

    until(lambda: all(one.load.answered > one.load.rate for one in every), "a second's answers")
    return stop


def carried_again(where: Where, traffic: Traffic) -> float:
    """Send requests for a while, none of which may fail; return when that began."""
    began = time.time()
    more = traffic.start("again", 100, lambda n: get_once(where, n))
    until(lambda: more.load.answered > 100, "a second's answers")
    assert more.stop().failures == []
    return began


def check(failed: list[Failure], killed: float, again: float) -> None:
    """Only what left while the sidecar was away has failed, or was under way when it was killed."""
    assert failed
    assert killed <= min(one.left + one.after for one in failed)
    assert [one for one in failed if one.left > again] == [], f"it carries again since {again}"


def kill(running: Estate, name: str) -> float:
    """Kill a sidecar; return when."""
    program = next(one for one in reversed(running.programs) if one.log.name == f"{name}.log")
    killed = time.time()
    program.kill()
    return killed


@pytest.fixture
def without_broker(running: Estate) -> Iterator[None]:
    """The broker is killed; after the test it is there again."""
    broker = next(one for one in reversed(running.programs) if one.log.name == "broker.log")
    broker.kill()
    yield
    if broker is next(one for one in reversed(running.programs) if one.log.name == "broker.log"):
        running.start_broker()
    for name in ("server", "client"):
        until(lambda name=name: (one := running.status(name)) and one.connected, "the broker's notice")  # type: ignore[misc]


@pytest.mark.parametrize("name", ["server", "client"])
def test_with_a_broker_it_serves_again_by_itself(running: Estate, traffic: Traffic, loads: Broken, name: str) -> None:
    agents = running.agents()
    killed = kill(running, name)
    again = running.start_server(*DISK) if name == "server" else running.start_client()
    again.ready()
    began = carried_again(running.http, traffic)
    check(loads(), killed, began)
    # The stored agent SVID counts: nobody has attested anew.
    assert running.agents() == agents


def test_killed_at_its_start_it_serves_at_the_next(running: Estate, traffic: Traffic) -> None:
    agents, chosen = running.agents(), random.Random(5)
    kill(running, "server")
    for _ in range(STARTS):
        started = running.start_server(*DISK)
        time.sleep(chosen.uniform(0, 0.5))
        started.kill()
    running.start_server(*DISK).ready()
    carried_again(running.http, traffic)
    assert running.agents() == agents


@pytest.mark.usefixtures("without_broker")
def test_without_a_broker_it_serves_what_is_on_disk(running: Estate, traffic: Traffic, loads: Broken) -> None:
    killed = kill(running, "server")
    running.start_server(*DISK).ready()
    began = carried_again(running.http, traffic)
    check(loads(), killed, began)


def refused(running: Estate) -> bool:
    """Say whether nothing listens where requests are sent."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(running.http))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        return False


@pytest.mark.usefixtures("without_broker")
def test_without_a_broker_and_keys_it_binds_nothing_and_says_so(
    running: Estate, traffic: Traffic, loads: Broken
) -> None:
    killed = kill(running, "client")
    log = running.folder / "client.log"
    before = len(log.read_text())
    client: Program = running.start_client()
    status = until(lambda: (one := running.status("client")) and one.missing and one, "a status")
    until(lambda: "keep_workload_keys" in log.read_text()[before:], "a line that says why")
    assert all("an SVID for spiffe://example.org/segment/" in one for one in status.missing)
    assert not any(one.open for one in status.listeners)
    assert refused(running)
    assert not (running.folder / "client/workload").exists() or not list((running.folder / "client/workload").iterdir())
    running.start_broker()
    client.ready()
    began = carried_again(running.http, traffic)
    check(loads(), killed, began)
