# SPDX-License-Identifier: Apache-2.0
"""A call through a channel that is closed meanwhile, because the agent has a new SVID, is worth another try."""

import asyncio
from pathlib import Path

import pytest

from firedoor.mtls import Core
from firedoor.sidecar.errors import ServerUnavailable
from firedoor.sidecar.server import Server


def server(core: Core, tmp_path: Path) -> Server:
    """Return a channel whose server is never there."""
    connector = core.connector(path=str(tmp_path / "c.sock"), addresses=["127.0.0.1:1"], expect="spiffe://td/s")
    return Server(connector)


async def test_closed_while_it_waits_for_a_connection_or_before(tmp_path: Path) -> None:
    core = Core(data_threads=1)
    found = server(core, tmp_path)
    waiting = asyncio.create_task(found.issue([("e", b"csr")]))
    await asyncio.sleep(0)
    await found.close()
    for call in (waiting, found.issue([("e", b"csr")]), found.renew(b"csr"), found.entries()):
        with pytest.raises(ServerUnavailable):
            await call
    core.stop()
