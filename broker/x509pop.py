# SPDX-License-Identifier: Apache-2.0
"""Node attestor `x509pop`: a certificate of somebody's PKI, and a signature that proves who holds its key.

Wire compatible with SPIRE's: ID, selectors, messages. Certificates are checked on a thread of their own, for an
attacker's may take 25 ms each.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from firedoor.broker.agent_path import X509Path
from firedoor.broker.attest import Asked, AttestedNode, attested
from firedoor.broker.errors import AttestationRefused, InvalidRequest
from firedoor.broker.vouchers import Vouched, Vouchers
from firedoor.certs import (
    X509POP,
    Challenge,
    EvidenceError,
    NodeCertificateError,
    SvidError,
    TrustDomain,
    read_evidence,
)
from firedoor.certs.evidence import NONCE_BYTES

T = TypeVar("T")


class X509PopAttestor:
    """Checks a certificate, then asks for a signature by its key."""

    def __init__(self, trust_domain: TrustDomain, vouchers: Vouchers, agent_path: X509Path) -> None:
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
        challenge = Challenge.to(vouched.node.key, secrets.token_bytes(NONCE_BYTES))

        async def answer(message: bytes) -> AttestedNode:
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
