# SPDX-License-Identifier: Apache-2.0
"""Where a setting comes from and how it is read: a flag before the environment before the file.

Every problem is collected with its place (`sidecar.yaml:12: inbound[0].app.uid: ...`), so that one run shows all.
"""

import difflib
import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from firedoor.certs import CertsError, SpiffeId
from firedoor.segments import document as yaml_text
from firedoor.segments.errors import PolicyErrors
from firedoor.segments.findings import Position
from firedoor.sidecar.errors import ConfigError

T = TypeVar("T")

MAX_PORT = 65535
# sizeof(sockaddr_un.sun_path) less its NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107


class Findings:
    """What is wrong, in the order in which it was seen."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, at: object, key: str, message: str) -> None:
        """Note a problem of one key."""
        line = f"{at}: {key}: {message}" if key else f"{at}: {message}"
        if line not in self.lines:
            self.lines.append(line)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all of them."""
        if self.lines:
            raise ConfigError(self.lines)


def read_file(path: Path) -> yaml_text.Mapping:
    """Read a configuration file. Raise ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: the file cannot be read: {_why(error)}"]) from error
    return parse_text(str(path), text)


def parse_text(name: str, text: str) -> yaml_text.Mapping:
    """Read configuration text: one mapping, or nothing. Raise ConfigError."""
    nodes = _read(name, text)
    if not nodes:
        return yaml_text.Mapping(Position(name, 0), ())
    if len(nodes) > 1 or not isinstance(nodes[0], yaml_text.Mapping):
        raise ConfigError([f"{nodes[-1].at}: a configuration is one mapping of keys to values"])
    return nodes[0]


def parse_value(place: str, text: str, *, several: bool) -> yaml_text.Node:
    """Read a flag's or an environment variable's text; a list may be written `a,b` or as YAML."""
    at = Position(place, 0)
    if text.lstrip().startswith(("[", "{")):
        nodes = _read(place, text)
        return nodes[0]
    if several:
        words = [word.strip() for word in text.split(",") if word.strip()]
        return yaml_text.Sequence(at, tuple(yaml_text.Scalar(at, word, "text") for word in words))
    return yaml_text.Scalar(at, text, "text")


def _read(name: str, text: str) -> list[yaml_text.Node]:
    try:
        return yaml_text.read(yaml_text.Document(name, text))
    except PolicyErrors as error:
        raise ConfigError([f"{found.at}: {found.message}; {found.fix}" for found in error.findings]) from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"


class Section:
    """One mapping of the configuration, read key by key; what nobody asks for is an error."""

    def __init__(self, node: yaml_text.Node, prefix: str, known: Collection[str], findings: Findings) -> None:
        self.node, self.prefix, self.findings = node, prefix, findings
        self._entries: dict[str, yaml_text.Node] = {}
        if not isinstance(node, yaml_text.Mapping):
            findings.add(node.at, prefix, "must be a mapping of keys to values")
            return
        for name, value in node.entries:
            if name.text in known:
                self._entries[name.text] = value
            else:
                findings.add(name.at, self.path(name.text), f"no such key{nearest(name.text, known)}")

    def path(self, key: str) -> str:
        """Return a key's full name."""
        return f"{self.prefix}.{key}" if self.prefix else key

    def get(self, key: str) -> yaml_text.Node | None:
        """Return the value under a key; an empty one counts as absent."""
        node = self._entries.get(key)
        return None if isinstance(node, yaml_text.Scalar) and node.type == "null" else node

    def parse(self, key: str, parser: Callable[[str], T], default: T) -> T:
        """Read a single value; `parser` raises ValueError with a sentence."""
        node = self.get(key)
        return default if node is None else self._scalar(key, node, parser, default)

    def require(self, key: str, parser: Callable[[str], T], placeholder: T) -> T:
        """Read a single value that must be there; the placeholder stands for it until the findings are raised."""
        if self.get(key) is None:
            self.findings.add(self.node.at, self.path(key), "is missing")
        return self.parse(key, parser, placeholder)

    def each(self, key: str, parser: Callable[[str], T]) -> tuple[T, ...]:
        """Read a list of single values."""
        found = []
        for index, node in enumerate(self.items(key)):
            value = self._scalar(f"{key}[{index}]", node, parser, None)
            if value is not None:
                found.append(value)
        return tuple(found)

    def items(self, key: str) -> Iterator[yaml_text.Node]:
        """Yield a list's nodes."""
        node = self.get(key)
        if isinstance(node, yaml_text.Sequence):
            yield from node.items
        elif node is not None:
            self.findings.add(node.at, self.path(key), "must be a list")

    def require_some(self, key: str, what: str) -> None:
        """Note a list that is missing or empty."""
        node = self.get(key)
        if node is None or (isinstance(node, yaml_text.Sequence) and not node.items):
            self.findings.add(self.node.at, self.path(key), f"is missing or empty: {what}")

    def _scalar(self, key: str, node: yaml_text.Node, parser: Callable[[str], T], default: T) -> T:
        if not isinstance(node, yaml_text.Scalar):
            self.findings.add(node.at, self.path(key), "must be a single value")
            return default
        try:
            return parser(node.text)
        except CertsError as error:
            self.findings.add(node.at, self.path(key), str(error))
        except ValueError as error:
            self.findings.add(node.at, self.path(key), str(error))
        return default


def nearest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean X?` when one of the known words is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(sorted(known))}"


# Parsers: each takes the text and raises ValueError with a sentence for the person who wrote it.


def text(value: str) -> str:
    """Take any text but an empty one."""
    if not value:
        raise ValueError("must not be empty")
    return value


def path(value: str) -> Path:
    """Take an absolute path or one from the working directory."""
    return Path(text(value)).expanduser().absolute()


def socket_path(value: str) -> Path:
    """Take the path of a Unix socket, with or without `unix:`."""
    found = path(value.removeprefix("unix://").removeprefix("unix:"))
    check_socket_path(found)
    return found


def check_socket_path(value: Path) -> None:
    """Raise ValueError when the kernel could not bind it."""
    length = len(str(value).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the socket path has {length} bytes, and the kernel takes {MAX_SOCKET_PATH_BYTES} at most; "
            "choose a shorter folder"
        )


def choice(*words: str) -> Callable[[str], str]:
    """Take one of these words."""

    def parser(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return parser


def boolean(value: str) -> bool:
    """Take true or false."""
    return choice("true", "false")(value.lower()) == "true"


def integer(low: int, high: int) -> Callable[[str], int]:
    """Take a whole number within bounds."""

    def parser(value: str) -> int:
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(value)

    return parser


def host_port(value: str) -> str:
    """Take `host:port`, an IPv6 address in brackets."""
    host, _, number = value.rpartition(":")
    if not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    try:
        integer(0, MAX_PORT)(number)
    except ValueError:
        raise ValueError(f"the port must be a whole number from 0 to {MAX_PORT}") from None
    return value


def split_host_port(value: str) -> tuple[str, int]:
    """Divide what `host_port` took."""
    host, _, number = value.rpartition(":")
    return host.strip("[]"), int(number)


def ip_port(value: str) -> str:
    """Take an IP address and a port: what can be bound without asking DNS."""
    host, _ = split_host_port(host_port(value))
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("must be an IP address and a port") from None
    return value


def loopback_port(value: str) -> str:
    """Take a loopback address and a port."""
    host, _ = split_host_port(ip_port(value))
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError("must be a loopback address: the local client is known there alone")
    return value


def workload_id(value: str) -> SpiffeId:
    """Take a SPIFFE ID with a path."""
    found = SpiffeId.parse(value)
    if not found.path:
        raise ValueError("must be a workload's ID, with a path")
    return found


def unique(names: Sequence[tuple[object, str, str]], findings: Findings) -> None:
    """Note each (place, key, name) whose name an earlier one has."""
    seen: Mapping[str, object] = {}
    for at, key, name in names:
        if name in seen:
            findings.add(at, key, f"the name `{name}` is taken by {seen[name]}")
        else:
            seen = {**seen, name: at}
