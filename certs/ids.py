# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs and trust domains, by every rule of the SPIFFE-ID standard (SPIFFE-ID.md section 2).

>>> spiffe_id = SpiffeId.parse("spiffe://example.org/segment/registry/host/h1/svc/models")
>>> spiffe_id.trust_domain.name, spiffe_id.path
('example.org', '/segment/registry/host/h1/svc/models')
>>> str(TrustDomain.parse("example.org").with_path("/spire/server"))
'spiffe://example.org/spire/server'
>>> SpiffeId.parse("spiffe://Example.org/x")
Traceback (most recent call last):
...
firedoor.certs.errors.SpiffeIdError: a trust domain name holds only a-z, 0-9, dot, dash and underscore

The Rust core obeys the same vectors, tests/vectors/spiffe_ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn, final

from firedoor.certs.errors import SpiffeIdError

SCHEME: Final = "spiffe://"
# SPIFFE-ID.md 2.3: an implementation supports IDs up to 2048 bytes and should make none that is longer.
MAX_ID_BYTES: Final = 2048
# SPIFFE-ID.md 2.1: as long as a host name at most (RFC 3986 section 3.2.2).
MAX_TRUST_DOMAIN_BYTES: Final = 255

# SPIFFE-ID.md 2.1 and 2.2. No percent-encoding, user, port, query or fragment fits either alphabet.
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")


def byte_length(text: str) -> int:
    """Return the length in UTF-8; a lone surrogate, which no file or wire can carry, counts 3."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@final
@dataclass(frozen=True, order=True, slots=True, init=False, repr=False)
class TrustDomain:
    """A trust domain, by name: `example.org`. Never a DNS name or an address, whatever it looks like."""

    name: str

    def __init__(self) -> None:
        _no_constructor("TrustDomain")

    @classmethod
    def parse(cls, name: str) -> TrustDomain:
        """Check a trust domain name. Raise SpiffeIdError."""
        _check_trust_domain(name)
        return cls._made(name)

    @classmethod
    def _made(cls, name: str) -> TrustDomain:
        made = object.__new__(cls)
        object.__setattr__(made, "name", name)
        return made

    @property
    def id(self) -> SpiffeId:
        """The SPIFFE ID of the trust domain itself, without a path."""
        return SpiffeId._made(self, "")  # noqa: SLF001

    def with_path(self, path: str) -> SpiffeId:
        """Return the ID with this path, which is empty or begins with a slash. Raise SpiffeIdError."""
        if path and not path.startswith("/"):
            raise SpiffeIdError("missing_leading_slash")
        return SpiffeId.parse(f"{SCHEME}{self.name}{path}")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"TrustDomain({self.name!r})"


@final
@dataclass(frozen=True, order=True, slots=True, init=False, repr=False)
class SpiffeId:
    """A SPIFFE ID. `path` is empty for the trust domain's own ID, else begins with a slash."""

    trust_domain: TrustDomain
    path: str

    def __init__(self) -> None:
        _no_constructor("SpiffeId")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Check a text. Raise SpiffeIdError with the code of the first rule that it breaks."""
        if not text:
            raise SpiffeIdError("empty")
        if byte_length(text) > MAX_ID_BYTES:
            raise SpiffeIdError("too_long")
        if not text.startswith(SCHEME):
            raise SpiffeIdError("wrong_scheme")
        name, slash, rest = text[len(SCHEME) :].partition("/")
        _check_trust_domain(name)
        if slash:
            _check_segments(rest.split("/"))
        return cls._made(TrustDomain._made(name), slash + rest)  # noqa: SLF001

    @classmethod
    def _made(cls, trust_domain: TrustDomain, path: str) -> SpiffeId:
        made = object.__new__(cls)
        object.__setattr__(made, "trust_domain", trust_domain)
        object.__setattr__(made, "path", path)
        return made

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments, none for the trust domain's own ID."""
        return tuple(self.path.split("/")[1:])

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"

    def __repr__(self) -> str:
        return f"SpiffeId({str(self)!r})"


def _check_trust_domain(name: str) -> None:
    if not name:
        raise SpiffeIdError("missing_trust_domain")
    if byte_length(name) > MAX_TRUST_DOMAIN_BYTES:
        raise SpiffeIdError("trust_domain_too_long")
    if not _TRUST_DOMAIN.fullmatch(name):
        raise SpiffeIdError("bad_trust_domain_char")


def _check_segments(segments: list[str]) -> None:
    """Check from the left; a segment breaks at most one of the rules."""
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if not segment:
            raise SpiffeIdError("trailing_slash" if position == last else "empty_segment")
        if segment in (".", ".."):
            raise SpiffeIdError("dot_segment")
        if not _SEGMENT.fullmatch(segment):
            raise SpiffeIdError("bad_path_char")


def _no_constructor(name: str) -> NoReturn:
    raise TypeError(f"{name} is made by {name}.parse()")
