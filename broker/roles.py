# SPDX-License-Identifier: Apache-2.0
"""Who administers, over the network: roles by SPIFFE ID, as the configuration gives them. Pure.

| role | may |
|---|---|
| viewer | see everything that is shown to administrators; change nothing |
| policy | that, and replace the policy |
| operator | that of a viewer; entries, agents, join tokens, federation, authorities, revocation |
| admin | all, minting too; an entry that says `admin` gives this role (SPIRE's flag) |

An operator could make himself an administrator by an entry for an administrator's ID: rpc/promotion.py is in the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from firedoor.broker.entry import is_reserved
from firedoor.certs import CertsError, IdPattern, SpiffeId, TrustDomain


class Role(Enum):
    """What somebody may do; the strongest first."""

    ADMIN = "admin"
    OPERATOR = "operator"
    POLICY = "policy"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Roles:
    """Which IDs have which role. They may be of other trust domains."""

    patterns: Mapping[Role, Sequence[IdPattern]] = field(default_factory=dict)

    def of(self, spiffe_id: SpiffeId) -> frozenset[Role]:
        """Return the roles of an ID; one role does not hold another."""
        return frozenset(role for role, given in self.patterns.items() if any(one.matches(spiffe_id) for one in given))

    def beyond_viewer(self, spiffe_id: SpiffeId) -> bool:
        """Say whether an ID has a role that changes something."""
        return not self.of(spiffe_id) <= {Role.VIEWER}

    @property
    def trust_domains(self) -> frozenset[TrustDomain]:
        """The trust domains in which somebody has a role."""
        return frozenset(one.trust_domain for given in self.patterns.values() for one in given)


def read_holder(text: str, own: TrustDomain) -> IdPattern:
    """Read who gets a role: an ID or a pattern, in which `{td}` is our own trust domain. Raise ValueError."""
    try:
        found = IdPattern.parse(text, own, allow_reserved=True)
    except CertsError as error:
        raise ValueError(f"{text!r} is no SPIFFE ID and no pattern of IDs: {error}") from None
    if found.is_reserved or (found.is_exact and is_reserved(SpiffeId.parse(str(found)))):
        raise ValueError(f"{text} is no workload's ID: it lies below /spire")
    if found.head == () and found.open:
        raise ValueError(f"{text} is every ID of its trust domain; name whose role it is")
    return found
