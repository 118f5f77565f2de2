# SPDX-License-Identifier: Apache-2.0
"""A stock spire-agent on a node of a cluster: k8s_psat on the wire, and an SVID for a program of that node."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from pathlib import Path

import grpc
import pytest

from firedoor.wire import agent_pb2
from tests.broker.harness import running, spiffe_id
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.test_injection import allow, put, served
from tests.spire.programs import SpireAgent
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
UID = f"unix:uid:{os.geteuid()}"
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: web}}
spec:
  function: web
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/web/**"]
  admission: {{entry: ["{UID}"], node: ["k8s_psat:cluster:prod", "k8s_psat:agent_node_label:zone:a"]}}
"""


async def test_a_stock_agent_attests_and_serves(cluster: Cluster, tmp_path: Path) -> None:
    spire, worker = cluster.namespace("spire"), f"worker-{tmp_path.name}".replace("_", "-")[:60].rstrip("-")
    cluster.service_account(spire, "agent")
    pod = cluster.pod(spire, "agent-1", account="agent", node=worker)
    node = cluster.api().patch(f"/api/v1/nodes/{worker}", {"metadata": {"labels": {"zone": "a"}}})
    put(str(tmp_path / "psat"), cluster.token(spire, "agent", "spire-server", pod=pod).encode())
    access = {**allow(cluster, "none", tmp_path), "service_accounts": [f"{spire}:agent"], "node_labels": ["zone"]}
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "b", POLICY, k8s_psat_clusters=json.dumps([{"name": "prod", **access}])) as broker:
        pem = "".join(ssl.DER_cert_to_PEM_cert(root) for root in broker.roots())
        agent = SpireAgent(tmp_path / "a", broker.broker.listen, pem)
        data = f'cluster = "prod" token_path = "{tmp_path / "psat"}"'
        agent.node_attestor = f'NodeAttestor "k8s_psat" {{ plugin_data {{ {data} }} }}'
        try:
            await asyncio.to_thread(agent.start)
            path = f"/spire/agent/k8s_psat/prod/{node['metadata']['uid']}"
            shown = await broker.agents.GetAgent(agent_pb2.GetAgentRequest(id=spiffe_id(path)))
            assert (shown.attestation_type, shown.can_reattest) == ("k8s_psat", True)
            await broker.entry("/segment/web/x", path, [UID])
            wanted = ["spiffe://example.org/segment/web/x"]
            await async_until(lambda: identities(agent), "its SVID", when=lambda found: found == wanted)
        finally:
            await asyncio.to_thread(agent.close)


async def identities(agent: SpireAgent) -> list[str]:
    """Return what a program of the node gets, nothing while it gets none."""
    try:
        return await served(str(agent.socket))
    except grpc.aio.AioRpcError:
        return []
