# SPDX-License-Identifier: Apache-2.0
"""A sidecar that attests by the DNS name of its host: what it serves, when, and to whom."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firedoor.certs import HttpChallenge, HttpNode
from firedoor.sidecar import config, http_challenge, updates
from firedoor.sidecar.errors import AttestationRefused, ChallengeNotServed, ConfigError
from firedoor.sidecar.http_challenge import HttpNonce, NonceServer
from tests.ports import own_port
from tests.sidecar.harness import Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain
from tests.waiting import SHORT

MIN = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}
NODE = HttpNode("gpu-1.example.org", "default", 80)
CHALLENGE = HttpChallenge.of(bytes(32))


async def ask(port: int, text: str) -> bytes:
    """Return the answer; nothing when the connection is cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_it_serves_one_nonce_at_one_path_while_it_attests() -> None:
    port, right = own_port(), f"GET {NODE.path} HTTP/1.1\r\nHost: x\r\n\r\n"
    shown = HttpNonce(NODE, f"127.0.0.1:{port}").show(0)
    assert shown.answer
    with pytest.raises(ConnectionRefusedError):
        await ask(port, right)
    async with shown.serving():
        assert b" 404 " in await ask(port, right)
        assert shown.answer(CHALLENGE.message()) == b"\n"
        head, _, body = (await ask(port, right)).partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", f"{CHALLENGE.nonce}\n".encode())
        for other in ("GET / HTTP/1.1", f"GET {NODE.path}x HTTP/1.1", f"POST {NODE.path} HTTP/1.1", "x"):
            assert CHALLENGE.nonce.encode() not in await ask(port, f"{other}\r\n\r\n")
    with pytest.raises(ConnectionRefusedError):
        await ask(port, right)


async def test_a_request_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_challenge, "REQUEST_SECONDS", 0.1)
    port, server = own_port(), NonceServer(NODE.path)
    server.take(CHALLENGE.message())
    async with server.serving(f"127.0.0.1:{port}"):
        assert await ask(port, "GET ") == b""
        assert await ask(port, "GET " + "x" * 100_000) == b""


async def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # None of them is cut for its silence.
    monkeypatch.setattr(http_challenge, "REQUEST_SECONDS", 600.0)
    port, server = own_port(), NonceServer(NODE.path)
    server.take(CHALLENGE.message())
    async with server.serving(f"127.0.0.1:{port}"):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(http_challenge.CONNECTIONS)]
        while len(server._open) < len(held):  # noqa: ASYNC110 - sixteen connections
            await asyncio.sleep(0.01)
        assert await ask(port, f"GET {NODE.path} HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
        while server._open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert CHALLENGE.nonce.encode() in await ask(port, f"GET {NODE.path} HTTP/1.1\r\n\r\n")


def test_what_is_no_nonce_is_not_served() -> None:
    for message in (b"", b"{}", b'{"nonce":"<html>"}'):
        with pytest.raises(AttestationRefused, match="the server's challenge cannot be answered"):
            NonceServer(NODE.path).take(message)


async def test_an_address_where_nobody_can_listen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ChallengeNotServed, match=f"http_challenge.listen: {listen} cannot be listened on"):
            async with NonceServer(NODE.path).serving(listen):
                pass


def test_configured(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("http_challenge: {hostname: gpu-1.example.org, listen: '0.0.0.0:80'}\n")
    assert config.load(file, {}, MIN).http_challenge == HttpNonce(NODE, "0.0.0.0:80")
    more = {"http_challenge_advertised_port": "8080", "http_challenge_agentname": "b"}
    found = config.load(file, {}, {**MIN, **more}).http_challenge
    assert found == HttpNonce(HttpNode("gpu-1.example.org", "b", 8080), "0.0.0.0:80")
    assert config.load(None, {}, MIN).http_challenge is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hostname": "a"}, "http_challenge.listen: is missing"),
        ({"listen": "0.0.0.0:80"}, "http_challenge.hostname: is missing"),
        ({"listen": "0.0.0.0:0", "hostname": "a"}, "needs a port: the server is told where to look"),
        ({"listen": "a:80", "hostname": "a"}, "must be an IP address and a port"),
        ({"listen": "0.0.0.0:80", "hostname": "127.0.0.1"}, "must be a DNS name in lower case"),
        ({"listen": "0.0.0.0:80", "hostname": "a", "agentname": "../x"}, "must be a letter, then letters"),
    ],
)
def test_configured_wrong(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(None, {}, {**MIN, **{f"http_challenge_{key}": value for key, value in given.items()}})
    assert words in str(refused.value)


# --- a whole sidecar ------------------------------------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.entries["x"] = entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    yield found
    await found.stop()


async def test_attests_once_and_renews(server: SpireLike, running: Start, tmp_path: Path) -> None:
    server.agent_ttl = SHORT
    given = {"http_challenge_hostname": "gpu-1.example.org", "http_challenge_listen": f"127.0.0.1:{own_port()}"}
    one = running(settings(tmp_path, join_token_file=None, **given))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert [" 404 " in found for found in server.found] == [True, False]
    await one.until(lambda _: server.renewals >= 1, "a renewal")
    await one.stop()
    two = running(settings(tmp_path, join_token_file=None, **given))
    await two.until(lambda p: ids(p) == {"x"}, "an SVID after a restart, as the same agent")
    assert server.attested == ["/spire/agent/http_challenge/gpu-1.example.org"]


async def test_a_host_that_has_attested_is_told_what_to_do(server: SpireLike, running: Start, tmp_path: Path) -> None:
    server.attested.append("/spire/agent/http_challenge/gpu-1.example.org")
    given = {"http_challenge_hostname": "gpu-1.example.org", "http_challenge_listen": f"127.0.0.1:{own_port()}"}
    one = running(settings(tmp_path, join_token_file=None, **given))
    with pytest.raises(AttestationRefused, match="is evicted with `firedoor agent evict`"):
        await asyncio.wait_for(one.task, 60)
