# SPDX-License-Identifier: Apache-2.0
"""What an agent's ID is made of: a template that evidence fills in.

What evidence says fits into one segment or is refused, and no path leaves its folder (CVE-2021-27099).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final, Self

from firedoor.broker.errors import AttestationRefused
from firedoor.certs import SSHPOP, X509POP, SpiffeIdError, TrustDomain

_NAME: Final = re.compile(r"\{([a-z]*)\}")
# What one segment of an ID's path may hold (SPIFFE-ID.md 2.2).
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]+")
_ANY: Final = TrustDomain.parse("example.org")


class AgentPath:
    """The part of an agent's ID after `/spire/agent/<attestor>/`, with names in braces that evidence fills in."""

    ATTESTOR: ClassVar[str]
    NAMES: ClassVar[tuple[str, ...]]

    def __init__(self, template: str) -> None:
        self._template = template

    @classmethod
    def _folder(cls) -> str:
        return f"/spire/agent/{cls.ATTESTOR}/"

    @classmethod
    def parse(cls, template: str) -> Self:
        """Read a template such as `{fingerprint}` or `cn/{cn}`. Raise ValueError."""
        names = set(_NAME.findall(template))
        if not names or not names <= set(cls.NAMES):
            known = ", ".join(f"{{{name}}}" for name in cls.NAMES)
            raise ValueError(f"must name at least one of {known}")
        try:
            _ANY.with_path(cls._folder() + _NAME.sub("x", template))
        except SpiffeIdError as error:
            raise ValueError(str(error)) from None
        return cls(template)

    def names(self, name: str) -> bool:
        """Whether it asks for this."""
        return f"{{{name}}}" in self._template

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the path. Raise AttestationRefused."""

        def value(match: re.Match[str]) -> str:
            name, found = match[1], values.get(match[1], "")
            parts = found.split("/") if name == "path" else [found]
            if not all(_SEGMENT.fullmatch(part) for part in parts):
                raise AttestationRefused(f"the certificate's {name} does not fit into an agent's ID")
            return found

        path = self._folder() + _NAME.sub(value, self._template)
        try:
            _ANY.with_path(path)
        except SpiffeIdError as error:
            raise AttestationRefused(f"the certificate makes no agent's ID: {error}") from None
        return path


class X509Path(AgentPath):
    """Of a node's X.509 certificate."""

    ATTESTOR = X509POP
    NAMES = ("fingerprint", "cn", "serialnumber", "path")


class SshPath(AgentPath):
    """Of a host's SSH certificate."""

    ATTESTOR = SSHPOP
    NAMES = ("fingerprint", "hostname")
