# SPDX-License-Identifier: Apache-2.0
"""A real spire-server and a firedoor broker in the same state, and what each of them makes for itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.spire.programs import Answer, Cli, SpireAgent

TD = "example.org"
# What each side makes for itself: IDs, serial numbers, keys, times, counters of changes.
_MADE = {
    # The numbers and the ID of a JWK, and the certificate in it.
    "d",
    "kid",
    "spiffe_sequence",
    "x",
    "x5c",
    "y",
    "asn1",
    "authority_id",
    "cert_chain",
    "created_at",
    "expires_at",
    "issued_at",
    "key_id",
    "private_key",
    "public_key",
    "root_cas",
    "sequence_number",
    "subject",
    "token",
    "uptime",
    "value",
    "x509_svid",
    "x509svid_expires_at",
    "x509svid_serial_number",
}
# The broker says how often its bundle should be looked at; SPIRE leaves that to whoever serves it.
_DROPPED = {"refresh_hint", "spiffe_refresh_hint"}
_NOTHING = (0, "0", "", [], None)
_PATTERNS = (
    (re.compile(r"-----BEGIN .*?-----END [A-Z ]+-----", re.S), "<PEM>"),
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+"), "<JWT>"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<UUID>"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ?( [+-]\d{4})?( UTC)?"), "<TIME>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<KEY>"),
    (re.compile(r"(Authority ID: +)\w{32}\b"), r"\1<KEY>"),
    (re.compile(r"(Serial number +: )\d+"), r"\1<NUMBER>"),
    (re.compile(r"(Uptime: +)\S+"), r"\1<DURATION>"),
    # What a server calls itself in its certificates.
    (re.compile(r"(Subject: +).*"), r"\1<NAME>"),
    # The numbers of JWKs.
    (re.compile(r'"(x|y|n|d|p|q|dp|dq|qi)":"[\w-]+"'), r'"\1":"<NUMBER>"'),
)


@dataclass
class Side:
    """One of the two servers, with a stock agent below it."""

    name: str
    cli: Cli
    agent: SpireAgent
    # Makes another one, by the name of its folder.
    another: Callable[[str], SpireAgent]

    @property
    def parent(self) -> str:
        return f"spiffe://{TD}/spire/agent/join_token/{self.agent.join_token}"

    def entry(self, path: str, *words: str) -> list[str]:
        """Return the words of `entry create` or `entry update` for an ID below the agent."""
        names = ["-parentID", self.parent, "-spiffeID", f"spiffe://{TD}{path}"]
        return [*names, "-selector", f"unix:uid:{path[1:]}", *words]


def comparable(answer: Answer) -> dict[str, Any]:
    """Return an answer without what each side makes for itself."""
    out = answer.out.strip()
    documents: list[Any] = []
    if out.startswith(("{", "[")):
        decoder, rest = json.JSONDecoder(), out
        while rest:
            found, end = decoder.raw_decode(rest)
            documents.append(_without_made(found))
            rest = rest[end:].strip()
    return {"code": answer.code, "out": documents or _plain(out), "err": _plain(answer.err)}


def _without_made(found: Any) -> Any:
    match found:
        case dict():
            # A selector's value is nobody's own, a token's is.
            made = _MADE - {"value"} if "type" in found else _MADE
            kept = {name: value for name, value in found.items() if name not in _DROPPED}
            return {
                name: f"<{name}>" if name in made and value not in _NOTHING else _without_made(value)
                for name, value in kept.items()
            }
        case list():
            return [_without_made(each) for each in found]
        case str():
            return _plain(found)
        case _:
            return found


def _plain(text: str) -> str:
    for pattern, name in _PATTERNS:
        text = pattern.sub(name, text)
    return text.strip()
