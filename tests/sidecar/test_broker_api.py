# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Broker API over real mTLS: who may ask, about whom, what it is told when it may not, and until when."""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key
from cryptography.x509 import load_der_x509_certificate

from firedoor.certs import split_der
from firedoor.mtls import Core, Material, Svid
from firedoor.sidecar.broker_api import on_this_node
from firedoor.sidecar.broker_endpoint import BrokerEndpoint
from firedoor.sidecar.config import BrokerApiConfig
from firedoor.sidecar.keys import Key, public_key_of
from firedoor.sidecar.state import StoredAgent
from firedoor.sidecar.streams import Streams
from firedoor.wire import brokerapi_grpc, brokerapi_pb2, control_pb2, details
from firedoor.wire.well_known import Any as AnyMessage
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.programs import SLEEP, another_node, descriptors, end, sleeper
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until

UID = f"unix:uid:{os.geteuid()}"
CLIENT = "/segment/a/client"
AGENT = "/spire/agent/join_token/t"
WORKLOAD = entry("/segment/a/w", f"unix:path:{SLEEP}", hint="inner", created_at=1)
OTHER = entry("/segment/a/v", f"unix:path:{SLEEP}", created_at=2)
ADMIN = entry("/segment/a/admin", f"unix:path:{SLEEP}", created_at=3, privileged=True)
HEADER = (("broker.spiffe.io", "true"),)

INVALID = ("WORKLOAD_REFERENCE_INVALID", "spiffe.io")
NOT_FOUND = ("WORKLOAD_NOT_FOUND", "spiffe.io")
NOT_ENTITLED = ("WORKLOAD_NOT_ENTITLED", "spiffe.io")
Ending = tuple[grpc.StatusCode, str, tuple[str, str] | None]


def agent(trust: SimulatedTrustDomain, path: str = AGENT) -> StoredAgent:
    made = trust.svid(path)
    return StoredAgent(made.id, tuple(made.chain), Key(made.key_der, public_key_of(made.chain[0])), reattestable=False)


class Client:
    """A client of the API with an SVID of its own, or without one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = brokerapi_grpc.APIStub(channel)  # type: ignore[no-untyped-call]

    def call(self, rpc: str, reference: Any, metadata: Any = HEADER, **fields: Any) -> Any:
        kind = {"FetchJWTSVID": "FetchJWTSVIDRequest"}.get(rpc, f"{rpc}Request")
        request = getattr(brokerapi_pb2, kind)(reference=reference, **fields)
        return getattr(self.stub, rpc)(request, metadata=metadata, timeout=60)

    def x509(self, pid: int, **more: Any) -> Any:
        return self.call("SubscribeToX509SVID", by_pid(pid), **more)

    def jwt(self, pid: int, **fields: Any) -> Any:
        return self.call("FetchJWTSVID", by_pid(pid), **{"audience": ["models"], **fields})


def refer(message: Any) -> brokerapi_pb2.WorkloadReference:
    packed = AnyMessage()
    packed.Pack(message)
    return brokerapi_pb2.WorkloadReference(reference=packed)


def by_pid(pid: int) -> brokerapi_pb2.WorkloadReference:
    return refer(brokerapi_pb2.WorkloadPIDReference(pid=pid))


async def ending(call: Any) -> Ending:
    """Return how a call ends, with what it says to programs."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        trailing = [(key, value) for key, value in error.trailing_metadata() or ()]
        return error.code(), error.details() or "", details.error_info(trailing)
    return grpc.StatusCode.OK, "", None


class Service:
    """The endpoint, and clients of it."""

    def __init__(self, bench: Bench, endpoint: BrokerEndpoint, streams: Streams, folder: Path) -> None:
        self.bench, self.endpoint, self.streams, self._folder = bench, endpoint, streams, folder

    @asynccontextmanager
    async def client(
        self, path: str | None = CLIENT, *, trust: SimulatedTrustDomain | None = None, expect: str = AGENT
    ) -> AsyncIterator[Client]:
        """Connect with an SVID of this or another trust domain, or with none."""
        trust = trust or self.bench.trust
        core, place = Core(data_threads=1), self._folder / f"{time.monotonic_ns()}.sock"
        made = trust.svid(path or CLIENT)
        # It trusts the sidecar, whoever it is itself.
        bundles = {trust.td.name: [one.der for one in trust.roots]}
        bundles["example.org"] = [*bundles.get("example.org", ()), *(one.der for one in self.bench.trust.roots)]
        svid = Svid(id=str(made.id), chain=made.chain, key=made.key_der, federates_with=["example.org"])
        try:
            core.publish(Material(trust_domain=trust.td.name, bundles=bundles, svids=[svid]))
            core.connector(
                path=str(place),
                addresses=[self.endpoint.address],
                expect=f"{self.bench.trust.td.id}{expect}",
                as_id=str(made.id) if path else None,
            )
            options = (("grpc.default_authority", "localhost"), ("grpc.enable_retries", 0))
            async with grpc.aio.insecure_channel(f"unix:{place}", options=options) as channel:
                yield Client(channel)
        finally:
            core.stop()


@pytest.fixture
async def service(bench: Bench, tmp_path: Path) -> AsyncIterator[Service]:
    bench.trust.rotate_jwt()
    bench.entitle(WORKLOAD, OTHER, ADMIN)
    bench.holder.set(agent=agent(bench.trust))
    streams = Streams(bench.holder, 20)
    config = BrokerApiConfig("127.0.0.1:0", frozenset({TD.with_path(CLIENT)}))
    endpoint = BrokerEndpoint(bench.core, bench.holder, config, bench.broker_api(config, streams))
    await endpoint.start()
    endpoint.adjust()
    (tmp_path / "c").mkdir(mode=0o700)
    yield Service(bench, endpoint, streams, tmp_path / "c")
    await endpoint.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    async with service.client() as found:
        yield found


async def test_x509_svids(service: Service, client: Client, bench: Bench) -> None:
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    bench.entitle(replace(WORKLOAD, federates_with=(other.td,)), OTHER, ADMIN, others=(other,))
    with sleeper() as process:
        stream = client.x509(process.pid)
        found = await stream.read()
        # What administrates a server is told to nobody but its own workload.
        assert [(one.spiffe_id, one.hint) for one in found.svids] == [
            ("spiffe://example.org/segment/a/w", "inner"),
            ("spiffe://example.org/segment/a/v", ""),
        ]
        leaf = load_der_x509_certificate(split_der(found.svids[0].x509_svid)[0])
        assert load_der_private_key(found.svids[0].x509_svid_key, None).public_key() == leaf.public_key()
        assert found.svids[0].bundle == bench.trust.bundle.to_der()
        assert dict(found.federated_bundles) == {"spiffe://other.org": other.bundle.to_der()}
        fresh = bench.rotate(OTHER)
        assert (await stream.read()).svids[1].x509_svid == b"".join(fresh.svid.chain)
        stream.cancel()


async def test_bundles_are_those_of_the_workload(client: Client, bench: Bench) -> None:
    other, third = (SimulatedTrustDomain(name, at=bench.trust.at) for name in ("other.org", "third.org"))
    bench.entitle(replace(WORKLOAD, federates_with=(other.td,)), others=(other, third))
    with sleeper() as process:
        for rpc in ("SubscribeToX509Bundles", "SubscribeToJWTBundles"):
            stream = client.call(rpc, by_pid(process.pid))
            assert set((await stream.read()).bundles) == {"spiffe://example.org", "spiffe://other.org"}
            stream.cancel()


async def test_jwt_svids(client: Client, bench: Bench) -> None:
    with sleeper() as process:
        every = (await client.jwt(process.pid)).svids
        assert [(one.spiffe_id[-2:], one.hint) for one in every] == [("/w", "inner"), ("/v", "")]
        (one,) = (await client.jwt(process.pid, spiffe_id=str(OTHER.spiffe_id))).svids
        assert (one.spiffe_id, one.svid.count(".")) == (str(OTHER.spiffe_id), 2)
        denied = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued", NOT_ENTITLED)
        assert await ending(client.jwt(process.pid, spiffe_id=str(ADMIN.spiffe_id))) == denied
        assert await ending(client.jwt(process.pid, spiffe_id="spiffe://example.org/else")) == denied
        missing = (grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified", None)
        assert await ending(client.jwt(process.pid, audience=[])) == missing


RPCS = ("SubscribeToX509SVID", "SubscribeToX509Bundles", "FetchJWTSVID", "SubscribeToJWTBundles")
BAD_HEADERS = {
    "none": (),
    "false": (("broker.spiffe.io", "false"),),
    "case": (("broker.spiffe.io", "True"),),
    "twice": (*HEADER, *HEADER),
    "that of the Workload API": (("workload.spiffe.io", "true"),),
}


def fields_of(rpc: str) -> dict[str, Any]:
    return {"audience": ["models"]} if rpc == "FetchJWTSVID" else {}


@pytest.mark.parametrize("header", BAD_HEADERS)
@pytest.mark.parametrize("rpc", RPCS)
async def test_security_header(client: Client, rpc: str, header: str) -> None:
    call = client.call(rpc, by_pid(os.getpid()), BAD_HEADERS[header], **fields_of(rpc))
    assert await ending(call) == (grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request", None)


BROKEN = AnyMessage(type_url="type.googleapis.com/spiffe.broker.WorkloadPIDReference", value=b"\x08")
FOREIGN = AnyMessage(type_url="type.example.org/vendor.Reference", value=b"x")
KUBERNETES = brokerapi_pb2.KubernetesObjectReference(uid="0")
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
REFERENCES: dict[str, tuple[Any, Ending]] = {
    "none": (None, (INVALID_ARGUMENT, "workload reference must be provided", INVALID)),
    "empty": (
        brokerapi_pb2.WorkloadReference(),
        (INVALID_ARGUMENT, "workload reference must be provided", INVALID),
    ),
    "broken": (
        brokerapi_pb2.WorkloadReference(reference=BROKEN),
        (INVALID_ARGUMENT, "the workload reference cannot be read", INVALID),
    ),
    "of another type": (
        brokerapi_pb2.WorkloadReference(reference=FOREIGN),
        (INVALID_ARGUMENT, "the workload reference is of a type that is not known here", None),
    ),
    "a message of ours": (
        refer(brokerapi_pb2.X509SVID()),
        (INVALID_ARGUMENT, "the workload reference is of a type that is not known here", None),
    ),
    "kubernetes": (
        refer(KUBERNETES),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "this sidecar knows no Kubernetes objects: refer to the workload by its PID",
            None,
        ),
    ),
    "pid 0": (by_pid(0), (INVALID_ARGUMENT, "a PID is a positive number", INVALID)),
    "pid -1": (by_pid(-1), (INVALID_ARGUMENT, "a PID is a positive number", INVALID)),
    "no such pid": (
        by_pid(2**31 - 1),
        (grpc.StatusCode.NOT_FOUND, f"there is no process {2**31 - 1}", NOT_FOUND),
    ),
    "not entitled": (by_pid(1), (grpc.StatusCode.PERMISSION_DENIED, "no identity issued", NOT_ENTITLED)),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("rpc", RPCS)
async def test_references(client: Client, rpc: str, reference: str) -> None:
    given, expected = REFERENCES[reference]
    assert await ending(client.call(rpc, given, **fields_of(rpc))) == expected


async def test_a_process_that_has_ended(client: Client) -> None:
    with sleeper() as process:
        end(process)
        expected = (grpc.StatusCode.NOT_FOUND, f"there is no process {process.pid}", NOT_FOUND)
        assert await ending(client.x509(process.pid)) == expected
        assert await ending(client.jwt(process.pid)) == expected


async def test_streams_end_with_the_process(service: Service, client: Client) -> None:
    with sleeper() as process:
        assert await client.jwt(process.pid)
        before = descriptors()
        streams = [client.call(rpc, by_pid(process.pid)) for rpc in RPCS if rpc != "FetchJWTSVID"]
        for one in streams:
            assert await one.read()
        end(process)
        expected = (grpc.StatusCode.NOT_FOUND, "the process has ended", NOT_FOUND)
        assert [await ending(one) for one in streams] == [expected] * 3
    assert len(service.streams) == 0
    assert descriptors() <= before


async def test_streams_end_with_the_entitlement(client: Client, bench: Bench) -> None:
    with sleeper() as process:
        stream = client.x509(process.pid)
        assert await stream.read()
        bench.entitle(ADMIN)
        assert await ending(stream) == (grpc.StatusCode.PERMISSION_DENIED, "no identity issued", NOT_ENTITLED)


@pytest.mark.parametrize("rpc", RPCS)
async def test_another_identity_is_refused(service: Service, rpc: str) -> None:
    with sleeper() as process:
        async with service.client("/segment/a/w") as stranger:
            call = stranger.call(rpc, by_pid(process.pid), **fields_of(rpc))
            sentence = "spiffe://example.org/segment/a/w is not among broker_api.clients"
            assert await ending(call) == (grpc.StatusCode.PERMISSION_DENIED, sentence, None)


BAD_CLIENTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "no certificate": lambda _: {"path": None},
    "a self-made authority": lambda bench: {"trust": SimulatedTrustDomain("example.org", at=bench.trust.at)},
    "another trust domain": lambda bench: {"trust": SimulatedTrustDomain("other.org", at=bench.trust.at)},
}


@pytest.mark.parametrize("client_with", BAD_CLIENTS)
async def test_a_connection_without_a_good_svid_is_none(service: Service, bench: Bench, client_with: str) -> None:
    with sleeper() as process:
        async with service.client(**BAD_CLIENTS[client_with](bench)) as stranger:
            code, _, info = await ending(stranger.x509(process.pid))
    assert (code, info) == (grpc.StatusCode.UNAVAILABLE, None)


async def test_a_client_that_is_revoked_is_cut_off(service: Service, client: Client, bench: Bench) -> None:
    with sleeper() as process:
        stream = client.x509(process.pid)
        assert await stream.read()
        issued_before = control_pb2.IssuedBefore(pattern=f"spiffe://example.org{CLIENT}", time=bench.trust.at + 60)
        revoked = control_pb2.Revocation(issued_before=issued_before, reason="banned")
        bench.holder.set(view=replace(bench.holder.view, revocations=(revoked,)))
        assert (await ending(stream))[0] == grpc.StatusCode.UNAVAILABLE
        assert (await ending(client.x509(process.pid)))[0] == grpc.StatusCode.UNAVAILABLE


async def test_past_the_front_is_nobody(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.endpoint.backend) as channel:
        code, _, info = await ending(Client(channel).x509(os.getpid()))
    assert (code, info) == (grpc.StatusCode.UNAUTHENTICATED, None)


async def test_too_many_streams(service: Service, client: Client) -> None:
    with sleeper() as process:
        assert await client.jwt(process.pid)
        before = descriptors()
        streams = [client.x509(process.pid) for _ in range(20)]
        for one in streams:
            assert await one.read()
        code, sentence, _ = await ending(client.x509(process.pid))
        assert (code, sentence[:20]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "20 streams are open ")
        for one in streams:
            one.cancel()
        await async_until(lambda: len(service.streams) == 0, "the end of all streams")
        assert descriptors() <= before


async def test_a_request_that_is_no_message(service: Service, client: Client) -> None:
    call = client.channel.unary_stream("/spiffe.broker.API/SubscribeToX509SVID")
    sentence = "the request is no message of this method"
    assert await ending(call(b"\x0a\x05", metadata=HEADER, timeout=60)) == (INVALID_ARGUMENT, sentence, None)


async def test_a_request_that_is_too_large(client: Client) -> None:
    big = brokerapi_pb2.WorkloadReference(reference=AnyMessage(type_url="x" * 70_000))
    assert (await ending(client.call("SubscribeToX509SVID", big)))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_it_is_served_as_the_agent_that_there_is(service: Service, bench: Bench) -> None:
    bench.holder.set(agent=agent(bench.trust, "/spire/agent/x509pop/other"))
    await async_until(lambda: _reopened(service.endpoint), "the port of before")
    with sleeper() as process:
        async with service.client(expect="/spire/agent/x509pop/other") as client:
            assert await client.x509(process.pid).read()
        async with service.client() as client:
            assert (await ending(client.x509(process.pid)))[0] == grpc.StatusCode.UNAVAILABLE


def _reopened(endpoint: BrokerEndpoint) -> bool:
    endpoint.adjust()
    return not endpoint.missing()


async def test_why_it_is_not_open_is_said(bench: Bench) -> None:
    bench.entitle(WORKLOAD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = BrokerApiConfig(address, frozenset({TD.with_path(CLIENT)}))
        endpoint = BrokerEndpoint(bench.core, bench.holder, config, bench.broker_api(config))
        await endpoint.start()
        assert endpoint.missing() == ["broker_api is not open: the sidecar has not attested yet"]
        bench.holder.set(agent=agent(bench.trust))
        endpoint.adjust()
        (sentence,) = endpoint.missing()
        assert address in sentence
        await endpoint.close()


FROM_ELSEWHERE = """
import base64, json, sys
import grpc
from firedoor.mtls import Core, Material, Svid
from firedoor.wire import brokerapi_grpc, brokerapi_pb2, well_known

given = json.load(sys.stdin)
chain, roots = ([base64.b64decode(one) for one in given[name]] for name in ("chain", "roots"))
core = Core(data_threads=1)
svid = Svid(id=given["id"], chain=chain, key=base64.b64decode(given["key"]))
core.publish(Material(trust_domain="example.org", bundles={"example.org": roots}, svids=[svid]))
core.connector(path=given["path"], addresses=[given["address"]], expect=given["expect"], as_id=given["id"])
packed = well_known.Any()
packed.Pack(brokerapi_pb2.WorkloadPIDReference(pid=given["pid"]))
request = brokerapi_pb2.SubscribeToX509SVIDRequest(reference=brokerapi_pb2.WorkloadReference(reference=packed))
with grpc.insecure_channel("unix:" + given["path"], options=[("grpc.default_authority", "localhost")]) as channel:
    call = brokerapi_grpc.APIStub(channel).SubscribeToX509SVID
    try:
        print("OK", len(next(call(request, metadata=[("broker.spiffe.io", "true")], timeout=60)).svids))
    except grpc.RpcError as error:
        print(error.code().name, error.details())
core.stop()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another node")
async def test_a_pid_means_nothing_on_another_node(bench: Bench, tmp_path: Path) -> None:
    bench.entitle(WORKLOAD)
    bench.holder.set(agent=agent(bench.trust))
    with sleeper() as process, another_node() as (here, node):
        config = BrokerApiConfig(f"{here}:0", frozenset({TD.with_path(CLIENT)}))
        endpoint = BrokerEndpoint(bench.core, bench.holder, config, bench.broker_api(config))
        await endpoint.start()
        endpoint.adjust()
        made = bench.trust.svid(CLIENT)
        given = {
            "id": str(made.id),
            "chain": [base64.b64encode(one).decode() for one in made.chain],
            "roots": [base64.b64encode(one.der).decode() for one in bench.trust.roots],
            "key": base64.b64encode(made.key_der).decode(),
            "expect": f"spiffe://example.org{AGENT}",
            "address": endpoint.address,
            "path": str(tmp_path / "x.sock"),
            "pid": process.pid,
        }

        async def ask(*prefix: str) -> str:
            command = [*prefix, sys.executable, "-c", FROM_ELSEWHERE]
            text = json.dumps(given)
            run = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, text=True)
            return run.stdout.strip() or run.stderr

        try:
            # By another address than loopback, and still this node.
            assert await ask() == "OK 1"
            sentence = "a PID means a process of this node, and the caller is on another one"
            assert await ask("nsenter", "-t", str(node), "-n") == f"INVALID_ARGUMENT {sentence}"
        finally:
            await endpoint.close()


@pytest.mark.parametrize(
    ("remote", "here"),
    {
        "127.0.0.1:5": True,
        "127.9.9.9:5": True,
        "[::1]:5": True,
        "[::ffff:127.0.0.1]:5": True,
        "192.0.2.7:5": False,
        "[2001:db8::7]:5": False,
        "[::ffff:192.0.2.7]:5": False,
        "0.0.0.0:5": False,
        "example.org:5": False,
        "": False,
    }.items(),
)
def test_which_peers_are_on_this_node(remote: str, *, here: bool) -> None:
    assert on_this_node(remote) is here
