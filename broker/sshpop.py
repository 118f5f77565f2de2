# SPDX-License-Identifier: Apache-2.0
"""Node attestor `sshpop`: the SSH certificate of a host, and a signature that proves who holds its key.

Wire compatible with SPIRE's: ID, messages, no selectors.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from firedoor.broker.agent_path import SshPath
from firedoor.broker.attest import Asked, AttestedNode, attested
from firedoor.broker.errors import AttestationRefused, ConfigError, InvalidRequest
from firedoor.broker.read_files import ReadFiles, read_capped
from firedoor.certs import (
    SSHPOP,
    BundleError,
    EvidenceError,
    SshCertificateError,
    SshChallenge,
    SshNode,
    TrustDomain,
    read_ssh_authorities,
    read_ssh_evidence,
    verify_ssh_certificate,
)
from firedoor.certs.evidence import NONCE_BYTES

T = TypeVar("T")

_log = logging.getLogger("firedoor.broker.sshpop")
_SETTING: Final = "sshpop.cert_authorities"


def read_authority_files(paths: Sequence[Path]) -> frozenset[bytes]:
    """Read the keys of CAs of hosts. Raise ConfigError."""
    found: set[bytes] = set()
    for path in paths:
        try:
            keys = read_ssh_authorities(read_capped(_SETTING, path))
        except BundleError as error:
            raise ConfigError(f"{_SETTING}: {path}: {error}") from None
        if not keys:
            raise ConfigError(f"{_SETTING}: {path} holds no key")
        found |= keys
    return frozenset(found)


def ssh_authorities(paths: Sequence[Path]) -> ReadFiles[frozenset[bytes]]:
    """Return the CAs of hosts, read again when their files change. Raise ConfigError."""
    return ReadFiles(paths, read_authority_files, "CAs of SSH hosts", _log)


class SshPopAttestor:
    """Checks a certificate, then asks for a signature by its key."""

    def __init__(
        self, trust_domain: TrustDomain, authorities: ReadFiles[frozenset[bytes]], domain: str, agent_path: SshPath
    ) -> None:
        self._trust_domain, self._authorities = trust_domain, authorities
        self._domain, self._agent_path = domain, agent_path
        # An attacker's certificate may take a millisecond or two.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sshpop")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def attest(self, payload: bytes, now: int) -> Asked:
        """Check the certificate, and return the challenge to its key."""
        authorities = self._authorities.value

        def check() -> SshNode:
            return verify_ssh_certificate(read_ssh_evidence(payload), authorities, now, self._domain)

        node = await asyncio.get_running_loop().run_in_executor(self._thread, _told, check)
        challenge = SshChallenge.of(secrets.token_bytes(NONCE_BYTES))

        async def answer(message: bytes) -> AttestedNode:
            _told(lambda: challenge.check(message, node.key))
            return _told(lambda: self._attested(node))

        return Asked(challenge.message(), answer)

    def _attested(self, node: SshNode) -> AttestedNode:
        path = self._agent_path.fill({"fingerprint": node.fingerprint, "hostname": node.hostname})
        return attested(self._trust_domain.with_path(path), SSHPOP, can_reattest=True, not_after=node.not_after)


def _told(work: Callable[[], T]) -> T:
    """Turn what is wrong with the evidence into the broker's errors."""
    try:
        return work()
    except EvidenceError as error:
        raise InvalidRequest(f"failed to attest: sshpop: {error}") from None
    except (SshCertificateError, AttestationRefused) as error:
        raise AttestationRefused(f"failed to attest: sshpop: {error}") from None
