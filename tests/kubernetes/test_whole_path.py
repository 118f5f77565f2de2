# SPDX-License-Identifier: Apache-2.0
"""From a cluster's objects to a request: pods with injected sidecars, a Service, and somebody without any identity.

A real API server, a broker with its controllers, and the injected containers' own commands in network namespaces; the
test does what kubelets, the controller manager (EndpointSlices) and kube-proxy (the Service's address) would do.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.broker.injector import inject
from firedoor.broker.injector.demands import ENABLED
from tests import netns
from tests.broker.injector.test_inject import RULES
from tests.e2e import captured, namespaces
from tests.e2e.conftest import Program, World
from tests.e2e.namespaces import APP_UID, SIDECAR_UID, Namespace
from tests.e2e.relay import lent
from tests.e2e.stand_in import StandIn
from tests.kubernetes.cluster import ISSUER, Cluster, running_cluster
from tests.pod_policy import pod_segment
from tests.waiting import until

ROOT = Path(__file__).parents[2]
NAMES = ("client", "server", "stranger")
ADDRESS = {name: f"10.88.{number}.2" for number, name in enumerate(NAMES, 1)}
# Another pod beside the server: its sidecar is the same, for a namespace is what it stands in.
SECOND = "10.88.2.3"
PORT = 9000
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"
POLICY = f"""\
{pod_segment("inference", "k8s_pod:ns:inference", trust="medium")}---
{pod_segment("registry", "k8s_pod:ns:registry")}---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-pulls-models}}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {{segment: inference}}
  to: {{segment: registry, port: 9000}}
  allow: [{{http: {{methods: [GET], paths: ["/**"]}}}}]
"""


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    if shutil.which("setpriv", path=netns.PATH) is None:
        return "setpriv is not installed: apt-get install util-linux"
    return captured.missing()


pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why := missing()), reason=why),
]


class Site:
    """A cluster, a broker in the midst of its pods' networks, and what stands for the pods."""

    def __init__(self, folder: Path, cluster: Cluster, hub: Namespace, spaces: dict[str, Namespace]) -> None:
        self.folder, self.cluster, self.hub, self.spaces = folder, cluster, hub, spaces
        self.world = World(folder, prefix=hub.entering())
        self.world.address = "0.0.0.0:8081"
        self.bundle = b""

    def begin(self) -> None:
        """Start the broker."""
        self.world.write_policy(POLICY)
        self.world.start_broker(*self._flags())
        self.world.enrol()
        self.bundle = (self.folder / "bundle.json").read_bytes()

    def _flags(self) -> list[str]:
        """Let the broker come as its service account, with the rights of the manifests."""
        self.cluster.namespace("firedoor-system", exact=True)
        self.cluster.service_account("firedoor-system", "firedoor-broker")
        # Of the injector's manifests the rights alone: the test makes pods as the webhook would.
        objects = [
            one
            for name in ("controllers", "injector")
            for one in yaml.safe_load_all((ROOT / f"deploy/kubernetes/{name}.yaml").read_text())
            if one and one["apiVersion"].startswith("rbac.")
        ]
        applied = self.cluster.kubectl("apply", "--filename", "-", given=objects)
        assert applied.code == 0, applied
        crds = self.cluster.kubectl("apply", "--server-side", "--filename", str(ROOT / "deploy/kubernetes/crds"))
        assert crds.code == 0, crds
        token = self.folder / "broker-token"
        token.write_text(self.cluster.token("firedoor-system", "firedoor-broker", ISSUER))
        access = {"server": self.cluster.url, "ca": str(self.cluster.ca_file), "token": str(token)}
        flags = ["--k8s-pod-clusters", json.dumps([{"name": "prod", **access}])]
        given = {
            "cluster": "prod",
            **access,
            "namespace": "firedoor-system",
            "directory": "true",
            "registration": "true",
        }
        return flags + [word for key, value in given.items() for word in (f"--kubernetes-controllers-{key}", value)]

    def pod(self, namespace: str, name: str, address: str, ports: str) -> dict[str, Any]:
        """Make a pod as the injector makes it, with a node and an address."""
        rules = dataclasses.replace(RULES, broker=(f"{captured.HUB_V4}:8081",), uid=SIDECAR_UID)
        containers = [{"name": "app", "image": "registry.example/app:1"}]
        spec = {"serviceAccountName": "default", "containers": containers}
        given = {"metadata": {"name": name, "annotations": {"firedoor.dev/ports": ports}}, "spec": spec}
        self.cluster.api().post(
            f"/api/v1/namespaces/{namespace}/pods", inject(given, namespace, rules, "example.org", ENABLED).pod
        )
        self.cluster.bind(namespace, name, "worker-1")
        self.cluster.runs(namespace, name, address)
        return self.cluster.api().get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def behind_sidecar(self, name: str, pod: dict[str, Any]) -> Program:
        """Run what was injected into the stored pod, in a namespace that stands for its own."""
        folder = self.folder / name
        folder.mkdir()
        folder.chmod(0o755)
        found = StandIn(folder, self.spaces[name], pod)
        namespace = pod["metadata"]["namespace"]
        found.give(self.cluster.token(namespace, "default", "firedoor", pod=pod, seconds=600), self.bundle)
        done = found.write_rules()
        assert done.returncode == 0, done.stderr
        program = found.start()
        self.world.programs.append(program)
        return program

    def service(self, pods: list[dict[str, Any]]) -> str:
        """Make the Service and its EndpointSlice; return its address."""
        spec = {"ports": [{"name": "http", "port": 80, "targetPort": PORT, "appProtocol": "http"}]}
        api = self.cluster.api()
        made = api.post("/api/v1/namespaces/registry/services", {"metadata": {"name": "models"}, "spec": spec})
        api.post(f"{SLICES}", self.slice(pods))
        return str(made["spec"]["clusterIP"])

    def slice(self, pods: list[dict[str, Any]]) -> dict[str, Any]:
        endpoints = [
            {
                "addresses": [pod["status"]["podIP"]],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "registry",
                    "name": pod["metadata"]["name"],
                    "uid": pod["metadata"]["uid"],
                },
            }
            for pod in pods
        ]
        labels = {"kubernetes.io/service-name": "models", "endpointslice.kubernetes.io/managed-by": "test"}
        return {
            "metadata": {"name": "models-1", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        }

    def forward(self, address: str) -> None:
        """Do what kube-proxy does, on the way between the pods."""
        rule = f"ip daddr {address} tcp dport 80 dnat to {ADDRESS['server']}:{PORT}"
        chain = f"chain services {{ type nat hook prerouting priority -100; {rule}; }}\n"
        self.hub.run("nft", "-f", "-", given=f"table ip proxy {{ {chain} }}")

    def ask(self, name: str, url: str, uid: int = APP_UID) -> str:
        """Return what a program that knows of nothing gets; nothing when it gets no answer."""
        words = [*self.spaces[name].entering(uid), sys.executable, "-c", ASK, url]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd="/").stdout.strip()


SLICES = "/apis/discovery.k8s.io/v1/namespaces/registry/endpointslices"


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        folder.chmod(0o755)
        (folder / "cluster").mkdir()
        cluster = stack.enter_context(running_cluster(folder / "cluster"))
        for name in ("inference", "registry"):
            cluster.namespace(name, {"firedoor.dev/inject": "enabled"}, exact=True)
        hub = stack.enter_context(namespaces.namespace("hub"))
        hub.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        stack.enter_context(lent(hub, cluster.port))
        spaces = {name: stack.enter_context(namespaces.namespace(name)) for name in NAMES}
        for number, (name, space) in enumerate(spaces.items(), 1):
            captured.wire(hub, name, space, number)
        spaces["server"].run(*f"ip address add {SECOND}/24 dev eth0".split())
        found = Site(folder, cluster, hub, spaces)
        stack.callback(found.world.close)
        found.begin()
        yield found


@pytest.fixture
def app(site: Site) -> Iterator[None]:
    """The app listens to everybody, as apps do."""
    page = site.folder / "page"
    page.mkdir()
    (page / "weights").write_text("weights")
    words = [sys.executable, "-m", "http.server", str(PORT), "--bind", "0.0.0.0", "--directory", str(page)]
    command = [*site.spaces["server"].entering(APP_UID), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/") as program:
        try:
            yield
        finally:
            program.kill()


@pytest.mark.usefixtures("app")
def test_pods_reach_each_other_by_flows_and_nobody_goes_round(site: Site) -> None:
    server = site.pod("registry", "store-0", ADDRESS["server"], f"{PORT}/http")
    client = site.pod("inference", "vllm-0", ADDRESS["client"], "8000/http")
    direct = f"http://{ADDRESS['server']}:{PORT}/weights"
    # Before there are rules, anybody is let in: that is what the rest is for.
    until(lambda: site.ask("stranger", direct) == "weights", "the app answers")
    for name, pod in (("server", server), ("client", client)):
        site.behind_sidecar(name, pod)
    assert site.ask("stranger", direct) == ""
    # No Service has it yet, so that nobody is expected there.
    assert site.ask("client", direct) == ""

    address = site.service([server])
    site.forward(address)
    until(lambda: site.ask("client", f"http://{address}/weights") == "weights", "the Service's address is known")
    assert site.ask("client", direct) == "weights"
    # An address of no Service; and the Service, for who has no identity.
    assert site.ask("client", f"http://{SECOND}:{PORT}/weights") == ""
    assert site.ask("client", f"http://{address}:81/weights") == ""
    assert site.ask("stranger", f"http://{address}/weights") == ""

    second = site.pod("registry", "store-1", SECOND, f"{PORT}/http")
    before = time.monotonic()
    site.cluster.api().patch(f"{SLICES}/models-1", {"endpoints": site.slice([server, second])["endpoints"]})
    until(lambda: site.ask("client", f"http://{SECOND}:{PORT}/weights") == "weights", "the new endpoint is known")
    # With what an asker takes to start.
    print(f"a new endpoint was reached {time.monotonic() - before:.2f} s after it was written")

    site.cluster.api().patch(f"{SLICES}/models-1", {"endpoints": site.slice([server])["endpoints"]})
    until(
        lambda: site.ask("client", f"http://{SECOND}:{PORT}/weights") == "",
        "an endpoint that is gone is not known",
    )
    assert site.ask("client", f"http://{address}/weights") == "weights"
