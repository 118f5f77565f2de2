# SPDX-License-Identifier: Apache-2.0
"""Any local program may connect to the auth socket: HTTP/2 that is made to hurt leaves the others their identities."""

import asyncio
import os
import threading

import grpc.aio
import pytest

from firedoor.sidecar.config import Config
from firedoor.sidecar.sockets import Sockets
from firedoor.wire import workload_grpc, workload_pb2
from tests.hostile_http2 import ATTACKS, MIB, attack, memory, unix_socket
from tests.sidecar.conftest import Bench, entry
from tests.sidecar.test_workload_api import HEADER

A = entry("/segment/a/x", f"unix:uid:{os.geteuid()}")
# Of the whole process, which is the attacker too: 256 calls at once, each of which costs at most 2.4 MiB.
MOST_MEMORY = 768 * MIB


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ATTACKS)
async def test_others_are_served_meanwhile_and_after(bench: Bench, settings: Config, name: str) -> None:
    bench.entitle(A)
    sockets = Sockets(bench.core, settings)
    await sockets.open_auth(*bench.apis(), lambda: True)
    before, ended = memory(), threading.Event()
    made = await asyncio.to_thread(unix_socket, str(settings.auth_socket))
    frames = ATTACKS[name](b"/SpiffeWorkloadAPI/FetchX509SVID")
    thread = threading.Thread(target=attack, args=(made, frames, ended))
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        good = workload_grpc.SpiffeWorkloadAPIStub(channel)
        thread.start()
        served = 0
        while not ended.is_set() or served < 3:
            call = good.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60)
            assert [one.spiffe_id for one in (await call.read()).svids] == [str(A.spiffe_id)]
            call.cancel()
            served += 1
            await asyncio.sleep(0.01)
    await asyncio.to_thread(thread.join)
    assert memory() - before < MOST_MEMORY
    await sockets.close()
