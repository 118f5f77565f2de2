# SPDX-License-Identifier: Apache-2.0
"""The broker is killed again and again while everybody works: at any moment, between write and reply, at its start.

FIREDOOR_KILLS says how often.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from firedoor.certs import parse_x509_svid
from firedoor.wire import types
from tests.e2e.conftest import Program
from tests.load.conftest import Estate
from tests.load.programs import KeepAlive, get_once, say_once
from tests.load.traffic import Traffic
from tests.load.writers import Admin, Ledger, Node, writes
from tests.waiting import until

KILLS = int(os.environ.get("FIREDOOR_KILLS", "100"))
WRITERS, NODES = 4, 2
# What signs is replaced every 75 seconds.
WORDS = ("--x509-svid-ttl", "24s", "--ca-ttl", "150s", "--rate-limits-attestation", "1000")
# A broker that is killed at a random moment has been up for at most so long.
LONGEST = 2.0
# A broker that is never up for long enough helps nobody: it is left alone while a certificate has less than this. On a
# busy machine two starts in a row, one of them killed, take some seconds.
LEFT = 8.0
# What a sidecar logs of a renewal that fails, and of one that comes about.
RENEWALS = {"SVIDs cannot be fetched": "SVIDs issued", "the agent SVID is not renewed": "agent SVID renewed"}


def interrupted(log: str) -> int:
    """Count renewals that failed at least once before they came about."""
    count = 0
    for fails, comes_about in RENEWALS.items():
        failed = False
        for line in log.splitlines():
            if fails in line:
                failed = True
            elif comes_about in line:
                count, failed = count + failed, False
    return count


def until_commit(database: Path, seconds: float) -> None:
    """Return as soon as another process has committed something."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        version = connection.execute("PRAGMA data_version").fetchone()
        end = time.monotonic() + seconds
        while connection.execute("PRAGMA data_version").fetchone() == version and time.monotonic() < end:
            pass


class Killer:
    """Kills the broker in one of three ways, in turn, and starts it again."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self._random = random.Random(9)
        self.broker = estate.programs[0]
        self.killed = 0

    def kill(self) -> None:
        """Kill it once."""
        until(self._nothing_ends_soon, "renewals")
        kind = self.killed % 3
        if kind == 0:
            time.sleep(self._random.uniform(0, LONGEST))
        elif kind == 1:
            time.sleep(self._random.uniform(0, LONGEST / 2))
            until_commit(self._estate.folder / "broker/broker.db", 1)
        self.broker.kill()
        self.killed += 1
        if kind == 2:
            self._at_its_start()
        self.broker = self._estate.start_broker(*WORDS)

    def _nothing_ends_soon(self) -> bool:
        ends: list[int] = []
        for name in ("server", "client"):
            ends.append(agent_expiry(self._estate.folder / name))
            status = self._estate.status(name)
            ends += [one.not_after for one in status.svids] if status else [0]
        return min(ends) - time.time() > LEFT

    def _at_its_start(self) -> None:
        """Kill the next one before it is ready."""
        starting: Program = self._estate.launch_broker(*WORDS)
        time.sleep(self._random.uniform(0, LONGEST / 2))
        starting.kill()
        self.killed += 1


def agent_expiry(folder: Path) -> int:
    """Return when the agent SVID that a sidecar has stored expires."""
    chain = json.loads((folder / "agent.json").read_text())["chain"]
    return parse_x509_svid([base64.b64decode(one) for one in chain]).not_after


def authorities(bundle: types.Bundle) -> set[bytes | str]:
    """Return everything that signs in a bundle."""
    return {one.asn1 for one in bundle.x509_authorities} | {one.key_id for one in bundle.jwt_authorities}


async def check(admin: Admin, ledger: Ledger, known: set[bytes | str]) -> set[bytes | str]:
    """Hold what the broker knows against what it has said; return the authorities."""
    present, absent = set(ledger.present), set(ledger.absent)
    listed = await admin.listed()
    # What is deleted meanwhile may be there or not.
    assert present - ledger.going <= listed
    assert not absent & listed
    now = authorities(await admin.bundle())
    assert known <= now
    return now


@contextlib.asynccontextmanager
async def everybody(estate: Estate, admin: Admin, ledger: Ledger) -> AsyncIterator[None]:
    """Have writers and nodes work."""
    folder = estate.folder / "nodes"
    folder.mkdir(mode=0o700)
    node = [Node(estate.address, folder, admin, ledger) for _ in range(NODES)]
    work = [asyncio.create_task(writes(admin, ledger, f"w{n}")) for n in range(WRITERS)]
    work += [asyncio.create_task(one.run()) for one in node]
    yield
    for task in work:
        task.cancel()
    for result in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result


async def check_tokens(estate: Estate, admin: Admin, ledger: Ledger) -> None:
    """No token made two agents, none that did is good again, and none that was made is gone."""
    assert max(ledger.tokens.values()) == 1
    spent = [token for token, count in ledger.tokens.items() if count]
    unused = await admin.token()
    node = Node(estate.address, estate.folder / "nodes", admin, ledger)
    async with node.client() as client:
        for token in random.sample(spent, min(50, len(spent))):
            assert await node.spend(client, token) is None
        assert await node.spend(client, unused) is not None


@pytest.mark.timeout(600)
async def test_a_broker_that_is_killed_loses_nothing_and_nobody_notices(
    estate: Estate, traffic: Traffic, pool: KeepAlive
) -> None:
    await asyncio.to_thread(estate.begin, *WORDS)
    ledger = Ledger()
    loads = [
        traffic.start("keep-alive", 100, pool.request),
        traffic.start("a connection a request", 20, lambda n: get_once(estate.http, n)),
        traffic.start("opaque", 20, lambda n: say_once(estate.opaque, n)),
    ]
    killer, admin = Killer(estate), Admin(estate.folder / "b.sock")
    began = time.monotonic()
    known = authorities(await admin.bundle())
    async with everybody(estate, admin, ledger):
        while killer.killed < KILLS:
            await asyncio.to_thread(killer.kill)
            known = await check(admin, ledger, known)
    lasted = time.monotonic() - began
    await check(admin, ledger, known)
    await check_tokens(estate, admin, ledger)
    done = [load.stop() for load in loads]
    listed = {path for path in await admin.listed() if re.match(r"/segment/registry/w\d", path)}
    await admin.channel.close()
    renewals = sum(interrupted((estate.folder / f"{name}.log").read_text()) for name in ("server", "client"))
    unheard = len(listed - ledger.made)
    print(*done, f"{killer.killed} kills in {lasted:.0f} s, {renewals} renewals interrupted", sep="\n")
    print(f"{len(ledger.made)} entries made and heard of, {unheard} unheard of; {len(ledger.tokens)} tokens")
    print(f"{ledger.signed} signed; {ledger.unheard} calls without an answer; {len(known)} authorities")
    assert all(load.failures == [] for load in done)
    assert renewals >= KILLS / 10
    # Killed between write and reply.
    assert unheard >= KILLS / 20
    assert ledger.signed > KILLS / 10
    said = (estate.folder / "broker.log").read_text()
    assert "is gone" not in said
    assert "Traceback" not in said
