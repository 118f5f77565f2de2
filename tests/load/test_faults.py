# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong around four segments, none of 500 requests a second fails. Printed: a table, a line a fault.

FIREDOOR_PARTITION_SECONDS says how long a sidecar is cut off from its brokers, FIREDOOR_LOAD_RATE how many requests
leave a second.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest

from firedoor.wire import admin_pb2, workload_grpc, workload_pb2
from tests import netns
from tests.e2e import namespaces
from tests.e2e.namespaces import Namespace
from tests.load.programs import App, KeepAlive, Link, close, get_once, say_once
from tests.load.steps import Step, Steps
from tests.load.traffic import Running, Traffic
from tests.load.zones import (
    BROKERS,
    HEADER,
    IDS,
    LATE,
    PUSHES,
    SEGMENTS,
    STRAY,
    TOKEN_TTL,
    Partition,
    Zones,
    missing,
    policy,
)
from tests.postgres import Server
from tests.waiting import until

MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SECONDS = float(os.environ.get("FIREDOOR_PARTITION_SECONDS", "30"))
RATE = float(os.environ.get("FIREDOOR_LOAD_RATE", "500"))
# What a clock is set by, and how well it is told from a log: lines are some seconds old.
STEP, ABOUT = 240, 60
AUDIENCE = "spiffe://example.org/artifacts"


def enter(space: Namespace) -> None:
    netns.enter(f"/run/netns/{space.name}")


class Tokens:
    """JWT-SVIDs of the sidecar of `inference`, each shown to that of `registry`."""

    def __init__(self, zones: Zones) -> None:
        one, other = (
            workload_grpc.SpiffeWorkloadAPIStub(self._channel(zones.auth_socket(name)))
            for name in ("inference", "registry")
        )
        self._fetch, self._validate = one.FetchJWTSVID, other.ValidateJWTSVID
        self._asked = workload_pb2.JWTSVIDRequest(
            audience=[AUDIENCE], spiffe_id=f"spiffe://example.org{IDS['inference']}"
        )
        # Their headers, which name the keys, in the order in which they came.
        self.keys: dict[str, None] = {}

    def _channel(self, path: Path) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"unix:{path}")
        self._channels = [*getattr(self, "_channels", []), channel]
        return channel

    @classmethod
    async def make(cls, zones: Zones) -> Tokens:
        """On the loop of the loads."""
        return cls(zones)

    async def request(self, _: int) -> None:
        """Fetch and validate one. Raise OSError."""
        try:
            token = (await self._fetch(self._asked, metadata=HEADER)).svids[0].svid
            shown = workload_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid=token)
            await self._validate(shown, metadata=HEADER)
        except grpc.aio.AioRpcError as error:
            raise OSError(f"{error.code().name}: {error.details()}") from error
        self.keys[token.split(".")[0]] = None

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


class Under:
    """The world under load."""

    def __init__(self, zones: Zones, server: Server, traffic: Traffic, inside: Namespace) -> None:
        self.zones, self.server, self.traffic, self.inside = zones, server, traffic, inside
        self.steps = Steps()
        self.pools = {name: KeepAlive(zones.socket(name)) for name in ("models", "data", "blobs")}
        self.tokens = traffic.call(Tokens.make(zones))

    def start(self) -> list[Running]:
        """Begin the loads."""
        models, pushes = self.zones.socket("models"), self.zones.socket("pushes")
        loads = {
            "inference-registry": (0.34, self.pools["models"].request),
            "training-storage": (0.26, self.pools["data"].request),
            "registry-storage": (0.20, self.pools["blobs"].request),
            "one each": (0.09, partial(get_once, models)),
            "opaque": (0.09, partial(say_once, pushes)),
            "tokens": (0.02, self.tokens.request),
        }
        return [
            self.traffic.start(name, RATE * share, self.steps.counted(name, request))
            for name, (share, request) in loads.items()
        ]

    def close(self) -> None:
        for pool in self.pools.values():
            self.traffic.call(pool.close())
        self.traffic.call(self.tokens.close())


@pytest.fixture
def under(own_postgres: Server) -> Iterator[Under]:
    with ExitStack() as stack:
        inside, outside = stack.enter_context(namespaces.wired())
        near, far = (stack.enter_context(Traffic(partial(enter, one))) for one in (outside, inside))
        apps = {}
        for name, loop in (("storage", near), ("registry", far)):
            apps[name] = loop.call(App().start())
            stack.callback(lambda loop=loop, app=apps[name]: loop.call(app.stop()))
        folder = Path(tempfile.mkdtemp(prefix="fd-"))
        stack.callback(shutil.rmtree, folder)
        zones = Zones(folder, inside, outside)
        stack.callback(zones.close)
        zones.begin(own_postgres, apps)
        found = Under(zones, own_postgres, near, inside)
        stack.callback(found.close)
        stack.callback(near.stop)
        yield found


# --- the steps ------------------------------------------------------------------------------------------------------


def nothing(under: Under, step: Step) -> None:
    until(lambda: step.answered > 1000, "answers")
    step.proved = f"{len(under.zones.svids())} SVIDs in {len(SEGMENTS)} sidecars"


def x509_rotation(under: Under, step: Step) -> None:
    zones, before = under.zones, under.zones.signers()
    zones.rotate("--kind", "x509", "--drain", "2s")
    step.proved = replaced(zones, before)


def replaced(zones: Zones, before: set[str]) -> str:
    now, known = zones.signers(), {one for name in BROKERS for one in zones.authorities(name)}
    assert now
    assert now <= known
    assert before.isdisjoint(known)
    return f"all run on {names(now)}; revoked: {names(before)}"


def names(authorities: set[str]) -> str:
    return ", ".join(sorted(one[:8] for one in authorities))


def jwt_rotation(under: Under, step: Step) -> None:
    before = list(under.tokens.keys)[-1]
    under.zones.rotate("--kind", "jwt")
    until(lambda: list(under.tokens.keys)[-1] != before, "tokens by another key")
    step.proved = f"tokens by {len(under.tokens.keys)} keys so far, of {TOKEN_TTL} s each"


def emergency(under: Under, step: Step) -> None:
    zones, before = under.zones, under.zones.signers()
    zones.rotate("--kind", "x509", "--emergency", "--timeout", "60s")
    step.proved = replaced(zones, before)


def long_tokens(under: Under, step: Step) -> None:
    """From now on SVIDs and tokens of an hour: without a database nothing is issued."""
    under.zones.renew()
    step.proved = "every entry was changed, and its SVID is another"


def broker_killed(under: Under, step: Step) -> None:
    zones = under.zones
    old = zones.program("one")
    zones.at("two").edit_entries()
    old.kill()
    assert old.process.returncode == -signal.SIGKILL
    found = zones.renewed()
    mine = zones.authorities("two")
    assert {one.authority_id for one in found.values()} & mine
    new = zones.start_one("one")
    step.proved = f"pid {old.process.pid} ended by SIGKILL, {len(found)} SVIDs renewed, pid {new.process.pid} serves"


def database_restarted(under: Under, step: Step) -> None:
    zones, server = under.zones, under.server
    before = started(server)
    server.stop(signal.SIGQUIT)
    # Others than it who say that it does not answer may be the first, and have nobody say that it does again.
    until(lambda: "does not answer; bundles are served on" in zones.program("two").text, "that the broker says so")
    server.start()
    assert started(server) != before
    until(lambda: "the database answers again" in zones.program("two").text, "that it is back")
    found = zones.at("two").renew()
    step.proved = f"postmaster started {started(server)}, {len(found)} SVIDs renewed"


def started(server: Server) -> str:
    with server.admin() as connection:
        row = connection.execute("SELECT date_trunc('second', pg_postmaster_start_time())::text").fetchone()
    assert row
    return str(row[0])


def partition(under: Under, step: Step) -> None:
    """Meanwhile a flow is added and an identity revoked: the sidecar that is cut off knows neither until it is back."""
    zones, wire = under.zones, Partition(under.inside)
    thief = Thief(under.traffic, zones.steal())
    assert thief.answered()
    behind = zones.generation("registry")
    wire.begin()
    began = time.monotonic()
    zones.at("two").revoke(STRAY)
    zones.edit(policy(LATE))
    until(lambda: zones.generation("inference") > behind, "the generation where nothing is cut")
    assert not late(under)
    time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
    assert zones.generation("registry") == behind
    assert thief.answered(), "nobody has told"
    lasted, dropped = time.monotonic() - began, wire.end()
    assert min(dropped.values()) > 0
    mended = time.monotonic()
    thief.cut()
    took = time.monotonic() - mended
    assert not thief.answered()
    until(lambda: late(under), "the new flow")
    step.proved = (
        f"{lasted:.0f} s, {dropped['output']} packets dropped out, {dropped['input']} in; {took:.1f} s later what was "
        "revoked is cut"
    )


def late(under: Under) -> bool:
    """Say whether the flow that was added carries."""

    async def ask() -> bool:
        link = await Link.open(under.zones.socket("models"))
        try:
            await link.get("/late/x", 1)
        except ValueError:
            return False
        finally:
            await close(link.writer)
        return True

    return under.traffic.call(ask())


ISSUED, POLICY = "SVIDs issued", "in force"


def sidecar_ahead(under: Under, step: Step) -> None:
    zones, name = under.zones, "inference"
    zones.clocks[name].set(STEP)
    told = zones.told(name, ISSUED, zones.renew)
    recorded = zones.recorded(name)
    assert abs(told - STEP) < ABOUT
    assert abs(recorded - STEP) < ABOUT
    zones.clocks[name].set(0)
    back = zones.told(name, ISSUED, zones.renew)
    assert abs(back) < ABOUT
    step.proved = f"its log {told:+.0f} s, its records {recorded:+.0f} s, its log then {back:+.0f} s; renewed twice"


def sidecar_behind(under: Under, step: Step) -> None:
    zones, name = under.zones, "storage"
    zones.clocks[name].set(-STEP)
    told = zones.told(name, ISSUED, zones.renew)
    recorded = zones.recorded(name)
    assert abs(told + STEP) < ABOUT
    assert abs(recorded) < ABOUT, "it has seen a later time"
    zones.clocks[name].set(0)
    step.proved = f"its log {told:+.0f} s, its records {recorded:+.0f} s; SVIDs renewed meanwhile"


def broker_ahead(under: Under, step: Step) -> None:
    """What it signs begins only when four minutes are over, by all other clocks."""
    zones = under.zones
    name = zones.busiest()
    zones.at(name).clocks[name].set(STEP)
    told = zones.told(name, POLICY, lambda: zones.edit(policy()))
    ahead = begin_in(zones.renew())
    assert abs(told - STEP) < ABOUT
    assert max(ahead) > STEP - ABOUT
    zones.clocks[name].set(0)
    back = zones.told(name, POLICY, lambda: zones.edit(policy(LATE)))
    assert abs(back) < ABOUT
    zones.renew()
    early = sum(one > 0 for one in ahead)
    step.proved = f"its log {told:+.0f} s, then {back:+.0f} s; {early} of {len(ahead)} begin {max(ahead):.0f} s later"


def broker_behind(under: Under, step: Step) -> None:
    """The other one has ended: this one alone signs."""
    zones = under.zones
    other = zones.busiest()
    name = next(one for one in BROKERS if one != other)
    zones.at(name).clocks[name].set(-STEP)
    told = zones.told(name, POLICY, lambda: zones.edit(policy()))
    assert abs(told + STEP) < ABOUT
    assert zones.program(other).stop() == 0
    ahead = begin_in(zones.renew())
    assert max(ahead) < 0
    zones.clocks[name].set(0)
    step.proved = f"its log {told:+.0f} s; {len(ahead)} SVIDs of it alone, begun {-max(ahead):.0f} s before"


def begin_in(svids: Mapping[str, admin_pb2.SvidStatus]) -> list[float]:
    """Return in how many seconds each begins, in our time."""
    return [one.not_before - time.time() for one in svids.values()]


class Thief:
    """Somebody with the SVID and the key of another, from another host, with no sidecar. It is no part of the load."""

    def __init__(self, traffic: Traffic, context: ssl.SSLContext) -> None:
        self._traffic, self._context = traffic, context
        self._held = traffic.submit(self._hold())

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*PUSHES, ssl=self._context)

    async def _hold(self) -> None:
        reader, writer = await self._open()
        writer.write(b"stream\n")
        try:
            while await reader.read(65536):
                pass
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def _ask(self) -> bool:
        try:
            reader, writer = await self._open()
        except OSError:
            return False
        try:
            writer.write(b"stolen\n")
            return await reader.readuntil(b"\n") == b"stolen\n"
        except (OSError, EOFError):
            return False
        finally:
            writer.transport.abort()

    def answered(self) -> bool:
        """Say whether a connection is let through now; one is held besides."""
        return self._traffic.call(self._ask())

    def cut(self) -> None:
        """Wait until the connection that is held has ended."""
        self._held.result(60)


STEPS = {
    "nothing": nothing,
    "X.509 rotation": x509_rotation,
    "JWT rotation": jwt_rotation,
    "emergency rotation": emergency,
    "longer tokens": long_tokens,
    "broker kill -9": broker_killed,
    "PostgreSQL restart": database_restarted,
    "partition": partition,
    "a sidecar's clock +4 min, -4 min": sidecar_ahead,
    "a sidecar's clock -4 min": sidecar_behind,
    "a broker's clock +4 min, -4 min": broker_ahead,
    "a broker's clock -4 min": broker_behind,
}


@pytest.mark.timeout(900)
def test_no_request_fails(under: Under, request: pytest.FixtureRequest) -> None:
    loads = under.start()
    try:
        for name, run in STEPS.items():
            with under.steps.step(name) as step:
                run(under, step)
                until(lambda step=step: step.answered > 100, "answers")
        done = [one.stop() for one in loads]
    finally:
        request.node.user_properties.append(("report", under.steps.table()))
    print(*done, sep="\n")
    assert under.steps.failures == {}
    assert all(one.failures == [] and one.answered == one.sent for one in done)
