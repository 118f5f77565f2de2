# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor import mtls
from tests.mtls.front.conftest import WhoServer, am, call, refused, unix_channel
from tests.waiting import PATIENCE, async_until

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED

HOLDER = """
import os, socket, subprocess, sys
raw = socket.socket(socket.AF_UNIX)
raw.connect(sys.argv[1])
raw.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
raw.recv(9)
if sys.argv[2] == "child":
    # The child inherits the connection and outlives us.
    if os.fork():
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    raw.recv(1000)
    while raw.recv(1000):
        pass
    print("ended", flush=True)
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


async def test_server_learns_the_process(unix_front: mtls.Front, folder: Path) -> None:
    told = await am(unix_channel(unix_front.address))
    assert (told["transport"], told["spiffe_id"], told["remote"]) == ("unix", None, "")
    assert (told["pid"], told["uid"], told["gid"]) == (os.getpid(), os.getuid(), os.getgid())
    assert told["alive"] is True
    assert unix_front.address == str(folder / "front.sock")


async def test_headers_say_nothing(unix_front: mtls.Front) -> None:
    lies = [("x-spiffe-id", "spiffe://td/spire/server"), ("pid", "1"), ("uid", "0")]
    told = await am(unix_channel(unix_front.address), metadata=lies)
    assert (told["pid"], told["spiffe_id"]) == (os.getpid(), None)


async def test_another_process_is_told_apart(unix_front: mtls.Front, who: WhoServer) -> None:
    program = (
        "import grpc, sys\n"
        "with grpc.insecure_channel('unix:' + sys.argv[1]) as channel:\n"
        "    print(channel.unary_unary('/t.Who/Am')(b'', timeout=60).decode())\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, unix_front.address, stdout=subprocess.PIPE
    )
    answer, _ = await child.communicate()
    assert f'"pid": {child.pid}'.encode() in answer


async def held(unix_front: mtls.Front, how: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, unix_front.address, how, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


async def test_a_connection_ends_with_its_process(core: mtls.Core, unix_front: mtls.Front) -> None:
    """Even when a child holds the socket: it is not the process that was attested."""
    holder = await held(unix_front, "child")
    assert holder.stdout
    assert holder.stdin
    assert int(await holder.stdout.readline()) == holder.pid
    assert core.stats()["closed_process_ended"] == 0
    holder.stdin.close()
    assert await asyncio.wait_for(holder.stdout.read(), PATIENCE) == b"ended\n"
    await holder.wait()
    await async_until(lambda: core.stats()["closed_process_ended"] == 1)


async def test_alive_follows_the_process(core: mtls.Core, unix_front: mtls.Front, who: WhoServer) -> None:
    callers: list[mtls.Caller] = []
    inner = who.caller

    async def spy(context: grpc.aio.ServicerContext[bytes, bytes]) -> mtls.Caller:
        callers.append(await inner(context))
        return callers[-1]

    who.caller = spy  # type: ignore[method-assign]
    program = (
        "import grpc, sys\n"
        "channel = grpc.insecure_channel('unix:' + sys.argv[1])\n"
        "stream = channel.unary_stream('/t.Who/Hold')(b'')\n"
        "next(stream); print('open', flush=True); sys.stdin.read()\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, unix_front.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout
    assert await child.stdout.readline() == b"open\n"
    assert callers[0].alive()
    child.kill()
    await async_until(lambda: not callers[0].alive())
    await child.wait()
    await async_until(lambda: who.cancelled == 1)


async def test_stranger_at_the_private_socket(unix_front: mtls.Front, who: WhoServer) -> None:
    async with grpc.aio.insecure_channel(f"unix:{who.backend}") as channel:
        assert await refused(lambda: call(channel, "Am")) == UNAUTHENTICATED
    assert await am(unix_channel(unix_front.address))


async def test_names_of_one_front_mean_nothing_to_another(
    core: mtls.Core, unix_front: mtls.Front, folder: Path, who: WhoServer
) -> None:
    """A caller that came in over one socket is nobody on the server of another."""
    other = core.unix_front(path=str(folder / "other.sock"), backend=who.backend)
    async with unix_channel(other.address) as channel:
        assert await refused(lambda: call(channel, "Am")) == UNAUTHENTICATED
    who.front = other
    assert await am(unix_channel(other.address))


async def test_large_echo_and_half_close(unix_front: mtls.Front) -> None:
    async with unix_channel(unix_front.address) as channel:
        payload = os.urandom(10 << 20)
        assert await call(channel, "Echo", payload) == payload

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 10_000

        assert await channel.stream_unary("/t.Who/Sum")(parts(), timeout=PATIENCE) == b"1000000"


@pytest.fixture
async def raw_backend(folder: Path) -> AsyncIterator[tuple[Path, list[bytes]]]:
    """A private server that keeps what it reads until the client is done, and then answers."""
    got: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        got.append(await reader.read(-1))
        writer.write(b"answered " + str(writer.get_extra_info("peername")).encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, folder / "http1.sock"):
        yield folder / "http1.sock", got
        await asyncio.gather(*tasks)


async def half_close(path: str, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    for part in parts:
        writer.write(part)
        await writer.drain()
        # So that the parts arrive as such.
        await asyncio.sleep(0)
    writer.write_eof()
    answer = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    "parts",
    [[b"GET /v1/whoami HTTP/1.1\r\n\r\n"], [b"P", b"OST / HTTP/1.1\r\n\r\n"], [b"PRI * HTTP/1.1\r\n\r\n"], [b"P"]],
    ids=["get", "first byte alone", "almost the preface", "one byte"],
)
async def test_http1_goes_to_its_own_server(
    core: mtls.Core, folder: Path, who: WhoServer, raw_backend: tuple[Path, list[bytes]], parts: list[bytes]
) -> None:
    path, got = raw_backend
    who.front = core.unix_front(path=str(folder / "both.sock"), backend=who.backend, http1_backend=str(path))
    answer = await half_close(who.front.address, *parts)
    # The name that grpcio gets is the one that any other server gets.
    assert answer.startswith(b"answered b'\\x00firedoor-")
    assert got == [b"".join(parts)]
    assert (await am(unix_channel(who.front.address)))["pid"] == os.getpid()


async def test_another_pid_namespace(core: mtls.Core, unix_front: mtls.Front, folder: Path, who: WhoServer) -> None:
    """A caller whose process we cannot see is refused, unless the socket is declared for one pod."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a user namespace that hides a user")
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "raw = socket.socket(socket.AF_UNIX); raw.connect(sys.argv[1])\n"
        "raw.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))\n"
        "print(len(raw.recv(9)))\n"
    )
    folder.chmod(0o711)  # noqa: ASYNC240 - one file, at once
    public = folder / "public"
    public.mkdir(mode=0o755)
    private = folder / "private"
    private.mkdir(mode=0o700)

    async def answered(front: mtls.Front) -> bool:
        child = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", "-c", program, front.address, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        answer, _ = await child.communicate()
        return answer.strip() == b"9"

    backend = WhoServer(private / "back.sock")
    await backend.start()
    try:
        process = core.unix_front(path=str(public / "p.sock"), backend=backend.backend)
        assert not await answered(process)
        await async_until(lambda: core.stats()["unix_refused"] == 1)
        pod = core.unix_front(path=str(public / "pod.sock"), backend=backend.backend, workload="pod")
        assert await answered(pod)
    finally:
        await backend.stop()


def test_socket_files(core: mtls.Core, folder: Path) -> None:
    path = folder / "s.sock"
    front = core.unix_front(path=str(path), backend=str(folder / "b.sock"), mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(mtls.ListenError) as caught:
        core.unix_front(path=str(path), backend=str(folder / "b.sock"))
    assert caught.value.code == "in_use"
    front.stop()
    assert not path.exists()
    # Left behind by a process that was killed.
    with socket.socket(socket.AF_UNIX) as raw:
        raw.bind(str(path))
    assert path.exists()
    core.unix_front(path=str(path), backend=str(folder / "b.sock")).stop()


def test_stop_removes_no_other_socket(core: mtls.Core, folder: Path) -> None:
    path = folder / "s.sock"
    front = core.unix_front(path=str(path), backend=str(folder / "b.sock"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.bind(str(path))
        front.stop()
        assert path.exists()


def test_what_cannot_be_opened(core: mtls.Core, folder: Path) -> None:
    backend = str(folder / "b.sock")
    (folder / "file").touch()
    (folder / "open").mkdir(mode=0o755)
    cases = {
        "path_too_long": {"path": str(folder / ("x" * 120)), "backend": backend},
        "not_a_socket": {"path": str(folder / "file"), "backend": backend},
        "open_folder": {"path": str(folder / "f.sock"), "backend": str(folder / "open/b.sock")},
        "bind": {"path": str(folder / "missing/f.sock"), "backend": backend},
    }
    for code, arguments in cases.items():
        with pytest.raises(mtls.ListenError) as caught:
            core.unix_front(**arguments)
        assert caught.value.code == code
    core.unix_front(path=str(folder / "f.sock"), backend=backend)
