# SPDX-License-Identifier: Apache-2.0
"""How single values of the language are read: names, patterns, selectors, ports, times, HTTP and gRPC words.

Wherever a subject or an authority is named, an IP address or CIDR is refused with the reason.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Final

from firedoor.certs import IdPattern, PatternError, Selector, SelectorError
from firedoor.segments.document import Node, Scalar, Sequence
from firedoor.segments.names import is_name
from firedoor.segments.paths import PROBLEMS, PathPattern, PathProblem
from firedoor.segments.schema import Bad, Read, Reading, clip, list_of, scalar

# RFC 9110 section 9.1: methods are case-sensitive, and all registered ones are upper-case.
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_AUTHORITY: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?(?::[1-9][0-9]{0,4})?")
_SERVICE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_GRPC_METHOD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,7})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A stream that outlives its SVID by more than this is a mistake.
MAX_UNTIL_REVOKED: Final = 30 * 86400
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:[Zz]|[+-]\d\d:\d\d)")
_IPV4_LIKE: Final = re.compile(r"\d{1,3}(?:\.(?:\d{1,3}|\*|x)){3}(?:[-/].*)?")
# What people write who look for an address field.
ADDRESS_FIELDS: Final = ("address", "addresses", "cidr", "cidrs", "host", "hosts", "ip", "ipBlock", "ips", "subnet")
_WHY_NO_ADDRESS: Final = "an address proves nothing: whoever gets hold of it would hold the permission"
_NO_ADDRESS_FIX: Final = "name a segment, or the SPIFFE ID of the workload that is meant"


def no_address(node: Node, text: str) -> Bad:
    """Say why an address is refused."""
    return Bad("ip_subject", node, f"`{clip(text)}` is an address, and {_WHY_NO_ADDRESS}", _NO_ADDRESS_FIX)


def no_address_field(key: Scalar) -> Bad:
    """Say why there is no field for addresses."""
    return Bad("ip_subject", key, f"there is no field `{clip(key.text)}`: {_WHY_NO_ADDRESS}", _NO_ADDRESS_FIX)


def is_address(text: str) -> bool:
    """Say whether a text is an IP address or CIDR, with or without scheme, port and brackets."""
    rest = text.strip().partition("://")[2] or text.strip()
    host = rest.partition("/")[0]
    candidates = (rest, host, host.rpartition(":")[0], host.partition("]")[0].lstrip("["), rest.strip("[]"))
    return any(_parses(one) for one in candidates) or _IPV4_LIKE.fullmatch(rest) is not None


def _parses(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    # A bare number is an address to `ipaddress` only as int; "10" is none here.
    return "." in text or ":" in text


def name(node: Node, _: Reading) -> str:
    """Read the name of a segment or flow."""
    text = scalar(node, "text", "a name")
    if text in ("*", "**"):
        raise Bad(
            "wildcard_subject", node, f"`{text}` would name everybody", "name each segment that is meant, a flow each"
        )
    if is_address(text):
        raise no_address(node, text)
    if not is_name(text):
        raise Bad(
            "bad_name", node, f"`{clip(text)}` is not a name", "use a-z, 0-9 and dashes inside, 63 characters at most"
        )
    return text


def words(most: int) -> Read[str]:
    """Read a line of text for people."""

    def read(node: Node, _: Reading) -> str:
        text = " ".join(scalar(node, "text", "a text").split())
        if len(text) > most:
            raise Bad("too_long", node, f"the text is longer than {most} characters", "shorten it")
        return text

    return read


def integer(least: int, most: int) -> Read[int]:
    """Read a decimal number within bounds. YAML's octal, hexadecimal and base-60 forms are refused."""

    def read(node: Node, _: Reading) -> int:
        text = scalar(node, "integer", f"a number from {least} to {most}")
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text) or not least <= int(text) <= most:
            raise Bad("out_of_range", node, f"`{clip(text)}` is not a number from {least} to {most}", "correct it")
        return int(text)

    return read


def boolean(node: Node, _: Reading) -> bool:
    """Read true or false; YAML's other words for them (yes, on) are refused."""
    text = scalar(node, "boolean", "true or false")
    if text not in ("true", "false"):
        raise Bad("wrong_type", node, f"`{clip(text)}` is not true or false", "write true or false")
    return text == "true"


def pattern(node: Node, reading: Reading) -> IdPattern:
    """Read an ID pattern, `{td}` being our own trust domain."""
    text = scalar(node, "text", "an ID pattern")
    if is_address(text):
        raise no_address(node, text)
    try:
        return IdPattern.parse(text, reading.trust_domain)
    except PatternError as error:
        raise Bad(
            f"pattern_{error.code}",
            node,
            f"`{clip(text)}` is not an ID pattern: {error}",
            "write it like spiffe://{td}/segment/<segment>/host/*/svc/<service>",
        ) from None


def one_or_more(item: Read[IdPattern]) -> Read[tuple[IdPattern, ...]]:
    """Read one pattern, or a list of them."""
    many = list_of(item, "ID patterns", at_least=1)

    def read(node: Node, reading: Reading) -> tuple[IdPattern, ...]:
        return many(node, reading) if isinstance(node, Sequence) else (item(node, reading),)

    return read


def selector(node: Node, _: Reading) -> Selector:
    """Read a selector, `type:value`."""
    text = scalar(node, "text", "a selector")
    try:
        return Selector.parse(text)
    except SelectorError as error:
        raise Bad(
            "bad_selector", node, f"this is not a selector: {error}", "write it like unix:user:registry"
        ) from None


def path(node: Node, _: Reading) -> PathPattern:
    """Read a path pattern."""
    text = scalar(node, "text", "a path pattern")
    try:
        return PathPattern.parse(text)
    except PathProblem as problem:
        sentence, fix = PROBLEMS[problem.code]
        raise Bad(f"path_{problem.code}", node, f"`{clip(text)}` is not a path pattern: {sentence}", fix) from None


def method(node: Node, _: Reading) -> str:
    """Read an HTTP method."""
    text = scalar(node, "text", "an HTTP method")
    if _METHOD.fullmatch(text):
        return text
    fix = f"write {text.upper()}" if _METHOD.fullmatch(text.upper()) else "write a method such as GET"
    if text == "*":
        fix = "leave `methods` out if every method is meant"
    raise Bad("bad_method", node, f"`{clip(text)}` is not an HTTP method; they are upper-case", fix)


def authority(node: Node, _: Reading) -> str:
    """Read the authority of HTTP requests, `host` or `host:port`, as the client sends it."""
    text = scalar(node, "text", "an authority")
    if is_address(text):
        raise no_address(node, text)
    if not _AUTHORITY.fullmatch(text):
        raise Bad(
            "bad_authority", node, f"`{clip(text)}` is not an authority", "write host or host:port, in lower case"
        )
    return text


def service(node: Node, _: Reading) -> str:
    """Read the full name of a gRPC service."""
    text = scalar(node, "text", "a gRPC service")
    if not _SERVICE.fullmatch(text) or len(text) > 255:
        raise Bad("bad_service", node, f"`{clip(text)}` is not a gRPC service", "write its full name: package.Service")
    return text


def grpc_method(node: Node, _: Reading) -> str:
    """Read the name of a gRPC method, without its service."""
    text = scalar(node, "text", "a gRPC method")
    if not _GRPC_METHOD.fullmatch(text):
        raise Bad("bad_grpc_method", node, f"`{clip(text)}` is not a gRPC method", "write its name alone: ModelInfer")
    return text


def duration(node: Node, _: Reading) -> int:
    """Read a length of time in seconds, such as 12h."""
    found = _DURATION.fullmatch(scalar(node, "text", "a duration"))
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= MAX_UNTIL_REVOKED:
        raise Bad(
            "bad_duration", node, "this is not a duration of at most 30 days", "write it like 90s, 30m, 12h or 7d"
        )
    return seconds


def time(node: Node, _: Reading) -> int:
    """Read an RFC 3339 time, whole seconds with an offset, as Unix seconds. YAML's own timestamps need no quotes."""
    text = node.text if isinstance(node, Scalar) else ""
    try:
        seconds = int(datetime.fromisoformat(text.upper()).timestamp()) if _TIME.fullmatch(text) else 0
    except (ValueError, OverflowError):
        seconds = 0
    # 0 stands for an open side in the table.
    if seconds <= 0:
        raise Bad("bad_time", node, f"`{clip(text)}` is not a time", "write it like 2026-05-01T08:00:00Z")
    return seconds
