# SPDX-License-Identifier: Apache-2.0
"""The control stream between real cores over real TLS."""

from __future__ import annotations

import select
import time

import pytest
from cryptography import x509

from firedoor import mtls
from tests.mtls.control.conftest import AGENT, Broker, Sidecar, ack, hello, nack, publish
from tests.simulator import SimulatedTrustDomain
from tests.waiting import SHORT, until

ID = f"spiffe://td{AGENT}"


def test_hello_view_and_answers(broker: Broker) -> None:
    sidecar = broker.sidecar().connected()
    [(kind, agent, stream, message)] = broker.said("hello")
    assert (kind, agent, message) == ("hello", ID, hello())
    broker.control.publish([([ID], b"first")])
    assert sidecar.received(1) == [b"first"]
    sidecar.client.send(ack(1))
    assert broker.said("ack") == [("ack", ID, stream, ack(1))]
    broker.control.publish([([ID], b"second")])
    assert sidecar.received(2) == [b"first", b"second"]
    sidecar.client.send(nack("unknown_part"))
    assert broker.said("nack") == [("nack", ID, stream, nack("unknown_part"))]
    assert broker.control.streams() == 1
    sidecar.client.stop()
    assert broker.said("closed") == [("closed", ID, stream, b"")]
    until(lambda: broker.control.streams() == 0)


def test_a_view_waits_for_the_hello(broker: Broker) -> None:
    broker.control.publish([(["spiffe://td/spire/agent/other"], b"not mine"), ([ID], b"mine")])
    silent = broker.sidecar()
    until(lambda: silent.kinds() == ["connected"])
    until(lambda: broker.control.streams() == 1)
    assert silent.read().messages == []
    silent.client.send(hello())
    assert silent.received(1) == [b"mine"]


def test_what_is_not_lasting_is_for_the_streams_of_now(broker: Broker) -> None:
    first = broker.sidecar().connected()
    broker.said("hello")
    broker.control.publish([([ID], b"for the first")], lasting=False)
    assert first.received(1) == [b"for the first"]
    second = broker.sidecar().connected()
    broker.said("hello", 2)
    broker.control.publish([([ID], b"for both")], lasting=False)
    assert second.received(1) == [b"for both"]
    assert first.received(2) == [b"for the first", b"for both"]
    # It took the place of what was lasting.
    broker.control.publish([([ID], b"lasting")])
    third = broker.sidecar().connected()
    assert third.received(1) == [b"lasting"]


def test_who_is_told_to_spread_comes_back_all_the_same(broker: Broker) -> None:
    at_once, later = (broker.sidecar(f"/spire/agent/x/{name}").connected() for name in "ab")
    broker.said("hello", 2)
    later.client.spread(2_000)
    for one in (at_once, later):
        broker.control.publish([([one.id], b"view")])
        one.received(1)
        broker.control.forget(one.id)
    for one in (at_once, later):
        until(lambda one=one: one.kinds().count("connected") == 2)


def test_groups_share_a_view(broker: Broker) -> None:
    paths = [f"/spire/agent/x/{name}" for name in "abc"]
    a, b, c = (broker.sidecar(path).connected() for path in paths)
    broker.said("hello", 3)
    broker.control.publish([([a.id, b.id], b"ab"), ([c.id], b"c")])
    assert [each.received(1) for each in (a, b, c)] == [[b"ab"], [b"ab"], [b"c"]]


def test_the_latest_view_replaces_one_that_has_not_left(broker: Broker) -> None:
    # 64 views of 1 MiB do not fit into what is under way: a sidecar that does not read gets the last one, not all.
    sidecar = broker.sidecar().connected()
    broker.said("hello")
    for number in range(64):
        broker.control.publish([([ID], bytes([number]) * (1 << 20))])
    until(lambda: sidecar.read().messages[-1:] == [bytes([63]) * (1 << 20)])
    numbers = [message[0] for message in sidecar.messages]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 64


def test_a_large_view_arrives_whole(broker: Broker) -> None:
    sidecar = broker.sidecar().connected()
    broker.said("hello")
    view = bytes(range(256)) * (20 << 12)
    broker.control.publish([([ID], view)])
    assert sidecar.received(1) == [view]


def test_a_view_can_be_too_large(broker: Broker) -> None:
    broker.control.publish([([ID], b"\0" * (64 << 20))])
    with pytest.raises(mtls.MtlsError) as caught:
        broker.control.publish([(["spiffe://td/spire/agent/b"], b"small"), ([ID], b"\0" * ((64 << 20) + 1))])
    assert caught.value.code == "view_too_large"
    other = broker.sidecar("/spire/agent/b").connected()
    broker.said("hello")
    assert other.read().messages == []


def test_forget_resets_and_a_new_stream_says_hello(broker: Broker) -> None:
    sidecar, other = broker.sidecar().connected(), broker.sidecar("/spire/agent/b").connected()
    broker.said("hello", 2)
    broker.control.publish([([ID, other.id], b"view")])
    sidecar.received(1)
    assert broker.control.forget("spiffe://td/spire/agent/unknown") == 0
    assert broker.control.forget(ID) == 1
    assert [event[1] for event in broker.said("closed")] == [ID]
    until(lambda: "disconnected" in sidecar.kinds())
    # It comes back by itself; its view is gone.
    sidecar.connected()
    assert [event[1] for event in broker.said("hello", 3)].count(ID) == 2
    assert (len(sidecar.read().messages), other.kinds()) == (1, ["connected"])


def test_only_the_expected_server_is_spoken_to(broker: Broker) -> None:
    wrong, right = broker.sidecar(expect="/spire/server2"), broker.sidecar("/spire/agent/b")
    until(lambda: wrong.kinds() == ["disconnected"])
    assert broker.front.address in wrong.news[0][1]
    right.connected()
    assert [event[1] for event in broker.said("hello")] == [right.id]


def test_only_certificates_that_may_listen_are_told_anything(broker: Broker, td: SimulatedTrustDomain) -> None:
    old, new = td.svid(AGENT), td.svid(AGENT)
    cores = [broker.new_core(), broker.new_core()]
    for core, svid in zip(cores, (old, new), strict=True):
        publish(core, td, svid)
    serials = [format(x509.load_der_x509_certificate(svid.chain[0]).serial_number, "x") for svid in (old, new)]
    broker.control.restrict(ID, serials)
    broker.control.publish([([ID], b"both")])
    first, second = (broker.sidecar(core=core).connected() for core in cores)
    assert (first.received(1), second.received(1)) == ([b"both"], [b"both"])
    broker.control.restrict(ID, serials[1:])
    until(lambda: "disconnected" in first.kinds())
    broker.control.publish([([ID], b"new")])
    assert second.received(2)[-1] == b"new"
    again = broker.sidecar(core=cores[0])
    until(lambda: "disconnected" in again.kinds())
    assert (first.read().messages, again.read().messages) == ([b"both"], [])
    assert "disconnected" not in second.kinds()


@pytest.mark.parametrize("path", ["/segment/inference/x", "/spire/server", "/spire/agentx/a", "/spire/agent"])
def test_only_agents_speak(broker: Broker, path: str) -> None:
    sidecar = broker.sidecar(path)
    until(lambda: any("only agents" in reason for _, reason in sidecar.read().news))
    twin = broker.sidecar().connected()
    assert [event[1] for event in broker.said("hello")] == [twin.id]


def test_agents_of_another_trust_domain_do_not_speak(broker: Broker, td: SimulatedTrustDomain) -> None:
    stranger = SimulatedTrustDomain("stranger", at=td.at)
    # The broker federates with it, so its agents pass the handshake.
    server = td.svid("/spire/server")
    svid = mtls.Svid(id=str(server.id), chain=server.chain, key=server.key_der, federates_with=["stranger"])
    broker.core.publish(mtls.Material(trust_domain="td", bundles=td.roots_by_name(stranger), svids=[svid]))
    foreign = stranger.svid(AGENT)
    core = broker.new_core()
    own = mtls.Svid(id=str(foreign.id), chain=foreign.chain, key=foreign.key_der, federates_with=["td"])
    core.publish(mtls.Material(trust_domain="stranger", bundles=stranger.roots_by_name(td), svids=[own]))
    client = core.control_client(
        addresses=[broker.front.address], as_id=str(foreign.id), expect="spiffe://td/spire/server"
    )
    refused = Sidecar(client, str(foreign.id))
    until(lambda: any("only agents" in reason for _, reason in refused.read().news))
    broker.sidecar().connected()
    assert [event[1] for event in broker.said("hello")] == [ID]


def test_a_stream_ends_with_the_svid(broker: Broker, td: SimulatedTrustDomain) -> None:
    short = broker.sidecar("/spire/agent/short", expires=int(time.time()) + SHORT).connected()
    broker.sidecar().connected()
    broker.said("hello", 2)
    assert [event[1] for event in broker.said("closed")] == [short.id]
    until(lambda: broker.control.streams() == 1)


def test_a_renewed_svid_is_shown_to_the_broker(broker: Broker, td: SimulatedTrustDomain) -> None:
    core = broker.new_core()
    first = td.svid(AGENT)
    publish(core, td, first)
    sidecar = broker.sidecar(core=core).connected()
    broker.said("hello")
    publish(core, td, first)
    sidecar.client.send(ack(1))
    broker.said("ack")
    publish(core, td, td.svid(AGENT))
    broker.said("closed")
    sidecar.connected()
    broker.said("hello", 2)
    assert sidecar.news[-1][0] == "connected"


def test_a_server_without_control_stream(broker: Broker) -> None:
    plain = broker.open(None)
    sidecar = broker.sidecar(address=plain.address)
    until(lambda: sidecar.kinds()[:1] == ["unsupported"])


def test_a_server_that_is_not_there_yet(broker: Broker, td: SimulatedTrustDomain) -> None:
    address = broker.front.address
    broker.front.stop()
    sidecar = broker.sidecar(address=address)
    until(lambda: sidecar.kinds() == ["disconnected"])
    as_id = "spiffe://td/spire/server"
    broker.core.tls_front(listen=address, as_id=as_id, backend=broker.backend, control=broker.control)
    sidecar.connected()
    broker.said("hello")


def test_a_message_that_is_too_large_ends_the_stream(broker: Broker) -> None:
    sidecar, other = broker.sidecar().connected(), broker.sidecar("/spire/agent/b").connected()
    broker.said("hello", 2)
    sidecar.client.send(b"\x12\xfb\xff\x3f" + b"\0" * ((1 << 20) - 5))
    broker.said("ack")
    sidecar.client.send(b"\x12\xfd\xff\x3f" + b"\0" * ((1 << 20) - 3))
    assert [event[1] for event in broker.said("closed")] == [ID]
    assert other.kinds() == ["connected"]


@pytest.mark.parametrize(
    "message", [b"", b"\xff\xff", b"\x22\x00", ack(1)], ids=["empty", "malformed", "unknown", "ack"]
)
def test_a_stream_starts_with_a_hello(broker: Broker, message: bytes) -> None:
    sidecar = broker.sidecar()
    until(lambda: sidecar.kinds() == ["connected"])
    sidecar.client.send(message)
    until(lambda: "disconnected" in sidecar.kinds())
    assert broker.read() == []


def test_the_event_fd_says_when_to_drain(broker: Broker) -> None:
    def readable() -> bool:
        return bool(select.select([broker.core.event_fd()], [], [], 0)[0])

    assert not readable()
    sidecar = broker.sidecar("/spire/agent/b")
    sidecar.connected()
    until(readable)
    assert broker.control.drain(1)[0][0] == "hello"
    assert not readable()
    sidecar.client.send(ack(1))
    until(readable)
    sidecar.client.stop()
    until(lambda: broker.control.streams() == 0)
    assert [event[0] for event in broker.control.drain(1)] == ["ack"]
    assert readable()
    assert [event[0] for event in broker.control.drain(1)] == ["closed"]
    assert not readable()


def test_connections_of_one_agent_are_capped(broker: Broker, td: SimulatedTrustDomain) -> None:
    core = broker.new_core()
    publish(core, td, td.svid(AGENT))
    for count in range(1, 9):
        broker.sidecar(core=core).connected()
        broker.said("hello", count)
    ninth = broker.sidecar(core=core)
    until(lambda: any("too many connections" in reason for _, reason in ninth.read().news))
    broker.sidecar("/spire/agent/b").connected()
    broker.said("hello", 9)


def test_two_hundred_streams(broker: Broker, td: SimulatedTrustDomain) -> None:
    paths = [f"/spire/agent/join_token/{number}" for number in range(200)]
    core = broker.new_core()
    publish(core, td, *(td.svid(path) for path in paths))
    sidecars = [broker.sidecar(path, core=core) for path in paths]
    for sidecar in sidecars:
        sidecar.connected()
    assert {event[1] for event in broker.said("hello", 200)} == {sidecar.id for sidecar in sidecars}
    assert broker.control.streams() == 200
    view = b"v" * 50_000
    broker.control.publish([([sidecar.id for sidecar in sidecars], view)])
    for sidecar in sidecars:
        assert sidecar.received(1) == [view]
        sidecar.client.send(ack(7))
    assert len(broker.said("ack", 200)) == 200
