# SPDX-License-Identifier: Apache-2.0
"""The policy's two sources: what is wrong changes nothing, what is right is in force whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import grpc
import pytest

from firedoor.broker.errors import ConfigError, DatabaseError
from firedoor.segments import PolicyErrors
from firedoor.wire import admin_pb2, control_pb2
from tests.broker.harness import POLICY, RunningBroker, running, write_whole
from tests.postgres import Server
from tests.waiting import async_until

BROKEN = POLICY.replace("port: 9000", "prot: 9000")
UNKNOWN_SEGMENT = POLICY.replace("{segment: inference}", "{segment: interference}")
WIDER = POLICY.replace("methods: [GET]", "methods: [GET, HEAD]")


async def in_force(broker: RunningBroker) -> str:
    answer = await broker.policy.GetPolicy(admin_pb2.GetPolicyRequest())
    return "".join(document.text for document in answer.documents)


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


# --- database -------------------------------------------------------------------------------------------------------


async def test_apply_replaces_the_whole_set(folder: Path) -> None:
    async with running(folder, None) as broker:
        first = await broker.apply(POLICY)
        assert [(c.object, c.name, c.kind) for c in first.changes] == [
            ("Flow", "inference-pulls-models", admin_pb2.Change.KIND_ADDED),
            ("Segment", "inference", admin_pb2.Change.KIND_ADDED),
            ("Segment", "registry", admin_pb2.Change.KIND_ADDED),
        ]
        second = await broker.apply(WIDER)
        (change,) = second.changes
        assert (change.name, change.kind) == ("inference-pulls-models", admin_pb2.Change.KIND_CHANGED)
        assert "HEAD" in change.diff
        assert second.generation.number > first.generation.number
        shown = await broker.policy.GetPolicy(admin_pb2.GetPolicyRequest())
        assert shown.source == "database"
        assert shown.generation == second.generation
        assert list(shown.table.flows[0].allow[0].http.methods) == ["GET", "HEAD"]
        assert (await broker.apply()).generation.number > second.generation.number
        assert await in_force(broker) == ""


async def test_a_dry_run_changes_nothing(folder: Path) -> None:
    async with running(folder, None) as broker:
        before = await broker.apply(POLICY)
        tried = await broker.apply(WIDER, dry_run=True)
        assert len(tried.changes) == 1
        assert tried.generation == before.generation
        assert await in_force(broker) == POLICY
        assert len((await broker.apply(WIDER)).changes) == 1


async def test_the_same_set_again_is_no_change(folder: Path) -> None:
    async with running(folder, None) as broker:
        before = await broker.apply(POLICY)
        again = await broker.apply(POLICY)
        assert (list(again.changes), again.generation) == ([], before.generation)


async def test_if_generation_guards_against_another_edit(folder: Path) -> None:
    async with running(folder, None) as broker:
        first = await broker.apply(POLICY)
        older = control_pb2.Generation(epoch=first.generation.epoch, number=first.generation.number - 1)
        error = await refused(broker.apply(WIDER, if_generation=older))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "the generation in force is" in error.details()
        assert await in_force(broker) == POLICY
        assert len((await broker.apply(WIDER, if_generation=first.generation)).changes) == 1


@pytest.mark.parametrize(
    ("text", "words"), [(BROKEN, "prot"), (UNKNOWN_SEGMENT, "interference"), ("a: [", "YAML"), ("\x00", "character")]
)
async def test_errors_change_nothing_and_are_named_with_their_line(folder: Path, text: str, words: str) -> None:
    async with running(folder, None) as broker:
        before = await broker.apply(POLICY)
        error = await refused(broker.apply(text))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "0.yaml:" in error.details()
        assert words in error.details()
        shown = await broker.policy.GetPolicy(admin_pb2.GetPolicyRequest())
        assert shown.generation == before.generation
        assert await in_force(broker) == POLICY


# --- files ----------------------------------------------------------------------------------------------------------


async def test_apply_is_refused_where_files_are_the_source(broker: RunningBroker) -> None:
    error = await refused(broker.apply(WIDER))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"files: {broker.folder}/policy" in error.details()
    assert await in_force(broker) == POLICY


async def test_an_edited_file_comes_into_force_by_itself(broker: RunningBroker) -> None:
    before = broker.broker.state.generation
    write_whole(broker.folder / "policy" / "segments.yaml", WIDER)
    await async_until(lambda: broker.broker.state.generation > before)
    assert await in_force(broker) == WIDER


async def test_an_edit_while_the_database_is_away_is_in_force_once_it_is_back(
    folder: Path, own_postgres: Server
) -> None:
    url, password_file = own_postgres.database()
    shared = {"database": url, "database_password_file": str(password_file)}
    async with running(folder, POLICY, **shared) as broker:
        await asyncio.to_thread(own_postgres.stop)
        write_whole(folder / "policy" / "segments.yaml", WIDER)
        with contextlib.suppress(DatabaseError):
            await broker.broker.policy.poll()
        await asyncio.to_thread(own_postgres.start)
        await async_until(lambda: broker.broker.policy.current.documents[0].text == WIDER)


async def test_a_file_that_is_added_or_removed_counts(broker: RunningBroker) -> None:
    more = broker.folder / "policy" / "more.yml"
    (broker.folder / "policy" / "README.md").write_text("not policy")
    (broker.folder / "policy" / ".hidden.yaml").write_text("not policy")
    segments = POLICY.split("---")
    write_whole(more, segments[0].replace("registry", "training"))
    await async_until(lambda: len(broker.broker.policy.current.policy.segments) == 3)
    more.unlink()
    await async_until(lambda: len(broker.broker.policy.current.policy.segments) == 2)


async def test_a_broken_edit_changes_nothing(broker: RunningBroker) -> None:
    file, before = broker.folder / "policy" / "segments.yaml", broker.broker.state.generation
    write_whole(file, BROKEN)
    await async_until(lambda: b"firedoor_broker_policy_ok 0.0" in broker.broker.metrics.text())
    assert broker.broker.state.generation == before
    assert await in_force(broker) == POLICY
    write_whole(file, WIDER)
    await async_until(lambda: b"firedoor_broker_policy_ok 1.0" in broker.broker.metrics.text())
    assert broker.broker.state.generation > before


async def test_a_folder_that_vanishes_changes_nothing(broker: RunningBroker) -> None:
    (broker.folder / "policy").rename(broker.folder / "gone")
    await async_until(lambda: b"firedoor_broker_policy_ok 0.0" in broker.broker.metrics.text())
    assert await in_force(broker) == POLICY
    os.rename(broker.folder / "gone", broker.folder / "policy")  # noqa: PTH104
    await async_until(lambda: b"firedoor_broker_policy_ok 1.0" in broker.broker.metrics.text())


async def test_a_broker_that_starts_over_a_broken_edit_goes_on_with_what_was_in_force(folder: Path) -> None:
    async with running(folder):
        pass
    (folder / "policy" / "segments.yaml").write_text(BROKEN)
    async with running(folder, None, segments=str(folder / "policy")) as broker:
        assert await in_force(broker) == POLICY


@pytest.mark.parametrize(("text", "error"), [(BROKEN, PolicyErrors), (None, ConfigError)])
async def test_a_first_start_over_a_broken_policy_is_refused(
    folder: Path, text: str | None, error: type[Exception]
) -> None:
    path = folder / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error):
        async with running(folder, None, segments=str(path)):
            pass
    path.write_text(POLICY)
    async with running(folder, None, segments=str(path)) as broker:
        assert await in_force(broker) == POLICY
