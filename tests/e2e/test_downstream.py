# SPDX-License-Identifier: Apache-2.0
"""A hostile server below the broker uses its CA: sidecars admit what its entry lists, and nothing else."""

import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor import mtls
from firedoor.certs import KeyType, TrustDomain, X509Issuer, generate_key, issue_x509, make_csr
from firedoor.wire import svid_grpc, svid_pb2
from tests.e2e.conftest import UID, World
from tests.e2e.test_datapath import CLIENT, SERVER, App, inbound, listening, records
from tests.waiting import PATIENCE, until

TD = TrustDomain.parse("example.org")
BELOW = "/segment/inference/host/h3/svc/spire"
PEM = serialization.Encoding.PEM


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


@contextmanager
def speaking(world: World, name: str) -> Iterator[grpc.Channel]:
    """Open a channel to the broker as the identity that a sidecar's auth socket gives."""
    with world.api(name) as api:
        svid = api.fetch_x509_svid()
        (bundle,) = api.fetch_x509_bundles().bundles
    roots = [one.public_bytes(serialization.Encoding.DER) for one in bundle.x509_authorities]
    chain = [one.public_bytes(serialization.Encoding.DER) for one in svid.cert_chain]
    key = svid.private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    core = mtls.Core()
    core.publish(
        mtls.Material(
            trust_domain=TD.name,
            bundles={TD.name: roots},
            svids=[mtls.Svid(id=str(svid.spiffe_id), chain=chain, key=key)],
        )
    )
    connector = core.connector(
        path=str(world.folder / "c.sock"),
        addresses=[world.address],
        expect="spiffe://example.org/spire/server",
        as_id=str(svid.spiffe_id),
    )
    with grpc.insecure_channel(f"unix:{connector.path}") as channel:
        yield channel
    core.stop()


@pytest.fixture
def ca(world: World, app: App) -> X509Issuer:
    """A sidecar before the app, and the CA of a server below the broker that may issue for inference."""
    world.start_broker()
    world.create_entry(world.enrol(), SERVER)
    world.start_sidecar("--inbound", inbound(app), name="r").ready()
    parent = f"spiffe://example.org{world.enrol()}"
    words = ("--spiffe-id", f"spiffe://example.org{BELOW}", "--parent-id", parent, "--selector", f"unix:{UID}")
    world.run("entry", "create", *words, "--downstream", "--segment", "inference")
    world.start_sidecar(name="d").ready()
    key = generate_key(KeyType.EC_P256)
    with speaking(world, "d") as channel:
        request = svid_pb2.NewDownstreamX509CARequest(csr=make_csr(key))
        chain = svid_grpc.SVIDStub(channel).NewDownstreamX509CA(request, timeout=PATIENCE).ca_cert_chain
    found = X509Issuer.load(TD, chain[0], key, chain[1:])
    # The broker waits for sidecars to have it on their lists, and not for one that takes its time.
    until(lambda: asks(world, found, CLIENT) == b"hello you", "the list of CAs at the app's sidecar")
    return found


def asks(world: World, ca: X509Issuer, path: str) -> bytes:
    """Connect to the app's sidecar with a certificate that the CA makes up; return what the app says."""
    return exchange(listening(world, "r"), made_up(world, ca, path))


def made_up(world: World, ca: X509Issuer, path: str) -> Path:
    """Make a certificate up; return where it is, with its key."""
    key = generate_key(KeyType.EC_P256)
    spiffe_id = TD.with_path(path)
    made = issue_x509(spiffe_id, key.public_key(), ca, at=int(time.time()), random=secrets.token_bytes, ttl=600)
    pem = world.folder / "client.pem"
    text = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(text + b"".join(x509.load_der_x509_certificate(der).public_bytes(PEM) for der in made.chain))
    return pem


def exchange(address: str, pem: Path) -> bytes:
    try:
        with connected(address, pem) as link:
            link.sendall(b"you")
            return link.recv(100)
    except (ConnectionError, ssl.SSLError):
        return b""


def connected(address: str, pem: Path) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pem)
    host, _, port = address.rpartition(":")
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=PATIENCE))


def recorded(world: World, **wanted: object) -> dict[str, object]:
    """Return the last record that says all this; records come in their time."""

    def found() -> list[dict[str, object]]:
        return [one for one in records(world, "r") if wanted.items() <= one.items()]

    return until(found, f"a decision record: {wanted}")[-1]


def test_a_forged_id_of_another_segment_is_denied(world: World, app: App, ca: X509Issuer) -> None:
    assert asks(world, ca, CLIENT) == b"hello you"
    assert recorded(world, decision="allowed")["source"] == f"spiffe://example.org{CLIENT}"
    reached = app.accepted
    assert asks(world, ca, "/segment/registry/host/h1/svc/other") == b""
    assert recorded(world, reason="segment_not_listed")["decision"] == "denied"
    assert app.accepted == reached


def test_a_server_below_that_is_banned_is_cut_off(world: World, app: App, ca: X509Issuer) -> None:
    assert asks(world, ca, CLIENT) == b"hello you"
    status = world.status("d")
    assert status is not None
    world.ban(status.agent_id.removeprefix("spiffe://example.org"))

    # One that is under way while the list changes is let in and cut; the next is denied.
    def denied() -> bool:
        return asks(world, ca, CLIENT) == b"" and records(world, "r")[-1]["reason"] == "intermediate_not_listed"

    until(denied, "the denial")
    accepted = app.accepted
    assert asks(world, ca, CLIENT) == b""
    assert app.accepted == accepted >= 1


def test_one_ca_is_revoked_by_its_serial_number(world: World, app: App, ca: X509Issuer) -> None:
    """What is under way ends, the next is denied, and the entry lives on."""
    serial = f"{ca.certificate.serial_number:x}"
    (shown,) = json.loads(world.run("authority", "downstream", "list", "--output", "json"))
    assert (shown["serial"], shown["segments"]) == (serial, ["inference"])
    before = app.accepted
    with connected(listening(world, "r"), made_up(world, ca, CLIENT)) as link:
        until(lambda: app.accepted == before + 1, "the app has it")
        assert f"revoked {serial}" in world.run("authority", "downstream", "revoke", serial)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert link.recv(100) == b""

    def denied() -> bool:
        return asks(world, ca, CLIENT) == b"" and records(world, "r")[-1]["reason"] == "intermediate_not_listed"

    until(denied, "the denial")
    assert json.loads(world.run("authority", "downstream", "list", "--output", "json")) == []
    assert BELOW in world.run("entry", "list")
