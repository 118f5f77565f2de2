# SPDX-License-Identifier: Apache-2.0
"""How long connections and listeners live: until new material, a deadline or a stop says otherwise."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import (
    MODELS,
    VLLM,
    World,
    asks,
    dial,
    ended,
    exchange,
    flow,
    policy,
    refuses,
)
from tests.mtls.proxy.datapath import svid as with_key
from tests.simulator import key_hash_of
from tests.waiting import SHORT, until

OTHER = "/segment/inference/host/h1/svc/other"
ALL = flow(f"spiffe://{{td}}{VLLM}", name="vllm"), flow(f"spiffe://{{td}}{OTHER}", name="other")


def live(core: mtls.Core) -> list[dict[str, Any]]:
    return list(json.loads(core.connections()))


def test_a_publish_that_drops_a_flow_cuts_its_streams_and_no_others(world: World) -> None:
    other = world.td.svid(OTHER)
    svids = [with_key(world.vllm, clients=world.me), with_key(other, clients=world.me)]
    world.publish(policy(*ALL), client_svids=svids)
    inbound = world.inbound()
    first = world.outbound(inbound.address)
    second = world.outbound(
        inbound.address, **{"as": str(other.id), "name": "other", "listen": f"unix:{world.folder}/other.sock"}
    )
    with dial(first.address) as dropped, dial(second.address) as kept:
        assert asks(dropped) == asks(kept) == b"ping"
        assert {one["flow"] for one in live(world.server)} == {"vllm", "other"}
        world.publish_server(policy(ALL[1]))
        assert ended(dropped)
        assert asks(kept) == b"ping"
        assert [one["flow"] for one in live(world.server)] == ["other"]
        until(lambda: world.server.stats()["connections_cut"] == 1)
        # The client's end, whose policy still allows it, has followed.
        until(lambda: [one["flow"] for one in live(world.client)] == ["other"])
    # A cut leaves no second record.
    assert len(world.records(world.server, 2)) == 2


def without_flow(world: World) -> dict[str, Any]:
    return {"policy": policy(flow(name="other-port", port=9001))}


def without_segment(world: World) -> dict[str, Any]:
    return {"policy": policy(flow(), source_members=f'"spiffe://{{td}}{OTHER}"')}


def without_table(world: World) -> dict[str, Any]:
    return {"policy": b""}


def revoked_serial(world: World) -> dict[str, Any]:
    return {"revocations": [mtls.Revocation(serial=f"{world.vllm.leaf.serial_number:x}")]}


def revoked_id(world: World) -> dict[str, Any]:
    pattern = f"spiffe://td{VLLM}"
    return {"revocations": [mtls.Revocation(pattern=pattern, issued_before=world.td.at + 60)]}


def without_root(world: World) -> dict[str, Any]:
    """The server has an SVID of a new authority; the client's root is gone."""
    old = world.td.authority
    world.td.rotate()
    world.td.forget(old)
    return {"server_svids": [with_key(world.td.svid(MODELS))]}


def without_svid(world: World) -> dict[str, Any]:
    return {"server_svids": []}


def nothing_new(world: World) -> dict[str, Any]:
    return {}


def rotated(world: World) -> dict[str, Any]:
    world.td.rotate()
    return {"server_svids": [with_key(world.td.svid(MODELS))]}


CUTS = [without_flow, without_segment, without_table, revoked_serial, revoked_id, without_root, without_svid]


@pytest.mark.parametrize("change", CUTS, ids=lambda change: change.__name__)
def test_a_live_stream_is_cut_by_what_would_refuse_it_now(
    world: World, change: Callable[[World], dict[str, Any]]
) -> None:
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        world.publish_server(**change(world))
        assert ended(link)


@pytest.mark.parametrize("change", [nothing_new, rotated], ids=lambda change: change.__name__)
def test_a_live_stream_goes_on_when_it_is_still_admitted(
    world: World, change: Callable[[World], dict[str, Any]]
) -> None:
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        world.publish_server(**change(world))
        assert asks(link) == b"ping"
        assert live(world.server)[0]["revision"] == 2


def test_a_stream_below_a_ca_is_cut_when_the_ca_leaves_the_list(world: World) -> None:
    ca = world.td.intermediate()
    world.vllm = world.td.svid(VLLM, issuer=ca)
    listed = [(key_hash_of(ca), {"inference"})]
    world.publish(intermediates=listed)
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        world.publish_server(intermediates=listed)
        assert asks(link) == b"ping"
        world.publish_server(intermediates=[(key_hash_of(ca), {"registry"})])
        assert ended(link)


def test_an_identity_of_ours_below_a_ca_that_leaves_the_list_is_not_used(world: World) -> None:
    world.vllm = world.td.svid(VLLM, issuer=world.td.intermediate())
    world.publish()
    outbound = world.outbound(world.inbound().address)
    with dial(outbound.address) as link:
        assert asks(link) == b"ping"
        world.publish_client(intermediates=[])
        assert ended(link)


def test_a_local_client_that_is_not_entitled_any_more_is_cut(world: World) -> None:
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        world.publish_client(client_svids=[with_key(world.vllm, clients=[mtls.ClientRule(uid=os.getuid() + 1)])])
        assert ended(link)


def test_switching_from_audit_to_enforce_cuts_what_no_flow_allows(world: World) -> None:
    nothing_allowed = {"source_mode": "audit", "destination_mode": "audit"}
    world.publish(policy(**nothing_allowed))
    listener = world.outbound(world.inbound().address)
    with dial(listener.address) as link:
        assert asks(link) == b"ping"
        for core in (world.client, world.server):
            [record] = world.records(core, 1)
            assert (record["decision"], record["reason"], record["flow"]) == ("audit", "no_flow", "")
        world.publish_server(policy(source_mode="audit"))
        assert ended(link)


@pytest.mark.parametrize(("source", "destination"), [("audit", "enforce"), ("enforce", "audit")])
def test_each_end_audits_by_its_own_segment(world: World, source: str, destination: str) -> None:
    world.publish(policy(source_mode=source, destination_mode=destination))
    listener = world.outbound(world.inbound().address)
    assert exchange(listener.address) is None
    assert world.app.accepted == 0
    [out] = world.records(world.client, 1)
    assert out["decision"] == ("audit" if source == "audit" else "denied")


def test_audit_never_relaxes_an_unknown_segment(world: World) -> None:
    members = f'"spiffe://{{td}}{OTHER}"'
    world.publish(policy(source_mode="audit", destination_mode="audit", source_members=members))
    assert exchange(world.outbound(world.inbound().address).address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "unknown_source")


@pytest.mark.parametrize("whose", ["client", "server"])
def test_a_connection_ends_when_either_svid_does(world: World, whose: str) -> None:
    expires = int(time.time()) + SHORT
    if whose == "client":
        world.vllm = world.td.svid(VLLM, expires=expires)
    else:
        world.models = world.td.svid(MODELS, expires=expires)
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        assert [one["deadline"] for one in live(world.server)] == [expires]
        assert ended(link)
        assert time.time() >= expires


def test_a_connection_outlives_its_svid_where_the_segment_says_so(world: World) -> None:
    expires = int(time.time()) + SHORT
    world.vllm = world.td.svid(VLLM, expires=expires)
    lives_on = policy(flow(), source_more="expiry: {until-revoked: 1h}", destination_more="expiry: {until-revoked: 1h}")
    world.publish(lives_on)
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        assert live(world.server)[0]["deadline"] == expires + 3600
        until(lambda: time.time() > expires + 0.5)
        assert asks(link) == b"ping"
        serial = f"{world.vllm.leaf.serial_number:x}"
        world.publish_server(lives_on, revocations=[mtls.Revocation(serial=serial)])
        assert ended(link)


def test_a_stream_ends_with_the_window_of_its_flow_and_no_new_generation(world: World) -> None:
    closes = int(time.time()) + SHORT
    until = dt.datetime.fromtimestamp(closes, dt.UTC).isoformat()
    window = f'valid: {{from: "2020-01-01T00:00:00Z", until: "{until}"}}'
    world.publish_client()
    world.publish_server(policy(flow(more=window)))
    listener = world.outbound(world.inbound().address)
    with dial(listener.address) as link:
        assert asks(link) == b"ping"
        assert ended(link)
        assert time.time() >= closes
    assert exchange(listener.address) is None
    assert [record["reason"] for record in world.records(world.server, 2)] == ["allowed", "out_of_time"]


def test_nothing_begins_with_an_svid_that_was_not_renewed_in_time(world: World) -> None:
    expires = int(time.time()) + SHORT
    world.vllm = world.td.svid(VLLM, expires=expires)
    world.publish()
    listener = world.outbound(world.inbound().address)
    until(lambda: time.time() > expires + 1)
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "own_svid_expired")
    assert world.server.stats()["accepted_inbound"] == 0
    world.vllm = world.td.svid(VLLM)
    world.publish()
    assert exchange(listener.address) == b"ping"


def test_a_stream_that_may_outlive_its_svid_outlives_its_authority_too(world: World) -> None:
    """Bundles drop roots that have expired. One that is dropped before its time is not trusted any more."""
    lives_on = policy(flow(), destination_more="expiry: {until-revoked: 1h}", source_more="expiry: {until-revoked: 1h}")
    expires = int(time.time()) + SHORT
    short = world.td.rotate(expires=expires)
    world.vllm = world.td.svid(VLLM, issuer=short, expires=expires)
    lasting = world.td.rotate()
    world.models = world.td.svid(MODELS, issuer=lasting)
    world.publish(lives_on)
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        until(lambda: time.time() > expires + 1)
        world.td.forget(short)
        world.publish_server(lives_on)
        assert asks(link) == b"ping"
        world.publish_server(lives_on, revocations=[mtls.Revocation(authority_id=short.authority_id)])
        assert ended(link)


@pytest.mark.parametrize("expiry", ["close", "{until-revoked: 1h}"])
def test_a_taint_cuts_no_stream_and_the_revocation_that_follows_does(world: World, expiry: str) -> None:
    """A taint has certificates replaced; streams have the time from there to the end of the rotation (`--drain`)."""
    table = policy(flow(), source_more=f"expiry: {expiry}", destination_more=f"expiry: {expiry}")
    world.publish(table)
    old, svids = world.td.authority, (world.vllm, world.models)
    world.td.rotate()
    listener = world.outbound(world.inbound().address)
    with dial(listener.address) as link:
        assert asks(link) == b"ping"
        world.vllm, world.models = (world.td.svid(one.id.path) for one in svids)
        world.publish(table, tainted=[old.der])
        assert asks(link) == b"ping"
        assert exchange(listener.address) == b"ping"
        world.publish_server(table, revocations=[mtls.Revocation(authority_id=old.authority_id)])
        assert ended(link)
        until(lambda: world.server.stats().get("cut_revoked_authority") == 1)
    # The twin: what began on the new authority goes on.
    assert exchange(listener.address) == b"ping"


def test_a_listener_may_limit_the_life_of_its_connections(world: World) -> None:
    world.publish()
    inbound = world.inbound(max_lifetime_ms=SHORT * 1000)
    with dial(world.outbound(inbound.address).address) as link:
        assert asks(link) == b"ping"
        assert ended(link)


def test_an_idle_connection_ends_when_the_listener_says_so(world: World) -> None:
    world.publish()
    # It is as idle while the app's answer is on its way.
    with dial(world.outbound(world.inbound().address, idle_timeout_ms=10_000).address) as link:
        assert asks(link) == b"ping"
        assert ended(link)


def test_a_listener_is_open_while_there_is_an_svid_for_it(world: World) -> None:
    inbound = world.inbound()
    assert not inbound.open
    [status] = json.loads(world.server.listeners())
    assert (status["open"], status["reason"]) == (False, "no material has been published")

    world.publish()
    assert inbound.open
    address = inbound.address
    outbound = world.outbound(address)
    assert exchange(outbound.address) == b"ping"

    world.publish_server(server_svids=[])
    assert not inbound.open
    refuses(address)
    [status] = json.loads(world.server.listeners())
    assert status["reason"] == f"there is no SVID for spiffe://td{MODELS}"
    assert exchange(outbound.address) is None

    world.publish_server()
    assert inbound.address == address
    assert exchange(outbound.address) == b"ping"
    [status] = json.loads(world.server.listeners())
    assert (status["open"], status["reason"], status["address"]) == (True, "", address)


def test_a_listener_whose_own_svid_is_revoked_closes(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    serial = f"{world.models.leaf.serial_number:x}"
    world.publish_server(revocations=[mtls.Revocation(serial=serial)])
    assert not inbound.open


def test_a_stopped_listener_lets_its_connections_run(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    with dial(world.outbound(inbound.address).address) as link:
        assert asks(link) == b"ping"
        inbound.stop()
        assert asks(link) == b"ping"
        world.publish_server()
        assert not inbound.open
        assert json.loads(world.server.listeners()) == []


def test_a_drain_waits_for_connections_and_says_whether_they_ended(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    with dial(world.outbound(inbound.address).address) as link:
        assert asks(link) == b"ping"
        assert world.server.drain(0.05) is False
        assert asks(link) == b"ping"
        refuses(inbound.address)
    assert world.server.drain(60) is True


def test_a_stop_ends_what_still_runs(world: World) -> None:
    world.publish()
    with dial(world.outbound(world.inbound().address).address) as link:
        assert asks(link) == b"ping"
        world.server.stop()
        assert ended(link)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expcet": []}, "expcet"),
        ({"protocol": "https"}, "protocol"),
        ({"listen": "0.0.0.0:0"}, "loopback"),
        ({"listen": "unix:/" + "x" * 120}, "107"),
    ],
)
def test_what_a_listener_cannot_be_is_said(world: World, changes: dict[str, Any], named: str) -> None:
    world.publish()
    with pytest.raises(mtls.ListenError, match=named):
        world.outbound("127.0.0.1:1", **changes)


def test_two_listeners_do_not_share_a_name(world: World) -> None:
    world.inbound()
    with pytest.raises(mtls.ListenError, match="another one of that name"):
        world.inbound()


def test_an_address_in_use_is_said(world: World) -> None:
    world.publish()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(mtls.ListenError, match="cannot listen on"):
            world.inbound(listen=address)
