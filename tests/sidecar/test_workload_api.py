# SPDX-License-Identifier: Apache-2.0
"""The auth and admin sockets, with py-spiffe and with bare grpcio, on a real front."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
import spiffe
from spiffe.workloadapi.errors import FetchX509BundleError, FetchX509SvidError

from firedoor.sidecar.config import Config
from firedoor.sidecar.server import Issued
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.streams import Streams
from firedoor.wire import admin_grpc, admin_pb2, health_grpc, health_pb2, workload_grpc, workload_pb2
from tests.sidecar.conftest import Bench, entry, identity
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE, async_until

T = TypeVar("T")

UID = f"unix:uid:{os.geteuid()}"
HEADER = (("workload.spiffe.io", "true"),)
A = entry("/segment/a/x", UID, hint="inner", created_at=1)
B = entry("/segment/a/y", UID, created_at=2)
STRANGER = entry("/segment/a/z", "unix:uid:4000000000")


class Reporter:
    def status(self) -> admin_pb2.GetStatusResponse:
        return admin_pb2.GetStatusResponse(trust_domain="example.org")


@pytest.fixture
async def sockets(bench: Bench, settings: Config) -> AsyncIterator[Sockets]:
    sockets = Sockets(bench.core, settings)
    bench.holder.set(view=bench.holder.view)
    await sockets.open_auth(*bench.apis(), lambda: bench.holder.view.synced)
    await sockets.open_admin(Reporter(), lambda: bench.holder.view.synced, bench.delegated())
    yield sockets
    await sockets.close()


@pytest.fixture
def socket(sockets: Sockets, settings: Config) -> str:
    return f"unix:{settings.auth_socket}"


@pytest.fixture
async def stub(socket: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(socket) as channel:
        yield workload_grpc.SpiffeWorkloadAPIStub(channel)


async def in_thread(call: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(call), 60)


def client(socket: str) -> spiffe.WorkloadApiClient:
    return spiffe.WorkloadApiClient(socket.replace("unix:", "unix://"))


@pytest.mark.peer
async def test_py_spiffe_fetches_svids_and_bundles(socket: str, bench: Bench) -> None:
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    bench.entitle(A, entry("/segment/a/y", UID, federates_with=(other.td,), created_at=2), STRANGER, others=(other,))
    with client(socket) as api:
        context = await in_thread(api.fetch_x509_context)
        bundles = await in_thread(api.fetch_x509_bundles)
    assert [str(one.spiffe_id) for one in context.x509_svids] == [str(A.spiffe_id), str(B.spiffe_id)]
    names = {str(one.trust_domain.name) for one in context.x509_bundle_set.bundles}
    assert names == {"example.org", "other.org"} == {str(one.trust_domain.name) for one in bundles.bundles}


@pytest.mark.peer
async def test_py_spiffe_source_sees_a_rotation(socket: str, bench: Bench) -> None:
    bench.entitle(A)
    source = await in_thread(lambda: spiffe.X509Source(socket_path=socket.replace("unix:", "unix://")))
    try:
        updated = threading.Event()
        source.subscribe_for_updates(updated.set)
        before = source.get_x509_context().default_svid.leaf.serial_number
        fresh = bench.rotate(A)
        assert await in_thread(lambda: updated.wait(10))
        assert source.get_x509_context().default_svid.leaf.serial_number == int(fresh.svid.serial, 16) != before
    finally:
        await in_thread(source.close)


@pytest.mark.peer
async def test_py_spiffe_without_an_entry(socket: str, bench: Bench) -> None:
    bench.entitle(STRANGER)
    with client(socket) as api:
        with pytest.raises(FetchX509SvidError, match="no identity issued"):
            await in_thread(api.fetch_x509_svid)
        with pytest.raises(FetchX509BundleError, match="no identity issued"):
            await in_thread(api.fetch_x509_bundles)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Return how a call ends."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


BAD_HEADERS = {
    "none": (),
    "false": (("workload.spiffe.io", "false"),),
    "case": (("workload.spiffe.io", "True"),),
    "twice": (*HEADER, *HEADER),
    "two_values": (*HEADER, ("workload.spiffe.io", "x")),
}
CALLS = {
    "FetchX509SVID": workload_pb2.X509SVIDRequest(),
    "FetchX509Bundles": workload_pb2.X509BundlesRequest(),
    "FetchJWTSVID": workload_pb2.JWTSVIDRequest(audience=["a"]),
    "FetchJWTBundles": workload_pb2.JWTBundlesRequest(),
    "ValidateJWTSVID": workload_pb2.ValidateJWTSVIDRequest(),
    "FetchWITSVID": workload_pb2.WITSVIDRequest(),
    "FetchWITBundles": workload_pb2.WITBundlesRequest(),
}


@pytest.mark.parametrize("header", BAD_HEADERS)
@pytest.mark.parametrize("rpc", CALLS)
async def test_security_header(stub: Any, bench: Bench, header: str, rpc: str) -> None:
    bench.entitle(A)
    found = await code_of(getattr(stub, rpc)(CALLS[rpc], metadata=BAD_HEADERS[header], timeout=60))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")


async def test_security_header_twin(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60)
    assert (await stream.read()).svids[0].spiffe_id == str(A.spiffe_id)
    stream.cancel()


@pytest.mark.parametrize("rpc", [one for one in CALLS if "WIT" in one])
async def test_a_profile_that_the_server_lacks_is_unimplemented(stub: Any, bench: Bench, rpc: str) -> None:
    bench.entitle(A)
    found = await code_of(getattr(stub, rpc)(CALLS[rpc], metadata=HEADER, timeout=60))
    assert found == (grpc.StatusCode.UNIMPLEMENTED, "the server of this sidecar issues no WIT-SVIDs")


def fetch(stub: Any) -> Any:
    return stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60)


async def begun(stub: Any) -> None:
    """Return when the calls before this one have been looked at: they came first on the same connection."""
    for _ in range(3):
        code, _ = await code_of(stub.ValidateJWTSVID(workload_pb2.ValidateJWTSVIDRequest(), metadata=HEADER))
        assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_stream_is_full_state_and_ends_with_the_entitlement(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B)
    stream = fetch(stub)
    assert len((await stream.read()).svids) == 2
    bench.entitle(B)
    answer = await stream.read()
    assert [one.spiffe_id for one in answer.svids] == [str(B.spiffe_id)]
    bench.entitle()
    assert await code_of(stream) == (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")


async def test_no_message_without_a_change_for_the_caller(stub: Any, bench: Bench) -> None:
    bench.entitle(A, STRANGER)
    stream = fetch(stub)
    await stream.read()
    bench.rotate(STRANGER)
    fresh = bench.rotate(A)
    assert (await stream.read()).svids[0].x509_svid == b"".join(fresh.svid.chain)
    stream.cancel()


async def test_bundle_change_is_pushed(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    stream = stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=HEADER, timeout=60)
    first = await stream.read()
    assert list(first.bundles) == ["spiffe://example.org"]
    bench.trust.rotate()
    bench.entitle(A)
    assert (await stream.read()).bundles["spiffe://example.org"] == bench.trust.bundle.to_der()
    stream.cancel()


async def test_waits_for_an_svid_that_is_coming(stub: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.streams.PENDING_SECONDS", PATIENCE)
    bench.entitle(A, issue=False)
    stream = fetch(stub)
    reading = asyncio.ensure_future(stream.read())
    await begun(stub)
    assert not reading.done()
    bench.rotate(A)
    assert (await reading).svids[0].spiffe_id == str(A.spiffe_id)
    stream.cancel()


async def test_first_answer_waits_for_every_identity(stub: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.streams.PENDING_SECONDS", PATIENCE)
    bench.entitle(A, B, issue=False)
    bench.rotate(B)
    reading = asyncio.ensure_future(fetch(stub).read())
    await begun(stub)
    assert not reading.done()
    bench.rotate(A)
    assert [one.spiffe_id for one in (await reading).svids] == [str(A.spiffe_id), str(B.spiffe_id)]


async def test_first_answer_does_not_wait_for_ever(stub: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.streams.PENDING_SECONDS", 0.1)
    bench.entitle(A, B, issue=False)
    bench.rotate(B)
    stream = fetch(stub)
    assert [one.spiffe_id for one in (await stream.read()).svids] == [str(B.spiffe_id)]
    bench.rotate(A)
    assert [one.spiffe_id for one in (await stream.read()).svids] == [str(A.spiffe_id), str(B.spiffe_id)]
    stream.cancel()


async def test_first_answer_does_not_wait_for_what_the_server_refused(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B, issue=False)
    bench.rotate(B)
    bench.holder.refused({A.id: Issued(refusal="the server is out of ink")})
    assert [one.spiffe_id for one in (await fetch(stub).read()).svids] == [str(B.spiffe_id)]


async def test_one_user_has_so_many_streams_and_no_more(bench: Bench, settings: Config) -> None:
    bench.entitle(A)
    streams = Streams(bench.holder, 3)
    sockets = Sockets(bench.core, settings)
    await sockets.open_auth(*bench.apis(streams=streams), lambda: bench.holder.view.synced)
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        bundles = stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=HEADER, timeout=60)
        opened = [fetch(stub), fetch(stub), bundles]
        for one in opened:
            assert await one.read()
        code, details = await code_of(fetch(stub))
        assert (code, details) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "3 streams are open already; close some, or raise max_streams",
        )
        for one in opened:
            one.cancel()
        await async_until(lambda: len(streams) == 0, "the end of all streams")
        assert bench.holder.demand.chosen(bench.holder.view, ()) == {A.id: None}
        assert await fetch(stub).read()
    await sockets.close()


async def test_unavailable_before_the_first_sync(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.streams.PENDING_SECONDS", 0.1)
    code, details = await code_of(fetch(stub))
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the sidecar has not heard from its server yet")


async def test_expired_svid_is_not_handed_out(stub: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.streams.PENDING_SECONDS", 0.1)
    bench.entitle(A)
    bench.holder.set(identities=[identity(bench.trust, A, expires=bench.trust.at + 5)])
    stream = fetch(stub)
    assert (await stream.read()).svids
    bench.trust.at += 5
    bench.holder.notify()
    assert await code_of(stream) == (grpc.StatusCode.UNAVAILABLE, "the identity is not issued yet")


async def test_same_hint_keeps_the_oldest(stub: Any, bench: Bench) -> None:
    ages = [("p", 3), ("r", 2), ("q", 2)]
    hinted = [entry(f"/segment/a/{name}", UID, hint="h", created_at=when) for name, when in ages]
    bench.entitle(*hinted, entry("/segment/a/s", UID, created_at=4), entry("/segment/a/t", UID, created_at=1))
    stream = fetch(stub)
    names = [one.spiffe_id.rpartition("/")[2] for one in (await stream.read()).svids]
    assert names == ["t", "q", "s"]
    stream.cancel()


async def test_hints_are_told(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B)
    stream = fetch(stub)
    assert [one.hint for one in (await stream.read()).svids] == ["inner", ""]
    stream.cancel()


async def test_private_address_gives_nothing(bench: Bench, sockets: Sockets) -> None:
    bench.entitle(A)
    auth, admin = sockets.backends
    async with grpc.aio.insecure_channel(auth) as channel:
        code, _ = await code_of(fetch(workload_grpc.SpiffeWorkloadAPIStub(channel)))
        assert code == grpc.StatusCode.UNAUTHENTICATED
    async with grpc.aio.insecure_channel(admin) as channel:
        code, _ = await code_of(admin_grpc.SidecarAdminStub(channel).GetStatus(admin_pb2.GetStatusRequest()))
        assert code == grpc.StatusCode.UNAUTHENTICATED


async def test_identity_headers_say_nothing(stub: Any, bench: Bench) -> None:
    bench.entitle(STRANGER)
    for name in ("x-forwarded-client-cert", "x-spiffe-id", "pid", "uid", "authorization"):
        call = stub.FetchX509SVID(
            workload_pb2.X509SVIDRequest(), metadata=(*HEADER, (name, str(STRANGER.spiffe_id))), timeout=60
        )
        assert (await code_of(call))[0] == grpc.StatusCode.PERMISSION_DENIED


async def test_admin_socket(socket: str, settings: Config, bench: Bench) -> None:
    async with grpc.aio.insecure_channel(f"unix:{settings.admin_socket}") as channel:
        admin, health = admin_grpc.SidecarAdminStub(channel), health_grpc.HealthStub(channel)
        assert (await admin.GetStatus(admin_pb2.GetStatusRequest())).trust_domain == "example.org"
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 2
        bench.entitle(A)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        assert (await health.List(health_pb2.HealthListRequest())).statuses[""].status == 1
        assert (await code_of(health.Check(health_pb2.HealthCheckRequest(service="x"))))[0] == grpc.StatusCode.NOT_FOUND


async def test_each_socket_serves_its_own_alone(socket: str, settings: Config, bench: Bench) -> None:
    bench.entitle(A)
    async with (
        grpc.aio.insecure_channel(f"unix:{settings.admin_socket}") as admin,
        grpc.aio.insecure_channel(socket) as auth,
    ):
        assert (await code_of(fetch(workload_grpc.SpiffeWorkloadAPIStub(admin))))[0] == grpc.StatusCode.UNIMPLEMENTED
        call = admin_grpc.SidecarAdminStub(auth).GetStatus(admin_pb2.GetStatusRequest())
        assert (await code_of(call))[0] == grpc.StatusCode.UNIMPLEMENTED
    assert settings.admin_socket.stat().st_mode & 0o777 == 0o600
    assert settings.auth_socket.stat().st_mode & 0o777 == 0o666
