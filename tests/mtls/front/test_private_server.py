# SPDX-License-Identifier: Apache-2.0
"""Whoever reaches the private server past the front, or stands in its place."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor import mtls
from tests.mtls.front.conftest import (
    CLIENT,
    OWN_POOL,
    SERVER,
    WhoServer,
    am,
    call,
    material,
    refused,
    roots_pem,
    tls_channel,
    unix_channel,
)
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until

# Binds a name and connects to the private server, from this or from a new network namespace; relays one connection.
STRANGER = """
import ctypes, socket, sys, threading
name, server, relay, namespace = sys.argv[1:]
NEW_NETWORK = 0x40000000
if namespace == "other" and ctypes.CDLL(None).unshare(NEW_NETWORK):
    sys.exit("not permitted")
listener = socket.socket(socket.AF_UNIX)
listener.bind(relay)
listener.listen()
far = socket.socket(socket.AF_UNIX)
try:
    if name:
        far.bind("\\0" + name)
    far.connect("\\0" + server.removeprefix("unix-abstract:") if server.startswith("unix-abstract:") else server)
except OSError as error:
    print(type(error).__name__, error.strerror, flush=True)
    sys.exit(0)
print("connected", flush=True)
near, _ = listener.accept()
def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
threading.Thread(target=pump, args=(near, far), daemon=True).start()
pump(far, near)
"""


@pytest.fixture
async def abstract(core: mtls.Core, td: SimulatedTrustDomain) -> AsyncIterator[WhoServer]:
    """A server on a private address, and a TLS front before it."""
    server = WhoServer(mtls.private_address())
    await server.start()
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    server.front = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=server.backend)
    yield server
    await server.stop()


async def test_private_address_serves(abstract: WhoServer, core: mtls.Core, folder: Path) -> None:
    unix = core.unix_front(path=str(folder / "f.sock"), backend=abstract.backend, http1_backend=abstract.backend)
    abstract.front = unix
    assert (await am(unix_channel(unix.address)))["pid"] == os.getpid()
    assert mtls.private_address() != mtls.private_address()


async def stranger(name: str, server: WhoServer, folder: Path, namespace: str) -> str:
    """Say how far a stranger gets that takes this name."""
    relay = str(folder / f"relay-{namespace}.sock")
    program = [sys.executable, "-c", STRANGER, name, server.backend, relay, namespace]
    child = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    try:
        said = (await child.stdout.readline()).decode().strip()
        if said != "connected":
            return said
        async with grpc.aio.insecure_channel(f"unix:{relay}", options=OWN_POOL) as channel:
            return (await refused(lambda: call(channel, "Am"))).name
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_a_live_name_cannot_be_taken(abstract: WhoServer, folder: Path, td: SimulatedTrustDomain) -> None:
    """Not in this network namespace, where it is in use; and from another one the server cannot be reached."""
    assert abstract.front
    seen: list[str] = []
    inner = abstract.caller

    async def spy(context: grpc.aio.ServicerContext[bytes, bytes]) -> mtls.Caller:
        seen.append(context.peer())
        return await inner(context)

    abstract.caller = spy  # type: ignore[method-assign]
    async with tls_channel(abstract.front.address, roots_pem(td), td.svid(CLIENT)) as channel:
        assert await call(channel, "Am")
        name = seen[0].removeprefix("unix-abstract:")
        assert await stranger(name, abstract, folder, "this") == "OSError Address already in use"
        (folder / "relay-this.sock").unlink()
        # The twin: any other name, and it is nobody.
        assert await stranger("firedoor-" + "0" * 32, abstract, folder, "this") == "UNAUTHENTICATED"
        if os.geteuid() == 0:
            assert await stranger(name, abstract, folder, "other") == "ConnectionRefusedError Connection refused"


async def test_another_process_in_the_server_s_place(
    core: mtls.Core, td: SimulatedTrustDomain, folder: Path, who: WhoServer
) -> None:
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen()\n"
        "print('ready', flush=True)\n"
        "print(listener.accept()[0].recv(100), flush=True)\n"
    )
    path = str(folder / "theirs.sock")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout
    await child.stdout.readline()
    core.publish(material(td, td.svid(SERVER, dns_names=["localhost"])))
    theirs = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=path)
    who.front = core.tls_front(listen="127.0.0.1:0", as_id=f"spiffe://td{SERVER}", backend=who.backend)
    assert await refused(lambda: am(tls_channel(theirs.address, roots_pem(td)))) == grpc.StatusCode.UNAVAILABLE
    # Not a byte came through.
    assert (await child.communicate())[0] == b"b''\n"
    await async_until(lambda: core.stats()["backend_failed"] > 0)
    assert await am(tls_channel(who.front.address, roots_pem(td)))


def test_bad_addresses(core: mtls.Core, folder: Path) -> None:
    for code, backend in (
        ("bad_address", ""),
        ("bad_address", "unix-abstract:"),
        ("path_too_long", "unix-abstract:" + "x" * 108),
    ):
        with pytest.raises(mtls.ListenError) as caught:
            core.unix_front(path=str(folder / "f.sock"), backend=backend)
        assert caught.value.code == code
