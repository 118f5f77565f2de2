# SPDX-License-Identifier: Apache-2.0
"""The messages of http_challenge: every name that could lead elsewhere, or give one host two IDs, is none."""

import json

import pytest

from firedoor.certs import (
    DnsPattern,
    DnsPatternError,
    EvidenceError,
    HttpChallenge,
    HttpNode,
    is_agent_name,
    is_host_name,
)


def payload(**fields: object) -> bytes:
    return json.dumps({"hostname": "gpu-1.example.org", "agentname": "default", "port": 80, **fields}).encode()


def test_read_and_written() -> None:
    node = HttpNode.read(payload())
    assert node == HttpNode("gpu-1.example.org", "default", 80)
    assert HttpNode.read(node.message()) == node
    assert node.path == "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge"
    challenge = HttpChallenge.of(bytes(range(32)))
    assert HttpChallenge.read(challenge.message()) == challenge
    assert len(challenge.nonce) == 44


@pytest.mark.parametrize("name", ["gpu-1", "a", "a.b", "1.example.org", "x" * 63, "xn--a.example", "a.0xg", "a.x7f"])
def test_host_names(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A",
        "a_b",
        "-a",
        "a-",
        "*.a",
        "a/b",
        "a:80",
        "a@b",
        "a b",
        "a\n",
        "a%2e",
        "é",
        "a#",
        "a?b",
        "a\\b",
        "localhost",
        "gpu.localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "1.0x1",
        "a.0x",
        "017700000001",
        "::1",
        "[::1]",
        "x" * 64,
        ".".join(["a" * 63] * 4),
    ],
)
def test_what_is_no_host_name(name: str) -> None:
    assert not is_host_name(name)
    with pytest.raises(EvidenceError):
        HttpNode.read(payload(hostname=name))


def test_every_byte_in_an_agents_name() -> None:
    """SPIRE 1.13.1: a length that was not checked, and a class of characters from A to z."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for code in range(256):
        assert is_agent_name(chr(code)) == (chr(code) in letters)
        assert is_agent_name("a" + chr(code)) == (chr(code) in letters + "0123456789-")
    assert is_agent_name("a" * 32)
    assert not is_agent_name("a" * 33)
    assert not is_agent_name("")


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b" " * 5000,
        payload(agentname="../x"),
        payload(agentname="a" * 33),
        payload(agentname=7),
        payload(agentname="a.b"),
        payload(port=0),
        payload(port=-1),
        payload(port=65536),
        payload(port="80"),
        payload(port=80.0),
        payload(port=True),
        payload(port=None),
        payload(hostname=None),
        payload(hostname=["a"]),
        b'{"hostname":"a","agentname":"a","port":80,"hostname":"b"}',
    ],
)
def test_evidence_that_cannot_be_read(wrong: bytes) -> None:
    with pytest.raises(EvidenceError):
        HttpNode.read(wrong)


@pytest.mark.parametrize("nonce", ["", "short", "<script>alert(1)</script>", "a" * 65, "a\r\nSet-Cookie: b", 7, None])
def test_a_challenge_that_is_no_nonce_is_not_served(nonce: object) -> None:
    with pytest.raises(EvidenceError):
        HttpChallenge.read(json.dumps({"nonce": nonce}).encode())


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("gpu-1.example.org", "gpu-1.example.org", True),
        ("gpu-1.example.org", "gpu-1xexample.org", False),
        ("*.example.org", "gpu-1.example.org", True),
        ("*.example.org", "a.gpu-1.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "gpu-1.example.org.evil.net", False),
        ("a.*.org", "a.b.org", True),
        ("a.*.org", "a.b.c.org", False),
        ("**.example.org", "a.b.example.org", True),
        ("**.example.org", "a.example.org", True),
        ("**.example.org", "example.org", False),
        ("**.example.org", "aexample.org", False),
        ("**.*.org", "a.b.org", True),
        ("**.*.org", "b.org", False),
        ("*", "gpu-1", True),
        ("*", "gpu-1.example.org", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert DnsPattern.parse(pattern).matches(name) == matches


@pytest.mark.parametrize("text", ["", ".", "**", "a.**", "**.**", "gpu-*.a", "A.b", "a..b", "a.b.", "^a$", ".*", "a b"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(DnsPatternError):
        DnsPattern.parse(text)
