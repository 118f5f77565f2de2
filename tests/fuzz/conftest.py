# SPDX-License-Identifier: Apache-2.0
"""An auth socket for the targets that ask at it."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from firedoor.mtls import Core
from firedoor.sidecar import config
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.view import View
from tests.sidecar.auth_socket import X, inbound, opened
from tests.sidecar.conftest import TD, Bench
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve from a thread of its own, as a sidecar does; hypothesis asks from this one."""
    folder = tmp_path_factory.mktemp("auth")
    flags = {"trust_domain": "example.org", "broker": "127.0.0.1:1", "metrics": "off"}
    flags |= {name: str(folder / name) for name in ("auth_socket", "admin_socket", "data_dir")}
    one, core = config.load(None, {}, flags), Core(data_threads=1)
    trust = SimulatedTrustDomain("example.org", at=int(time.time()))
    trust.rotate_jwt()
    bench = Bench(trust, Holder(core, View(TD, bundles=trust.bundles()), time.time, lambda _: None), core)
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with opened(bench, one, inbound(X)) as auth:
            auth.entitle(X)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(PATIENCE)
    yield str(one.auth_socket)
    loop.call_soon_threadsafe(done.set)
    thread.join(PATIENCE)
    loop.close()
    core.stop()
