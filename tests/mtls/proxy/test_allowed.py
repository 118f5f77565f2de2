# SPDX-License-Identifier: Apache-2.0
"""One allowed connection through both ends, and what it leaves behind."""

import json

from tests.mtls.proxy.datapath import MODELS, PORT, VLLM, World, asks
from tests.waiting import until


def test_a_request_is_carried_and_recorded_once_at_each_end(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    with world.connect(world.outbound(inbound.address)) as link:
        assert asks(link, b"hello") == b"hello"
        assert world.app.accepted == 1
        [out] = world.records(world.client, 1)
        [into] = world.records(world.server, 1)
        for record, direction in ((out, "outbound"), (into, "inbound")):
            assert record["direction"] == direction
            assert record["listener"] == "models"
            assert (record["source"], record["source_segment"]) == (f"spiffe://td{VLLM}", "inference")
            assert (record["destination"], record["destination_segment"]) == (f"spiffe://td{MODELS}", "registry")
            assert (record["port"], record["protocol"]) == (PORT, "tcp")
            assert (record["decision"], record["reason"], record["flow"]) == ("allowed", "allowed", "pulls")
            assert (record["generation"], record["revision"]) == ([1, 1], 1)
        assert out["correlation"] == into["correlation"] != ""
        assert out["peer_address"] == inbound.address
        assert out["client"]["uid"] is not None
        assert out["client"]["pid"] is not None
        assert into["client"] is None
        [live] = json.loads(world.server.connections())
        assert (live["source"], live["flow"]) == (f"spiffe://td{VLLM}", "pulls")
        [other] = json.loads(world.client.connections())
        assert (into["peer_serial"], out["peer_serial"]) == (live["peer_serial"], other["peer_serial"])
        assert "" != into["peer_serial"] != out["peer_serial"] != ""
        # Bytes are counted once they are written, and may have arrived by then.
        until(lambda: _carried(world) == (5, 5))
    until(lambda: world.server.connections() == "[]")
    until(lambda: world.server.stats()["bytes_forward"] == 5)
    assert world.client.drain_records(10) == world.server.drain_records(10) == b""


def _carried(world: World) -> tuple[int, int]:
    [live] = json.loads(world.server.connections())
    return live["bytes_forward"], live["bytes_back"]
