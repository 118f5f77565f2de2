# SPDX-License-Identifier: Apache-2.0
"""What a cluster's objects may not make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.entry import Entry
from firedoor.broker.kubernetes.admits import Admits
from firedoor.broker.kubernetes.registrar import Claim
from firedoor.certs import Selector, TrustDomain
from tests.broker.harness import RunningBroker, running

TD = TrustDomain.parse("example.org")
POLICY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: inference}
spec:
  members: ["spiffe://{td}/segment/inference/**"]
  admission: {node: ["k8s_pod:label:app:vllm", "k8s_pod:ns:inference"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: vault}
spec:
  members: ["spiffe://{td}/segment/vault/**"]
  admission: {entry: ["unix:user:hush"], node: ["k8s_pod:ns:inference"]}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: legacy}
spec: {fallback: true, members: [], admission: {}}
"""
RANK = ("", "", "")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with running(tmp_path, POLICY) as found:
        yield found


def claim(path: str, *, parent: str = "/spire/agent/k8s_pod/prod/u", ns: str = "inference", **fields: Any) -> Claim:
    selectors = fields.pop("selectors", frozenset([Selector.of("k8s", "pod-uid:u")]))
    entry = Entry("x", TD.with_path(path), TD.with_path(parent), selectors, **fields)
    attested = frozenset([Selector.of("k8s_pod", f"ns:{ns}")])
    return Claim(RANK, entry, attested=attested)


async def test_what_the_segment_could_admit_is_made(broker: RunningBroker) -> None:
    admits = Admits(broker.broker.state, broker.broker.policy)
    mine = claim("/segment/inference/x")
    # Of labels another may be attested than is seen now.
    assert admits.refusal(mine) == ""
    assert "k8s_pod:ns:inference" in admits.refusal(claim("/segment/inference/x", ns="web"))
    # Nothing stands behind what a pod's sidecar says of itself.
    assert "legacy" in admits.refusal(claim("/somewhere"))
    # An agent of a node says what it saw.
    assert admits.refusal(replace(claim("/somewhere"), attested=frozenset())) == ""
    assert "no bundle" in admits.refusal(
        claim("/segment/inference/x", federates_with=(TrustDomain.parse("partner.example"),))
    )


async def test_a_value_that_the_cluster_does_not_know_is_not_shown(broker: RunningBroker) -> None:
    why = Admits(broker.broker.state, broker.broker.policy).refusal(claim("/segment/vault/x"))
    assert "entry selector unix:user" in why
    assert "hush" not in why


async def test_nobody_becomes_more_than_a_pod(broker: RunningBroker) -> None:
    state = broker.broker.state
    admits = Admits(state, broker.broker.policy)
    await broker.entry("/segment/inference/below", "/node/gpu-1", ["unix:uid:1"])
    # What somebody put below an entry that was there already is no reason to take that away.
    there = await broker.entry("/segment/inference/above", "/node/x", ["unix:uid:2"])
    await broker.entry("/segment/inference/under", "/segment/inference/above", ["unix:uid:3"])
    above = claim("/segment/inference/above")
    assert above.entry is not None
    assert "other entries are below" in admits.refusal(above)
    assert admits.refusal(replace(above, entry=replace(above.entry, id=there.id))) == ""
    for wanted, why in (
        (claim("/segment/inference/x", admin=True), "an administrator's or a downstream authority's"),
        (claim("/segment/inference/x", downstream=True), "an administrator's or a downstream authority's"),
        (claim("/node/gpu-1"), "other entries are below"),
        (claim("/node/gpu-2", parent="/spire/server"), "would name nodes"),
    ):
        assert why in admits.refusal(wanted)
        assert "opens more than a workload" in admits.refusal(wanted)
        assert "opens more" not in admits.refusal(replace(wanted, privileged=True))
