# SPDX-License-Identifier: Apache-2.0
"""Other users of this machine on the auth and admin sockets. Needs root, to become them."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from firedoor.sidecar.config import Config
from firedoor.sidecar.sockets import Sockets
from tests.sidecar.conftest import Bench, entry
from tests.sidecar.programs import sleeper
from tests.sidecar.test_workload_api import Reporter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

USER, OTHER = 61234, 61235
# What a bare grpcio client of another user does.
CALL = """
import sys, grpc
channel = grpc.insecure_channel("unix:" + sys.argv[1])
call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
try:
    answer = next(call(b"", metadata=(("workload.spiffe.io", "true"),), timeout=60))
    print("OK", answer[:80].split(b"spiffe://")[1].split(bytes([18]))[0].decode())
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""
ADMIN = """
import sys, grpc
channel = grpc.insecure_channel("unix:" + sys.argv[1])
try:
    print("OK", channel.unary_unary("/firedoor.admin.v1.SidecarAdmin/GetStatus")(b"", timeout=60)[2:].decode())
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""
# Everything else there, each by an empty request; as many refusals as there are methods.
INSPECT = """
import sys, grpc
channel = grpc.insecure_channel("unix:" + sys.argv[1])
said = []
for method in ("spire.agent.debug.v1.Debug/GetInfo", "spire.api.agent.logger.v1.Logger/GetLogger",
               "spire.api.agent.logger.v1.Logger/SetLogLevel", "spire.api.agent.logger.v1.Logger/ResetLogLevel",
               "grpc.health.v1.Health/Check", "grpc.health.v1.Health/List"):
    try:
        channel.unary_unary("/" + method)(b"", timeout=60)
        said.append("OK")
    except grpc.RpcError as error:
        said.append(error.code().name)
for method in ("grpc.health.v1.Health/Watch",):
    try:
        next(channel.unary_stream("/" + method)(b"", timeout=60))
        said.append("OK")
    except grpc.RpcError as error:
        said.append(error.code().name)
for version in ("v1", "v1alpha"):
    try:
        next(channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")(
            iter([b""]), timeout=60))
        said.append("OK")
    except grpc.RpcError as error:
        said.append(error.code().name)
print(len(said), *sorted(set(said)))
"""
# What a delegate does that asks for the process whose PID is the second argument.
DELEGATE = """
import sys, grpc
socket, pid = sys.argv[1].rsplit(",", 1)
pid, varint = int(pid), b""
while pid > 127:
    varint, pid = varint + bytes([pid & 127 | 128]), pid >> 7
channel = grpc.insecure_channel("unix:" + socket)
method = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs"
try:
    answer = next(channel.unary_stream(method)(bytes([16]) + varint + bytes([pid]), timeout=60))
    print("OK", sorted({word for word in answer.replace(bytes([18]), b" ").split() if word.startswith(b"/segment/")}))
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""
INTERPRETER = str(Path(sys.executable).resolve())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, as pytest's are not."""
    found = Path(tempfile.mkdtemp(prefix="firedoor-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


@pytest.fixture
async def reachable(bench: Bench, settings: Config, open_folder: Path) -> AsyncIterator[Config]:
    config = replace(settings, auth_socket=open_folder / "auth.sock", admin_socket=open_folder / "admin.sock")
    sockets = Sockets(bench.core, config)
    await sockets.open_auth(*bench.apis(), lambda: bench.holder.view.synced)
    await sockets.open_admin(Reporter(), lambda: True, bench.delegated())
    yield config
    await sockets.close()


async def call_as(uid: int, script: str, socket: object, **identity: object) -> str:
    """Run a script as another user and return what it prints."""
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(socket)],
        **{"user": uid, "group": uid, "extra_groups": [], "cwd": "/", "capture_output": True, "text": True, **identity},
    )
    if "Permission denied" in run.stderr:
        pytest.skip(f"user {uid} cannot execute {sys.executable}")
    assert run.returncode == 0, (run.returncode, run.stderr)
    return str(run.stdout).strip()


async def test_the_user_of_the_entry_and_another_one(bench: Bench, reachable: Config) -> None:
    bench.entitle(entry("/segment/a/x", f"unix:uid:{USER}"))
    assert (await call_as(USER, CALL, reachable.auth_socket)).startswith("OK example.org/segment/a/x")
    assert await call_as(OTHER, CALL, reachable.auth_socket) == "PERMISSION_DENIED no identity issued"


async def test_supplementary_group_makes_the_difference(bench: Bench, reachable: Config) -> None:
    bench.entitle(entry("/segment/a/x", f"unix:uid:{USER}", "unix:supplementary_gid:61299"))
    assert (await call_as(USER, CALL, reachable.auth_socket, extra_groups=[61299])).startswith("OK")
    assert (await call_as(USER, CALL, reachable.auth_socket)).startswith("PERMISSION_DENIED")


async def test_executable_makes_the_difference(bench: Bench, reachable: Config) -> None:
    bench.entitle(entry("/segment/a/x", f"unix:uid:{USER}", f"unix:path:{INTERPRETER}"))
    assert (await call_as(USER, CALL, reachable.auth_socket)).startswith("OK")
    bench.entitle(entry("/segment/a/x", f"unix:uid:{USER}", "unix:path:/usr/bin/other"))
    assert (await call_as(USER, CALL, reachable.auth_socket)).startswith("PERMISSION_DENIED")


async def test_admin_socket_is_for_root(bench: Bench, reachable: Config) -> None:
    assert await call_as(0, ADMIN, reachable.admin_socket) == "OK example.org"
    assert (await call_as(USER, ADMIN, reachable.admin_socket)).startswith("UNAVAILABLE")
    # Whatever the socket's mode says, the caller's user decides.
    reachable.admin_socket.chmod(0o666)
    assert (await call_as(USER, ADMIN, reachable.admin_socket)).startswith("PERMISSION_DENIED only root")


async def test_another_users_process(bench: Bench, settings: Config, open_folder: Path) -> None:
    delegate = entry("/segment/a/delegate", f"unix:uid:{USER}")
    bench.entitle(delegate, entry("/segment/a/w", f"unix:uid:{OTHER}"))
    allowed = frozenset({delegate.spiffe_id})
    config = replace(settings, admin_socket=open_folder / "admin.sock", authorized_delegates=allowed)
    sockets = Sockets(bench.core, config)
    await sockets.open_admin(Reporter(), lambda: True, bench.delegated(delegate))
    try:
        with sleeper(user=OTHER, group=OTHER) as process, sleeper(user=USER, group=USER) as own:
            about = f"{config.admin_socket},{process.pid}"
            # A delegate gets what that process is entitled to, and not what it is itself.
            assert (await call_as(USER, DELEGATE, about)).startswith("OK [b'/segment/a/w")
            # Whoever is none gets nothing: not of another user's process, not of its own.
            refused = "PERMISSION_DENIED caller not configured as an authorized delegate"
            assert await call_as(OTHER, DELEGATE, f"{config.admin_socket},{own.pid}") == refused
            assert await call_as(OTHER, DELEGATE, about) == refused
            assert await call_as(0, DELEGATE, about) == "PERMISSION_DENIED no identity issued"
        # The socket is open to others now, and everything else on it is not.
        assert (await call_as(USER, ADMIN, config.admin_socket)).startswith("PERMISSION_DENIED only root")
        assert await call_as(USER, INSPECT, config.admin_socket) == "9 PERMISSION_DENIED"
    finally:
        await sockets.close()
