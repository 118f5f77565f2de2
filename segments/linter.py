# SPDX-License-Identifier: Apache-2.0
"""What is legal but wrong: claims that collide, subjects that name everybody, rules that never decide.

Every check is a small generator over a policy; an error keeps the policy from being used, a warning is for a person to
judge. Each finding says what to write instead.

| code | |
|---|---|
| `id_in_two_segments` | error: an ID would belong to two segments |
| `reserved_prefix` | error: `/segment/<name>/` is claimed by another segment |
| `wildcard_subject` | error: a pattern names a whole trust domain, or all segments at once |
| `two_fallbacks`, `fallback_high` | error: one fallback at most, and never with high trust |
| `admission_empty` | error: a segment that is not the fallback admits everybody |
| `mint_without_members` | error: minting for a segment that claims no ID |
| `breakglass_and_others` | error: a segment for break-glass that lets others in too |
| `breakglass_without_members` | error: a segment for break-glass that claims no ID |
| `breakglass_outlives` | error: streams of a segment for break-glass that outlive the grant |
| `pod_by_entry_alone` | error: selectors that a pod's own sidecar could claim admit it |
| `pods_of_every_namespace` | warning: pods of any namespace are admitted; an error beside selectors that they claim |
| `too_large` | error: a segment, flow or service is larger than the engine takes |
| `no_members` | warning: nobody can be in the segment |
| `interpreter_selector` | warning: a selector names a program that runs any script |
| `missing_owner`, `missing_reason` | error: a flow that nobody answers for |
| `unknown_segment` | error: a flow names a segment that is not declared |
| `outside_segment` | error: an end of a flow can match no member of its segment |
| `empty_allow`, `never_valid` | error: a flow that never allows anything |
| `unreachable_rule` | error: everything that an action allows is allowed by another |
| `leads_to_fallback` | warning: a flow leads to whatever no segment claims |
| `refused_method` | warning: CONNECT is refused before flows are asked |
| `address_in_two_services`, `port_twice` | error: an address and port would lead to two expectations |
| `directory_too_large` | error: all services together are larger than a sidecar takes |
| `service_without_flow` | warning: no flow leads to what a port of a service expects |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from firedoor.certs import TrustDomain
from firedoor.segments.document import Document
from firedoor.segments.errors import PolicyErrors
from firedoor.segments.findings import Finding, in_order
from firedoor.segments.lint_flows import FLOW_CHECKS
from firedoor.segments.lint_segments import SEGMENT_CHECKS, interpreters
from firedoor.segments.lint_services import SERVICE_CHECKS
from firedoor.segments.model import Flow, PolicySet, Segment, Service
from firedoor.segments.parse import load
from firedoor.segments.table import part_size

# The engine bounds what one part of a table may take while it is read (MAX_PART in mtls/policy).
_MAX_PART: Final = 1 << 20


def _sizes(policy: PolicySet) -> Iterator[Finding]:
    parts: tuple[Segment | Flow | Service, ...] = (*policy.segments, *policy.flows, *policy.services)
    for part in parts:
        if part_size(part) > _MAX_PART:
            at = part.at("metadata", "name")
            yield Finding("error", "too_large", at, f"{part.name} is larger than 1 MiB", "use fewer and wider patterns")


_CHECKS: Final[tuple[Callable[[PolicySet], Iterator[Finding]], ...]] = (
    *SEGMENT_CHECKS,
    *FLOW_CHECKS,
    *SERVICE_CHECKS,
    _sizes,
)


def lint(policy: PolicySet, *, interpreter_hashes: AbstractSet[str] = frozenset()) -> list[Finding]:
    """Return everything to know about a policy, in the order of file and line.

    `interpreter_hashes`: SHA-256 sums, in hex, of interpreters that are known to the caller.
    """
    found = [finding for check in _CHECKS for finding in check(policy)]
    found.extend(interpreters(policy, interpreter_hashes))
    return in_order(found)


def accept(documents: Iterable[Document], trust_domain: TrustDomain) -> tuple[PolicySet, list[Finding]]:
    """Load and lint a policy and return it with its warnings. Raise PolicyErrors if it must not be used."""
    policy = load(documents, trust_domain)
    return policy, usable(policy)


def usable(policy: PolicySet) -> list[Finding]:
    """Lint a policy and return its warnings. Raise PolicyErrors if it must not be used."""
    findings = lint(policy)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise PolicyErrors(errors)
    return findings
