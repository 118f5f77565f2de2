# SPDX-License-Identifier: Apache-2.0
"""Node attestor `x509pop`: a certificate of somebody's PKI, and a signature that proves who holds its key.

Wire compatible with SPIRE's: ID, selectors, messages. Certificates are checked on a thread of their own, for an
attacker's may take 25 ms each.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from firedoor.broker.attest import Asked, AttestedNode, attested
from firedoor.broker.errors import AttestationRefused, InvalidRequest
from firedoor.broker.vouchers import Vouched, Vouchers
from firedoor.certs import (
    X509POP,
    Challenge,
    EvidenceError,
    NodeCertificateError,
    SpiffeIdError,
    SvidError,
    TrustDomain,
    read_evidence,
)

T = TypeVar("T")

_NONCE_BYTES: Final = 32
_NAME: Final = re.compile(r"\{([a-z]*)\}")
# What one segment of an ID's path may hold (SPIFFE-ID.md 2.2).
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]+")
_FOLDER: Final = f"/spire/agent/{X509POP}/"
_ANY: Final = TrustDomain.parse("example.org")


class AgentPath:
    """The part of an agent's ID after `/spire/agent/x509pop/`, with names in braces that a certificate fills in.

    What a certificate says fits into one segment or is refused, and no path leaves its folder (CVE-2021-27099).
    """

    NAMES: Final = ("fingerprint", "cn", "serialnumber", "path")

    def __init__(self, template: str) -> None:
        self._template = template

    @classmethod
    def parse(cls, template: str) -> AgentPath:
        """Read a template such as `{fingerprint}` or `cn/{cn}`. Raise ValueError."""
        names = set(_NAME.findall(template))
        if not names or not names <= set(cls.NAMES):
            known = ", ".join(f"{{{name}}}" for name in cls.NAMES)
            raise ValueError(f"must name at least one of {known}")
        try:
            _ANY.with_path(_FOLDER + _NAME.sub("x", template))
        except SpiffeIdError as error:
            raise ValueError(str(error)) from None
        return cls(template)

    @property
    def names_path(self) -> bool:
        """Whether it asks for the path of an SVID."""
        return "{path}" in self._template

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the path. Raise AttestationRefused."""

        def value(match: re.Match[str]) -> str:
            name, found = match[1], values.get(match[1], "")
            parts = found.split("/") if name == "path" else [found]
            if not all(_SEGMENT.fullmatch(part) for part in parts):
                raise AttestationRefused(f"the certificate's {name} does not fit into an agent's ID")
            return found

        path = _FOLDER + _NAME.sub(value, self._template)
        try:
            _ANY.with_path(path)
        except SpiffeIdError as error:
            raise AttestationRefused(f"the certificate makes no agent's ID: {error}") from None
        return path


class X509PopAttestor:
    """Checks a certificate, then asks for a signature by its key."""

    def __init__(self, trust_domain: TrustDomain, vouchers: Vouchers, agent_path: AgentPath) -> None:
        self._trust_domain, self._vouchers, self._agent_path = trust_domain, vouchers, agent_path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="x509pop")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def attest(self, payload: bytes, now: int) -> Asked:
        """Check the certificate, and return the challenge to its key."""
        verify = self._vouchers.verifier()

        def check() -> Vouched:
            return verify(read_evidence(payload), now)

        vouched = await asyncio.get_running_loop().run_in_executor(self._thread, _told, check)
        challenge = Challenge.to(vouched.node.key, secrets.token_bytes(_NONCE_BYTES))

        def answer(message: bytes) -> AttestedNode:
            _told(lambda: challenge.check(message, vouched.node.key))
            return _told(lambda: self._attested(vouched))

        return Asked(challenge.message(), answer)

    def _attested(self, vouched: Vouched) -> AttestedNode:
        node = vouched.node
        values = {
            "fingerprint": node.fingerprint,
            "cn": node.common_name,
            "serialnumber": node.serial_number,
            "path": vouched.path,
        }
        return attested(
            self._trust_domain.with_path(self._agent_path.fill(values)),
            X509POP,
            selectors=node.selectors(self._trust_domain),
            can_reattest=True,
            not_after=node.not_after,
        )


def _told(work: Callable[[], T]) -> T:
    """Turn what is wrong with the evidence into the broker's errors."""
    try:
        return work()
    except EvidenceError as error:
        raise InvalidRequest(f"failed to attest: x509pop: {error}") from None
    except (NodeCertificateError, SvidError, AttestationRefused) as error:
        raise AttestationRefused(f"failed to attest: x509pop: {error}") from None
