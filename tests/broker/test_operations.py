# SPDX-License-Identifier: Apache-2.0
"""What the broker's own host may ask it: how much it logs, what it has, what it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from firedoor.wire import (
    debug_grpc,
    debug_pb2,
    health_pb2,
    logger_grpc,
    logger_pb2,
    reflection_grpc,
    reflection_pb2,
    types,
)
from tests.broker.harness import RunningBroker, code_of

Level = types.LogLevel


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The logger as it was before."""
    found = logging.getLogger("firedoor")
    before = found.level
    found.setLevel(logging.INFO)
    yield found
    found.setLevel(before)


async def test_the_log_level_is_set_and_reset(logger: logging.Logger, broker: RunningBroker) -> None:
    stub = logger_grpc.LoggerStub(broker.admin)
    shown = await stub.GetLogger(logger_pb2.GetLoggerRequest())
    assert (shown.current_level, shown.launch_level) == (Level.INFO, Level.INFO)
    for level, ours in (
        (Level.TRACE, logging.DEBUG),
        (Level.DEBUG, logging.DEBUG),
        (Level.WARN, logging.WARNING),
        (Level.ERROR, logging.ERROR),
        (Level.FATAL, logging.CRITICAL),
        (Level.PANIC, logging.CRITICAL),
    ):
        shown = await stub.SetLogLevel(logger_pb2.SetLogLevelRequest(new_level=level))
        assert (shown.current_level, shown.launch_level, logger.level) == (level, Level.INFO, ours)
    shown = await stub.ResetLogLevel(logger_pb2.ResetLogLevelRequest())
    assert (shown.current_level, logger.level) == (Level.INFO, logging.INFO)


@pytest.mark.parametrize(
    ("level", "words"), [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level")]
)
async def test_a_level_that_is_none(logger: logging.Logger, broker: RunningBroker, level: int, words: str) -> None:
    request = logger_pb2.SetLogLevelRequest(new_level=level)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
        await logger_grpc.LoggerStub(broker.admin).SetLogLevel(request)
    assert code_of(refused.value) == "INVALID_ARGUMENT"
    assert logger.level == logging.INFO


async def test_debug_counts_what_is_there(broker: RunningBroker) -> None:
    agent = await broker.attest()
    await broker.entry("/segment/registry/x", agent.path, ["unix:user:registry"])
    info = await debug_grpc.DebugStub(broker.admin).GetInfo(debug_pb2.GetInfoRequest())
    assert (info.agents_count, info.entries_count, info.federated_bundles_count) == (1, 1, 1)
    assert [cert.id.path for cert in info.svid_chain] == ["/spire/server", ""]
    assert all(cert.expires_at > broker.broker.clock.now() for cert in info.svid_chain)


async def test_health_lists_the_broker_and_its_parts(broker: RunningBroker) -> None:
    found = await broker.health.List(health_pb2.HealthListRequest())
    serving = health_pb2.HealthCheckResponse.SERVING
    statuses = {name: one.status for name, one in found.statuses.items()}
    assert statuses == {"": serving, "database": serving, "key-manager": serving}


async def test_reflection_tells_a_client_that_is_not_ours(broker: RunningBroker) -> None:
    """grpcio's own reflection client, with a pool that knows none of our contracts."""
    await asyncio.to_thread(reflect, f"unix:{broker.broker.config.admin_socket}")


def reflect(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = database.get_services()
        assert {"spire.api.server.entry.v1.Entry", "grpc.health.v1.Health"} <= set(services)
        # What only a sidecar serves is not told of.
        assert "SpiffeWorkloadAPI" not in services
        pool = DescriptorPool(database)
        entry = pool.FindServiceByName("spire.api.server.entry.v1.Entry")
        assert "SyncAuthorizedEntries" in entry.methods_by_name
        fields = pool.FindMessageTypeByName("spire.api.types.Entry").fields_by_name
        assert fields["additional_attributes"].number == 16


@pytest.mark.parametrize(
    ("question", "kind", "code"),
    [
        ({"list_services": ""}, "list_services_response", 0),
        ({"file_by_filename": "spire/api/types/entry.proto"}, "file_descriptor_response", 0),
        ({"file_containing_symbol": "spire.api.types.Entry"}, "file_descriptor_response", 0),
        ({"file_by_filename": "workload.proto"}, "error_response", 5),
        ({"file_containing_symbol": "X509SVIDRequest"}, "error_response", 5),
        ({"file_containing_symbol": "nobody.knows"}, "error_response", 5),
        ({"file_containing_symbol": "x" * 100_000}, "error_response", 5),
        ({"all_extension_numbers_of_type": "spire.api.types.Entry"}, "error_response", 5),
        ({}, "error_response", 12),
    ],
)
async def test_reflection_answers(broker: RunningBroker, question: dict[str, str], kind: str, code: int) -> None:
    stub = reflection_grpc.ServerReflectionStub(broker.admin)
    request = reflection_pb2.ServerReflectionRequest(host="h", **question)  # type: ignore[arg-type]
    (answer,) = [one async for one in stub.ServerReflectionInfo(iter([request]))]
    assert (answer.WhichOneof("message_response"), answer.error_response.error_code) == (kind, code)
    assert answer.original_request == request
