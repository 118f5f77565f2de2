# SPDX-License-Identifier: Apache-2.0
"""Whether an entry that a cluster's object asks for may be made at all.

Nobody becomes more by an object than a pod that its segment admits: no entry stands for an administrator, for nodes, or
above others' entries, unless the configuration lets its kind do so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firedoor.broker.downstream import check_segments
from firedoor.broker.entry import is_node_alias
from firedoor.broker.errors import NotAdmitted
from firedoor.certs import K8S_POD, K8S_PSAT, Selector
from firedoor.segments import AdmissionRefused, PolicySet, Refused, check_admission, check_entry

if TYPE_CHECKING:
    from firedoor.broker.entry import Entry
    from firedoor.broker.kubernetes.registrar import Claim
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_OPENS: Final = (
    "{what}, and that opens more than a workload has; it is made by hand, or with "
    "kubernetes_controllers.spire_privileged for SPIRE's resources"
)
# What is known of a pod for as long as it lives; of labels another may be attested than is seen now.
_LASTING: Final = ("cluster", "ns", "sa", "pod-uid")
# Types of selectors whose values the cluster's own objects show. Those of others stay out of logs and statuses.
_SHOWN: Final = (K8S_POD, K8S_PSAT, "k8s")


class Admits:
    """Asks the policy in force, and what else is registered."""

    def __init__(self, state: State, policy: PolicyKeeper) -> None:
        self._state, self._policy = state, policy

    def refusal(self, claim: Claim) -> str:
        """Say why a claimed entry is not made; nothing when it is."""
        entry = claim.entry
        if entry is None:
            return claim.trouble
        if not claim.privileged and (what := self._opens(entry)):
            return _OPENS.format(what=what)
        for trust_domain in entry.federates_with:
            if trust_domain not in self._state.bundles:
                return f"it federates with {trust_domain}, and there is no bundle of that trust domain"
        policy = self._policy.current.policy
        # Without segments nothing is issued at all; node aliases are in none.
        if policy is None or is_node_alias(entry):
            return ""
        try:
            self._admit(policy, entry, claim.attested)
        except AdmissionRefused as error:
            return str(error) if error.missing.type in _SHOWN else error.redacted
        except (Refused, NotAdmitted) as error:
            return str(error)
        return ""

    def _opens(self, entry: Entry) -> str:
        if is_node_alias(entry):
            return f"{entry.spiffe_id} would name nodes"
        if self._state.is_privileged(entry):
            return f"{entry.spiffe_id} is an administrator's or a downstream authority's ID"
        # What somebody put below an entry that was there already is no reason to take that away.
        if self._state.entries.get(entry.id) is None and any(
            True for _ in self._state.entries.with_parent(entry.spiffe_id)
        ):
            return f"other entries are below {entry.spiffe_id}"
        return ""

    @staticmethod
    def _admit(policy: PolicySet, entry: Entry, attested: frozenset[Selector]) -> None:
        segment = check_entry(policy, entry.spiffe_id, entry=entry.selectors)
        if entry.downstream:
            check_segments(entry, policy)
        if not attested:
            return
        # What may come is taken as there, so that it hides nothing that cannot.
        coming = {one for one in segment.admission.node if one.type != K8S_POD or one.key not in _LASTING}
        check_admission(policy, entry.spiffe_id, entry=entry.selectors, node=attested | coming)
