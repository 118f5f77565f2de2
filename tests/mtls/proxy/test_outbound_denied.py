# SPDX-License-Identifier: Apache-2.0
"""Whom an outbound listener refuses, and what it makes of who answers. Each refusal has its twin."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from firedoor import mtls
from tests.mtls.proxy.datapath import MODELS, PORT, App, World, dial, ended, exchange, flow, policy, refuses
from tests.mtls.proxy.datapath import svid as with_key
from tests.simulator import SimulatedTrustDomain
from tests.waiting import until

OTHER_UID = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: starts a process of another user")

# Connects, sends, and prints what comes back.
CLIENT = """
import socket, sys
address, uid = sys.argv[1], int(sys.argv[2])
import os
if uid != os.geteuid():
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
if address.startswith("unix:"):
    link = socket.socket(socket.AF_UNIX); link.connect(address[5:])
else:
    host, port = address.rsplit(":", 1); link = socket.create_connection((host, int(port)))
link.settimeout(60)
try:
    link.sendall(b"ping"); print(link.recv(4).decode())
except ConnectionError:
    print("")
"""


def run_client(address: str, uid: int) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT, address, str(uid)], capture_output=True, text=True, timeout=90, check=True
    )
    return ran.stdout.strip()


def tcp(world: World, *addresses: str) -> mtls.Listener:
    return world.outbound(*addresses, listen="127.0.0.1:0", name="by-tcp")


@needs_root
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_another_local_user_is_refused_and_the_peer_sees_nothing(world: World, kind: str) -> None:
    world.publish()
    inbound = world.inbound()
    world.folder.chmod(0o755)
    listener = world.outbound(inbound.address, mode="0666") if kind == "unix" else tcp(world, inbound.address)

    assert run_client(listener.address, OTHER_UID) == ""
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "client_not_entitled")
    assert record["client"]["uid"] == OTHER_UID
    assert world.server.stats()["accepted_inbound"] == 0

    assert run_client(listener.address, os.geteuid()) == "ping"
    assert world.app.accepted == 1
    assert world.server.stats()["accepted_inbound"] == 1


def test_a_tcp_client_that_sends_and_closes_at_once_is_refused(world: World) -> None:
    world.publish()
    listener = tcp(world, world.inbound().address)

    def refused() -> bool:
        with dial(listener.address) as link:
            link.sendall(b"stolen")
        [record] = world.records(world.client, 1)
        assert (record["decision"], record["reason"]) in (("denied", "client_unknown"), ("allowed", "allowed"))
        return bool(record["decision"] == "denied")

    # The thread that accepts may be faster than the client that closes; then it is known, and served.
    until(refused)
    assert exchange(listener.address) == b"ping"


# Connects, is served, hands its socket to a child and ends; the child says whether the connection ended too.
LEAVES_A_CHILD = """
import os, socket, sys
link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1]); link.settimeout(60)
link.sendall(b"ping"); assert link.recv(4) == b"ping"
if os.fork() == 0:
    try:
        print("ended" if link.recv(1) == b"" else "alive")
    except ConnectionError:
        print("ended")
"""


def test_a_connection_ends_with_the_process_that_opened_it(world: World) -> None:
    """Whoever else holds the socket was never attested."""
    world.publish()
    listener = world.outbound(world.inbound().address)
    path = listener.address.removeprefix("unix:")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAVES_A_CHILD, path], capture_output=True, text=True, timeout=90
    )
    assert (ran.stdout.strip(), ran.stderr) == ("ended", "")
    assert world.records(world.client, 1)[0]["decision"] == "allowed"


RULES: dict[str, tuple[Callable[[], mtls.ClientRule], Callable[[], mtls.ClientRule]]] = {
    "uid": (lambda: mtls.ClientRule(uid=os.getuid() + 1), lambda: mtls.ClientRule(uid=os.getuid())),
    "gid": (lambda: mtls.ClientRule(gid=os.getgid() + 1), lambda: mtls.ClientRule(gid=os.getgid())),
    "groups": (
        lambda: mtls.ClientRule(uid=os.getuid(), supplementary_gids=[*os.getgroups(), 54_321]),
        lambda: mtls.ClientRule(uid=os.getuid(), supplementary_gids=os.getgroups()),
    ),
    "path": (lambda: mtls.ClientRule(path="/bin/true"), lambda: mtls.ClientRule(path=executable())),
    "sha256": (
        lambda: mtls.ClientRule(sha256=hashlib.sha256(b"").hexdigest()),
        lambda: mtls.ClientRule(sha256=hashlib.sha256(Path(executable()).read_bytes()).hexdigest()),
    ),
    "sha256 and a wrong uid": (
        lambda: mtls.ClientRule(
            uid=os.getuid() + 1, sha256=hashlib.sha256(Path(executable()).read_bytes()).hexdigest()
        ),
        lambda: mtls.ClientRule(uid=os.getuid(), sha256=hashlib.sha256(Path(executable()).read_bytes()).hexdigest()),
    ),
    "nothing": (lambda: mtls.ClientRule(), lambda: mtls.ClientRule(uid=os.getuid())),
}


def executable() -> str:
    return str(Path("/proc/self/exe").readlink())


@pytest.mark.parametrize(("wrong", "right"), RULES.values(), ids=RULES)
def test_a_unix_client_must_match_the_entry(
    world: World, wrong: Callable[[], mtls.ClientRule], right: Callable[[], mtls.ClientRule]
) -> None:
    world.publish(client_svids=[with_key(world.vllm, clients=[wrong()])])
    listener = world.outbound(world.inbound().address)
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "client_not_entitled")
    assert world.server.stats()["accepted_inbound"] == 0

    # Any one rule that matches is enough.
    world.publish(client_svids=[with_key(world.vllm, clients=[wrong(), right()])])
    assert exchange(listener.address) == b"ping"
    assert world.app.accepted == 1


def test_an_entry_that_tcp_cannot_decide_refuses_or_closes_the_listener(world: World) -> None:
    undecidable = [with_key(world.vllm, clients=[mtls.ClientRule(uid=os.getuid(), path=executable())])]
    decidable = [with_key(world.vllm, clients=world.me)]
    inbound = world.inbound
    world.publish(client_svids=undecidable)
    with pytest.raises(mtls.ListenError, match="only the uid of a client is known") as refused:
        tcp(world, "127.0.0.1:1")
    assert refused.value.code == "clients_undecidable"

    world.publish_client(client_svids=decidable)
    listener = tcp(world, inbound().address)
    assert listener.open
    world.publish_client(client_svids=undecidable)
    assert not listener.open
    refuses(listener.address)
    world.publish_client(client_svids=decidable)
    assert exchange(listener.address) == b"ping"


def test_over_tcp_only_uid_rules_count(world: World) -> None:
    """Beside a rule that names another uid alone, one that names this uid and more lets nobody in."""
    rules = [mtls.ClientRule(uid=os.getuid() + 1), mtls.ClientRule(uid=os.getuid(), path=executable())]
    world.publish(client_svids=[with_key(world.vllm, clients=rules)])
    listener = tcp(world, world.inbound().address)
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert record["reason"] == "client_not_entitled"


def test_what_no_flow_could_allow_is_denied_without_connecting(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    listener = world.outbound(inbound.address, service_port=PORT + 1)
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"], record["peer_address"]) == ("denied", "port_not_named", "")
    assert world.server.stats()["accepted_inbound"] == 0
    listener.stop()
    assert exchange(world.outbound(inbound.address).address) == b"ping"


def test_the_right_address_with_the_wrong_identity_is_refused(world: World) -> None:
    world.publish()
    inbound = world.inbound()
    other = "spiffe://td/segment/registry/host/h3/svc/models"
    listener = world.outbound(inbound.address, expect=[other])
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "unexpected_id")
    assert record["peer_address"] == inbound.address
    assert world.app.accepted == 0
    [record] = world.records(world.server, 1)
    assert record["decision"] == "denied"
    listener.stop()
    assert (
        exchange(world.outbound(inbound.address, expect=["spiffe://td/segment/registry/host/*/svc/models"]).address)
        == b"ping"
    )
    assert world.app.accepted == 1


def test_the_next_address_is_tried_until_one_proves_the_expectation(world: World) -> None:
    world.publish()
    right = world.inbound()
    wrong_core = mtls.Core(data_threads=1)
    plain = App()
    try:
        other = world.td.svid("/segment/registry/host/h3/svc/other")
        wrong_core.publish(world.material([with_key(other)]))
        wrong = world.inbound(wrong_core, **{"as": str(other.id)})
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            closed = f"127.0.0.1:{nobody.getsockname()[1]}"
        listener = world.outbound("no-such-host.invalid:1", closed, plain.address, wrong.address, right.address)
        assert exchange(listener.address) == b"ping"
        [record] = world.records(world.client, 1)
        assert (record["decision"], record["peer_address"]) == ("allowed", right.address)
    finally:
        wrong_core.stop()
        plain.stop()


def test_a_server_of_another_trust_domain_needs_federation(world: World) -> None:
    """Its roots are in the material both times; only an entry that federates with it may use them."""
    other = SimulatedTrustDomain("other", at=world.td.at)
    models = other.svid(MODELS)
    bundles = world.td.roots_by_name(other)
    table = policy(flow(), destination_members='"spiffe://other/segment/registry/**"')
    theirs = with_key(models, federates_with=["td"])
    world.server.publish(mtls.Material(trust_domain="other", bundles=bundles, svids=[theirs], table=table))
    inbound = world.inbound(None, **{"as": str(models.id)})
    listener = world.outbound(inbound.address, expect=[str(models.id)])

    world.publish_client(table, bundles=bundles)
    assert exchange(listener.address) is None
    [record] = world.records(world.client, 1)
    assert (record["decision"], record["reason"]) == ("denied", "unknown_trust_domain")
    assert world.app.accepted == 0

    federated = [with_key(world.vllm, clients=world.me, federates_with=["other"])]
    world.publish_client(table, bundles=bundles, client_svids=federated)
    assert exchange(listener.address) == b"ping"
    assert world.app.accepted == 1


def test_plaintext_is_never_spoken(world: World) -> None:
    seen: list[bytes] = []

    def look(link: socket.socket) -> None:
        seen.append(link.recv(1 << 16))
        link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    plain = App(look)
    try:
        world.publish_client()
        listener = world.outbound(plain.address)
        assert exchange(listener.address, b"secret") is None
        [record] = world.records(world.client, 1)
        assert (record["decision"], record["reason"]) == ("denied", "handshake_failed")
        # A TLS handshake record, and nothing of the client's.
        assert seen
        assert seen[0][:1] == b"\x16"
        assert b"secret" not in seen[0]
    finally:
        plain.stop()


def test_a_unix_socket_is_for_its_owner_alone_unless_told(world: World) -> None:
    world.publish_client()
    path = world.folder / "models.sock"
    listener = world.outbound("127.0.0.1:1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.stop()
    assert not path.exists()
    world.outbound("127.0.0.1:1", mode="0660")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_client_that_is_refused_is_not_read(world: World) -> None:
    world.publish(client_svids=[with_key(world.vllm)])
    listener = world.outbound(world.inbound().address)
    with dial(listener.address) as link:
        assert ended(link)
    until(lambda: world.client.stats()["denied_client_not_entitled"] == 1)
    assert world.client.stats()["bytes_forward"] == 0
