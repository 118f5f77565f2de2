# SPDX-License-Identifier: Apache-2.0
"""Leaves and authorities are replaced under load, and nobody notices: not one request fails, not one byte is lost.

FIREDOOR_LOAD_SECONDS says how long the load lasts at least; it goes on until the authority has changed twice.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest

from firedoor.certs import X509Svid, parse_x509_svid, split_der
from firedoor.wire import workload_grpc, workload_pb2
from tests.e2e.test_datapath import records
from tests.load.conftest import IDS, Estate
from tests.load.programs import Body, KeepAlive, Stream, get_once, say_once
from tests.load.traffic import Traffic
from tests.waiting import PATIENCE, until

SECONDS = float(os.environ.get("FIREDOOR_LOAD_SECONDS", "60"))
# Requests a second, by kind.
KEPT, FRESH, OPAQUE = 300, 30, 30
LEAVES, AUTHORITIES = 6, 2
# A minute is the shortest life of an authority; the next one takes over 50 s after its start, then every 30 s.
TTLS = ("--ca-ttl", "60s", "--x509-svid-ttl", "20s", "--agent-ttl", "30s")
# From the end of a certificate to that of its streams, seconds, as a program on a busy machine hears of it.
ALLOWANCE = 5.0


class Leaves:
    """Every SVID that a sidecar hands to a program that watches its socket."""

    def __init__(self, estate: Estate, name: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{estate.auth_socket(name)}")
        stub = workload_grpc.SpiffeWorkloadAPIStub(self._channel)
        self._stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),))
        self._seen: dict[str, X509Svid] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with suppress(grpc.RpcError):
            for answer in self._stream:
                for one in answer.svids:
                    chain = tuple(split_der(one.x509_svid))
                    self._seen[hashlib.sha256(chain[0]).hexdigest()] = parse_x509_svid(chain)

    def of(self, segment: str) -> dict[str, X509Svid]:
        """Return those of one identity by the hash of the leaf."""
        return {key: one for key, one in list(self._seen.items()) if one.id.path == IDS[segment]}

    def authorities(self, segment: str) -> set[str]:
        return {one.authority_id for one in self.of(segment).values()}

    def close(self) -> None:
        self._stream.cancel()
        self._channel.close()
        self._thread.join(PATIENCE)


class Short:
    """Streams one after the other that must end with their certificates: when each ended, and when it should have."""

    def __init__(self, estate: Estate, traffic: Traffic, make: Callable[[], Stream | Body]) -> None:
        self._estate, self._traffic, self._make = estate, traffic, make
        self.ends: list[tuple[float, int]] = []
        self.refused: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _deadline(self) -> int:
        return min(self._estate.expiry("client", "batch"), self._estate.expiry("server", "store"))

    def _run(self) -> None:
        while not self._stopping.is_set():
            before, stream = self._deadline(), self._make()
            done = self._traffic.submit(stream.run())
            until(lambda stream=stream, done=done: stream.received or done.done(), "the first bytes")
            if self._deadline() != before:
                self._give_up(stream)
            try:
                done.result(60)
                continue
            except ValueError as error:
                # Told by the records.
                self.refused.append(f"{error}, {stream.over - before:.3f} s after {before}")
                continue
            except (OSError, EOFError):
                pass
            self.ends.append((stream.over, before))

    def _give_up(self, stream: Stream | Body) -> None:
        """A certificate was replaced just now, and nobody knows whether the stream began with the one or the other."""
        self._traffic.call(stream.end())
        present = self._estate.expiry("client", "batch")
        # An HTTP listener takes its connection again, until its own certificate is another.
        until(lambda: self._estate.expiry("client", "batch") != present, "another certificate")

    def stop(self) -> None:
        """Open no more, and hold those that ended against their deadlines."""
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert len(self.ends) >= 3
        late = [at - deadline for at, deadline in self.ends]
        print("after their deadlines:", *(f"{one * 1000:.0f} ms" for one in late))
        assert all(0 <= one <= ALLOWANCE for one in late), self.ends


@pytest.fixture
def leaves(estate: Estate) -> Iterator[dict[str, Leaves]]:
    estate.begin(*TTLS)
    found = {name: Leaves(estate, name) for name in ("client", "server")}
    yield found
    for one in found.values():
        one.close()


@pytest.mark.timeout(300)
def test_rotation_loses_nothing(estate: Estate, leaves: dict[str, Leaves], traffic: Traffic, pool: KeepAlive) -> None:
    long = [Stream(estate.opaque), Body(estate.http)]
    streaming = [traffic.submit(one.run()) for one in long]
    loads = [
        traffic.start("keep-alive", KEPT, pool.request),
        traffic.start("a connection a request", FRESH, lambda n: get_once(estate.http, n)),
        traffic.start("opaque", OPAQUE, lambda n: say_once(estate.opaque, n)),
    ]
    short = [
        Short(estate, traffic, lambda: Stream(estate.socket("short"))),
        Short(estate, traffic, lambda: Body(estate.socket("brief"))),
    ]
    end = time.monotonic() + SECONDS
    until(lambda: fewest_authorities(estate, leaves) > AUTHORITIES, "two more authorities", seconds=SECONDS + 120)
    until(lambda: time.monotonic() > end, "the load's time", seconds=SECONDS + 1)
    done = [load.stop() for load in loads]
    print(*done, sep="\n")
    for one in short:
        one.stop()
    assert ([one.refused for one in short], denials(estate)) == ([[], []], []), complaints(estate)
    # The long ones have outlived every certificate of their beginning, and lost nothing.
    assert not any(one.done() for one in streaming)
    for one, ending in zip(long, streaming, strict=True):
        traffic.call(one.end())
        ending.result(PATIENCE)
        assert one.received > 0
    for load in done:
        assert load.failures == []
        # A busy machine sends fewer than it should; half of them is a load all the same.
        assert load.answered == load.sent >= load.rate * SECONDS / 2
    assert len({one.serial for one in used(estate, leaves)}) > LEAVES
    assert len(leaves["server"].of("registry")) > LEAVES


def denials(estate: Estate) -> list[dict[str, object]]:
    """Return every record of a denial, of both sidecars."""
    return [one for name in ("server", "client") for one in records(estate, name) if one["decision"] != "allowed"]


def complaints(estate: Estate) -> list[str]:
    """Return the warnings and errors of both sidecars."""
    lines = [line for name in ("server", "client") for line in (estate.folder / f"{name}.log").read_text().splitlines()]
    return [line for line in lines if " info " not in line]


def used(estate: Estate, leaves: dict[str, Leaves]) -> list[X509Svid]:
    """Return the client's leaves that the app was told of."""
    known = leaves["client"].of("inference")
    return [known[key] for key in list(estate.app.peers) if key in known]


def fewest_authorities(estate: Estate, leaves: dict[str, Leaves]) -> int:
    """Return how many authorities have signed, at the end that has seen fewer."""
    theirs = {one.authority_id for one in used(estate, leaves)}
    return min(len(theirs), len(leaves["server"].authorities("registry")))
