# SPDX-License-Identifier: Apache-2.0
"""A broker on another continent: a round trip takes most of a second, and everything works."""

import pytest
from spiffe.workloadapi.errors import FetchX509SvidError

from tests.e2e.conftest import World
from tests.slow_network import SlowNetwork
from tests.waiting import until

pytestmark = pytest.mark.peer

PATH = "/segment/inference/host/h/svc/vllm"
SECONDS = 0.4


def test_a_sidecar_attests_and_gets_its_svids(world: World) -> None:
    world.start_broker()
    agent = world.enrol()
    world.create_entry(agent, PATH)
    with SlowNetwork(world.address, SECONDS) as network:
        world.address = network.address
        sidecar = world.start_sidecar()
        sidecar.ready()
        until(lambda: issued(world), "an SVID")
        status = world.status()
        assert status is not None
        assert status.connected
        # It was not a matter of luck: nothing had to be tried again.
        assert "next_try_seconds" not in sidecar.text
        assert "does not answer" not in sidecar.text
        sidecar.stop()


def issued(world: World) -> bool:
    with world.api() as api:
        try:
            return str(api.fetch_x509_svid().spiffe_id).endswith(PATH)
        except FetchX509SvidError:
            return False
