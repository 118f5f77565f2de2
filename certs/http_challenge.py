# SPDX-License-Identifier: Apache-2.0
"""The messages by which a host proves that its DNS name leads to it: SPIRE's http_challenge, byte for byte.

    node    {"hostname": "gpu-1.example.org", "agentname": "default", "port": 80}
    server  {"nonce": "<32 bytes, base64url>"}
    node    anything; what counts is that the server finds the nonce at the node, by HTTP

A name decides where the server connects, and becomes the agent's ID, so that one host has one spelling here: lower
case, no dot at the end, no address in any of the forms that resolvers take.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs.dns import MAX_DNS_NAME
from firedoor.certs.errors import DnsPatternError, EvidenceError
from firedoor.certs.evidence import NONCE_BYTES, read_message, to_json

HTTP_CHALLENGE: Final = "http_challenge"
# The first port that needs no privilege.
FIRST_OPEN_PORT: Final = 1024
_MAX_PORT: Final = 65535
# What a server's answer may be: the nonce in base64url, and white space.
MAX_NONCE_BYTES: Final = 64
_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# WHATWG URL section 3.5: what ends so is an address, 127.1 and 0x7f000001 too.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
# SPIRE's, up to 32 characters.
_AGENT_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{0,31}")
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,62}={0,2}")
_PATTERN_LABEL: Final = re.compile(rf"\*|{_LABEL}")


def is_host_name(name: str) -> bool:
    """Say whether this is the one spelling of a host's DNS name, and not of this host (RFC 6761 section 6.3)."""
    if len(name) > MAX_DNS_NAME or not _HOST.fullmatch(name):
        return False
    last = name.rpartition(".")[2]
    return last != "localhost" and not _NUMBER.fullmatch(last)


def is_agent_name(name: str) -> bool:
    """Say whether an agent may have this name on its host."""
    return _AGENT_NAME.fullmatch(name) is not None


@final
@dataclass(frozen=True, slots=True)
class HttpNode:
    """Where a host says that it can be asked. Nothing is proved."""

    hostname: str
    agent_name: str
    port: int

    @classmethod
    def read(cls, payload: bytes) -> HttpNode:
        """Read a node's evidence. Raise EvidenceError."""
        fields = read_message(payload, "malformed_evidence")
        hostname, agent_name, port = (fields.get(name) for name in ("hostname", "agentname", "port"))
        if not isinstance(hostname, str) or not is_host_name(hostname):
            raise EvidenceError("bad_host_name")
        if not isinstance(agent_name, str) or not is_agent_name(agent_name):
            raise EvidenceError("bad_agent_name")
        if type(port) is not int or not 0 < port <= _MAX_PORT:
            raise EvidenceError("bad_port")
        return cls(hostname, agent_name, port)

    def message(self) -> bytes:
        """Return what the node sends."""
        return to_json({"hostname": self.hostname, "agentname": self.agent_name, "port": self.port})

    @property
    def path(self) -> str:
        """Where the nonce is found."""
        return f"/.well-known/spiffe/nodeattestor/http_challenge/{self.agent_name}/challenge"


@final
@dataclass(frozen=True, slots=True)
class HttpChallenge:
    """One question."""

    nonce: str

    @classmethod
    def of(cls, nonce: bytes) -> HttpChallenge:
        """Make a challenge of a fresh nonce of 32 random bytes."""
        assert len(nonce) == NONCE_BYTES  # noqa: S101
        return cls(base64.urlsafe_b64encode(nonce).decode())

    @classmethod
    def read(cls, message: bytes) -> HttpChallenge:
        """Read a server's challenge: nothing else would be served to whoever asks. Raise EvidenceError."""
        nonce = read_message(message, "malformed_challenge").get("nonce")
        if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
            raise EvidenceError("malformed_challenge", "its nonce is not in base64url")
        return cls(nonce)

    def message(self) -> bytes:
        """Return what the server sends."""
        return to_json({"nonce": self.nonce})


@final
@dataclass(frozen=True, slots=True, init=False)
class DnsPattern:
    """Names of hosts: `*` is exactly one label, `**` one or more and stands first; a whole name or nothing matches.

    >>> DnsPattern.parse("*.nodes.example.org").matches("gpu-1.nodes.example.org")
    True
    >>> DnsPattern.parse("*.nodes.example.org").matches("gpu-1.nodes.example.org.evil.net")
    False
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> DnsPattern:
        """Read a pattern. Raise DnsPatternError."""
        labels = text.split(".")
        rest = labels[1:] if labels[0] == "**" else labels
        if len(text) > MAX_DNS_NAME or not rest or not all(_PATTERN_LABEL.fullmatch(label) for label in rest):
            raise DnsPatternError("malformed_dns_pattern")
        made = object.__new__(cls)
        object.__setattr__(made, "text", text)
        return made

    def matches(self, name: str) -> bool:
        """Say whether a name is one of those meant."""
        wanted, found = self.text.split("."), name.split(".")
        if wanted[0] == "**":
            wanted, found = wanted[1:], found[max(1, len(found) - len(wanted) + 1) :]
        return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))
