# SPDX-License-Identifier: Apache-2.0
"""What a core does to the process that it lives in."""

import asyncio
import resource
import select
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firedoor import mtls
from tests.mtls.front.conftest import CLIENT, WhoServer, am, call, limit, roots_pem, tls_channel, unix_channel
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE, async_until

PREAMBLE = """
import os, signal, socket, sys, threading, time
sys.path.insert(0, {root!r})
from firedoor import mtls
from tests.mtls.front.conftest import material
from tests.simulator import SimulatedTrustDomain
folder = {folder!r}
td = SimulatedTrustDomain("td", at=int(time.time()))
core = mtls.Core(data_threads=2)
core.publish(material(td, td.svid("/spire/server")))
front = core.tls_front(listen="127.0.0.1:0", as_id="spiffe://td/spire/server", backend=folder + "/b.sock")
unix = core.unix_front(path=folder + "/f.sock", backend=folder + "/b.sock")
host, port = front.address.rsplit(":", 1)
open_connections = [socket.create_connection((host, int(port))) for _ in range(3)]
"""


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[3])
    text = PREAMBLE.format(root=root, folder=str(folder)) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-X", "dev", "-c", text], capture_output=True, text=True, timeout=60)


ENDS = {
    "stop": "core.stop()",
    "stop twice": "core.stop(); core.stop()",
    "no stop": "pass",
    "dropped": "del core",
    "fronts outlive": "core.stop(); print(front.address); front.stop(); unix.stop()",
    "core goes first": "del core; import gc; gc.collect(); unix.stop()",
    "exception": "sys.exit(0)",
    "held by a thread": "threading.Thread(target=lambda: (time.sleep(0.05), core.stop())).start()",
    "a cycle": "x = [core]; x.append(x); del core",
    "atexit": "import atexit; atexit.register(core.stop)",
}


@pytest.mark.parametrize("end", ENDS)
def test_clean_exits(end: str, folder: Path) -> None:
    for _ in range(3):
        done = run(folder, ENDS[end])
        assert (done.returncode, done.stderr.replace(resource_warnings(done.stderr), "")) == (0, "")


def resource_warnings(text: str) -> str:
    """The program leaves its client sockets open on purpose; nothing else may be said."""
    lines = text.splitlines(keepends=True)
    return (
        text if all("ResourceWarning" in line or "open_connections" in line or line.isspace() for line in lines) else ""
    )


def test_fork_then_exit(folder: Path) -> None:
    done = run(
        folder,
        """
        child = os.fork()
        if child == 0:
            try:
                core.unix_front(path=folder + "/c.sock", backend=folder + "/b.sock")
            except mtls.ListenError as error:
                assert error.code == "stopped", error.code
            core.stop()
            assert os.path.exists(folder + "/f.sock"), "the parent's socket"
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        # The parent goes on.
        socket.create_connection((host, int(port))).close()
        core.stop()
        assert not os.path.exists(folder + "/f.sock")
        print("good")
        """,
    )
    assert done.stdout == "good\n", done.stderr


def test_fork_and_start_again(folder: Path) -> None:
    done = run(
        folder,
        """
        child = os.fork()
        if child == 0:
            core.stop()
            del core
            again = mtls.Core(data_threads=1)
            front = again.unix_front(path=folder + "/c.sock", backend=folder + "/b.sock")
            socket.socket(socket.AF_UNIX).connect(folder + "/c.sock")
            again.stop()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        print("good")
        """,
    )
    assert done.stdout == "good\n", done.stderr


def test_signals_stay_with_python(folder: Path) -> None:
    done = run(
        folder,
        """
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(threading.current_thread().name))
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.001)
        assert len(got) > 25 and set(got) == {"MainThread"}, got
        masks = []
        for task in os.listdir("/proc/self/task"):
            lines = open(f"/proc/self/task/{task}/status").read().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            if fields["Name"].strip().startswith("firedoor"):
                masks.append(int(fields["SigBlk"], 16))
        # SIGKILL and SIGSTOP cannot be blocked; nor can the two of the C library's own.
        assert len(masks) == 3 and all(mask & 0x7FFBFEFF == 0x7FFBFEFF for mask in masks), list(map(hex, masks))
        # The main thread's are as they were.
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        print("good")
        """,
    )
    assert done.stdout == "good\n", done.stderr


def test_stopped_core_refuses(core: mtls.Core, folder: Path) -> None:
    core.stop()
    with pytest.raises(mtls.ListenError) as caught:
        core.unix_front(path=str(folder / "f.sock"), backend=str(folder / "b.sock"))
    assert caught.value.code == "stopped"


def test_stop_closes_what_is_open(core: mtls.Core, folder: Path) -> None:
    front = core.unix_front(path=str(folder / "f.sock"), backend=str(folder / "b.sock"))
    core.stop()
    assert not Path(front.address).exists()


def test_event_fds_are_quiet(core: mtls.Core) -> None:
    assert select.select([core.event_fd(), core.record_fd()], [], [], 0) == ([], [], [])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_leaks(
    core: mtls.Core, front: mtls.Front, who: WhoServer, folder: Path, td: SimulatedTrustDomain
) -> None:
    client = td.svid(CLIENT)
    unix = core.unix_front(path=str(folder / "leak.sock"), backend=who.backend)

    async def use() -> None:
        who.front = front
        await asyncio.gather(*(am(tls_channel(front.address, roots_pem(td), client)) for _ in range(40)))
        who.front = unix
        await asyncio.gather(*(am(unix_channel(unix.address)) for _ in range(40)))
        host, port = front.address.rsplit(":", 1)
        for _ in range(40):
            # Gone before and within the handshake, and before the first byte on Unix.
            socket.create_connection((host, int(port))).close()
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(b"\x16\x03\x01\x00")
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(unix.address)

    await use()
    before = descriptors()
    for _ in range(5):
        await use()
    await async_until(lambda: descriptors() <= before + 5)


async def test_recovers_from_emfile(
    core: mtls.Core, front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain
) -> None:
    host, port = front.address.rsplit(":", 1)
    async with tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        assert await call(channel, "Am")
        with limit(resource.RLIMIT_NOFILE, highest_descriptor() + 3):
            waiting = []
            try:
                while True:
                    waiting.append(socket.create_connection((host, int(port)), timeout=5))
            except OSError:
                pass
            used = time.process_time()
            await async_until(lambda: core.stats()["accept_backoffs"] >= 4)
            assert time.process_time() - used < 2, "it spins"
            # What is open goes on.
            assert await call(channel, "Am")
            for each in waiting:
                each.close()
        assert (await am(tls_channel(front.address, roots_pem(td), td.svid(CLIENT))))["spiffe_id"]


def highest_descriptor() -> int:
    return max(int(each.name) for each in Path("/proc/self/fd").iterdir())


@pytest.fixture
def slow_client(front: mtls.Front) -> Iterator[socket.socket]:
    host, port = front.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00")
        yield raw


async def test_a_handshake_that_stalls_is_ended(slow_client: socket.socket, core: mtls.Core) -> None:
    assert await asyncio.to_thread(slow_client.recv, 1) == b""
    await async_until(lambda: core.stats()["handshakes_failed"] == 1)


async def test_a_paused_reader_holds_the_writer_back(
    front: mtls.Front, who: WhoServer, td: SimulatedTrustDomain
) -> None:
    """The front keeps little of what a slow client does not read."""
    async with tls_channel(front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        stream = channel.unary_stream("/t.Who/Flood")(b"")
        assert len(await stream.read()) == 1 << 16
        await async_until(lambda: settled(who))
        assert who.flooded < 64 << 20
        read = 1 << 16
        while read < 100 << 20:
            read += len(await stream.read())


_last: dict[int, tuple[int, float]] = {}


def settled(who: WhoServer) -> bool:
    """Whether the server has written nothing for a while."""
    seen, since = _last.get(id(who), (-1, 0.0))
    if seen != who.flooded:
        _last[id(who)] = (who.flooded, time.monotonic())
        return False
    return time.monotonic() - since > 0.3


def test_sigterm_is_python_s(folder: Path) -> None:
    done = run(folder, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM)")
    assert done.returncode == 5
