# SPDX-License-Identifier: Apache-2.0
"""Flows as packet filters of Kubernetes: the same permissions a second time, below the sidecars.

A packet filter goes by the labels of pods and by ports, so it says less than a policy does; what is lost comes back as
a report, a finding each. What it does not open stays closed, also where it cannot say what a flow means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from firedoor.certs.pod_token import is_namespace
from firedoor.segments.errors import ExportError
from firedoor.segments.exports.cilium import cilium_policies
from firedoor.segments.exports.cluster_policies import cluster_policies
from firedoor.segments.exports.edges import Options, Plan, about_accounts, plan
from firedoor.segments.exports.network_policies import network_policies
from firedoor.segments.findings import Finding, Position, in_order
from firedoor.segments.linter import usable
from firedoor.segments.model import PolicySet

__all__ = ["FORMS", "Export", "ExportError", "Options", "export"]

# The words of the command line, and what writes each form.
FORMS: Final[dict[str, Callable[[Plan], Iterator[dict[str, Any]]]]] = {
    "kubernetes": network_policies,
    "cilium": cilium_policies,
    "cluster-network-policy": cluster_policies,
}


@final
@dataclass(frozen=True, slots=True)
class Export:
    """Objects for `kubectl apply`, and what they do not say."""

    objects: tuple[dict[str, Any], ...]
    report: tuple[Finding, ...]


def export(policy: PolicySet, form: str, options: Options, now: int) -> Export:
    """Write a policy in one of FORMS, as of a time in Unix seconds. Raise PolicyErrors or ExportError."""
    usable(policy)
    for namespace in (*options.namespaces, options.broker_namespace):
        if not is_namespace(namespace):
            raise ExportError(f"{namespace!r} is no name of a namespace: use a-z, 0-9 and dashes inside, at most 63")
    made = plan(policy, options, now)
    report = [*made.report, *_about_form(policy, form, made)]
    return Export(tuple(FORMS[form](made)), tuple(in_order(report)))


def _about_form(policy: PolicySet, form: str, made: Plan) -> Iterator[Finding]:
    if form != "cilium":
        yield from about_accounts(policy)
    if not made.namespaces:
        return
    nowhere = Position(form, 0)
    message = "pods on their node's own network, and further interfaces (SR-IOV, RDMA), pass by every such policy"
    yield Finding("warning", "uncovered", nowhere, message, "keep hostNetwork and such devices out of these namespaces")
    if form == "cluster-network-policy":
        message = "these policies see no peers outside the cluster, so connections from there are not refused"
        yield Finding("warning", "from_outside", nowhere, message, "apply `firedoor segment export kubernetes` too")
    if made.options.ambient:
        message = "tunnels of Istio's ambient mesh hide the port: whoever may connect to a pod, may to all of its"
        yield Finding("warning", "ambient", nowhere, message, "the sidecars decide on the port")
