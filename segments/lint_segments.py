# SPDX-License-Identifier: Apache-2.0
"""The lint checks on segments; `linter.py` lists them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from firedoor.certs import K8S_POD, IdPattern, TrustDomain
from firedoor.segments.cover import names_everybody
from firedoor.segments.findings import Finding
from firedoor.segments.membership import reserved_for
from firedoor.segments.model import PolicySet, Segment, Trust

# Programs that run whatever they are given, so that their path or hash says nothing about the workload.
_INTERPRETER: Final = re.compile(
    r"(?:python|pypy|perl|ruby|node|nodejs|php|lua|luajit|guile|tclsh|java|dotnet|mono|deno|bun|julia|R|Rscript|erl"
    r"|(?:[bdkz]|ba|da|c|tc|fi)?sh|busybox|env|sudo|su|nsenter|tini|dumb-init|supervisord|uv|uvx|npx)[0-9.]*"
)
# Workload selectors of pods, and what says of a pod's namespace which it is.
_K8S: Final = "k8s"
_ONE_NAMESPACE: Final = ("ns", "ns-label", "pod-uid")


def two_segments(policy: PolicySet) -> Iterator[Finding]:
    """No ID may belong to two segments."""
    for first, second in _overlaps(policy):
        yield Finding(
            "error",
            "id_in_two_segments",
            second.segment.at("spec", "members", second.place),
            f"{second.pattern} of segment {second.segment.name} and {first.pattern} of segment {first.segment.name} "
            f"({first.segment.at('spec', 'members', first.place)}) match the same IDs",
            "an ID belongs to one segment: narrow one of the patterns",
        )


class _Claim(NamedTuple):
    pattern: IdPattern
    segment: Segment
    place: int


def _overlaps(policy: PolicySet) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs of overlapping patterns of two segments. Patterns with different first steps are never compared."""
    buckets: dict[tuple[str, tuple[str, ...]], list[_Claim]] = defaultdict(list)
    wide: dict[str, list[_Claim]] = defaultdict(list)
    for claim in _claims(policy):
        domain, prefix = claim.pattern.trust_domain.name, claim.pattern.head[:2]
        if len(prefix) < 2 or "*" in prefix:
            others = [one for (name, _), bucket in buckets.items() if name == domain for one in bucket]
            yield from _pairs(claim, [*others, *wide[domain]])
            wide[domain].append(claim)
        else:
            yield from _pairs(claim, [*buckets[domain, prefix], *wide[domain]])
            buckets[domain, prefix].append(claim)


def _claims(policy: PolicySet) -> Iterator[_Claim]:
    for segment in policy.segments:
        for place, pattern in enumerate(segment.members):
            yield _Claim(pattern, segment, place)


def _pairs(claim: _Claim, others: list[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    for other in others:
        if other.segment is not claim.segment and other.pattern.overlaps(claim.pattern):
            yield other, claim


def members(policy: PolicySet) -> Iterator[Finding]:
    """Members are named, and not from below a prefix of another segment."""
    for pattern, segment, place in _claims(policy):
        at = segment.at("spec", "members", place)
        if names_everybody(pattern, policy.trust_domain):
            yield Finding(
                "error",
                "wildcard_subject",
                at,
                f"{pattern} makes everybody a member of segment {segment.name}",
                "name what is meant; for the IDs that no segment claims there is `fallback: true`",
            )
        elif (owner := _foreign_prefix(pattern, segment.name, policy.trust_domain)) is not None:
            yield Finding(
                "error",
                "reserved_prefix",
                at,
                f"{pattern} of segment {segment.name} lies below /segment/{owner}/, which is reserved for {owner}",
                f"use /segment/{segment.name}/ or a path outside /segment/",
            )


def _foreign_prefix(pattern: IdPattern, name: str, own: TrustDomain) -> str | None:
    if pattern.trust_domain != own:
        return None
    owner = reserved_for((*pattern.head, *(("**",) if pattern.open else ())))
    return owner if owner != name else None


def fallbacks(policy: PolicySet) -> Iterator[Finding]:
    """One fallback at most, and it is not trusted much: anybody may be in it."""
    found = [segment for segment in policy.segments if segment.fallback]
    for segment in found[1:]:
        yield Finding(
            "error",
            "two_fallbacks",
            segment.at("spec", "fallback"),
            f"segment {segment.name} is a fallback, and so is {found[0].name} ({found[0].at('spec', 'fallback')})",
            "keep one of them",
        )
    for segment in found:
        if segment.trust == Trust.HIGH:
            yield Finding(
                "error",
                "fallback_high",
                segment.at("spec", "trust"),
                f"segment {segment.name} takes every ID that no segment claims, so it cannot have high trust",
                "write `trust: low`",
            )


def admissions(policy: PolicySet) -> Iterator[Finding]:
    """Only the fallback may admit without asking for a selector; only members can be minted for."""
    for segment in policy.segments:
        rule = segment.admission
        if not (rule.entry or rule.node or segment.fallback or rule.breakglass):
            yield Finding(
                "error",
                "admission_empty",
                segment.at("spec", "admission"),
                f"segment {segment.name} asks for no selector, so any entry would be admitted",
                'name selectors, such as entry: ["unix:user:registry"], or better ones of the node',
            )
        if rule.mint and not segment.members:
            yield Finding(
                "error",
                "mint_without_members",
                segment.at("spec", "admission", "mint"),
                f"segment {segment.name} lets SVIDs be minted, but names no members",
                "list the IDs that may be minted in `members`",
            )
        if not segment.members and not segment.fallback:
            yield Finding(
                "warning",
                "no_members",
                segment.at("spec", "members"),
                f"segment {segment.name} has no members",
                f'add members: ["spiffe://{{td}}/segment/{segment.name}/**"]',
            )


def breakglass(policy: PolicySet) -> Iterator[Finding]:
    """What two people open for a while is for nobody else, and ends."""
    for segment in policy.segments:
        rule = segment.admission
        if not rule.breakglass:
            continue
        other = "fallback" if segment.fallback else "mint" if rule.mint else ""
        if rule.entry or rule.node or other:
            yield Finding(
                "error",
                "breakglass_and_others",
                segment.at("spec", "admission", "breakglass"),
                f"segment {segment.name} is for break-glass, and lets others in too ({other or 'selectors'})",
                "give those a segment of their own: admission: {breakglass: true} stands alone",
            )
        if not segment.members:
            yield Finding(
                "error",
                "breakglass_without_members",
                segment.at("spec", "admission", "breakglass"),
                f"segment {segment.name} is for break-glass, but names no members",
                f'add members: ["spiffe://{{td}}/segment/{segment.name}/**"]',
            )
        if segment.expiry.until_revoked:
            yield Finding(
                "error",
                "breakglass_outlives",
                segment.at("spec", "expiry"),
                f"segment {segment.name} is for break-glass, and its streams would outlive the grant",
                "leave `expiry` out: it is `close` then",
            )


def interpreters(policy: PolicySet, hashes: AbstractSet[str]) -> Iterator[Finding]:
    """A selector that names an interpreter admits every script that it runs."""
    for segment in policy.segments:
        for side in ("entry", "node"):
            for index, selector in enumerate(getattr(segment.admission, side)):
                if selector.type == "unix" and _names_interpreter(selector.value, hashes):
                    yield Finding(
                        "warning",
                        "interpreter_selector",
                        segment.at("spec", "admission", side, index),
                        f"{selector} names an interpreter, so it admits whatever script that runs",
                        "add a selector of the workload's own user, unix:user:<name>",
                    )


def pods(policy: PolicySet) -> Iterator[Finding]:
    """What a pod's own sidecar says of it admits nobody; and pods of every namespace are seldom meant."""
    for segment in policy.segments:
        entry, node = segment.admission.entry, segment.admission.node
        claimed = next((index for index, selector in enumerate(entry) if selector.type == _K8S), None)
        if claimed is not None and not node:
            yield Finding(
                "error",
                "pod_by_entry_alone",
                segment.at("spec", "admission", "entry", claimed),
                f"segment {segment.name} goes by {entry[claimed].redacted}, which a pod's own sidecar could claim",
                'add node: ["k8s_pod:cluster:<name>", "k8s_pod:ns:<namespace>"] for sidecars of pods, or '
                'node: ["k8s_psat:cluster:<name>"] for agents of nodes',
            )
        asked = [index for index, selector in enumerate(node) if selector.type == K8S_POD]
        if asked and not any(node[index].key in _ONE_NAMESPACE for index in asked):
            yield Finding(
                # With selectors that are claimed it would be any pod that says so.
                "warning" if claimed is None else "error",
                "pods_of_every_namespace",
                segment.at("spec", "admission", "node", asked[0]),
                f"segment {segment.name} admits pods of every namespace",
                'add "k8s_pod:ns:<namespace>", or "k8s_pod:ns-label:<key>:<value>"',
            )


def _names_interpreter(value: str, hashes: AbstractSet[str]) -> bool:
    key, _, rest = value.partition(":")
    if key == "sha256":
        return rest.lower() in hashes
    return key == "path" and _INTERPRETER.fullmatch(rest.rpartition("/")[2]) is not None


SEGMENT_CHECKS: Final[tuple[Callable[[PolicySet], Iterator[Finding]], ...]] = (
    two_segments,
    members,
    fallbacks,
    admissions,
    breakglass,
    pods,
)
