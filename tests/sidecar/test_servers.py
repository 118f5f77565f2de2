# SPDX-License-Identifier: Apache-2.0
"""In which order servers are tried."""

from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.sidecar import agent
from firedoor.sidecar.servers import Servers
from tests.sidecar.harness import Start, ids, settings
from tests.sidecar.spire_like import SpireLike

THREE = ("a:1", "b:1", "c:1")


def test_sidecars_spread() -> None:
    first = Counter(Servers(THREE).order[0] for _ in range(3000))
    # Each is as likely as another: below 800 is more than seven standard deviations away.
    assert set(first) == set(THREE)
    assert min(first.values()) > 800


def test_what_failed_is_tried_last() -> None:
    servers = Servers(THREE, shuffle=lambda _: None)
    orders = []
    for _ in range(3):
        orders.append(servers.order)
        assert servers.turn()
    assert orders == [("a:1", "b:1", "c:1"), ("b:1", "c:1", "a:1"), ("c:1", "a:1", "b:1")]


def test_one_server_stays_where_it_is() -> None:
    servers = Servers(("a:1", "a:1"))
    assert not servers.turn()
    assert servers.order == ("a:1",)


class Failing(SpireLike):
    """Attests and answers, and signs nothing for workloads."""

    asked = 0

    async def BatchNewX509SVID(self, request: Any, context: Any) -> Any:
        self.asked += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the database does not answer")


async def test_a_server_that_answers_and_fails_is_left(
    server: SpireLike, running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "Servers", lambda addresses: Servers(addresses, shuffle=lambda _: None))
    failing = Failing(server.trust)
    failing.entries, failing.attested = server.entries, server.attested
    (tmp_path / "failing").mkdir(mode=0o700)
    addresses = f"{await failing.start(tmp_path / 'failing')},{(tmp_path / 'address').read_text()}"
    try:
        one = running(settings(tmp_path, broker=addresses))
        await one.until(lambda p: ids(p) == {"x"}, "an SVID from the other server")
        assert failing.asked >= 2
    finally:
        await failing.stop()
