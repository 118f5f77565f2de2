# SPDX-License-Identifier: Apache-2.0
"""Which pods can hold an ID of a segment: what a packet filter in a cluster goes by, derived from the policy.

A pod says its segment by the label `firedoor.dev/segment`. With it, a pod of service account A in namespace N can have
two IDs: `/segment/<segment>/ns/N/sa/A`, and in Istio's form `/ns/N/sa/A`. It belongs to the segment where the segment's
members match one of them and its admission does not ask for another namespace or account.

A `Place` is a box of such pods; boxes meet in boxes, so that nothing here is guessed.

>>> anywhere, serving = Place("inference", None, None), Place("inference", "serving", None)
>>> anywhere.covers(serving), serving.covers(anywhere), anywhere.meet(Place("inference", "serving", "vllm"))
(True, False, Place(segment='inference', namespace='serving', account='vllm'))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from firedoor.certs import IdPattern, Selector, TrustDomain
from firedoor.certs.pod_token import is_namespace, is_object_name
from firedoor.segments.model import Segment, Subject

# What brokers and SPIRE agents attest about a pod, by selector type and the key before the value.
_NAMESPACE: Final = (("k8s_pod", "ns"), ("k8s", "ns"))
_ACCOUNT: Final = (("k8s_pod", "sa"), ("k8s", "sa"))


@final
@dataclass(frozen=True, slots=True)
class Place:
    """The pods of a segment in a namespace, with a service account; None is any."""

    segment: str
    namespace: str | None
    account: str | None

    def meet(self, other: Place) -> Place | None:
        """Return the pods that are in both."""
        if self.segment != other.segment:
            return None
        namespace, one_namespace = _both(self.namespace, other.namespace)
        account, one_account = _both(self.account, other.account)
        return Place(self.segment, namespace, account) if one_namespace and one_account else None

    def covers(self, other: Place) -> bool:
        """Say whether every pod of the other is one of these."""
        return self.meet(other) == other

    @property
    def can_be(self) -> bool:
        """Whether Kubernetes has namespaces and accounts of these names."""
        fits = self.account is None or is_object_name(self.account)
        return fits and (self.namespace is None or is_namespace(self.namespace))

    @property
    def order(self) -> tuple[str, str, str]:
        """What places are sorted by."""
        return self.segment, self.namespace or "", self.account or ""


def _both(mine: str | None, other: str | None) -> tuple[str | None, bool]:
    return (other if mine is None else mine), mine is None or other is None or mine == other


def home(segment: Segment, own: TrustDomain) -> tuple[Place, ...]:
    """Return the pods that can be in a segment: by its members, and by the places that its admission asks for.

    The fallback's are taken to be all that carry its label, for what no other segment claims is no box.
    """
    everywhere = Place(segment.name, None, None)
    admitted = everywhere
    for selector in (*segment.admission.entry, *segment.admission.node):
        met = admitted.meet(_asked(segment.name, selector))
        if met is None:
            return ()
        admitted = met
    found = [everywhere] if segment.fallback else [p for m in segment.members for p in _pods(m, segment.name, own)]
    return least(met for place in found if (met := place.meet(admitted)) and met.can_be)


def end(segment: Segment, at_home: tuple[Place, ...], subject: Subject, own: TrustDomain) -> tuple[Place, ...]:
    """Return the pods of a segment, which is at home there, that one end of a flow means."""
    if subject.segment not in (None, segment.name):
        return ()
    if not subject.ids:
        return at_home
    shapes = [place for pattern in subject.ids for place in _named(pattern, segment, own)]
    return least(met for mine in at_home for place in shapes if (met := mine.meet(place)) and met.can_be)


def _named(pattern: IdPattern, segment: Segment, own: TrustDomain) -> Iterator[Place]:
    """Yield what a pattern and the members have in common, each form of ID by itself."""
    for form in _FORMS:
        named = _box(pattern, form, segment.name, own)
        if named is None:
            continue
        if segment.fallback:
            yield named
        for member in segment.members:
            claimed = _box(member, form, segment.name, own)
            if claimed is not None and (met := named.meet(claimed)):
                yield met


# None stands for the namespace and for the account, "" for the segment.
_FORMS: Final = (("segment", "", "ns", None, "sa", None), ("ns", None, "sa", None))


def _pods(pattern: IdPattern, segment: str, own: TrustDomain) -> Iterator[Place]:
    for form in _FORMS:
        if place := _box(pattern, form, segment, own):
            yield place


def names_pods(pattern: IdPattern, segment: str, own: TrustDomain) -> bool:
    """Say whether a pattern matches an ID that a pod of the segment can have."""
    return any(_pods(pattern, segment, own))


def _box(pattern: IdPattern, form: tuple[str | None, ...], segment: str, own: TrustDomain) -> Place | None:
    """Return what a pattern leaves open of one form of ID; None when it matches none of them."""
    missing = len(form) - len(pattern.head)
    if pattern.trust_domain != own or missing < 0 or pattern.open != bool(missing):
        return None
    free: list[str | None] = []
    for step, wanted in zip((*pattern.head, *["*"] * missing), form, strict=True):
        if wanted is None:
            free.append(None if step == "*" else step)
        elif step not in ("*", wanted or segment):
            return None
    return Place(segment, free[0], free[1])


def _asked(segment: str, selector: Selector) -> Place:
    """Return where a selector says that the pod is."""
    key, _, value = selector.value.partition(":")
    if (selector.type, key) in _NAMESPACE:
        return Place(segment, value, None)
    return Place(segment, None, value if (selector.type, key) in _ACCOUNT else None)


def least(places: Iterable[Place]) -> tuple[Place, ...]:
    """Leave out what others cover."""
    all_of = sorted(set(places), key=lambda place: place.order)
    return tuple(one for one in all_of if not any(other != one and other.covers(one) for other in all_of))
