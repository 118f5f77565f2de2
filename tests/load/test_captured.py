# SPDX-License-Identifier: Apache-2.0
"""Captured programs under load: a sidecar goes and comes back, and a segment is taken from audit mode to enforce."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from firedoor.cli.demo.records import Record
from tests import netns
from tests.e2e.captured import IDS, V4, V6, Captured, captured, flow, missing, segment, service
from tests.e2e.namespaces import APP_UID, Namespace
from tests.load.programs import App, KeepAlive, get_once, say_once
from tests.load.test_sidecar_killed import carried_again, check
from tests.load.traffic import Load, Running, Traffic
from tests.waiting import until

MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

HTTP, OPAQUE = 9000, 9001
# By a family each: captured are both.
WEB, AGAIN, SAY = (V4["server"], HTTP), (V6["server"], HTTP), (V6["server"], OPAQUE)
ENFORCED = {"mode": "enforce", "trust": "medium"}
# So many failures, or answers, show what there is to see.
MANY = 20


def policy(**registry: str) -> str:
    return "".join(
        (
            segment("inference"),
            segment("batch"),
            segment("registry", **registry),
            flow(HTTP, '{http: {methods: [GET], paths: ["/models/**"]}}'),
            flow(OPAQUE, "{tcp: {}}"),
            service("apps", (V4["server"], V6["server"]), {HTTP: "http", OPAQUE: "tcp"}),
        )
    )


PORTS = f"""\
  ports:
    - {{port: {HTTP}, protocol: http}}
    - {{port: {OPAQUE}, protocol: tcp, plaintext: audit}}
"""


def as_app(space: Namespace) -> None:
    """Put the calling thread into a namespace, as the app's user: whose a socket is, is the user for files."""
    netns.enter(f"/run/netns/{space.name}")
    ctypes.CDLL(None).setfsuid(APP_UID)


class World:
    """Who asks: programs with an identity, and strangers without; all in this process, on threads of their own."""

    def __init__(self, net: Captured, server: Traffic, client: Traffic, stranger: Traffic) -> None:
        self.net, self.client, self.stranger = net, client, stranger
        net.begin(policy(**ENFORCED), PORTS)
        self.app = server.call(App(host=None, ports=(HTTP, OPAQUE)).start())
        self.pool = KeepAlive(WEB)

    def enrolled(self) -> list[Running]:
        """Load the apps by those who have an identity and flows."""
        found = [
            self.client.start("keep-alive", 60, self.pool.request),
            self.client.start("a connection a request", 20, partial(get_once, AGAIN)),
            self.client.start("opaque", 20, partial(say_once, SAY)),
        ]
        until(lambda: all(one.load.answered > MANY for one in found), "their answers")
        return found

    def settle(self, name: str) -> None:
        """Wait until every decision of before is in a record that can be read."""

        def written() -> bool:
            if (status := self.net.status(name)) is None:
                return False
            counted = status.counters
            return counted["decisions"] == counted["records_written"] + counted["records_lost"]

        until(written, "the last record")

    def strangers(self) -> Running:
        return self.stranger.start("strangers", 30, partial(say_once, SAY))


def stopped(loads: list[Running]) -> list[Load]:
    done = [one.stop() for one in loads]
    print(*done, sep="\n")
    return done


def failing(loads: list[Running]) -> None:
    """Wait until many more requests of each kind have failed."""
    before = [len(one.load.failures) for one in loads]
    until(
        lambda: all(len(one.load.failures) > more + MANY for one, more in zip(loads, before, strict=True)), "failures"
    )


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with captured() as net:
        spaces = (net.server.space, net.client.space, net.hub)
        with (
            Traffic(partial(as_app, spaces[0])) as server,
            Traffic(partial(as_app, spaces[1])) as client,
            Traffic(partial(as_app, spaces[2])) as stranger,
        ):
            found = World(net, server, client, stranger)
            yield found
            client.call(found.pool.close())
            net.close()
            server.call(found.app.stop())


@pytest.fixture
def world(running: World) -> Iterator[World]:
    yield running
    for one in (running.client, running.stranger):
        one.stop()


@pytest.mark.parametrize("name", ["server", "client"])
def test_while_a_sidecar_is_down_nothing_passes_and_then_it_takes_over(world: World, name: str) -> None:
    """Lost are the requests that met the gap, and no other."""
    node = world.net.nodes[name]
    loads = world.enrolled()
    killed = time.time()
    world.net.kill_node(node)
    failing(loads)
    reached = world.app.requests
    failing(loads)
    assert world.app.requests == reached, "the rules stand, and nobody answers"
    world.net.start_node(node).ready()
    began = carried_again(WEB, world.client)
    done = stopped(loads)
    check([failure for one in done for failure in one.failures], killed, began)


def test_audit_mode_takes_in_those_without_an_identity_until_enforce(world: World) -> None:
    server = world.net.server
    world.net.change(policy(mode="audit", trust="medium"))
    world.settle("server")
    server.records()
    loads, strangers = world.enrolled(), world.strangers()
    until(lambda: strangers.load.answered > MANY, "answers for strangers")
    edited = time.time()
    world.net.change(policy(**ENFORCED))
    late = world.strangers()
    for one in (strangers, late):
        failing([one])
    passed, refused = stopped([strangers, late])
    done = stopped(loads)
    assert [failure for one in done for failure in one.failures] == [], "who is enrolled loses nothing"
    # One that was under way is cut.
    assert min(failure.left + failure.after for failure in passed.failures) > edited
    assert refused.answered == 0
    requests, connections = sum(one.sent for one in done), passed.sent + refused.sent
    records = all_records(server.records, requests + connections)
    assert count(records, "allowed", "allowed") == requests
    audited, denied = count(records, "audit", "no_identity"), count(records, "denied", "no_identity")
    assert audited + denied == connections
    assert passed.answered <= audited <= passed.answered + len(passed.failures)
    assert {one["source"] for one in records} == {"", f"spiffe://example.org{IDS['client']}"}


def all_records(more: Callable[[], list[Record]], expected: int) -> list[Record]:
    """Return so many records, which come in their time, and none more."""
    found: list[Record] = []

    def complete() -> bool:
        found.extend(more())
        return len(found) >= expected

    until(complete, f"{expected} records")
    assert len(found) == expected
    return found


def count(records: list[Record], decision: str, reason: str) -> int:
    return sum((one["decision"], one["reason"]) == (decision, reason) for one in records)


def test_high_trust_refuses_plaintext(world: World) -> None:
    """Where the segment is in audit mode too, the listener is closed until the setting is taken out."""
    reached = world.app.requests
    world.net.change(policy(mode="audit", trust="high"))
    status = until(
        lambda: (one := world.net.status("server")) and not all(each.open for each in one.listeners) and one,
        "a listener that is closed",
    )
    (listener,) = (one for one in status.listeners if one.direction == "inbound")
    assert "trust: high" in listener.reason
    assert any("trust: high" in one for one in status.missing), "it is not ready"
    strangers = world.strangers()
    failing([strangers])
    assert strangers.stop().answered == 0
    assert world.app.requests == reached
    world.net.change(policy(**ENFORCED))
    carried_again(WEB, world.client)
