# SPDX-License-Identifier: Apache-2.0
"""`firedoor` with faults of its own, for tests of what is to find them: `python -m tests.chaos.planted WORDS`.

Nothing of this is in the product. Each fault acts while a file of its name is in the folder CHAOS_PLANTED.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from firedoor.broker.errors import BrokerError
from firedoor.mtls import Revocation
from firedoor.wire import control_pb2

_FOLDER = Path(os.environ["CHAOS_PLANTED"])


def planted(name: str) -> bool:
    """Say whether a fault acts now."""
    return (_FOLDER / name).exists()


def _sign_without_admission() -> None:
    from firedoor.broker import admissible, issuing

    asks = issuing.check_admission

    def check(policy: Any, spiffe_id: Any, **selectors: Any) -> Any:
        try:
            return asks(policy, spiffe_id, **selectors)
        except issuing.Refused:
            if not planted("admission"):
                raise
        return None

    issuing.check_admission = admissible.check_admission = check


def _sign_for_anybody() -> None:
    from firedoor.broker.state import State

    asks = State.entitled_entry

    def entitled(self: State, agent_id: Any, entry_id: str) -> Any:
        found = self.entries.get(entry_id)
        return found if planted("entitlement") and found else asks(self, agent_id, entry_id)

    State.entitled_entry = entitled  # type: ignore[method-assign]


def _serve_an_older_bundle() -> None:
    from dataclasses import replace

    from firedoor.broker.bundle_endpoint import BundlePage
    from firedoor.broker.http import Answer

    asks = BundlePage._present

    def present(self: BundlePage) -> Answer:
        answer = asks(self)
        if not planted("older"):
            return answer
        body = re.sub(
            rb'("spiffe_sequence": ?)(\d+)', lambda found: found[1] + b"%d" % (int(found[2]) - 1), answer.body
        )
        return replace(answer, body=body, headers={})

    BundlePage._present = present  # type: ignore[method-assign]


def _take_a_token_twice() -> None:
    from firedoor.broker import attest

    spends = attest.spend_token

    def spend(connection: Connection, token: bytes) -> int:
        try:
            return spends(connection, token)
        except BrokerError:
            if not planted("twice"):
                raise
        return 2**40

    attest.spend_token = spend


def _write_records_wrongly() -> None:
    from firedoor.sidecar.records import Stream

    writes = Stream.write

    def write(self: Stream, lines: bytes, writable: Callable[[int], None]) -> None:
        if planted("drop"):
            _, _, lines = lines.partition(b"\n")
        if planted("ahead"):
            # As if it had decided by what no broker has committed.
            lines = re.sub(
                rb'("generation": ?\[\d+, ?)(\d+)', lambda found: found[1] + b"%d" % (int(found[2]) + 10**6), lines
            )
        writes(self, lines, writable)

    Stream.write = write  # type: ignore[method-assign]


def _take_what_is_revoked() -> None:
    from firedoor.sidecar import identities

    reads = identities.core_revocation

    def revocation(one: control_pb2.Revocation) -> Revocation:
        if planted("revoked"):
            return Revocation(serial="f" * 32, reason="somebody else's")
        return reads(one)

    identities.core_revocation = revocation
    judges = identities.Verifier.is_stale

    def is_stale(self: identities.Verifier, identity: identities.Identity, now: float) -> bool:
        # Or another one is there before the next request.
        return not planted("revoked") and judges(self, identity, now)

    identities.Verifier.is_stale = is_stale  # type: ignore[method-assign]


def main() -> None:
    """Put the faults in, and run."""
    _sign_without_admission()
    _sign_for_anybody()
    _serve_an_older_bundle()
    _take_a_token_twice()
    _write_records_wrongly()
    _take_what_is_revoked()
    from firedoor.cli.main import main as firedoor

    sys.exit(firedoor())


if __name__ == "__main__":
    main()
