# SPDX-License-Identifier: Apache-2.0
"""ID patterns: which SPIFFE IDs are meant, by whole path segments.

`*` stands for exactly one segment, `**` for one or more and only at the end; nothing stands for a part of a segment or
for a trust domain. `{td}` in the trust domain's place is our own. No pattern matches a trust domain's own ID, and no
wildcard stands for `spire` as the first segment: agents and servers live there, belong to no segment, and are meant
only where they are named (to ban one).

>>> td = TrustDomain.parse("example.org")
>>> models = IdPattern.parse("spiffe://{td}/segment/registry/host/*/svc/models", td)
>>> models.matches(SpiffeId.parse("spiffe://example.org/segment/registry/host/h1/svc/models"))
True
>>> registry = IdPattern.parse("spiffe://{td}/segment/registry/**", td)
>>> registry.covers(models), models.covers(registry), registry.overlaps(models)
(True, False, True)

The Rust core obeys the same vectors, tests/vectors/policy/id_patterns.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs.errors import PatternError, SpiffeIdError
from firedoor.certs.ids import MAX_ID_BYTES, SCHEME, SpiffeId, TrustDomain, byte_length

_OWN: Final = f"{SCHEME}{{td}}"
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
# SPIRE's own namespace, reserved in every trust domain.
_RESERVED: Final = "spire"


@final
@dataclass(frozen=True, order=True, slots=True, init=False, repr=False)
class IdPattern:
    """A set of SPIFFE IDs of one trust domain. `head` holds literal segments and `*`; `open` says that `**` follows."""

    trust_domain: TrustDomain
    head: tuple[str, ...]
    open: bool

    def __init__(self) -> None:
        raise TypeError("IdPattern is made by IdPattern.parse()")

    @classmethod
    def parse(cls, text: str, td: TrustDomain, *, allow_reserved: bool = False) -> IdPattern:
        """Check a pattern in which `{td}` stands for `td`. Raise PatternError with the first rule that it breaks.

        What policy says about IDs may not name `/spire`; revocations may, with `allow_reserved`.
        """
        if text == _OWN or text.startswith(f"{_OWN}/"):
            text = f"{SCHEME}{td.name}{text[len(_OWN) :]}"
        if not text:
            raise PatternError("empty")
        if byte_length(text) > MAX_ID_BYTES:
            raise PatternError("too_long")
        if not text.startswith(SCHEME):
            raise PatternError("wrong_scheme")
        name, slash, rest = text[len(SCHEME) :].partition("/")
        try:
            trust_domain = TrustDomain.parse(name)
        except SpiffeIdError as error:
            raise PatternError(error.code) from None
        if not slash:
            raise PatternError("missing_path")
        segments = rest.split("/")
        _check_segments(segments)
        if segments[0] == _RESERVED and not allow_reserved:
            raise PatternError("reserved_path")
        made = object.__new__(cls)
        object.__setattr__(made, "trust_domain", trust_domain)
        object.__setattr__(made, "open", segments[-1] == "**")
        object.__setattr__(made, "head", tuple(segments[:-1] if made.open else segments))
        return made

    @property
    def is_exact(self) -> bool:
        """Whether it stands for one ID only."""
        return not self.open and "*" not in self.head

    @property
    def is_reserved(self) -> bool:
        """Whether it names IDs at or below `/spire`; all others match none there."""
        return self.head[:1] == (_RESERVED,)

    def matches(self, spiffe_id: SpiffeId) -> bool:
        """Say whether the ID is meant."""
        segments = spiffe_id.segments
        if spiffe_id.trust_domain != self.trust_domain or (segments[:1] == (_RESERVED,)) != self.is_reserved:
            return False
        if not self._fits_length(len(segments)):
            return False
        return all(mine in ("*", theirs) for mine, theirs in zip(self.head, segments, strict=False))

    def covers(self, other: IdPattern) -> bool:
        """Say whether every ID that `other` matches is matched by this pattern too."""
        if not self._comparable(other) or (other.open and not self.open):
            return False
        if not self._fits_length(len(other.head) + other.open):
            return False
        return all(mine in ("*", theirs) for mine, theirs in zip(self.head, other.head, strict=False))

    def overlaps(self, other: IdPattern) -> bool:
        """Say whether some ID is matched by both."""
        if not self._comparable(other):
            return False
        longest = max(len(self.head) + self.open, len(other.head) + other.open)
        if not (self._fits_length(longest) and other._fits_length(longest)):
            return False
        pairs = zip(self.head, other.head, strict=False)
        return all(mine == theirs or "*" in (mine, theirs) for mine, theirs in pairs)

    def _comparable(self, other: IdPattern) -> bool:
        return self.trust_domain == other.trust_domain and self.is_reserved == other.is_reserved

    def _fits_length(self, length: int) -> bool:
        return length > len(self.head) if self.open else length == len(self.head)

    def __str__(self) -> str:
        return "/".join((f"{SCHEME}{self.trust_domain}", *self.head, *(("**",) if self.open else ())))

    def __repr__(self) -> str:
        return f"IdPattern({str(self)!r})"


def _check_segments(segments: list[str]) -> None:
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if not segment:
            raise PatternError("trailing_slash" if position == last else "empty_segment")
        if segment in (".", ".."):
            raise PatternError("dot_segment")
        if segment == "**" and position != last:
            raise PatternError("double_star_not_last")
        if "*" in segment and segment not in ("*", "**"):
            raise PatternError("partial_wildcard")
        if segment not in ("*", "**") and not _SEGMENT.fullmatch(segment):
            raise PatternError("bad_path_char")
