# SPDX-License-Identifier: Apache-2.0
"""Attestation by a DNS name: what the broker looks for, and what nobody can make it do.

Names are looked up in a table here, in place of DNS; tests/spire has them looked up by the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker import http_challenge, reach
from firedoor.broker.config import load
from firedoor.broker.errors import ConfigError, EndpointError
from firedoor.broker.reach import Reach, may_be_node
from firedoor.certs import HttpChallenge, HttpNode
from firedoor.wire import agent_pb2
from tests.broker.harness import POLICY, RunningBroker, code_of, flags, running, spiffe_id

HOST = "gpu-1.nodes.example.org"
LOOPBACK = {
    "http_challenge_allowed_dns_patterns": "*.nodes.example.org",
    "http_challenge_allow_non_root_ports": "true",
    "http_challenge_networks": "127.0.0.0/8",
}
NOT_FOUND = "failed to attest: http_challenge: the nonce was not found at the host; the broker's log says why"


class Names:
    """What names lead to, and how often they were looked up."""

    def __init__(self) -> None:
        self.table: dict[str, list[str]] = {HOST: ["127.0.0.1"]}
        self.asked: list[str] = []

    def look_up(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in self.table[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names()
    monkeypatch.setattr(reach.socket, "getaddrinfo", found.look_up)
    return found


class Host:
    """A host that answers on one port as it is told; `requests` is what it was asked."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.reply: Callable[[bytes], bytes] = lambda _: b"HTTP/1.0 404 Not Found\r\n\r\n"
        self.stays = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.reply(self.requests[-1]))
            await writer.drain()
            if self.stays:
                await reader.read()
        writer.close()

    def serves(self, nonce: str) -> None:
        """Serve a nonce as spire-agent does."""
        text = f"{nonce}\n".encode()
        self.reply = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    found = Host()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()


@pytest.fixture
async def broker(folder: Path, names: Names) -> AsyncIterator[RunningBroker]:
    async with running(folder, POLICY, **LOOPBACK) as found:
        yield found


Attest = Callable[..., Awaitable[Any]]


@pytest.fixture
def attest(broker: RunningBroker, host: Host) -> Attest:
    async def attest(name: str = HOST, *, serve: bool = True, again: bool = False, port: int = 0) -> Any:
        def answer(message: bytes) -> bytes:
            if serve:
                host.serves(HttpChallenge.read(message).nonce)
            return b"\n"

        node = broker.client()
        payload = HttpNode(name, "default", port or host.port).message()
        node.use(await node.show(payload, answer, "http_challenge", again=again), node.key)
        return node

    return attest


async def refused(work: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await work
    return error.value


async def test_a_host_attests_by_its_name(broker: RunningBroker, host: Host, attest: Attest) -> None:
    node = await attest()
    assert node.id == f"spiffe://example.org/spire/agent/http_challenge/{HOST}"
    agent = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(node.path)))
    assert (agent.attestation_type, agent.can_reattest) == ("http_challenge", False)
    assert [(one.type, one.value) for one in agent.selectors] == [("http_challenge", f"hostname:{HOST}")]
    assert await node.entries() == []
    (request,) = host.requests
    path = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge"
    assert request.startswith(f"GET {path} HTTP/1.0\r\nHost: {HOST}:{host.port}\r\n".encode())


async def test_a_host_attests_once(broker: RunningBroker, attest: Attest) -> None:
    node = await attest()
    error = await refused(attest())
    assert code_of(error) == "PERMISSION_DENIED"
    assert "attestation data has already been used to attest an agent" in error.details()
    assert await node.entries() == []
    await broker.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(node.path)))
    await attest()
    await broker.ban(node.id)
    assert (await refused(attest())).details() == "failed to attest: agent is banned"


async def test_of_two_at_once_one_attests(broker: RunningBroker, host: Host) -> None:
    """Each finds its own nonce; the agent is written once."""
    nonces: dict[bytes, bytes] = {}

    def attest(number: int) -> Awaitable[Any]:
        def answer(message: bytes) -> bytes:
            nonces[b"/a%d/" % number] = HttpChallenge.read(message).nonce.encode()
            return b"\n"

        payload = HttpNode(HOST, f"a{number}", host.port).message()
        return broker.client().show(payload, answer, "http_challenge", again=False)

    host.reply = lambda request: b"HTTP/1.0 200 OK\r\n\r\n" + next(n for path, n in nonces.items() if path in request)
    results = await asyncio.gather(attest(1), attest(2), return_exceptions=True)
    (error,) = [one for one in results if isinstance(one, BaseException)]
    assert "already been used" in str(error)
    assert len(broker.broker.state.agents) == 1


async def test_without_trust_on_first_use_it_attests_again(folder: Path, names: Names, host: Host) -> None:
    given = {**LOOPBACK, "http_challenge_tofu": "false", "http_challenge_allow_non_root_ports": "false"}
    server = await low_port(host)
    async with server, running(folder, POLICY, **given) as broker:
        payload = HttpNode(HOST, "default", server.sockets[0].getsockname()[1]).message()

        def answer(message: bytes) -> bytes:
            host.serves(HttpChallenge.read(message).nonce)
            return b"\n"

        for _ in range(2):
            await broker.client().show(payload, answer, "http_challenge")
        error = await refused(broker.client().show(HttpNode(HOST, "a", 1024).message(), answer, "http_challenge"))
        assert "port 1024 is not below 1024" in error.details()


async def low_port(host: Host) -> asyncio.Server:
    """Have a host answer at a port that takes a privilege."""
    for port in range(700, 1000):
        try:
            return await asyncio.start_server(host.serve, "127.0.0.1", port)
        except PermissionError:
            pytest.skip("this user may not listen below 1024")
        except OSError:
            continue
    pytest.skip("no port below 1024 is free")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu-1.example.org", "no pattern allows this host name"),
        ("a.gpu-1.nodes.example.org", "no pattern allows this host name"),
        (f"{HOST}.evil.net", "no pattern allows this host name"),
        ("GPU-1.nodes.example.org", "is no DNS name in lower case"),
        ("127.0.0.1", "is no DNS name in lower case"),
        ("localhost", "is no DNS name in lower case"),
    ],
)
async def test_a_name_that_is_refused(broker: RunningBroker, names: Names, host: Host, name: str, words: str) -> None:
    payload = HttpNode(name, "default", host.port).message()
    error = await refused(broker.client().show(payload, lambda _: pytest.fail("it was challenged"), "http_challenge"))
    assert words in error.details()
    assert not names.asked
    assert not host.requests


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b'{"hostname":"a","agentname":"../..","port":80}'])
async def test_a_payload_that_cannot_be_read(broker: RunningBroker, payload: bytes) -> None:
    error = await refused(broker.client().show(payload, lambda _: b"", "http_challenge"))
    assert code_of(error) == "INVALID_ARGUMENT"
    assert error.details().startswith("failed to attest: http_challenge: ")


# --- what it may not be made to do ----------------------------------------------------------------------------------

ELSEWHERE: dict[str, list[str]] = {
    "this machine": ["127.0.0.1"],
    "this machine, over IPv6": ["::1"],
    "this machine, written as IPv6": ["::ffff:127.0.0.1"],
    "all addresses": ["0.0.0.0"],
    "no address": ["::"],
    "a cloud's metadata": ["169.254.169.254"],
    "a cloud's metadata over IPv6": ["fd00:ec2::254"],
    "a cloud's agent": ["168.63.129.16"],
    "a link": ["fe80::1", "fe80::1%1"],
    "many": ["224.0.0.1", "ff02::1"],
    "IPv4 within IPv6": ["64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"],
    "reserved": ["240.0.0.1", "255.255.255.255"],
}


@pytest.mark.parametrize("case", ELSEWHERE)
async def test_addresses_that_are_no_nodes(folder: Path, names: Names, host: Host, case: str) -> None:
    names.table[HOST] = ELSEWHERE[case]
    given = {key: value for key, value in LOOPBACK.items() if "networks" not in key}
    async with running(folder, POLICY, **given) as broker:
        payload = HttpNode(HOST, "default", host.port).message()
        error = await refused(broker.client().show(payload, lambda _: b"\n", "http_challenge"))
        assert (code_of(error), error.details()) == ("PERMISSION_DENIED", NOT_FOUND)
    assert names.asked == [HOST]
    assert not host.requests


def test_networks() -> None:
    ten = [ipaddress.ip_network("10.0.0.0/8")]
    for text, anywhere, within in (
        ("10.1.2.3", True, True),
        ("::ffff:10.1.2.3", True, True),
        ("192.168.1.1", True, False),
        ("203.0.113.7", True, False),
        ("fd00::1", True, False),
        ("2a00:1450::1", True, False),
        ("127.0.0.1", False, False),
        ("169.254.169.254", False, False),
    ):
        address = ipaddress.ip_address(text)
        assert (may_be_node(address), may_be_node(address, ten)) == (anywhere, within), text


async def test_only_the_address_that_was_looked_at_is_asked(names: Names, host: Host, attest: Attest) -> None:
    """DNS that gives another answer a moment later (rebinding) is not asked again."""
    names.table[HOST] = ["10.0.0.1", "127.0.0.1", "169.254.169.254"]
    await attest()
    assert names.asked == [HOST]


REPLIES: dict[str, Callable[[str, int], bytes]] = {
    "a redirect": lambda nonce, port: (
        f"HTTP/1.1 302 Found\r\nLocation: http://{HOST}:{port}/x\r\nContent-Length: 44\r\n\r\n{nonce}".encode()
    ),
    "another nonce": lambda nonce, _: b"HTTP/1.1 200 OK\r\n\r\n" + nonce[::-1].encode(),
    "half of it": lambda nonce, _: b"HTTP/1.1 200 OK\r\n\r\n" + nonce[:20].encode(),
    "nothing": lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "not found": lambda nonce, _: b"HTTP/1.1 404 Not Found\r\n\r\n" + nonce.encode(),
    "it, and more": lambda nonce, _: b"HTTP/1.1 200 OK\r\n\r\n" + nonce.encode() + b" " * 64,
    "a length of a gigabyte": lambda nonce, _: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + nonce.encode()
    ),
    "two lengths": lambda nonce, _: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\nContent-Length: 45\r\n\r\n" + nonce.encode()
    ),
    "a length that is none": lambda nonce, _: b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + nonce.encode(),
    "less than it says": lambda nonce, _: b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + nonce.encode(),
    "a huge head": lambda nonce, _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n" + nonce.encode(),
    "a huge line": lambda *_: b"HTTP/1.1 200 " + b"x" * 100_000,
    "no HTTP": lambda nonce, _: nonce.encode() + b"\r\n\r\n",
    "HTTP/2": lambda *_: b"HTTP/2 200\r\n\r\n",
    "SSH": lambda *_: b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@pytest.mark.parametrize("case", REPLIES)
async def test_a_reply_that_is_refused(broker: RunningBroker, host: Host, case: str) -> None:
    def answer(message: bytes) -> bytes:
        text = REPLIES[case](HttpChallenge.read(message).nonce, host.port)
        host.reply = lambda _: text
        return b"\n"

    payload = HttpNode(HOST, "default", host.port).message()
    error = await refused(broker.client().show(payload, answer, "http_challenge"))
    assert (code_of(error), error.details()) == ("PERMISSION_DENIED", NOT_FOUND)
    # A redirect, too, is asked for once and not followed.
    assert len(host.requests) == 1


async def test_nobody_learns_what_is_where(names: Names, attest: Attest) -> None:
    """A closed port, a name without an address, a wrong answer: the same sentence for all."""
    names.table["gone.nodes.example.org"] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # It is nobody else's while it is held, and nobody listens there.
        closed = probe.getsockname()[1]
        for work in (
            attest(port=closed, serve=False),
            attest(serve=False),
            attest("gone.nodes.example.org", serve=False),
            attest("unknown.nodes.example.org", serve=False),
        ):
            assert (await refused(work)).details() == NOT_FOUND


async def test_a_host_that_does_not_answer(
    broker: RunningBroker, host: Host, attest: Attest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_SECONDS", 0.1)
    host.reply, host.stays = lambda _: b"HTTP/1.1 200 OK\r\n", True
    assert (await refused(attest(serve=False))).details() == NOT_FOUND


async def test_so_many_at_once_and_no_more(
    broker: RunningBroker, host: Host, attest: Attest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody makes the broker flood a host."""
    # None is given up before the next one comes.
    monkeypatch.setattr(reach, "_SECONDS", 3600.0)
    host.reply, host.stays = lambda _: b"", True
    waiting = [asyncio.ensure_future(attest(serve=False)) for _ in range(http_challenge._ASKED_EACH)]
    while len(host.requests) < len(waiting):  # noqa: ASYNC110 - two connections
        await asyncio.sleep(0.01)
    error = await refused(attest(serve=False))
    assert (code_of(error), "too many challenges by HTTP" in error.details()) == ("RESOURCE_EXHAUSTED", True)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(host.requests) == http_challenge._ASKED_EACH


async def test_a_server_that_answers_without_a_length(host: Host, names: Names) -> None:
    asked = Reach([ipaddress.ip_network("127.0.0.0/8")])
    for text in (b"HTTP/1.1 200\r\n\r\nabc", b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc"):
        host.reply = lambda _, text=text: text  # type: ignore[misc]
        assert await asked.get(HOST, host.port, "/", 64) == b"abc"
    host.reply = lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64)
    assert len(await asked.get(HOST, host.port, "/", 64)) == 64
    host.reply = lambda _: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(65)
    with pytest.raises(EndpointError, match="longer than 64 bytes"):
        await asked.get(HOST, host.port, "/", 64)
    asked.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tofu": "true"}, "http_challenge.allowed_dns_patterns: is missing or empty: names of hosts"),
        ({"allowed_dns_patterns": "gpu-*.a"}, "* is one whole label"),
        ({"allowed_dns_patterns": "*.a", "required_port": "0"}, "from 1 to 65535"),
        ({"allowed_dns_patterns": "*.a", "required_port": "8080"}, "required_port: is not below 1024; allow_non_root"),
        ({"allowed_dns_patterns": "*.a", "networks": "10.0.0.1/8"}, "without bits after the prefix"),
        (
            {"allowed_dns_patterns": "*.a", "tofu": "false", "allow_non_root_ports": "true", "required_port": "8080"},
            "tofu: must be true where ports",
        ),
    ],
)
def test_what_is_configured_wrong(folder: Path, given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {}, flags(folder, **{f"http_challenge_{key}": value for key, value in given.items()}))
    assert words in str(refused.value)


def test_what_is_configured(folder: Path) -> None:
    rules = load(None, {}, flags(folder, http_challenge_allowed_dns_patterns=json.dumps(["*.a", "b"]))).http_challenge
    assert rules
    assert [one.text for one in rules.allowed_dns_patterns] == ["*.a", "b"]
    assert (rules.required_port, rules.allow_non_root_ports, rules.tofu, rules.networks) == (None, False, True, ())
    assert load(None, {}, flags(folder)).http_challenge is None
