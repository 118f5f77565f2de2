# SPDX-License-Identifier: Apache-2.0
"""Selectors: what an attestor saw, written `type:value`.

>>> selector = Selector.parse("k8s:pod-label:app:vllm")
>>> selector.type, selector.value, selector.key
('k8s', 'pod-label:app:vllm', 'pod-label')

Values can be secrets (labels, environment variables): logs and errors take `redacted`, never the value.

>>> selector.redacted
'k8s:pod-label:…'
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs.errors import SelectorError
from firedoor.certs.ids import byte_length

# SPIRE stores the type in 255 characters; a value holds a path (4096 bytes on Linux) at most.
MAX_TYPE_BYTES: Final = 255
MAX_VALUE_BYTES: Final = 4096

# Control characters break logs and NUL breaks databases; lone surrogates are no UTF-8.
_BAD: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@final
@dataclass(frozen=True, order=True, slots=True, init=False, repr=False)
class Selector:
    """One selector. The type holds no colon; the value may."""

    type: str
    value: str

    def __init__(self) -> None:
        raise TypeError("Selector is made by Selector.parse()")

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Check `type:value`; the first colon divides. Raise SelectorError."""
        kind, colon, value = text.partition(":")
        if not colon:
            raise SelectorError("missing_colon")
        return cls.of(kind, value)

    @classmethod
    def of(cls, type: str, value: str) -> Selector:  # noqa: A002
        """Check a selector that comes in two parts, as on the wire. Raise SelectorError."""
        if not type:
            raise SelectorError("missing_type")
        if ":" in type:
            raise SelectorError("colon_in_type")
        if not value:
            raise SelectorError("missing_value")
        if byte_length(type) > MAX_TYPE_BYTES:
            raise SelectorError("type_too_long")
        if byte_length(value) > MAX_VALUE_BYTES:
            raise SelectorError("value_too_long")
        if _BAD.search(type) or _BAD.search(value):
            raise SelectorError("bad_char")
        made = object.__new__(cls)
        object.__setattr__(made, "type", type)
        object.__setattr__(made, "value", value)
        return made

    @property
    def key(self) -> str:
        """The value's first part where it has several (`uid` of `unix:uid:1000`), else empty."""
        key, colon, _ = self.value.partition(":")
        return key if colon else ""

    @property
    def redacted(self) -> str:
        """Type and key without the value, for logs and errors."""
        return f"{self.type}:{self.key}:…" if self.key else f"{self.type}:…"

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"

    def __repr__(self) -> str:
        return f"Selector({self.redacted!r})"


def selectors_of(kind: str, values: Iterable[str]) -> frozenset[Selector]:
    """Make selectors of what was seen of a pod; what one cannot hold is left out: no API server takes it as a label."""
    found = set()
    for value in values:
        with contextlib.suppress(SelectorError):
            found.add(Selector.of(kind, value))
    return frozenset(found)
