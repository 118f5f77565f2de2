# SPDX-License-Identifier: Apache-2.0
"""WorkloadIdentity, our resource that says which pods get which ID; and what holds for sidecars without any. Pure.

An ID is written with placeholders, and no language: `{td}`, `{cluster}`, `{segment}`, `{ns}`, `{sa}`, `{pod}`.

>>> fill("spiffe://{td}/ns/{ns}", {"td": "example.org", "ns": "serving"})
'spiffe://example.org/ns/serving'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from firedoor.broker.entry import MAX_DNS_NAMES, Entry
from firedoor.broker.kubernetes.mirror import short
from firedoor.broker.kubernetes.rules import (
    Place,
    Rule,
    Unfit,
    check_ttl,
    dns_names,
    federates,
    hint,
    selector,
    texts,
)
from firedoor.certs import Selector, TrustDomain
from firedoor.cluster.objects import Seen, mapping, text
from firedoor.segments.names import is_name
from firedoor.segments.setting_values import duration
from firedoor.segments.well_known import SEGMENT

KIND: Final = "WorkloadIdentity"
PLURAL: Final = "workloadidentities"
# What holds without any object.
DEFAULT: Final = "sidecars"
DEFAULT_ID: Final = "spiffe://{td}/segment/{segment}/ns/{ns}/sa/{sa}"
PLACEHOLDERS: Final = ("td", "cluster", "segment", "ns", "sa", "pod")
MAX_TEMPLATE: Final = 1024
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_YEAR: Final = 366 * 86400


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """What a WorkloadIdentity says. TTLs are seconds, 0 for the broker's default."""

    id: str = DEFAULT_ID
    # Empty: what the pod says that its segment is.
    segment: str = ""
    x509_ttl: int = 0
    jwt_ttl: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    dns_names: tuple[str, ...] = ()
    hint: str = ""

    def draw(self, place: Place) -> Entry:
        """Return the entry of a pod. Raise Unfit."""
        pod = place.pod
        values = {
            "td": place.cluster.trust_domain.name,
            "cluster": place.cluster.name,
            "segment": self.segment or pod.segment,
            "ns": pod.namespace,
            "sa": pod.account,
            "pod": pod.name,
        }
        if any("{segment}" in one for one in (self.id, *self.dns_names)):
            _check_segment(values["segment"])
        # Admission rules name these too.
        where = frozenset([Selector.of("k8s", f"ns:{pod.namespace}"), Selector.of("k8s", f"sa:{pod.account}")])
        return place.entry(
            fill(self.id, values),
            selectors=where,
            x509_svid_ttl=self.x509_ttl,
            jwt_svid_ttl=self.jwt_ttl,
            federates_with=self.federates_with,
            dns_names=dns_names(tuple(fill(name, values) for name in self.dns_names)),
            hint=self.hint,
        )


def default_rule() -> Rule:
    """Return the rule of sidecars: each pod that attests by itself gets the ID that the injector writes for it."""
    return Rule("", DEFAULT, says=Identity(), own_agents=True)


def read_identity(seen: Seen, trust_domain: TrustDomain) -> Rule:
    """Read a WorkloadIdentity; one that is wrong has its trouble with it."""
    spec = mapping(seen.get("spec"))
    try:
        return Rule.of(
            KIND,
            seen,
            says=_identity(spec, trust_domain),
            pods=selector("podSelector", spec.get("podSelector")),
            namespaces=selector("namespaceSelector", spec.get("namespaceSelector")),
        )
    except Unfit as error:
        return Rule.of(KIND, seen, trouble=str(error))


def _identity(spec: Mapping[str, object], trust_domain: TrustDomain) -> Identity:
    names = texts(spec.get("dnsNames"), "dnsNames", MAX_DNS_NAMES)
    return Identity(
        id=_template("id", text(spec.get("id")) or DEFAULT_ID),
        segment=text(spec.get("segment")),
        x509_ttl=_ttl("ttl", spec.get("ttl")),
        jwt_ttl=_ttl("jwtTtl", spec.get("jwtTtl")),
        federates_with=federates(spec.get("federatesWith"), trust_domain),
        dns_names=tuple(_template("dnsNames", name) for name in names),
        hint=hint(spec.get("hint")),
    )


def _template(what: str, said: str) -> str:
    if len(said) > MAX_TEMPLATE:
        raise Unfit(f"{what} has at most {MAX_TEMPLATE} characters")
    for name in _PLACEHOLDER.findall(said):
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
            raise Unfit(f"{what}: there is no placeholder {{{short(name)}}}; known are {known}")
    if "{" in (left := _PLACEHOLDER.sub("", said)) or "}" in left:
        raise Unfit(f"{what}: a brace is left open in {short(said)!r}")
    return said


def _check_segment(said: str) -> None:
    """Pods say theirs in annotations, and a slash there would make more steps of an ID. Raise Unfit."""
    if not is_name(said):
        raise Unfit(f"its {SEGMENT} is {short(said)!r}, and no name of a segment")


def _ttl(what: str, given: object) -> int:
    if given is None:
        return 0
    try:
        return check_ttl(duration(1, _YEAR)(text(given)), what)
    except ValueError:
        raise Unfit(f"{what}: write a duration like 90s, 30m, 12h or 7d") from None


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in the place of placeholders, which all have one."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)
