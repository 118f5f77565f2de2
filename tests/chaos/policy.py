# SPDX-License-Identifier: Apache-2.0
"""The policy of the world that faults go through, and its edits."""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from typing import Final

from tests.e2e.conftest import UID
from tests.load.conftest import FLOW, GET

GID: Final = f"gid:{os.getegid()}"
# A selector that nobody has.
NOBODYS: Final = "unix:supplementary_gid:4294000000"
# What may be edited, each by itself.
NARROWED, WIDENED, MOVED, BROKEN = "narrowed", "widened", "moved", "broken"
PORT: Final = 9000

# Who there is, and by which selectors. `good` and `bad` are of one segment or the other as the policy moves.
IDS: Final = {
    "registry": "/segment/registry/host/h1/svc/models",
    "inference": "/segment/inference/host/h2/svc/vllm",
    "good": "/ns/app/good",
    "bad": "/ns/app/bad",
    "ann": "/segment/training/user/ann",
    "bob": "/segment/training/user/bob",
}
SELECTORS: Final = {name: (UID,) if name == "bad" else (UID, GID) for name in IDS}
OPERATORS: Final = "spiffe://example.org/segment/training/user/*"

_SEGMENT: Final = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: {name}}}
spec:
  function: {name}
  trust: medium
  mode: enforce
  members: [{members}]
  admission: {admission}
---
"""


def policy(edits: AbstractSet[str] = frozenset()) -> str:
    """Write the policy with these edits."""
    asked = [f"unix:{UID}"]
    if WIDENED not in edits:
        asked.append(f"unix:{GID}")
    if NARROWED in edits:
        asked.append(NOBODYS)
    members = {name: [f"spiffe://{{td}}/segment/{name}/**"] for name in ("registry", "inference", "training")}
    members["inference" if MOVED in edits else "training"].append("spiffe://{td}/ns/**")
    admission = dict.fromkeys(members, f'{{entry: ["unix:{UID}"]}}')
    admission["inference"] = f"{{entry: [{', '.join(_quoted(asked))}]}}"
    admission["emergency"], members["emergency"] = "{breakglass: true}", ["spiffe://{td}/segment/emergency/**"]
    segments = (
        _SEGMENT.format(name=name, members=", ".join(_quoted(found)), admission=admission[name])
        for name, found in members.items()
    )
    flows = (
        FLOW.format(
            name=f"{source}-reads", source=source, destination="registry", port=PORT, action=GET.format("models")
        )
        for source in ("inference", "emergency")
    )
    # What breaks a rule must change nothing.
    broken = FLOW.format(name="x", source="nobody", destination="registry", port=1, action="{tcp: {}}")
    return "".join((*segments, *flows, broken if BROKEN in edits else ""))


def _quoted(texts: list[str]) -> list[str]:
    return [f'"{one}"' for one in texts]
