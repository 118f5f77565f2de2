# SPDX-License-Identifier: Apache-2.0
"""Rates, files, agents' standing, and the three pages on loopback."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.agent import Agent, check_agent
from firedoor.broker.errors import (
    AgentBanned,
    AgentError,
    AgentExpired,
    AgentNotActive,
    AgentNotAttested,
    RateLimited,
    StorageError,
)
from firedoor.broker.files import FileStore, check_socket_path, make_private_folder, replace
from firedoor.broker.ratelimit import Limiter, Rate
from firedoor.broker.rpc.listing import page
from firedoor.certs import SpiffeId
from tests.broker.harness import RunningBroker
from tests.waiting import PATIENCE

NOW = 1_800_000_000
ID = SpiffeId.parse("spiffe://example.org/spire/agent/x/1")
GOOD = Agent(ID, "join_token", "7", NOW + 100, new_serial="8", new_not_after=NOW + 200)
BANNED = Agent(ID, "join_token", "", NOW + 100, banned=True)

STANDING: dict[str, tuple[Agent | None, str, int, type[AgentError] | None]] = {
    "present": (GOOD, "7", NOW + 100, None),
    "new": (GOOD, "8", NOW + 200, None),
    "another": (GOOD, "9", NOW + 100, AgentNotActive),
    "no serial": (GOOD, "", NOW + 100, AgentNotActive),
    "expired": (GOOD, "7", NOW, AgentExpired),
    "unknown": (None, "7", NOW + 100, AgentNotAttested),
    "banned": (BANNED, "7", NOW + 100, AgentBanned),
    "banned, no serial": (BANNED, "", NOW + 100, AgentBanned),
    "expired and banned": (BANNED, "7", NOW - 1, AgentExpired),
}


@pytest.mark.parametrize("name", STANDING)
def test_standing(name: str) -> None:
    agent, serial, not_after, error = STANDING[name]
    if error is None:
        assert check_agent(agent, serial, not_after, NOW).serial == serial
    else:
        with pytest.raises(error):
            check_agent(agent, serial, not_after, NOW)


def test_the_first_use_of_a_new_certificate_ends_the_old_one() -> None:
    promoted = check_agent(GOOD, "8", NOW + 200, NOW)
    assert (promoted.serial, promoted.new_serial, promoted.not_after) == ("8", "", NOW + 200)
    with pytest.raises(AgentNotActive):
        check_agent(promoted, "7", NOW + 100, NOW)
    assert check_agent(promoted, "8", NOW + 200, NOW) is promoted


# --- rates ----------------------------------------------------------------------------------------------------------


def passes(limiter: Limiter, remote: str, at: float, cost: int = 1) -> bool:
    try:
        limiter.take(remote, at, cost)
    except RateLimited:
        return False
    return True


def test_a_burst_then_the_rate() -> None:
    limiter = Limiter(Rate(2, 3), "test")
    assert [passes(limiter, "10.0.0.1:5", 0) for _ in range(4)] == [True, True, True, False]
    assert [passes(limiter, "10.0.0.1:6", 0.5), passes(limiter, "10.0.0.1:7", 0.5)] == [True, False]
    assert passes(limiter, "10.0.0.2:5", 0.5)
    assert [passes(limiter, "10.0.0.1:5", 100) for _ in range(4)] == [True, True, True, False]


def test_a_batch_larger_than_the_burst_is_paid_off() -> None:
    limiter = Limiter(Rate(10, 5), "test")
    assert passes(limiter, "a:1", 0, 25)
    assert not passes(limiter, "a:1", 1.9)
    assert passes(limiter, "a:1", 2.2)


def test_a_whole_64_is_one_host() -> None:
    limiter = Limiter(Rate(0.01, 1), "test")
    assert passes(limiter, "[2001:db8::1]:1", 0)
    assert not passes(limiter, "[2001:db8::2:3]:1", 0)
    assert passes(limiter, "[2001:db8:0:1::1]:1", 0)
    assert passes(limiter, "[::ffff:10.0.0.1]:1", 0)
    assert not passes(limiter, "10.0.0.1:1", 0)


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 2)), max_size=60))
def test_no_pattern_of_calls_beats_the_rate(calls: list[tuple[int, float]]) -> None:
    limiter, at, taken = Limiter(Rate(3, 5), "test"), 0.0, 0
    for cost, wait in calls:
        at += wait
        taken += cost if passes(limiter, "a:1", at, cost) else 0
    assert taken <= 5 + 3 * at + 1e-6


def test_addresses_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.broker.ratelimit.MAX_ADDRESSES", 10)
    limiter = Limiter(Rate(1, 1), "test")
    for i in range(100):
        passes(limiter, f"10.0.0.{i}:1", 0)
    assert len(limiter._buckets) == 10


# --- pages ----------------------------------------------------------------------------------------------------------


@given(st.sets(st.text(min_size=1, max_size=3)), st.integers(-3, 12))
def test_pages_hold_everything_once_in_order(items: set[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        found, token = page(items, lambda item: item, size, token)
        seen += found
        assert size <= 0 or len(found) <= size
        if not token:
            break
    assert seen == sorted(items)


# --- files ----------------------------------------------------------------------------------------------------------


def test_keys_are_private_and_replaced_whole(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "keys")
    assert store.load("x509-CA-A.pem") is None
    store.replace("x509-CA-A.pem", b"one")
    store.replace("x509-CA-A.pem", b"two")
    assert store.load("x509-CA-A.pem") == b"two"
    assert os.listdir(tmp_path / "keys") == ["x509-CA-A.pem"]  # noqa: PTH208
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "x509-CA-A.pem").stat().st_mode & 0o777 == 0o600
    store.delete("x509-CA-A.pem")
    store.delete("x509-CA-A.pem")
    assert store.names() == []


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "keys")
    store.replace("k", b"one")
    (tmp_path / "keys" / "k").chmod(0o644)
    with pytest.raises(StorageError, match="open to others"):
        store.load("k")
    (tmp_path / "keys" / "k").chmod(0o600)
    assert store.load("k") == b"one"


@pytest.mark.parametrize("name", ["", "../k", "a/b", ".k", "a\0b", "x" * 200])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        FileStore(tmp_path / "keys").replace(name, b"")


def test_folders_that_others_can_enter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(StorageError, match="0700"):
        make_private_folder(tmp_path / "open")
    (tmp_path / "open").chmod(0o700)
    make_private_folder(tmp_path / "open")


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path: Path) -> None:
    replace(tmp_path / "a", b"one")
    with pytest.raises(StorageError):
        replace(tmp_path / "no" / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_socket_paths() -> None:
    check_socket_path(Path("/" + "x" * 106))
    with pytest.raises(StorageError):
        check_socket_path(Path("/" + "x" * 107))


# --- loopback -------------------------------------------------------------------------------------------------------


async def ask(broker: RunningBroker, request: bytes) -> bytes:
    host, _, port = broker.broker.metrics_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_live_ready_and_metrics(broker: RunningBroker) -> None:
    await broker.attest()
    assert (await ask(broker, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert (await ask(broker, b"GET /ready HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    metrics = await ask(broker, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'firedoor_broker_attestations_total{outcome="attested",type="join_token"} 1.0' in metrics
    assert b"firedoor_broker_agents 1.0" in metrics
    broker.broker._missing.append("the test's patience")
    assert (await ask(broker, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"\r\n\r\nthe test's patience\n")
    broker.broker._missing.clear()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"POST /live HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 405"),
        (b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 404"),
        (b"\r\n\r\n", b"HTTP/1.1 400"),
    ],
)
async def test_other_requests(broker: RunningBroker, request_: bytes, answer: bytes) -> None:
    assert (await ask(broker, request_)).startswith(answer)
    assert (await ask(broker, b"GET /live HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")
