# SPDX-License-Identifier: Apache-2.0
"""What this node proves itself with: a join token, once, or what it has of its own.

That is an X.509 certificate (node_certificate.py), an SSH certificate (ssh_certificate.py), a DNS name
(http_challenge.py), or a token of a Kubernetes cluster (pod_token.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from firedoor.sidecar.errors import TokenMissing

# SPIRE's default tokens have 36 characters.
LONGEST_TOKEN = 1024


@dataclass(frozen=True, slots=True)
class Shown:
    """Evidence of this moment. `answer` takes the server's challenge; it may take a tenth of a second.

    `serving` is open from before the payload is shown until the server has decided.
    """

    payload: bytes
    answer: Callable[[bytes], bytes] | None = None
    serving: Callable[[], AbstractAsyncContextManager[None]] = nullcontext


class Evidence(Protocol):
    """One way of attesting, again and again or once."""

    # The attestor's name at the server.
    kind: ClassVar[str]
    # Whether it proves this node again and again, so that nothing of the agent has to be stored.
    again: ClassVar[bool]

    @property
    def advice(self) -> str:
        """Say what to do when the server refuses it."""

    def show(self, now: float) -> Shown:
        """Read what is shown now. Raise OperatorError."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in a file."""

    file: Path
    kind: ClassVar[str] = "join_token"
    again: ClassVar[bool] = False

    @property
    def advice(self) -> str:
        """Say where tokens come from."""
        return "make another token with `firedoor token create`"

    def show(self, _: float) -> Shown:
        """Read the token. Raise TokenMissing."""
        try:
            token = self.file.read_bytes().strip()
        except OSError as error:
            raise TokenMissing(f"the join token file {self.file} cannot be read: {error.strerror}") from error
        if not token or len(token) > LONGEST_TOKEN or len(token.split()) != 1:
            raise TokenMissing(f"{self.file} holds no join token: one word is expected")
        return Shown(token)
