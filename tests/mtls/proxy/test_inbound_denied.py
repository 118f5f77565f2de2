# SPDX-License-Identifier: Apache-2.0
"""Who an inbound listener refuses. Each case has a twin in which only that fact differs, and which passes.

A refused peer leaves one record with the reason, and never reaches the app's accept().
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import MODELS, PORT, VLLM, World, asks, dial, dial_tls, ended, flow, policy
from tests.mtls.proxy.datapath import svid as with_key
from tests.simulator import Identity, SimulatedTrustDomain, key_hash_of

# Two IDs that differ from VLLM in what a case is about.
TRAINER = "/segment/training/host/h1/svc/trainer"
STRANGER = "/nowhere/host/h1/svc/vllm"


@dataclass
class Client:
    """What one side of a case is: a client, and what the server has been told."""

    identity: Identity | None
    server: dict[str, Any] = field(default_factory=dict)
    listener: dict[str, Any] = field(default_factory=dict)


def no_certificate(world: World) -> tuple[Client, Client]:
    return Client(None), Client(world.vllm)


def expired(world: World) -> tuple[Client, Client]:
    at = world.td.at
    return (
        Client(world.td.svid(VLLM, starts=at - 7200, expires=at - 1)),
        Client(world.td.svid(VLLM, starts=at - 7200, expires=at + 600)),
    )


def not_yet_valid(world: World) -> tuple[Client, Client]:
    at = world.td.at
    return Client(world.td.svid(VLLM, starts=at + 600)), Client(world.td.svid(VLLM, starts=at - 300))


def foreign_authority(world: World) -> tuple[Client, Client]:
    impostor = SimulatedTrustDomain("td", at=world.td.at)
    return Client(impostor.svid(VLLM)), Client(world.td.svid(VLLM))


def unknown_trust_domain(world: World) -> tuple[Client, Client]:
    other = SimulatedTrustDomain("other", at=world.td.at)
    members = '"spiffe://{td}/segment/inference/**", "spiffe://other/segment/inference/**"'
    table = policy(flow("spiffe://other/segment/inference/**"), source_members=members)
    told = {"bundles": world.td.roots_by_name(other), "policy": table}
    federated = [with_key(world.models, federates_with=["other"])]
    return Client(other.svid(VLLM), told), Client(other.svid(VLLM), {**told, "server_svids": federated})


def no_flow(world: World) -> tuple[Client, Client]:
    return Client(world.td.svid(TRAINER)), Client(world.td.svid(VLLM))


def no_policy(world: World) -> tuple[Client, Client]:
    return Client(world.vllm, {"policy": b""}), Client(world.vllm)


def other_port(world: World) -> tuple[Client, Client]:
    return Client(world.vllm, listener={"service_port": PORT + 1}), Client(world.vllm)


def unknown_source(world: World) -> tuple[Client, Client]:
    anyone = policy(flow("spiffe://{td}/**"))
    return Client(world.td.svid(STRANGER), {"policy": anyone}), Client(world.td.svid(VLLM), {"policy": anyone})


def revoked_serial(world: World) -> tuple[Client, Client]:
    other = world.td.svid(VLLM)
    told = {"revocations": [mtls.Revocation(serial=f"{world.vllm.leaf.serial_number:x}")]}
    return Client(world.vllm, told), Client(other, told)


def revoked_authority(world: World) -> tuple[Client, Client]:
    old, new = world.td.authority, world.td.rotate()
    told = {
        "revocations": [mtls.Revocation(authority_id=old.authority_id)],
        "server_svids": [with_key(world.td.svid(MODELS, issuer=new))],
    }
    return Client(world.td.svid(VLLM, issuer=old), told), Client(world.td.svid(VLLM, issuer=new), told)


def revoked_id(world: World) -> tuple[Client, Client]:
    at = world.td.at
    pattern = "spiffe://td/segment/inference/**"
    told = {"revocations": [mtls.Revocation(pattern=pattern, issued_before=at - 60)]}
    return (
        Client(world.td.svid(VLLM, starts=at - 120), told),
        Client(world.td.svid(VLLM, starts=at - 60), told),
    )


def unlisted_intermediate(world: World) -> tuple[Client, Client]:
    below = world.td.svid(VLLM, issuer=world.td.intermediate())
    return Client(below, {"intermediates": []}), Client(below)


def forged_below_another_segments_ca(world: World) -> tuple[Client, Client]:
    """A CA of the registry's makes up an ID of inference."""
    ca = world.td.intermediate()
    forged, key = world.td.svid(VLLM, issuer=ca), key_hash_of(ca)
    return (
        Client(forged, {"intermediates": [(key, {"registry"})]}),
        Client(forged, {"intermediates": [(key, {"registry", "inference"})]}),
    )


CASES: dict[str, tuple[Callable[[World], tuple[Client, Client]], str]] = {
    "no certificate": (no_certificate, "no_certificate"),
    "expired": (expired, "expired"),
    "not yet valid": (not_yet_valid, "not_yet_valid"),
    "an allowed ID signed by a foreign authority": (foreign_authority, "chain_untrusted"),
    "another trust domain": (unknown_trust_domain, "unknown_trust_domain"),
    "no flow": (no_flow, "no_flow"),
    "no policy": (no_policy, "unknown_source"),
    "another port": (other_port, "port_not_named"),
    "in no segment": (unknown_source, "unknown_source"),
    "revoked by serial": (revoked_serial, "revoked_serial"),
    "revoked by authority": (revoked_authority, "revoked_authority"),
    "revoked by pattern": (revoked_id, "revoked_id"),
    "below a CA that is not listed": (unlisted_intermediate, "intermediate_not_listed"),
    "below a CA of another segment": (forged_below_another_segments_ca, "segment_not_listed"),
}


@pytest.mark.parametrize(("case", "reason"), CASES.values(), ids=CASES)
def test_refused_with_a_reason_and_its_twin_passes(
    world: World, case: Callable[[World], tuple[Client, Client]], reason: str
) -> None:
    refused, allowed = case(world)

    world.publish_server(**refused.server)
    inbound = world.inbound(**refused.listener)
    with dial_tls(inbound.address, refused.identity, world.folder) as link:
        assert asks(link) is None
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", reason)
    assert record["peer_address"] != ""
    assert world.app.accepted == 0
    inbound.stop()

    world.publish_server(**allowed.server)
    inbound = world.inbound(**allowed.listener)
    with dial_tls(inbound.address, allowed.identity, world.folder) as link:
        assert asks(link) == b"ping"
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("allowed", "allowed")
    assert record["source"] == str(allowed.identity.id if allowed.identity else "")
    # The allowed control request raised the app's own counter by exactly one: nothing refused got there before.
    assert world.app.accepted == 1


def test_a_peer_that_only_connects_is_recorded_when_its_time_is_up(world: World) -> None:
    world.publish_server()
    inbound = world.inbound(handshake_timeout_ms=50)
    with dial(inbound.address) as link:
        assert ended(link)
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"], record["source"]) == ("denied", "handshake_timeout", "")


def test_a_peer_that_leaves_before_the_handshake_is_recorded(world: World) -> None:
    world.publish_server()
    dial(world.inbound().address).close()
    [record] = world.records(world.server, 1)
    assert (record["decision"], record["reason"]) == ("denied", "handshake_closed")


@pytest.mark.parametrize("alpn", [(), ("firedoor-tcp/1",)], ids=["none", "ours"])
def test_alpn_is_ours_or_none(world: World, alpn: tuple[str, ...]) -> None:
    world.publish_server()
    with dial_tls(world.inbound().address, world.vllm, world.folder, alpn=alpn) as link:
        assert asks(link) == b"ping"
        assert link.selected_alpn_protocol() == (alpn[0] if alpn else None)


def test_another_alpn_is_refused(world: World) -> None:
    world.publish_server()
    inbound = world.inbound()
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        dial_tls(inbound.address, world.vllm, world.folder, alpn=("h2",))
    [record] = world.records(world.server, 1)
    assert record["reason"] == "handshake_failed"


def test_no_session_can_be_resumed(world: World) -> None:
    world.publish_server()
    with dial_tls(world.inbound().address, world.vllm, world.folder) as link:
        assert asks(link) == b"ping"
        assert link.version() == "TLSv1.3"
        assert link.session is None or not link.session.has_ticket
