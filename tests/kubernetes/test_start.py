# SPDX-License-Identifier: Apache-2.0
"""docs/kubernetes-start.md, command by command: a cluster that has never seen firedoor gets its first namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_helm import documents
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import ISSUER, Cluster, running_cluster
from tests.kubernetes.pod_certificates import kubelets
from tests.spire.programs import Daemon, needed
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(500)]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/kubernetes-start.md").read_text()
FILES = dict(re.findall(r"```yaml (\S+)\n(.*?)```", TEXT, re.DOTALL))
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL))
UPGRADE = re.findall(r"^\$ (.*)$", (ROOT / "deploy/helm/README.md").read_text(), re.MULTILINE)
(NO_HOST_PATH,) = re.findall(r"```yaml no-host-path\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)
SYSTEM, NAMESPACES = "firedoor-system", ("inference", "registry")
SIDECAR = ["firedoor-capture", "firedoor-sidecar"]
IDENTITY = "spiffe://example.org/segment/inference/ns/inference/sa/default"


class Newcomer:
    """Whoever follows the page, and what a cluster's own controllers would do meanwhile."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.left = [line.removeprefix("$ ") for line in CONSOLE.splitlines()]
        self.broker, self.sidecar = Daemon(folder / "broker.log"), Daemon(folder / "sidecar.log")
        programs = folder / "bin"
        programs.mkdir()
        for module, name in (("helm", "helm"), ("kubernetes", "kubectl")):
            (programs / name).symlink_to(needed(module, name))
        (programs / "firedoor").write_text(f'#!/bin/sh\nexec {sys.executable} -m firedoor.cli "$@"\n')
        (programs / "firedoor").chmod(0o755)
        (folder / "deploy").symlink_to(ROOT / "deploy")
        for name, text in FILES.items():
            (folder / name).write_text(text)
        own = {"HOME": str(folder), "KUBECONFIG": str(cluster.kubeconfig())}
        self.environment = {**os.environ, **own, "PATH": f"{programs}:{os.environ['PATH']}"}

    def does(self, beginning: str) -> subprocess.CompletedProcess[str]:
        """Run the page's next command, which begins so."""
        command = self.left.pop(0)
        assert command.startswith(beginning), command
        return self.types(command)

    def types(self, command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command that succeeds."""
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        return ran

    def reads(self, *words: str) -> dict[str, Any]:
        """Return what kubectl prints as JSON."""
        found: dict[str, Any] = json.loads(self.types(f"kubectl {' '.join(words)} --output json").stdout)
        return found

    def there(self, *words: str) -> bool:
        """Say whether the cluster has an object."""
        return bool(self.types(f"kubectl get {' '.join(words)} --ignore-not-found --output name").stdout)

    def asks_broker(self, command: str) -> Any:
        """Run a command in the broker's pod, as it were."""
        socket = {"FIREDOOR_BROKER_ADMIN_SOCKET": str(self.folder / "b.sock")}
        return json.loads(self.types(f"{command} --output json", **socket).stdout)

    def in_pod(self, given: Any) -> dict[str, Any]:
        """Return a reference to the cluster as one that lies outside has it."""
        where = {"server": self.cluster.url, "ca": str(self.cluster.ca_file), "token": str(self.folder / "token")}
        return {**given, **where}

    def start_broker(self) -> str:
        """Run a broker as the StatefulSet would, by what the cluster has of it; return where it listens."""
        stored = self.reads("get", "configmap", "firedoor-broker", "--namespace", SYSTEM)["data"]["broker.yaml"]
        (config,) = documents(stored)
        config.update(listen="127.0.0.1:0", metrics="off")
        del config["metrics_for_all"]
        for section in config.keys() & {"k8s_pod", "k8s_psat"}:
            config[section]["clusters"] = [self.in_pod(one) for one in config[section]["clusters"]]
        for section in ("kubernetes_policy", "kubernetes_controllers"):
            config[section] = self.in_pod(config[section])
        (self.folder / "broker.yaml").write_text(yaml.safe_dump(config))
        template = self.reads("get", "statefulset", "firedoor-broker", "--namespace", SYSTEM)["spec"]["template"]
        account = template["spec"]["serviceAccountName"]
        (self.folder / "token").write_text(self.cluster.token(SYSTEM, account, ISSUER))
        places = {"FIREDOOR_BROKER_DATA_DIR": "broker", "FIREDOOR_BROKER_ADMIN_SOCKET": "b.sock"}
        env = [one["name"] for one in template["spec"]["containers"][0]["env"]]
        self.broker.more_environment = {name: str(self.folder / places[name]) for name in env}
        words = ("broker", "run", "--config", str(self.folder / "broker.yaml"))
        self.broker.launch(sys.executable, "-m", "firedoor.cli", *words)
        self.broker.logged(" listen=")
        found = re.search(r"\blisten=(\S+)", self.broker.text)
        assert found
        return found[1]

    def start_sidecar(self, pod: dict[str, Any], broker: str) -> None:
        """Run a pod's sidecar with what its container is told, but for capture, and with what a kubelet would mount."""
        (container,) = (one for one in pod["spec"]["initContainers"] if one["name"] == "firedoor-sidecar")
        told = {one["name"]: one["value"] for one in container["env"] if "_CAPTURE_" not in one["name"]}
        assert told["FIREDOOR_SIDECAR_BROKER"] == f"firedoor-broker.{SYSTEM}.svc:8081"
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        bundle = self.reads("get", "configmap", "firedoor-bundle", "--namespace", namespace)["data"]["bundle.json"]
        (self.folder / "bundle.json").write_text(bundle)
        (self.folder / "pod-token").write_text(self.pod_token(pod))
        places = {
            "BOOTSTRAP_BUNDLE": "bundle.json",
            "K8S_POD_TOKEN": "pod-token",
            "AUTH_SOCKET": "auth.sock",
            "ADMIN_SOCKET": "s.sock",
            "DATA_DIR": f"sidecar-{name}",
        }
        for key, place in places.items():
            assert told[f"FIREDOOR_SIDECAR_{key}"].startswith("/")
            told[f"FIREDOOR_SIDECAR_{key}"] = str(self.folder / place)
        told |= {"FIREDOOR_SIDECAR_BROKER": broker, "FIREDOOR_SIDECAR_METRICS": "off"}
        self.sidecar.more_environment = told
        self.sidecar.launch(sys.executable, "-m", "firedoor.cli", "sidecar", "run")

    def pod_token(self, pod: dict[str, Any]) -> str:
        """Ask for a pod's token as its node's kubelet does it: guards let nobody else."""
        kubelet, namespace = self.cluster.kubelet(pod["spec"]["nodeName"]), pod["metadata"]["namespace"]

        def asked() -> str:
            with contextlib.suppress(ApiError):
                return self.cluster.token(namespace, "default", "firedoor", pod=pod, by=kubelet)
            return ""

        with kubelets(self.cluster):
            return str(until(asked, "the pod's token"))

    def gets_identity(self) -> bool:
        """Say whether an app of the sidecar's pod has its SVID."""
        command = f"firedoor svid fetch x509 --auth-socket {self.folder / 'auth.sock'} --output json"
        with contextlib.suppress(AssertionError):
            return IDENTITY in self.types(command).stdout
        return False

    def status(self, kind: str) -> list[set[tuple[str, str]]]:
        """Return what all objects of a kind say of themselves."""
        objects = self.reads("get", kind)["items"]
        conditions = [one.get("status", {}).get("conditions", []) for one in objects]
        return [{(one["type"], one["status"]) for one in of} for of in conditions]

    def in_force(self) -> bool:
        """Say whether everything that is declared has been accepted, and acknowledged by all."""
        wanted = {("Accepted", "True"), ("Enforced", "True")}
        return (self.status("segments"), self.status("flows")) == ([wanted] * 2, [wanted])

    def would(self, namespace: str, **spec: Any) -> tuple[list[str], str]:
        """Return which init containers a pod would have, or why it is refused; it is not made."""
        whole = {"containers": [{"name": "app", "image": "x"}], **spec}
        path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
        try:
            made = self.cluster.api().post(path, {"metadata": {"name": "try"}, "spec": whole})
        except ApiError as error:
            return [], error.message
        return [one["name"] for one in made["spec"].get("initContainers", [])], ""

    def guarded(self, namespace: str) -> bool:
        """Say whether pods get sidecars there, and one on its node's network is refused."""
        refused = "spec.hostNetwork" in self.would(namespace, hostNetwork=True)[1]
        return refused and self.would(namespace)[0] == SIDECAR

    def takes_in(self, namespace: str) -> bool:
        """Say whether a namespace has all that its pods need."""
        return self.guarded(namespace) and self.there("configmap", "firedoor-bundle", "--namespace", namespace)

    def close(self) -> None:
        self.sidecar.close()
        self.broker.close()


@contextlib.contextmanager
def arriving(folder: Path, *more: str) -> Iterator[Newcomer]:
    """Let somebody come to a cluster of his own, as guards reach beyond namespaces; its API server is told `more`."""
    (folder / "cluster").mkdir()
    with running_cluster(folder / "cluster", *more) as cluster:
        # The namespaces that the page takes in were there before.
        for name in NAMESPACES:
            cluster.namespace(name, exact=True)
        found = Newcomer(cluster, folder)
        # No engine for containers is here.
        assert [found.left.pop(0).split()[:2] for _ in range(2)] == [["podman", "build"], ["podman", "push"]]
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    with arriving(tmp_path) as found:
        yield found


def test_from_nothing_to_a_guarded_namespace(newcomer: Newcomer) -> None:
    notes = newcomer.does("helm install").stdout
    assert "kubectl label namespace" in notes
    assert "segment apply" not in notes
    listens = newcomer.start_broker()
    newcomer.does("kubectl apply --server-side")
    until(newcomer.in_force, "the policy is in force")
    shown = newcomer.does("kubectl get segments,flows").stdout
    assert shown.count("ACCEPTED") == shown.count("ENFORCED") == 2

    newcomer.does("kubectl label namespace inference registry")
    until(lambda: all(map(newcomer.takes_in, NAMESPACES)), "sidecars, guards and trust bundles")
    newcomer.does("kubectl run models")
    newcomer.does("kubectl run vllm")
    assert newcomer.there("service", "models", "--namespace", "registry")
    has_identity(newcomer, listens)

    newcomer.does("firedoor segment export kubernetes")
    assert all(newcomer.there("networkpolicies", "--namespace", name) for name in NAMESPACES)
    newcomer.does("firedoor segment inventory")
    assert not newcomer.left
    what_other_pages_say(newcomer)


def has_identity(newcomer: Newcomer, broker: str) -> None:
    """The pod has its sidecar and its entry, and the sidecar, once it runs, an SVID and the policy."""
    pod = newcomer.reads("get", "pod", "vllm", "--namespace", "inference")
    labels, added = pod["metadata"]["labels"], pod["spec"]["initContainers"]
    assert (labels["firedoor.dev/segment"], labels["firedoor.dev/enforcing"]) == ("inference", "true")
    assert [one["name"] for one in added] == SIDECAR
    assert {one["image"] for one in added} == {"registry.example.org/firedoor:0.1.0"}
    asked = f"firedoor entry list --selector k8s:pod-uid:{pod['metadata']['uid']}"
    entries = until(lambda: newcomer.asks_broker(asked), "its entry")
    assert IDENTITY in json.dumps(entries)
    newcomer.cluster.bind("inference", "vllm", "gpu-1")
    newcomer.cluster.runs("inference", "vllm", "10.1.0.7")
    newcomer.start_sidecar(newcomer.reads("get", "pod", "vllm", "--namespace", "inference"), broker)
    until(newcomer.gets_identity, "the pod's identity")
    until(newcomer.in_force, "the sidecar has acknowledged the policy")
    # What the page looks at when something does not work.
    newcomer.types("firedoor sidecar status", **newcomer.sidecar.more_environment)
    newcomer.asks_broker("firedoor segment services")
    action = '--to registry:9000 --action "GET /models/llama"'
    said = newcomer.types(f"firedoor explain --from {IDENTITY} {action}", **newcomer.broker.more_environment)
    assert said.stdout.startswith("allowed by flow inference-pulls-models")


def what_other_pages_say(newcomer: Newcomer) -> None:
    """The upgrade, and how Pod Security and folders of the node go with capture."""
    for command in UPGRADE:
        newcomer.types(command)
    (newcomer.folder / "no-host-path.yaml").write_text(NO_HOST_PATH)
    newcomer.types("kubectl apply --filename no-host-path.yaml")
    node = [{"name": "node", "hostPath": {"path": "/"}}]

    def refused(why: str, **spec: Any) -> None:
        until(lambda: why in newcomer.would("inference", **spec)[1], why)

    refused("other pods' volumes", volumes=node)
    newcomer.types("kubectl label namespace inference pod-security.kubernetes.io/enforce=baseline")
    refused('violates PodSecurity "baseline:latest"')


def test_the_oldest_release_without_a_webhook(tmp_path: Path) -> None:
    with arriving(tmp_path, "--emulated-version=1.36") as newcomer:
        newcomer.does("helm install")
        newcomer.types("kubectl label namespace inference firedoor.dev/inject=enabled")
        until(lambda: newcomer.guarded("inference"), "sidecars and guards")


def test_the_oldest_release_with_guards(tmp_path: Path) -> None:
    """What the page says is to be seen there, and what it says to do then; nobody answers the webhook here."""
    (said,) = re.findall(r"^\| `helm install`: `(no matches .*)` \|", TEXT, re.MULTILINE)
    with arriving(tmp_path, "--emulated-version=1.34") as newcomer:
        (install, *_) = newcomer.left
        with pytest.raises(AssertionError, match=said):
            newcomer.does("helm install")
        newcomer.types(f"{install} --set injector.policy=webhook --dry-run=server")
        newcomer.types(f"{install} --set injector.enabled=false")
        newcomer.types("kubectl label namespace inference firedoor.dev/inject=enabled")
        refused = lambda: "spec.hostNetwork" in newcomer.would("inference", hostNetwork=True)[1]  # noqa: E731
        until(refused, "guards")


def test_the_page_is_short() -> None:
    assert sum(line.startswith("$ ") for line in CONSOLE.splitlines()) <= 10
