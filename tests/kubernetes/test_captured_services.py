# SPDX-License-Identifier: Apache-2.0
"""Captured connections to a cluster's Services: the directory of a real API server, by a real broker, in real cores.

`here` is the namespace of a client whose user is captured, `there` that of the one pod behind the Service. What
kube-proxy does a rule here does: who connects to the ClusterIP, and is not captured, is led to the pod.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firedoor import mtls
from firedoor.wire import policy_pb2
from tests.broker.harness import POLICY, TD
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.test_directory import World
from tests.mtls.proxy.datapath import records, svid
from tests.mtls.proxy.test_capture import APP_UID, ARRIVING, CLIENT, INBOUND, LEAVING, OUTBOUND, _echo
from tests.netns import Place, missing, wired
from tests.simulator import Identity, SimulatedTrustDomain

pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(why := missing()), reason=why),
]

VLLM = "/segment/inference/x"
OPAQUE = POLICY.replace('[{http: {methods: [GET], paths: ["/models/**"]}}]', "[{tcp: {}}]")
KUBE_PROXY = """
table inet proxy {{
  chain out {{
    type nat hook output priority -100;
    meta skuid 0 ip daddr {cluster_ip} tcp dport 80 dnat ip to {pod}:9000
  }}
}}
"""


class Ends:
    """A sidecar's core at each end, and an app in `there`."""

    def __init__(self, here: Place, there: Place, account: str) -> None:
        self.here, self.there = here, there
        self.td = SimulatedTrustDomain(TD, at=int(time.time()))
        self.client, self.server = here.run(mtls.Core), there.run(mtls.Core)
        self.vllm, self.store = self.td.svid(VLLM), self.td.svid(account)
        here.ip("route", "add", "10.96.0.0/16", "dev", "wire")
        here.nft(LEAVING)
        there.nft(ARRIVING)
        self._app = there.run(socket.create_server, ("0.0.0.0", 9000))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._app.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(link,), daemon=True).start()

    def publish(self, client: policy_pb2.Table, server: policy_pb2.Table, number: int) -> None:
        """Publish to each end what the broker has told it."""
        rules = [mtls.ClientRule(uid=APP_UID)]
        self._publish(self.here, self.client, svid(self.vllm, clients=rules), client, number)
        self._publish(self.there, self.server, svid(self.store), server, number)

    def _publish(self, place: Place, core: mtls.Core, own: mtls.Svid, table: policy_pb2.Table, number: int) -> None:
        data = table.SerializeToString(deterministic=True)
        material = mtls.Material(
            trust_domain=TD, bundles=self.td.roots_by_name(), svids=[own], table=data, generation=(1, number)
        )
        place.run(core.publish, material)

    def capture(self) -> None:
        """Open the capture listeners."""
        leaving = {"direction": "capture_outbound", "listen": f"127.0.0.1:{OUTBOUND}", "ports": 3, "clients": "entry"}
        arriving = {
            "direction": "capture_inbound",
            "listen": f"[::]:{INBOUND}",
            "ports": [],
            "app": {"address": "own"},
            "reserved": [],
        }
        self._listen(self.here, self.client, self.vllm, leaving)
        self._listen(self.there, self.server, self.store, arriving)

    def _listen(self, place: Place, core: mtls.Core, own: Identity, spec: dict[str, Any]) -> None:
        place.run(core.listen, json.dumps({"name": "capture", "as": str(own.id), "limits": {}, **spec}))

    def ask(self, host: str, port: int) -> str:
        """Ask as a program that knows nothing of firedoor."""
        return self.here.python(CLIENT, host, str(port), "ping\\n", uid=APP_UID)

    def sent(self) -> dict[str, Any]:
        """Return the client's record of the last connection."""
        (record,) = records(self.client, 1)
        return record

    def close(self) -> None:
        self.client.stop()
        self.server.stop()
        self._app.shutdown(socket.SHUT_RDWR)
        self._app.close()


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    with wired() as found:
        yield found


async def test_a_cluster_ip_is_reached_and_an_address_of_no_service_is_refused(
    cluster: Cluster, tmp_path: Path, places: tuple[Place, Place]
) -> None:
    here, there = places
    world = World(cluster, tmp_path)
    models = world.models
    v4, _ = models.service("store")
    nobodys, _ = models.service("nobodys")
    models.slice("store", models.pod("store-0", there.v4, ports=""))
    ends = Ends(here, there, world.id().removeprefix(f"spiffe://{TD}"))
    here.nft(KUBE_PROXY.format(cluster_ip=v4, pod=there.v4))
    try:
        async with world.broker(policy=OPAQUE) as broker:
            client = await world.sidecar(broker, VLLM)
            store = await world.sidecar(broker, "/segment/registry/x")
            await client.until(lambda found: (v4, 80) in found, "the client has it")
            await store.until(lambda found: not found, "the store is told its own")
            ends.publish(client.table, store.table, 1)
            ends.capture()
            assert ends.ask(v4, 80) == "ping"
            record = ends.sent()
            assert (record["decision"], record["destination"], record["port"]) == ("allowed", world.id(), 9000)
            assert record["peer_address"] == f"{v4}:80"
            assert ends.ask(there.v4, 9000) == "ping"
            assert ends.sent()["decision"] == "allowed"
            for host, port in ((nobodys, 80), (v4, 81), (there.v4, 9001)):
                assert ends.ask(host, port) == "refused"
                record = ends.sent()
                assert (record["decision"], record["reason"]) == ("denied", "not_in_directory")
            # The last endpoint goes, and with it the Service.
            models.slice("store")
            await client.until(lambda found: not found, "nobody is behind it")
            ends.publish(client.table, store.table, 2)
            assert ends.ask(v4, 80) == "refused"
            assert ends.sent()["reason"] == "not_in_directory"
            client.stop()
            store.stop()
    finally:
        ends.close()
