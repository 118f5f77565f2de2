# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL over TCP: brokers know whom they speak to, and say what is wrong when it is somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from firedoor.broker.errors import DatabaseError
from tests.broker.harness import POLICY, running
from tests.postgres import MISSING, Server, running_server
from tests.web_pki import WebPki

# libpq knows no other; it asks the resolver, and takes the next address when one does not answer.
NAME = "localhost"


@pytest.fixture(scope="module")
def pki() -> WebPki:
    return WebPki()


@pytest.fixture(scope="module")
def server(pki: WebPki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server() as found:
        if found is None:
            pytest.skip(MISSING)
        found.listen(*pki.write(tmp_path_factory.mktemp("pki"), NAME))
        yield found


def given(server: Server, root: bytes, folder: Path, host: str = NAME, mode: str = "verify-full") -> dict[str, str]:
    """Return how a broker reaches a fresh database over TCP, trusting one CA."""
    url, password_file = server.database()
    name = url.partition("@/")[2].partition("?")[0]
    (folder / "db-ca.pem").write_bytes(root)
    reached = f"postgresql://firedoor@{host}:{server.port}/{name}?sslmode={mode}&sslrootcert={folder / 'db-ca.pem'}"
    return {"database": reached, "database_password_file": str(password_file)}


async def test_every_session_is_encrypted_and_verified(server: Server, pki: WebPki, folder: Path) -> None:
    async with running(folder, None, **given(server, pki.root_pem, folder)) as broker:
        await broker.apply(POLICY)
        agent = await broker.attest()
        made = await broker.entry("/segment/registry/x", agent.path, ["unix:user:registry"])
        (result,) = await agent.sign(made.id)
        assert result.status.code == 0, result.status.message

        def sessions() -> list[tuple[bool, str]]:
            query = "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'firedoor' "
            with server.admin() as connection:
                return connection.execute(query).fetchall()  # type: ignore[return-value]

        found = await asyncio.to_thread(sessions)
        # The writer's, a reader's, and the one that listens.
        assert len(found) >= 3
        assert set(found) == {(True, "TLSv1.3")}


REFUSED = {
    "another CA": ({}, "certificate, or ours, is refused"),
    "another name": ({"host": "127.0.0.1"}, "certificate, or ours, is refused"),
    "no TLS": ({"mode": "disable"}, "does not let this user, host or way of encryption in"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(server: Server, pki: WebPki, folder: Path, case: str) -> None:
    how, says = REFUSED[case]
    root = WebPki().root_pem if case == "another CA" else pki.root_pem
    with pytest.raises(DatabaseError, match=says) as refused:
        async with running(folder, None, **given(server, root, folder, **how)):
            pass
    assert server.password not in str(refused.value)


async def test_the_file_of_cas_is_missing(server: Server, pki: WebPki, folder: Path) -> None:
    how = given(server, pki.root_pem, folder)
    (folder / "db-ca.pem").unlink()
    with pytest.raises(DatabaseError, match="sslrootcert"):
        async with running(folder, None, **how):
            pass
