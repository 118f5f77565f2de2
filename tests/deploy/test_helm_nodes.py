# SPDX-License-Identifier: Apache-2.0
"""The chart's sidecars of nodes: both ends read what it writes for them, and what would not work is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker import config as broker_config
from firedoor.sidecar import config as sidecar_config
from firedoor.sidecar.evidence_config import WAYS
from firedoor.sidecar.pod_cgroup import Places
from tests.deploy.test_helm import CHART, MORE, POLICIES, TD, Helm, documents, found, helm, render

__all__ = ["helm"]

NODES = (*TD, "--set", "broker.cluster=prod", "--set", "nodes.enabled=true", "--set", "nodes.nodeLabels={pool}")
NODE = "firedoor-node"


def node_config(rendered: list[dict[str, Any]], folder: Path) -> sidecar_config.Config:
    """Return the sidecar's configuration as it reads it on a node."""
    file = folder / "sidecar.yaml"
    file.write_text(found(rendered, "ConfigMap", NODE)["data"]["sidecar.yaml"])
    return sidecar_config.load(file, {"FIREDOOR_SIDECAR_K8S_WORKLOADS_NODE": "gpu-1"}, {})


def test_lint(helm: Helm) -> None:
    ran = helm("lint", "--strict", str(CHART), *NODES)
    assert (ran.returncode, "0 chart(s) failed" in ran.stdout) == (0, True), ran.stdout + ran.stderr


def test_without_the_switch_there_is_none(helm: Helm) -> None:
    rendered = render(helm, *TD, "--set", "broker.cluster=prod")
    assert {"DaemonSet", "Namespace"}.isdisjoint(one["kind"] for one in rendered)
    (config,) = documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    assert "k8s_psat" not in config


@pytest.mark.parametrize("release", ["firedoor", "other"])
def test_brokers_and_sidecars_agree(helm: Helm, tmp_path: Path, release: str) -> None:
    ran = helm("template", release, str(CHART), "--namespace", "elsewhere", *NODES)
    rendered = documents(ran.stdout)
    name = NODE if release == "firedoor" else f"{release}-{NODE}"
    (account,) = (one for one in rendered if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == name)
    pod = found(rendered, "DaemonSet", name)["spec"]["template"]["spec"]
    assert (account["metadata"]["namespace"], pod["serviceAccountName"]) == ("firedoor-nodes", name)
    (brokers,) = (one for one in rendered if one["kind"] == "Service" and one["spec"].get("clusterIP") != "None")

    file = tmp_path / "broker.yaml"
    file.write_text(found(rendered, "ConfigMap", brokers["metadata"]["name"])["data"]["broker.yaml"])
    broker_config.load(file, {}, {})
    (said,) = documents(file.read_text())
    agents = {"name": "prod", "service_accounts": [f"firedoor-nodes:{name}"], "node_labels": ["pool"]}
    assert said["k8s_psat"] == {"clusters": [agents]}

    text = found(rendered, "ConfigMap", name)["data"]["sidecar.yaml"]
    (there,) = documents(text)
    assert there["broker"] == [f"{brokers['metadata']['name']}.elsewhere.svc:8081"]
    assert there["k8s_psat"]["cluster"] == agents["name"]
    (volume,) = (one for one in pod["volumes"] if one["name"] == "token")
    (source,) = volume["projected"]["sources"]
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "token")
    assert there["k8s_psat"]["token"] == f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert source["serviceAccountToken"]["audience"] == "spire-server"


def test_the_sidecar_reads_its_configuration(helm: Helm, tmp_path: Path) -> None:
    words = ("--set", "nodes.config.k8s_workloads.cgroup_root=/kubelet", "--set", "nodes.config.log.level=debug")
    config = node_config(render(helm, *NODES, *words), tmp_path)
    assert config.k8s_workloads is not None
    assert (config.k8s_workloads.access.node, config.k8s_workloads.access.asks) == ("gpu-1", "api-server")
    assert config.k8s_workloads.places == Places.of("/kubelet")
    assert config.log.level == "debug"
    before = found(render(helm, *NODES), "DaemonSet", NODE)["spec"]["template"]["metadata"]["annotations"]
    after = found(render(helm, *NODES, *words), "DaemonSet", NODE)["spec"]["template"]["metadata"]["annotations"]
    assert before != after, "an edit of the configuration makes the pods anew"


def test_it_may_look_at_pods_and_nothing_else(helm: Helm) -> None:
    rendered = render(helm, *NODES)
    role = found(rendered, "ClusterRole", f"firedoor-nodes-{NODE}")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    (subject,) = found(rendered, "ClusterRoleBinding", f"firedoor-nodes-{NODE}")["subjects"]
    assert (subject["namespace"], subject["name"]) == ("firedoor-nodes", NODE)
    spec = found(rendered, "DaemonSet", NODE)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    security = container["securityContext"]
    assert (security["capabilities"], security["readOnlyRootFilesystem"]) == ({"drop": ["ALL"]}, True)
    assert security["allowPrivilegeEscalation"] is False
    # What selects brokers does not select these.
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert not found(rendered, "StatefulSet")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_controllers_that_are_told_where_bring_the_bundle(helm: Helm) -> None:
    words = ("--set", "nodes.enabled=true", "--set", "controllers.config.bundle_namespaces=all")
    rendered = render(helm, *POLICIES, *words, "--set", "injector.bundleConfigMap=roots")
    (config,) = documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    volumes = found(rendered, "DaemonSet", NODE)["spec"]["template"]["spec"]["volumes"]
    (bundle,) = (one["configMap"]["name"] for one in volumes if one["name"] == "bundle")
    assert config["kubernetes_controllers"]["bundle_config_map"] == bundle == "roots"


def test_they_reach_brokers_that_others_are_kept_from(helm: Helm) -> None:
    named = ("--set", "networkPolicy.from[0].podSelector.matchLabels.a=b", "--set", "nodes.namespace=agents")
    one = {"podSelector": {"matchLabels": {"a": "b"}}}
    rendered = render(helm, *NODES, *named)
    brokers = found(rendered, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    (its,) = (peer for peer in brokers if peer != one)
    assert its["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}
    pod = found(rendered, "DaemonSet", NODE)["spec"]["template"]["metadata"]["labels"]
    assert its["podSelector"]["matchLabels"].items() <= pod.items()
    without = render(helm, *NODES, *named, "--set", "nodes.enabled=false")
    assert found(without, "NetworkPolicy")["spec"]["ingress"][0]["from"] == [one]
    # Everybody stays everybody.
    assert "from" not in found(render(helm, *NODES), "NetworkPolicy")["spec"]["ingress"][0]


@pytest.mark.parametrize("name", ["null", "true", "1e3"])
def test_names_stay_names(helm: Helm, name: str) -> None:
    """Some are words of YAML."""
    keys = ("nodes.namespace", "nodes.priorityClassName", "injector.bundleConfigMap")
    rendered = render(helm, *NODES, *(f"--set-string={key}={name}" for key in keys))
    its = [one for one in rendered if one["metadata"]["labels"]["app.kubernetes.io/name"] == NODE]
    assert {one["metadata"].get("namespace", name) for one in its} == {name}
    assert found(rendered, "Namespace", name)
    (subject,) = found(rendered, "ClusterRoleBinding", f"{name}-{NODE}")["subjects"]
    pod = found(rendered, "DaemonSet", NODE)["spec"]["template"]["spec"]
    (bundle,) = (one["configMap"]["name"] for one in pod["volumes"] if one["name"] == "bundle")
    assert (subject["namespace"], pod["priorityClassName"], bundle) == (name, name, name)


REFUSED = {
    "of no cluster": ((*TD, "--set", "nodes.enabled=true"), "needs broker.cluster"),
    "beside the brokers": ((*NODES, "--set", "nodes.namespace=firedoor-system"), "a namespace of its own"),
    "beside agents of somebody's own": (
        (*NODES, "--set", "broker.config.k8s_psat.clusters[0].name=prod"),
        "broker.config.k8s_psat says already",
    ),
    "without the trust bundle": ((*POLICIES, "--set", "nodes.enabled=true"), "bundle_namespaces has to say"),
    "a key that the chart decides": ((*NODES, "--set", "nodes.config.auth_socket=/tmp/a"), "config"),
    "another source of pods": ((*NODES, "--set", "nodes.config.k8s_workloads.pods_from=kubelet"), "pods_from"),
    "an unknown value": ((*NODES, "--set", "nodes.image=x"), "image"),
    "a namespace that is none": ((*NODES, "--set", "nodes.namespace=A"), "namespace"),
    "no namespace": ((*NODES, "--set", "nodes.namespace=null"), "namespace"),
    "the namespace of everybody": ((*NODES, "--set", "nodes.namespace=default"), "must not be default"),
    "the namespace of the cluster": ((*NODES, "--set", "nodes.namespace=kube-system"), "must not be kube-system"),
    "a priority that is more than a name": ((*NODES, "--set", f"nodes.priorityClassName={MORE}"), "priorityClassName"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_work_is_refused(helm: Helm, name: str) -> None:
    words, said = REFUSED[name]
    ran = helm("template", "firedoor", str(CHART), "--namespace", "firedoor-system", *words)
    assert ran.returncode != 0
    assert said in ran.stderr


@pytest.mark.parametrize("key", [*WAYS, "workload"])
def test_a_node_attests_in_one_way(helm: Helm, key: str) -> None:
    """The sidecar would refuse it, on each node."""
    ran = helm("template", "firedoor", str(CHART), *NODES, "--set", f"nodes.config.{key}=x")
    assert ran.returncode != 0
    assert "nodes" in ran.stderr
    assert "config" in ran.stderr


def test_the_documented_values_are_taken(helm: Helm, tmp_path: Path) -> None:
    text = (CHART.parents[2] / "docs/kubernetes-nodes.md").read_text()
    (values,) = re.findall(r"^```yaml values\.yaml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "values.yaml").write_text(values)
    rendered = render(helm, *TD, "--values", str(tmp_path / "values.yaml"))
    (told,) = documents(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    assert told["kubernetes_controllers"]["bundle_namespaces"] == "all"
    assert told["k8s_psat"]["clusters"][0]["node_labels"] == ["pool"]
    (tmp_path / "broker.yaml").write_text(found(rendered, "ConfigMap")["data"]["broker.yaml"])
    broker_config.load(tmp_path / "broker.yaml", {}, {})
    assert node_config(rendered, tmp_path).k8s_workloads is not None
