# SPDX-License-Identifier: Apache-2.0
"""`firedoor.AsyncClient` against the auth service of a sidecar."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import firedoor
from firedoor import errors
from firedoor.certs import validate_jwt_svid
from tests.client.conftest import Sidecar
from tests.sidecar.auth_socket import PEER, STRANGER, X, Y


async def test_all_questions(sidecar: Sidecar) -> None:
    sidecar.trust.rotate_jwt()
    sidecar.entitle(X, Y)
    async with firedoor.AsyncClient(sidecar.url) as client:
        assert [one.id for one in await client.whoami()] == [X.spiffe_id, Y.spiffe_id]
        assert (await client.x509_svid()).id == X.spiffe_id
        assert set(await client.bundles()) == {sidecar.trust.td}
        assert await client.check(PEER, method="GET", path="/models/a")
        assert not await client.check(PEER, method="PUT", path="/models/a")
        token = await client.jwt_svid("models", identity=Y.spiffe_id)
        assert validate_jwt_svid(token.token, "models", sidecar.trust.bundles(), int(time.time())).id == token.id
        assert await client.jwt_svid("models", identity=Y.spiffe_id) is token
        assert (await client.validate_jwt_svid(token.token, "models")).id == Y.spiffe_id
        with pytest.raises(errors.RequestRefused):
            await client.validate_jwt_svid(token.token, "other")


async def test_rotations_are_yielded_across_a_restart(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    async with firedoor.AsyncClient(sidecar.url) as client, asyncio.timeout(60):
        changes = client.x509_source().changes()
        first = await anext(changes)
        fresh = await asyncio.to_thread(sidecar.hold, X)
        second = await anext(changes)
        assert second.svids[0].serial == fresh.svid.serial != first.svids[0].serial
        await asyncio.to_thread(sidecar.stop)
        assert await client.x509_svid() == second.svids[0]
        newest = await asyncio.to_thread(sidecar.hold, X)
        await asyncio.to_thread(sidecar.start)
        async for context in changes:
            if context.svids[0].serial == newest.svid.serial:
                break
        assert client.x509_source().latest.svids[0].serial == newest.svid.serial


async def test_without_an_entry(sidecar: Sidecar) -> None:
    sidecar.entitle(STRANGER)
    async with firedoor.AsyncClient(sidecar.url) as client:
        asks: list[Callable[[], Awaitable[object]]] = [client.whoami, client.x509_svid, lambda: client.check(PEER)]
        for ask in asks:
            with pytest.raises(errors.NoIdentity):
                await ask()


async def test_a_sidecar_that_is_away(tmp_path: Path) -> None:
    async with firedoor.AsyncClient(f"unix://{tmp_path}/none.sock", timeout=0.3) as client:
        with pytest.raises(errors.SidecarUnavailable):
            await client.whoami()
        with pytest.raises(errors.SidecarUnavailable, match=r"within 0\.3 s"):
            await client.x509_svid()
        with pytest.raises(errors.SidecarUnavailable):
            _ = client.x509_source().latest


async def test_closing(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    client = firedoor.AsyncClient(sidecar.url)
    source = client.x509_source()
    assert (await source.svid()).id == X.spiffe_id
    await client.close()
    await client.close()
    for ask in (client.whoami, client.x509_svid, source.svid):
        with pytest.raises(errors.ClientClosed):
            await ask()
    assert source._task.done()
