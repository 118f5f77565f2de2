# SPDX-License-Identifier: Apache-2.0
"""A broker process of its own: its one line, its exit codes, signals, and kill -9 at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, entry_grpc, entry_pb2
from tests.broker.harness import POLICY, entry, flags
from tests.waiting import PATIENCE

MAIN = """
import sys, json
from firedoor import broker
sys.exit(broker.run(broker.config.load(None, {}, json.loads(sys.argv[1]))))
"""


class Process:
    def __init__(self, folder: Path, policy: str | None = POLICY, **more: str) -> None:
        arguments = json.dumps(flags(folder, policy, **more))
        self.folder = folder
        self.popen = subprocess.Popen(
            [sys.executable, "-c", MAIN, arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    async def ready(self) -> str:
        assert self.popen.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.popen.stdout.readline), PATIENCE)
        if not line:
            raise AssertionError(self.popen.stderr.read() if self.popen.stderr else "")
        return line

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"unix:{self.folder}/admin.sock", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.popen.send_signal(number)
        _, err = await asyncio.wait_for(asyncio.to_thread(self.popen.communicate), PATIENCE)
        return self.popen.returncode, err


@contextlib.asynccontextmanager
async def process(folder: Path, policy: str | None = POLICY, **more: str) -> AsyncIterator[Process]:
    found = Process(folder, policy, **more)
    try:
        yield found
    finally:
        if found.popen.poll() is None:
            found.popen.kill()
            found.popen.communicate()
        for stream in (found.popen.stdout, found.popen.stderr):
            if stream is not None:
                stream.close()


async def test_one_line_when_ready_and_a_clean_end(folder: Path) -> None:
    async with process(folder) as one:
        line = await one.ready()
        assert line.startswith("firedoor broker ready: example.org listen=127.0.0.1:")
        assert f"admin={folder}/admin.sock" in line
        code, _ = await one.end()
        assert code == 0
    assert not (folder / "admin.sock").exists()


async def test_a_policy_that_is_wrong_is_exit_2_with_file_and_line(folder: Path) -> None:
    async with process(folder, POLICY.replace("port: 9000", "prot: 9000")) as one:
        code, err = await one.end(0)
        assert code == 2
        assert "segments.yaml:" in err
        assert "prot" in err


async def test_a_port_that_is_taken_is_exit_2(folder: Path) -> None:
    async with process(folder) as one:
        address = (await one.ready()).split("listen=")[1].split()[0]
        other = folder / "other"
        other.mkdir()
        async with process(other, listen=address) as two:
            code, err = await two.end(0)
            assert code == 2
            assert address in err


async def test_two_brokers_never_share_a_folder(folder: Path) -> None:
    async with process(folder) as one:
        await one.ready()
        async with process(folder) as two:
            code, err = await two.end(0)
            assert code == 2
            assert "another broker runs on" in err
        async with one.channel() as channel:
            await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())
        await one.end(signal.SIGKILL)
    async with process(folder) as three:
        await three.ready()


async def test_an_admin_socket_in_use_is_not_taken_over(folder: Path) -> None:
    async with process(folder) as one:
        await one.ready()
        other = folder / "other"
        other.mkdir()
        async with process(other, admin_socket=str(folder / "admin.sock")) as two:
            code, err = await two.end(0)
            assert code == 2
            assert "another process serves on" in err
        async with one.channel() as channel:
            await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())


async def test_hang_up_reads_the_policy_again(folder: Path) -> None:
    async with process(folder, log_level="info") as one:
        await one.ready()
        one.popen.send_signal(signal.SIGHUP)
        async with one.channel() as channel:
            await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())
        code, _ = await one.end()
        assert code == 0


@pytest.mark.parametrize("attempt", range(4))
async def test_kill_9_keeps_what_was_acknowledged(folder: Path, attempt: int) -> None:
    acknowledged: list[str] = []
    tokens: list[str] = []
    async with process(folder) as one:
        await one.ready()
        async with one.channel() as channel:
            before = await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())

            async def write(number: int) -> None:
                name = f"/segment/registry/x{number}"
                request = entry_pb2.BatchCreateEntryRequest(
                    entries=[entry(name, "/spire/agent/a", ["unix:user:registry"])]
                )
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await entry_grpc.EntryStub(channel).BatchCreateEntry(request)
                    acknowledged.append(answer.results[0].entry.id)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    made = await agent_grpc.AgentStub(channel).CreateJoinToken(
                        agent_pb2.CreateJoinTokenRequest(ttl=600)
                    )
                    tokens.append(made.value)

            work = [asyncio.create_task(write(i)) for i in range(200)]
            # Wherever among the writes that is: a pause would let most of them end first.
            async with asyncio.timeout(PATIENCE):
                while len(acknowledged) < 20 * (attempt + 1):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            one.popen.kill()
            await asyncio.gather(*work)
    assert len(acknowledged) > 0
    async with process(folder) as two:
        await two.ready()
        async with two.channel() as channel:
            listed = await entry_grpc.EntryStub(channel).ListEntries(entry_pb2.ListEntriesRequest())
            assert set(acknowledged) <= {e.id for e in listed.entries}
            after = await bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest())
            assert after == before
            for token in tokens[:5]:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await agent_grpc.AgentStub(channel).CreateJoinToken(
                        agent_pb2.CreateJoinTokenRequest(ttl=600, token=token)
                    )
                assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
