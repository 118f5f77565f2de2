# SPDX-License-Identifier: Apache-2.0
"""The chart's sidecar of a node, installed by the real helm: its pod is taken, and it attests with the broker's rights.

No kubelet and no controller manager run: the test makes the DaemonSet's pod, and folders stand for its volumes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_helm import documents
from tests.kubernetes.cluster import ISSUER
from tests.kubernetes.test_injection import made_by
from tests.kubernetes.test_start import SYSTEM, Newcomer, arriving
from tests.spire.programs import Daemon
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(500)]

NODES, NAME, NODE = "firedoor-nodes", "firedoor-node", "gpu-1"
VALUES = """\
trustDomain: example.org
broker: {cluster: prod, policyFromCluster: true}
injector: {enabled: true, policy: admission-policy}
guards: {enabled: true}
nodes: {enabled: true, nodeLabels: [pool]}
controllers: {enabled: true, config: {trust_bundle: true, bundle_namespaces: all}}
"""


class Site:
    """A cluster with the chart, and the sidecar of one of its nodes."""

    def __init__(self, found: Newcomer) -> None:
        self.found, self.cluster = found, found.cluster
        self.folder = found.folder / "node"
        self.folder.mkdir()
        self.sidecar = Daemon(self.folder / "sidecar.log")
        self.admin = Path()

    def install(self) -> None:
        """Do what the reader of docs/kubernetes-nodes.md does."""
        (self.found.folder / "nodes.yaml").write_text(VALUES)
        words = f"--namespace {SYSTEM} --create-namespace --values nodes.yaml"
        self.found.types(f"helm install firedoor deploy/helm/firedoor {words}")
        self.cluster.node(NODE)
        self.cluster.api().patch(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"pool": "gpu"}}})

    def pod(self) -> dict[str, Any]:
        """Make the DaemonSet's pod on the node, as its controller does."""
        made = self.cluster.api().post(f"/api/v1/namespaces/{NODES}/pods", made_by(self.stored("daemonset")))
        self.cluster.bind(NODES, made["metadata"]["name"], NODE)
        return self.cluster.api().get(f"/api/v1/namespaces/{NODES}/pods/{made['metadata']['name']}")

    def stored(self, kind: str) -> dict[str, Any]:
        return self.found.reads("get", kind, NAME, "--namespace", NODES)

    def start(self, pod: dict[str, Any], broker: str) -> None:
        """Run the pod's container with what a kubelet would mount."""
        (container,) = pod["spec"]["containers"]
        text = self.stored("configmap")["data"]["sidecar.yaml"]
        for mount in container["volumeMounts"]:
            folder = self.folder / mount["name"]
            folder.mkdir(mode=0o755)
            text = text.replace(mount["mountPath"] + "/", f"{folder}/")
        (config,) = documents(text)
        bundle = self.found.reads("get", "configmap", "firedoor-bundle", "--namespace", NODES)["data"]["bundle.json"]
        Path(config["bootstrap_bundle"]).write_text(bundle)
        Path(config["k8s_psat"]["token"]).write_text(self.cluster.token(NODES, NAME, "spire-server", pod=pod))
        own = self.folder / "own-token"
        own.write_text(self.cluster.token(NODES, NAME, ISSUER, pod=pod))
        config["k8s_workloads"] |= {
            "server": self.cluster.url,
            "ca": str(self.cluster.ca_file),
            "token": str(own),
        }
        assert config["broker"] == [f"firedoor-broker.{SYSTEM}.svc:8081"]
        (self.folder / "sidecar.yaml").write_text(json.dumps({**config, "broker": [broker], "metrics": "off"}))
        (name,) = (one["name"] for one in container["env"])
        self.sidecar.more_environment = {name: pod["spec"]["nodeName"]}
        self.admin = Path(config["admin_socket"])
        words = container["command"][1:4]
        self.sidecar.launch(sys.executable, "-m", "firedoor.cli", *words, str(self.folder / "sidecar.yaml"))

    def ready(self) -> bool:
        """Ask what the container's probes ask."""
        (container,) = self.stored("daemonset")["spec"]["template"]["spec"]["containers"]
        *words, _ = container["startupProbe"]["exec"]["command"]
        ran = self.found.types(f"{' '.join(words)} {self.admin} >&2; echo $?")
        return ran.stdout.strip() == "0"


@pytest.fixture
def site() -> Iterator[Site]:
    # The sockets' paths are long; the kernel takes 107 bytes.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, arriving(Path(name)) as found:
        site = Site(found)
        try:
            yield site
        finally:
            site.sidecar.close()


def test_the_sidecar_of_a_node_attests_and_is_ready(site: Site) -> None:
    site.install()
    broker = site.found.start_broker()
    site.found.types("kubectl apply --server-side --filename policy.yaml")
    until(lambda: site.found.there("configmap", "firedoor-bundle", "--namespace", NODES), "the trust bundle")
    site.found.types("kubectl label namespace inference firedoor.dev/inject=enabled")
    until(lambda: site.found.guarded("inference"), "that guards refuse what they should")
    # Not this one, which sees the node's processes and has no sidecar.
    pod = site.pod()
    assert pod["spec"]["hostPID"]
    site.start(pod, broker)

    def agents() -> list[dict[str, Any]]:
        assert site.sidecar.alive(), site.sidecar.text
        found: list[dict[str, Any]] = site.found.asks_broker("firedoor agent list")
        return found

    (agent,) = until(agents, "the node's agent")
    uid = site.cluster.api().get(f"/api/v1/nodes/{NODE}")["metadata"]["uid"]
    assert agent["id"] == f"spiffe://example.org/spire/agent/k8s_psat/prod/{uid}"
    shown = site.found.asks_broker(f"firedoor agent show {agent['id']}")
    assert {"k8s_psat:agent_node_label:pool:gpu", f"k8s_psat:agent_ns:{NODES}"} <= set(shown["selectors"])
    # Its account may list the node's pods; without that it would not be ready.
    until(site.ready, "that it is ready")
