# SPDX-License-Identifier: Apache-2.0
"""How a broker is: whether it serves those who come, and what it cannot do meanwhile.

The two are told apart because load balancers act upon the first. Brokers share a database, often a key manager too: if
one that is without them were not ready, all would be away at once, with the bundles, streams and webhooks that need
neither.

    ready     it takes connections, and has a policy and a generation: /ready is 200, health is SERVING
    degraded  a part is away: /ready says so in its body, health of that part is NOT_SERVING; sidecars try again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DATABASE: Final = "database"
KEY_MANAGER: Final = "key-manager"
# Health is told of each by its name.
PARTS: Final = (DATABASE, KEY_MANAGER)


@dataclass(frozen=True, slots=True)
class Condition:
    """What keeps a broker from being ready; and which parts are away, and why."""

    missing: tuple[str, ...] = ()
    degraded: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether it serves those who come."""
        return not self.missing

    def text(self) -> str:
        """Return it as /ready has it: a line each."""
        lines = [*(self.missing or ("ready",)), *(f"degraded: {why}" for why in self.degraded.values())]
        return "".join(f"{line}\n" for line in lines)
