# SPDX-License-Identifier: Apache-2.0
"""The Delegated Identity API on a real admin socket: who may ask, about whom, and until when."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key
from cryptography.x509 import load_der_x509_certificate

from firedoor.sidecar.config import Config
from firedoor.sidecar.server import Issued
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.streams import Streams
from firedoor.wire import delegated_grpc, delegated_pb2, types
from tests.sidecar.conftest import Bench, entry
from tests.sidecar.programs import SLEEP, descriptors, end, sleeper
from tests.sidecar.test_workload_api import Reporter, code_of
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until

UID = f"unix:uid:{os.geteuid()}"
# What runs these tests.
DELEGATE = entry("/segment/a/delegate", UID, created_at=1)
# What it asks for, and by what it is known.
WORKLOAD = entry("/segment/a/w", UID, f"unix:path:{SLEEP}", hint="inner", created_at=2)
POD = entry("/segment/a/pod", "k8s:ns:prod", created_at=3)
ADMIN = entry("/segment/a/admin", "k8s:ns:prod", created_at=4, privileged=True)

PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NOT_A_DELEGATE = (PERMISSION_DENIED, "caller not configured as an authorized delegate")
EITHER = (INVALID_ARGUMENT, "must provide either selectors or non-zero PID, but not both")


class Api:
    """A client of the socket."""

    def __init__(self, channel: grpc.aio.Channel, streams: Streams) -> None:
        self.stub: Any = delegated_grpc.DelegatedIdentityStub(channel)  # type: ignore[no-untyped-call]
        self.streams = streams

    def x509(self, *selectors: str, pid: int = 0) -> Any:
        request = delegated_pb2.SubscribeToX509SVIDsRequest(selectors=map(_selector, selectors), pid=pid)
        return self.stub.SubscribeToX509SVIDs(request, timeout=60)

    def jwt(self, *selectors: str, pid: int = 0, audience: tuple[str, ...] = ("models",)) -> Any:
        request = delegated_pb2.FetchJWTSVIDsRequest(audience=audience, selectors=map(_selector, selectors), pid=pid)
        return self.stub.FetchJWTSVIDs(request, timeout=60)

    def bundles(self) -> Any:
        return self.stub.SubscribeToX509Bundles(delegated_pb2.SubscribeToX509BundlesRequest(), timeout=60)

    def keys(self) -> Any:
        return self.stub.SubscribeToJWTBundles(delegated_pb2.SubscribeToJWTBundlesRequest(), timeout=60)


def _selector(text: str) -> types.Selector:
    kind, _, value = text.partition(":")
    return types.Selector(type=kind, value=value)


def ids(response: delegated_pb2.SubscribeToX509SVIDsResponse) -> list[str]:
    return [one.x509_svid.id.path for one in response.x509_svids]


@pytest.fixture
async def api(bench: Bench, settings: Config) -> AsyncIterator[Api]:
    bench.trust.rotate_jwt()
    streams = Streams(bench.holder, 20)
    config = replace(settings, authorized_delegates=frozenset({DELEGATE.spiffe_id}))
    sockets = Sockets(bench.core, config)
    await sockets.open_admin(Reporter(), lambda: True, bench.delegated(DELEGATE, streams=streams))
    async with grpc.aio.insecure_channel(f"unix:{config.admin_socket}") as channel:
        yield Api(channel, streams)
    await sockets.close()


async def test_by_selectors(api: Api, bench: Bench) -> None:
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    bench.entitle(DELEGATE, replace(POD, federates_with=(other.td,)), WORKLOAD, others=(other,))
    stream = api.x509("k8s:ns:prod", "k8s:sa:default")
    found = await stream.read()
    assert ids(found) == ["/segment/a/pod"]
    assert list(found.federates_with) == ["spiffe://other.org"]
    (one,) = found.x509_svids
    leaf = load_der_x509_certificate(one.x509_svid.cert_chain[0])
    key = load_der_private_key(one.x509_svid_key, None)
    assert key.public_key() == leaf.public_key()
    assert (one.x509_svid.expires_at, one.x509_svid.hint) == (int(leaf.not_valid_after_utc.timestamp()), "")
    # It is followed: a rotation, another entry, the end of all.
    fresh = bench.rotate(POD)
    assert (await stream.read()).x509_svids[0].x509_svid.cert_chain == list(fresh.svid.chain)
    bench.entitle(DELEGATE)
    assert await stream.read() == delegated_pb2.SubscribeToX509SVIDsResponse()
    bench.entitle(DELEGATE, POD)
    assert ids(await stream.read()) == ["/segment/a/pod"]
    stream.cancel()


async def test_by_pid(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, WORKLOAD, POD)
    with sleeper() as process:
        found = await api.x509(pid=process.pid).read()
        # The delegate's own too, as that entry asks for the user alone.
        assert ids(found) == ["/segment/a/delegate", "/segment/a/w"]
        tokens = (await api.jwt(pid=process.pid)).svids
    assert [(one.id.path, one.hint) for one in tokens] == [("/segment/a/delegate", ""), ("/segment/a/w", "inner")]
    assert all(one.expires_at > one.issued_at > 0 for one in tokens)


async def test_jwt_by_selectors(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, POD, ADMIN)
    (one,) = (await api.jwt("k8s:ns:prod", audience=("models", "tools"))).svids
    assert (one.id.path, one.token.count(".")) == ("/segment/a/pod", 2)
    assert await code_of(api.jwt("k8s:ns:test")) == (PERMISSION_DENIED, "no identity issued")
    assert await code_of(api.jwt("k8s:ns:prod", audience=())) == (INVALID_ARGUMENT, "audience must be specified")


async def test_bundles(api: Api, bench: Bench) -> None:
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    bench.entitle(DELEGATE, others=(other,))
    certificates, keys = api.bundles(), api.keys()
    assert set((await certificates.read()).ca_certificates) == {"spiffe://example.org", "spiffe://other.org"}
    assert b"jwt-svid" in (await keys.read()).bundles["spiffe://example.org"]
    bench.trust.rotate()
    bench.entitle(DELEGATE)
    assert (await certificates.read()).ca_certificates == {"spiffe://example.org": bench.trust.bundle.to_der()}
    certificates.cancel()
    keys.cancel()


async def test_identities_that_administrate_are_withheld(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, ADMIN)
    assert ids(await api.x509("k8s:ns:prod").read()) == []
    assert await code_of(api.jwt("k8s:ns:prod")) == (PERMISSION_DENIED, "no identity issued")


async def calls(api: Api) -> list[tuple[grpc.StatusCode, str]]:
    """Return how every call ends for this caller."""
    return [await code_of(one) for one in (api.x509("k8s:ns:prod"), api.jwt("k8s:ns:prod"), api.bundles(), api.keys())]


async def test_who_is_no_delegate_gets_nothing(api: Api, bench: Bench) -> None:
    bench.entitle(POD)
    assert await calls(api) == [(PERMISSION_DENIED, "no identity issued")] * 4
    bench.entitle(entry("/segment/a/other", UID), POD)
    assert await calls(api) == [NOT_A_DELEGATE] * 4
    # An entry alone is not enough: the server issues nothing for it.
    bench.entitle(entry("/segment/a/other", UID), DELEGATE, POD, issue=False)
    bench.holder.refused({DELEGATE.id: Issued(refusal="not admitted", denied=True)})
    assert await calls(api) == [NOT_A_DELEGATE] * 4


async def test_nobody_is_a_delegate_unless_somebody_is_named(bench: Bench, settings: Config) -> None:
    bench.entitle(DELEGATE, POD)
    sockets = Sockets(bench.core, settings)
    await sockets.open_admin(Reporter(), lambda: True, bench.delegated())
    async with grpc.aio.insecure_channel(f"unix:{settings.admin_socket}") as channel:
        api = Api(channel, Streams(bench.holder))
        sentence = "no delegate is configured: authorized_delegates names none"
        assert await calls(api) == [(PERMISSION_DENIED, sentence)] * 4
    assert settings.admin_socket.stat().st_mode & 0o777 == 0o600
    await sockets.close()


async def test_a_delegate_that_is_none_any_more_is_cut_off(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, POD)
    streams = [api.x509("k8s:ns:prod"), api.bundles(), api.keys()]
    for one in streams:
        assert await one.read()
    bench.entitle(entry("/segment/a/other", UID), POD)
    assert [await code_of(one) for one in streams] == [NOT_A_DELEGATE] * 3
    assert len(api.streams) == 0


@pytest.mark.parametrize(
    ("selectors", "pid", "expected"),
    [
        ((), 0, EITHER),
        (("k8s:ns:prod",), 1, EITHER),
        ((), -1, (INVALID_ARGUMENT, "a PID is a positive number")),
        ((), -(2**31), (INVALID_ARGUMENT, "a PID is a positive number")),
        ((), 2**31 - 1, (NOT_FOUND, f"there is no process {2**31 - 1}")),
    ],
)
async def test_who_is_meant_must_be_clear(
    api: Api, bench: Bench, selectors: tuple[str, ...], pid: int, expected: tuple[grpc.StatusCode, str]
) -> None:
    bench.entitle(DELEGATE, POD)
    assert await code_of(api.x509(*selectors, pid=pid)) == expected
    assert await code_of(api.jwt(*selectors, pid=pid)) == expected


@pytest.mark.parametrize(
    "selectors",
    {
        "no type": (":x",),
        "no value": ("k8s:",),
        "a control character": ("k8s:ns:a\nb",),
        "a long value": ("k8s:" + "x" * 4097,),
        "a long type": ("k" * 256 + ":x",),
        "one bad among good": ("k8s:ns:prod", "k8s:"),
        "too many": tuple(f"k8s:label:{n}" for n in range(1001)),
    }.items(),
    ids=lambda one: one[0],
)
async def test_selectors_that_are_none(api: Api, bench: Bench, selectors: tuple[str, tuple[str, ...]]) -> None:
    bench.entitle(DELEGATE, POD)
    code, sentence = await code_of(api.x509(*selectors[1]))
    assert code == INVALID_ARGUMENT
    assert sentence.startswith(("could not parse provided selectors: ", "a workload has at most 1000 selectors"))
    assert "x" * 100 not in sentence


async def test_more_than_a_message_may_hold(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, POD)
    code, _ = await code_of(api.x509(*(f"k8s:label:{n}" + "x" * 4000 for n in range(500))))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_ends_with_the_process(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, WORKLOAD)
    with sleeper() as process:
        stream = api.x509(pid=process.pid)
        assert await stream.read()
        end(process)
        assert await code_of(stream) == (NOT_FOUND, "the process has ended")
        assert await code_of(api.x509(pid=process.pid)) == (NOT_FOUND, f"there is no process {process.pid}")
    assert len(api.streams) == 0


async def test_a_thread_is_no_process(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, WORKLOAD)
    started, done = asyncio.Event(), asyncio.Event()
    loop, numbers = asyncio.get_running_loop(), []

    def run() -> None:
        import threading

        numbers.append(threading.get_native_id())
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(done.wait(), loop).result(20)

    thread = asyncio.ensure_future(asyncio.to_thread(run))
    await started.wait()
    assert (await code_of(api.x509(pid=numbers[0])))[0] == NOT_FOUND
    done.set()
    await thread


async def test_too_many_streams(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, POD)
    streams = [api.x509("k8s:ns:prod") for _ in range(20)]
    for one in streams:
        assert await one.read()
    code, sentence = await code_of(api.x509("k8s:ns:prod"))
    assert (code, sentence[:20]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "20 streams are open ")
    for one in streams:
        one.cancel()
    await async_until(lambda: len(api.streams) == 0, "the end of all streams")


async def test_no_handle_of_a_process_stays(api: Api, bench: Bench) -> None:
    bench.entitle(DELEGATE, WORKLOAD)
    with sleeper() as process:
        # The connection is there before anything is counted.
        assert await api.jwt(pid=process.pid)
        before = descriptors()
        for _ in range(10):
            streams = [api.x509(pid=process.pid) for _ in range(20)]
            for one in streams:
                assert await one.read()
                one.cancel()
            await async_until(lambda: len(api.streams) == 0, "the end of all streams")
        assert descriptors() <= before
        streams = [api.x509(pid=process.pid) for _ in range(20)]
        for one in streams:
            await one.read()
        end(process)
        assert {await code_of(one) for one in streams} == {(NOT_FOUND, "the process has ended")}
    assert descriptors() <= before
