# SPDX-License-Identifier: Apache-2.0
"""What the injected containers run: their very commands and environments, with the capabilities that they are given.

A network namespace stands for the pod's, folders for its volumes, and an issuer of the test's own for the cluster.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from firedoor.broker.injector import inject
from firedoor.broker.injector.demands import ENABLED
from firedoor.wire import entry_grpc, entry_pb2, workload_grpc, workload_pb2
from tests import netns
from tests.broker.harness import entry
from tests.broker.injector.test_inject import RULES, injected, pod
from tests.e2e import captured
from tests.e2e.conftest import World
from tests.e2e.namespaces import APP_UID, INSIDE_V4, OUTSIDE_V4, SIDECAR_UID, Namespace, namespace, wired
from tests.e2e.stand_in import StandIn
from tests.pod_policy import pod_segment
from tests.service_accounts import ISSUER, TokenIssuer
from tests.waiting import PATIENCE, until


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    if shutil.which("setpriv", path=netns.PATH) is None:
        return "setpriv is not installed: apt-get install util-linux"
    return captured.missing()


pytestmark = pytest.mark.skipif(bool(why := missing()), reason=why)


def test_the_rules_are_written_with_one_capability_and_stand(tmp_path: Path) -> None:
    with namespace("inj") as space:
        given = pod(ports="9000/http, 9001/tcp/audit", container={"readinessProbe": {"httpGet": {"port": 9000}}})
        found = StandIn(tmp_path, space, injected(given))
        done = found.write_rules()
        assert (done.returncode, "rules are written" in done.stdout) == (0, True), done.stderr
        again = found.write_rules()
        assert again.returncode == 0, again.stderr
        assert found.write_rules("capture", "check").stdout == "the rules stand as they were written\n"
        # The sidecar's own user leaves; what the kubelet asks is reached.
        rules = space.rules()
        assert "skuid 990" in rules
        assert "14020" in rules


POLICY = pod_segment("inference", "k8s_pod:ns:inference")
NODE, IDENTITY = "/node/inference", "/segment/inference/ns/inference/sa/vllm"
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).status)"


class Injected:
    """A pod behind its sidecar."""

    def __init__(self, folder: Path, inside: Namespace, outside: Namespace) -> None:
        self.folder, self.inside, self.outside = folder, inside, outside
        self.issuer = TokenIssuer(int(time.time()) - 1)
        self.world = World(folder, prefix=outside.entering())
        self.world.address = "0.0.0.0:8081"
        self.world.write_policy(POLICY)
        (folder / "jwks.json").write_bytes(self.issuer.jwks)
        clusters = json.dumps([{"name": "prod", "jwks": str(folder / "jwks.json"), "issuer": ISSUER}])
        self.world.start_broker("--k8s-pod-clusters", clusters)
        self.world.enrol()
        self.stand_in = StandIn(folder, inside, self._injected())
        self.stand_in.give(self.issuer.token(), (folder / "bundle.json").read_bytes())
        self._entries()

    def _injected(self) -> dict[str, Any]:
        rules = dataclasses.replace(RULES, broker=(f"{OUTSIDE_V4}:8081",), uid=SIDECAR_UID)
        given = pod(
            ports="9000/http",
            spec={"serviceAccountName": "vllm"},
            container={"readinessProbe": {"httpGet": {"port": 9000}}},
        )
        return inject(given, "inference", rules, "example.org", ENABLED).pod

    def _entries(self) -> None:
        with self.world.admin() as channel:
            found = entry_grpc.EntryStub(channel).BatchCreateEntry(
                entry_pb2.BatchCreateEntryRequest(
                    entries=[
                        entry(NODE, "/spire/server", ["k8s_pod:cluster:prod", "k8s_pod:ns:inference"]),
                        entry(IDENTITY, NODE, ["k8s:ns:inference", "k8s:sa:vllm"]),
                    ]
                ),
                timeout=PATIENCE,
            )
        assert [one.status.code for one in found.results] == [0, 0], found

    def start(self) -> None:
        """Write the rules, and start the sidecar."""
        done = self.stand_in.write_rules()
        assert done.returncode == 0, done.stderr
        self.world.programs.append(self.stand_in.start())


@pytest.fixture
def behind() -> Iterator[Injected]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, wired() as (inside, outside):
        Path(name).chmod(0o755)
        found = Injected(Path(name), inside, outside)
        try:
            yield found
        finally:
            found.world.close()


def test_a_pod_is_reached_through_its_sidecar_alone(behind: Injected) -> None:
    behind.start()
    # The app listens to everybody, as apps do.
    words = [*behind.inside.entering(APP_UID), sys.executable, "-m", "http.server", "9000", "--bind", "0.0.0.0"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/") as app:
        try:
            probe = f"http://{INSIDE_V4}:14020/probe/c0-readiness"
            until(lambda: "200" in ask(behind.outside, probe), "the kubelet's probe passes")
            assert ask(behind.outside, f"http://{INSIDE_V4}:9000/") == ""
        finally:
            app.kill()
    # Its programs have its identity, whoever they are.
    with grpc.insecure_channel(f"unix:{behind.stand_in.auth_socket}") as channel:
        call = workload_grpc.SpiffeWorkloadAPIStub(channel).FetchX509SVID(
            workload_pb2.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),), timeout=60
        )
        assert [one.spiffe_id for one in next(call).svids] == [f"spiffe://example.org{IDENTITY}"]
        call.cancel()


def ask(space: Namespace, url: str) -> str:
    """Return the status that a plain client gets, nothing when it gets no answer."""
    done = subprocess.run(
        [*space.entering(), sys.executable, "-c", ASK, url], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
