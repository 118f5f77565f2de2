# SPDX-License-Identifier: Apache-2.0
"""What SPIRE's agent tells of itself: Debug, Logger, health, reflection; and what verifiers are told."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from firedoor.certs import jose
from firedoor.certs.jwt import encode_part
from firedoor.sidecar import config, seats, updates
from firedoor.sidecar.config import Config
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.workload import VerifierRules
from firedoor.wire import (
    agent_debug_grpc,
    agent_debug_pb2,
    agent_logger_grpc,
    agent_logger_pb2,
    health_grpc,
    health_pb2,
    reflection_alpha_grpc,
    reflection_alpha_pb2,
    reflection_grpc,
    reflection_pb2,
    types,
    workload_grpc,
    workload_pb2,
)
from tests.sidecar.conftest import Bench, entry
from tests.sidecar.harness import Start, ids, write_files
from tests.sidecar.harness import entry as wire_entry
from tests.sidecar.harness import settings as settings_of
from tests.sidecar.spire_like import SpireLike
from tests.sidecar.test_workload_api import HEADER, Reporter, code_of
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until

UID = f"unix:uid:{os.geteuid()}"
A = entry("/segment/a/x", UID)
STRANGER = entry("/segment/a/z", "unix:uid:4000000000")
ALL = reflection_pb2.ServerReflectionRequest(list_services="")


@pytest.fixture
async def sockets(bench: Bench, settings: Config, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sockets]:
    monkeypatch.setattr(seats, "INSPECTING", 3)
    sockets = Sockets(bench.core, settings)
    bench.holder.set(view=bench.holder.view)
    ready = lambda: bench.holder.view.synced  # noqa: E731
    await sockets.open_auth(*bench.apis(), ready)
    await sockets.open_admin(Reporter(), ready, bench.delegated())
    yield sockets
    await sockets.close()


@pytest.fixture
async def admin(sockets: Sockets, settings: Config) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{settings.admin_socket}") as channel:
        yield channel


@pytest.fixture
async def auth(sockets: Sockets, settings: Config) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        yield channel


# --- Debug and Logger -----------------------------------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.trust.rotate_jwt()
    found.entries["x"] = wire_entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    yield found
    await found.stop()


async def test_debug_tells_who_the_agent_is_and_what_is_held(
    server: SpireLike, running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.time()
    one = running(settings_of(tmp_path))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'admin.sock'}") as channel:
        stub = agent_debug_grpc.DebugStub(channel)

        async def info() -> agent_debug_pb2.GetInfoResponse:
            return await stub.GetInfo(agent_debug_pb2.GetInfoRequest(), wait_for_ready=True, timeout=60)

        await one.until(lambda p: ids(p) == {"x"}, "an SVID")
        first = await info()
        assert [cert.id.path for cert in first.svid_chain] == ["/spire/agent/join_token/t", ""]
        assert all(cert.expires_at > began for cert in first.svid_chain)
        assert (first.cached_x509_svids_count, first.svids_count, first.cached_jwt_svids_count) == (1, 1, 0)
        assert first.last_sync_success >= int(began)
        server.entries["y"] = wire_entry("y")
        await one.until(lambda p: ids(p) == {"x", "y"}, "another SVID")
        assert (await info()).cached_x509_svids_count == 2
        await server.stop()
        # An answer may have been on its way.
        await one.until(lambda _: "asked in vain" in caplog.text, "a question without an answer")
        last, before = one.process.agent.last_sync(), caplog.text.count("asked in vain")
        await one.until(lambda _: caplog.text.count("asked in vain") > before, "another one")
        assert one.process.agent.last_sync() == last


async def test_debug_before_there_is_an_agent(server: SpireLike, running: Start, tmp_path: Path) -> None:
    (tmp_path / "address").write_text("127.0.0.1:1")
    one = running(settings_of(tmp_path))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'admin.sock'}") as channel:
        stub = agent_debug_grpc.DebugStub(channel)
        info = await stub.GetInfo(agent_debug_pb2.GetInfoRequest(), wait_for_ready=True, timeout=60)
    assert (list(info.svid_chain), info.last_sync_success) == ([], 0)
    await one.stop()


async def test_the_log_level_is_set_and_reset(admin: grpc.aio.Channel) -> None:
    logger, level = logging.getLogger("firedoor"), types.LogLevel
    stub = agent_logger_grpc.LoggerStub(admin)
    at_start = await stub.GetLogger(agent_logger_pb2.GetLoggerRequest())
    assert at_start.current_level == at_start.launch_level
    launched = logger.getEffectiveLevel()
    for name, said in ((level.DEBUG, logging.DEBUG), (level.TRACE, logging.DEBUG), (level.PANIC, logging.CRITICAL)):
        shown = await stub.SetLogLevel(agent_logger_pb2.SetLogLevelRequest(new_level=name))
        assert (shown.current_level, shown.launch_level) == (name, at_start.launch_level)
        assert logger.level == said
    for wrong in (level.UNSPECIFIED, 99):
        call = stub.SetLogLevel(agent_logger_pb2.SetLogLevelRequest(new_level=wrong))  # type: ignore[arg-type]
        assert (await code_of(call))[0] == grpc.StatusCode.INVALID_ARGUMENT
        assert logger.level == logging.CRITICAL
    assert await stub.ResetLogLevel(agent_logger_pb2.ResetLogLevelRequest()) == at_start
    assert logger.level == launched


# --- health and reflection ------------------------------------------------------------------------------------------


async def test_health_on_the_auth_socket(auth: grpc.aio.Channel, bench: Bench) -> None:
    """What `spire-agent healthcheck` asks, without any header."""
    stub, ask = health_grpc.HealthStub(auth), health_pb2.HealthCheckRequest()
    assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch = stub.Watch(ask)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    # Whoever has no identity may ask too.
    bench.entitle(STRANGER)
    assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.SERVING
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    code, _ = await code_of(stub.Check(health_pb2.HealthCheckRequest(service="x")))
    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("where", "services"),
    [
        ("auth", {"SpiffeWorkloadAPI", "firedoor.auth.v1.Auth"}),
        (
            "admin",
            {
                "firedoor.admin.v1.SidecarAdmin",
                "spire.agent.debug.v1.Debug",
                "spire.api.agent.logger.v1.Logger",
                "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
            },
        ),
    ],
)
async def test_reflection_tells_a_client_that_is_not_ours(
    sockets: Sockets, settings: Config, where: str, services: set[str]
) -> None:
    """grpcio's own reflection client, with a pool that knows none of our contracts."""
    own = {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    path = settings.auth_socket if where == "auth" else settings.admin_socket

    def reflect() -> None:
        with grpc.insecure_channel(f"unix:{path}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert set(database.get_services()) == services | own
            pool = DescriptorPool(database)
            for name in services:
                assert pool.FindServiceByName(name).methods

    await asyncio.to_thread(reflect)


async def test_every_service_is_told_of_and_every_one_told_of_is_served(
    auth: grpc.aio.Channel, admin: grpc.aio.Channel
) -> None:
    for channel in (auth, admin):
        call = reflection_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ALL]))
        (answer,) = [one async for one in call]
        for service in answer.list_services_response.service:
            found = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name)
            (file,) = [
                one async for one in reflection_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([found]))
            ]
            assert file.WhichOneof("message_response") == "file_descriptor_response", service.name


async def test_what_is_no_message_of_reflection(auth: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    method = auth.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        assert [one async for one in method(iter([b"\xff\xff\xff"]))]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


async def test_streams_of_health_and_reflection_are_counted_apart(auth: grpc.aio.Channel, bench: Bench) -> None:
    """The auth socket is everybody's: one user has so many of them, and its streams of identities beside them."""
    bench.entitle(A)
    health, v1 = health_grpc.HealthStub(auth), reflection_grpc.ServerReflectionStub(auth)
    alpha = reflection_alpha_grpc.ServerReflectionStub(auth)
    watch = health.Watch(health_pb2.HealthCheckRequest())
    one, two = v1.ServerReflectionInfo(), alpha.ServerReflectionInfo()
    await watch.read()
    await one.write(ALL)
    await two.write(reflection_alpha_pb2.ServerReflectionRequest(list_services=""))
    told = [(await call.read()).list_services_response.service for call in (one, two)]
    assert len({tuple(service.name for service in services) for services in told}) == 1
    for call in (health.Watch(health_pb2.HealthCheckRequest()), v1.ServerReflectionInfo(iter([ALL]))):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            assert [answer async for answer in call]
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    svids = workload_grpc.SpiffeWorkloadAPIStub(auth).FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
    assert (await svids.read()).svids
    svids.cancel()
    watch.cancel()

    async def again() -> bool:
        try:
            return bool([answer async for answer in v1.ServerReflectionInfo(iter([ALL]))])
        except grpc.aio.AioRpcError:
            return False

    await async_until(again, "an answer, once another call has ended")
    one.cancel()
    two.cancel()


async def test_past_the_front_is_nobody(sockets: Sockets, bench: Bench) -> None:
    bench.entitle(A)
    auth, admin = sockets.backends
    for backend, stub in (
        (auth, lambda c: health_grpc.HealthStub(c).Check(health_pb2.HealthCheckRequest())),
        (admin, lambda c: health_grpc.HealthStub(c).Check(health_pb2.HealthCheckRequest())),
        (admin, lambda c: agent_debug_grpc.DebugStub(c).GetInfo(agent_debug_pb2.GetInfoRequest())),
        (admin, lambda c: agent_logger_grpc.LoggerStub(c).GetLogger(agent_logger_pb2.GetLoggerRequest())),
        (admin, lambda c: agent_logger_grpc.LoggerStub(c).ResetLogLevel(agent_logger_pb2.ResetLogLevelRequest())),
    ):
        async with grpc.aio.insecure_channel(backend) as channel:
            assert (await code_of(stub(channel)))[0] == grpc.StatusCode.UNAUTHENTICATED
    for backend in (auth, admin):
        async with grpc.aio.insecure_channel(backend) as channel:
            stub = reflection_grpc.ServerReflectionStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                assert [one async for one in stub.ServerReflectionInfo(iter([ALL]))]
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


# --- verifiers ------------------------------------------------------------------------------------------------------


async def verifier(bench: Bench, settings: Config, rules: VerifierRules) -> AsyncIterator[Any]:
    sockets = Sockets(bench.core, settings)
    await sockets.open_auth(*bench.apis(rules=rules), lambda: True)
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        yield workload_grpc.SpiffeWorkloadAPIStub(channel)
    await sockets.close()


@pytest.mark.parametrize("allowed", [False, True])
async def test_verifiers_without_an_identity(bench: Bench, settings: Config, allowed: bool) -> None:
    """SPIRE's `allow_unauthenticated_verifiers`: bundles and validation, and nothing else."""
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    for trust in (bench.trust, other):
        trust.rotate_jwt()
    bench.entitle(replace(STRANGER, federates_with=frozenset({other.td})), others=(other,))
    token = bench.trust.token("/segment/a/z", "models")
    denied = grpc.StatusCode.PERMISSION_DENIED
    async for stub in verifier(bench, settings, VerifierRules(allow_unauthenticated_verifiers=allowed)):
        x509 = stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=HEADER, timeout=60)
        jwt = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=HEADER, timeout=60)
        request = workload_pb2.ValidateJWTSVIDRequest(svid=token, audience="models")
        if allowed:
            # Whom a stranger's entry federates with is not told.
            assert set((await x509.read()).bundles) == {"spiffe://example.org"}
            assert set((await jwt.read()).bundles) == {"spiffe://example.org"}
            assert (await stub.ValidateJWTSVID(request, metadata=HEADER)).spiffe_id == str(STRANGER.spiffe_id)
        else:
            for call in (x509, jwt, stub.ValidateJWTSVID(request, metadata=HEADER)):
                assert (await code_of(call))[0] == denied
        foreign = workload_pb2.ValidateJWTSVIDRequest(svid=other.token("/a", "models"), audience="models")
        for call in (
            stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60),
            stub.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["a"]), metadata=HEADER, timeout=60),
        ):
            assert (await code_of(call))[0] == denied
        code, _ = await code_of(stub.ValidateJWTSVID(foreign, metadata=HEADER))
        assert code == (grpc.StatusCode.INVALID_ARGUMENT if allowed else denied)


@pytest.mark.parametrize("allowed", [frozenset[str](), frozenset({"role", "groups"})])
async def test_claims_of_foreign_tokens(bench: Bench, settings: Config, allowed: frozenset[str]) -> None:
    """SPIRE's `allowed_foreign_jwt_claims`: what stands there, beside the registered ones."""
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    for trust in (bench.trust, other):
        trust.rotate_jwt()
    bench.entitle(replace(A, federates_with=frozenset({other.td})), others=(other,))
    async for stub in verifier(bench, settings, VerifierRules(allowed_foreign_jwt_claims=allowed)):
        for trust, told in ((bench.trust, {"role", "groups", "secret"}), (other, set(allowed))):
            request = workload_pb2.ValidateJWTSVIDRequest(svid=with_claims(trust), audience="models")
            answer = await stub.ValidateJWTSVID(request, metadata=HEADER, timeout=60)
            assert set(json_format.MessageToDict(answer.claims)) == {"sub", "aud", "exp"} | told


def with_claims(trust: SimulatedTrustDomain) -> str:
    issuer = trust.jwt_issuers[-1]
    own = {"role": "admin", "groups": ["a"], "secret": 1}
    claims = {"sub": f"{trust.td.id}/a", "aud": ["models"], "exp": trust.at + 60, **own}
    header = {"alg": issuer.algorithm, "kid": issuer.authority_id, "typ": "JWT"}
    signed = f"{encode_part(header)}.{encode_part(claims)}"
    return f"{signed}.{jose.encode(jose.sign(issuer.key, issuer.algorithm, signed.encode()))}"


def test_configured() -> None:
    given = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}
    found = config.load(None, {}, given)
    assert (found.allow_unauthenticated_verifiers, found.allowed_foreign_jwt_claims) == (False, frozenset())
    more = {"allow_unauthenticated_verifiers": "true", "allowed_foreign_jwt_claims": json.dumps(["role", "groups"])}
    found = config.load(None, {}, {**given, **more})
    assert (found.allow_unauthenticated_verifiers, found.allowed_foreign_jwt_claims) == (True, {"role", "groups"})
