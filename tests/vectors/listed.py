# SPDX-License-Identifier: Apache-2.0
"""A case's list of CAs as `firedoor.mtls.verify_svid` takes it: with a decision table that has the case's members."""

from typing import Any

from firedoor.segments import table_bytes
from firedoor.wire import policy_pb2


def listed(case: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, none for a case without a list."""
    if "intermediates" not in case:
        return {}
    segments = [policy_pb2.Segment(name=name, members=members) for name, members in case["members"].items()]
    return {
        "intermediates": [(bytes.fromhex(key), set(names)) for key, names in case["intermediates"].items()],
        "table": table_bytes(policy_pb2.Table(version=1, trust_domain="td", segments=segments)),
    }
