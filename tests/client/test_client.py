# SPDX-License-Identifier: Apache-2.0
"""`firedoor.Client` against the auth service of a sidecar."""

import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import firedoor
from firedoor import errors
from firedoor.certs import TrustDomain, verify_x509_svid
from tests.client.conftest import Sidecar
from tests.sidecar.auth_socket import PEER, STRANGER, UID, X, Y
from tests.sidecar.conftest import entry
from tests.simulator import SimulatedTrustDomain
from tests.waiting import SHORT, until


def test_who_am_i(sidecar: Sidecar) -> None:
    sidecar.entitle(X, Y, STRANGER)
    with firedoor.Client(sidecar.url) as client:
        found = client.whoami()
    assert [(one.id, one.segment, one.hint) for one in found] == [(X.spiffe_id, "a", "inner"), (Y.spiffe_id, "a", "")]
    assert all(one.expires_at > time.time() for one in found)


def test_the_socket_of_the_environment(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar.entitle(X)
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", sidecar.url)
    with firedoor.Client() as client:
        assert client.whoami()[0].id == X.spiffe_id


def test_svid_and_bundles(sidecar: Sidecar) -> None:
    other = SimulatedTrustDomain("other.org", at=sidecar.trust.at)
    sidecar.entitle(entry("/segment/a/x", UID, federates_with=(other.td,)), others=(other,))
    with firedoor.Client(sidecar.url) as client:
        svid, bundles = client.x509_svid(), client.bundles()
    assert set(bundles) == {sidecar.trust.td, TrustDomain.parse("other.org")}
    assert verify_x509_svid(svid.chain, bundles, int(time.time())).id == X.spiffe_id == svid.id
    key = serialization.load_pem_private_key(svid.key_pem, None)
    assert key.public_key() == x509.load_pem_x509_certificate(svid.chain_pem).public_key()
    assert "key" not in repr(svid)


def test_a_rotation_is_seen(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    with firedoor.Client(sidecar.url) as client:
        source = client.x509_source()
        before, version = client.x509_svid(), source.version
        fresh = sidecar.hold(X)
        assert source.wait_for_change(version, 60) > version
        assert client.x509_svid().serial == fresh.svid.serial != before.serial
        version = source.version
        sidecar.trust.rotate()
        sidecar.trust_also()
        assert source.wait_for_change(version, 60) > version
        assert len(client.bundles()[sidecar.trust.td].x509_roots) == 2


def test_the_last_good_stays_while_the_sidecar_restarts(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    with firedoor.Client(sidecar.url) as client:
        before = client.x509_svid()
        sidecar.stop()
        assert client.x509_svid() == before
        fresh = sidecar.hold(X)
        assert client.x509_svid() == before
        sidecar.start()
        until(lambda: client.x509_svid().serial == fresh.svid.serial, "the stream comes again")
        assert client.whoami()[0].id == X.spiffe_id


def test_an_expired_svid_is_not_given(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    sidecar.hold(X, expires=int(time.time()) + SHORT)
    with firedoor.Client(sidecar.url) as client:
        assert client.x509_svid().id == X.spiffe_id
        sidecar.stop()

        def gone() -> bool:
            try:
                client.x509_svid()
            except errors.SvidExpired:
                return True
            return False

        until(gone, "it expires")


def test_an_identity_that_is_taken_away_is_forgotten(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    with firedoor.Client(sidecar.url) as client:
        assert client.x509_svid().id == X.spiffe_id
        sidecar.entitle(STRANGER)

        def forgotten() -> bool:
            try:
                client.x509_svid()
            except errors.NoIdentity:
                return True
            return False

        until(forgotten, "the identity is gone")
        sidecar.entitle(X)

        def back() -> bool:
            try:
                return client.x509_svid().id == X.spiffe_id
            except errors.NoIdentity:
                return False

        until(back, "the identity is there again")


def test_it_waits_for_a_sidecar_that_starts(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    sidecar.stop()
    with firedoor.Client(sidecar.url) as client:
        found: list[object] = []
        asking = [threading.Thread(target=lambda: found.append(client.whoami()[0].id))]
        asking += [threading.Thread(target=lambda: found.append(client.x509_svid().id))]
        for one in asking:
            one.start()
        sidecar.start()
        for one in asking:
            one.join(60)
    assert found == [X.spiffe_id, X.spiffe_id]


def test_a_sidecar_that_is_away(tmp_path: Path) -> None:
    with firedoor.Client(f"unix://{tmp_path}/none.sock", timeout=0.3) as client:
        with pytest.raises(errors.SidecarUnavailable):
            client.whoami()
        with pytest.raises(errors.SidecarUnavailable, match=r"within 0\.3 s"):
            client.x509_svid()


def test_without_an_entry(sidecar: Sidecar) -> None:
    sidecar.entitle(STRANGER)
    with firedoor.Client(sidecar.url) as client:
        for ask in (client.whoami, client.x509_svid, client.bundles, lambda: client.check(PEER)):
            with pytest.raises(errors.NoIdentity) as caught:
                ask()
            assert "entry create" in caught.value.hint


def test_check(sidecar: Sidecar) -> None:
    sidecar.entitle(X, Y, STRANGER)
    with firedoor.Client(sidecar.url) as client:
        allowed = client.check(PEER, method="GET", path="/models/a")
        denied = client.check(PEER, method="PUT", path="/models/a")
        assert (bool(allowed), allowed.flow, allowed.reason) == (True, "b-reads-a", "allowed")
        assert (bool(denied), denied.flow, denied.reason) == (False, "", "action_not_named")
        grpc = client.check(PEER, protocol="grpc", service_port=9000, grpc_service="pkg.Models", grpc_method="Get")
        assert grpc
        assert client.check(PEER, method="GET", path="/models/a", identity=X.spiffe_id)
        with pytest.raises(errors.NoIdentity):
            client.check(PEER, method="GET", path="/models/a", identity=PEER)
        with pytest.raises(errors.RequestRefused):
            client.check(PEER, identity=Y.spiffe_id)


def test_arguments(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    with firedoor.Client(sidecar.url) as client:
        for ask in (
            lambda: client.check("x"),
            lambda: client.check(PEER, identity="x"),
            lambda: client.check(PEER, service_port=-1),
            lambda: client.check(PEER, method="\ud800"),
            lambda: client.jwt_svid(()),
            lambda: client.jwt_svid(""),
            lambda: client.jwt_svid("\ud800"),
            lambda: client.jwt_svid("a", identity="x"),
        ):
            with pytest.raises(errors.BadArgument):
                ask()


def test_closing(sidecar: Sidecar) -> None:
    sidecar.entitle(X)
    before = threading.active_count()
    client = firedoor.Client(sidecar.url)
    source = client.x509_source()
    assert source.svid.id == X.spiffe_id
    client.close()
    client.close()
    for ask in (client.whoami, client.x509_svid, lambda: source.svid):
        with pytest.raises(errors.ClientClosed):
            ask()
    until(lambda: threading.active_count() <= before, "no thread stays")
