# SPDX-License-Identifier: Apache-2.0
"""A broker below a CA in files: what its chains are, who is believed, and how one leaves a root behind."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.broker.broker import Broker
from firedoor.broker.config import load, validate
from firedoor.broker.downstream import listed, own
from firedoor.broker.errors import ConfigError
from firedoor.certs import (
    EVERY_ID,
    KeyType,
    Stage,
    Status,
    TrustDomain,
    X509Issuer,
    generate_key,
    issue_ca,
    parse_x509_svid,
)
from firedoor.wire import admin_grpc, admin_pb2
from firedoor.wire import localauthority_grpc as la_grpc
from firedoor.wire import localauthority_pb2 as la_pb
from tests.broker.below import Below, forge
from tests.broker.harness import POLICY, TD, RunningBroker, code_of, flags, running, status
from tests.broker.test_downstream import ANY, METHOD, refusal, verified
from tests.broker.test_issuing import USER
from tests.waiting import async_until

OUR_TD = TrustDomain.parse(TD)
PEM = serialization.Encoding.PEM


def made(issuer: X509Issuer | None = None, ttl: int = 30 * 86400, path_length: int | None = None) -> X509Issuer:
    key, at = generate_key(KeyType.EC_P256), int(time.time())
    return issue_ca(OUR_TD, key, at=at, random=secrets.token_bytes, ttl=ttl, issuer=issuer, path_length=path_length)


class Files:
    """The three files, in the order in which a careful person replaces them."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.bundle = (folder / name for name in ("ca.pem", "ca.key", "roots.pem"))

    def write(self, ca: X509Issuer, *roots: X509Issuer) -> None:
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        for path, data in (
            (self.bundle, b"".join(root.certificate.public_bytes(PEM) for root in roots or (ca,))),
            (self.key, ca.key.private_bytes(PEM, pkcs8, plain)),
            (self.certificate, _pem((ca.der, *ca.upstream))),
        ):
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(data)
            fresh.replace(path)

    def flags(self, *, bundle: bool = True) -> dict[str, str]:
        given = {"upstream_certificate": str(self.certificate), "upstream_key": str(self.key)}
        return {**given, "upstream_bundle": str(self.bundle)} if bundle else given


def _pem(ders: tuple[bytes, ...]) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(PEM) for der in ders)


@pytest.fixture
def files(folder: Path) -> Files:
    return Files(folder)


def authorities(broker: RunningBroker) -> la_grpc.LocalAuthorityStub:
    return la_grpc.LocalAuthorityStub(broker.admin)


async def activate_next(broker: RunningBroker) -> la_pb.AuthorityState:
    stub = authorities(broker)
    prepared = (await stub.PrepareX509Authority(la_pb.PrepareX509AuthorityRequest())).prepared_authority
    request = la_pb.ActivateX509AuthorityRequest(authority_id=prepared.authority_id)
    return (await stub.ActivateX509Authority(request)).activated_authority


async def test_chains_lead_over_its_ca_to_the_roots_upstream(folder: Path, files: Files) -> None:
    root = made()
    middle = made(root)
    files.write(middle, root)
    async with running(folder, **files.flags()) as broker:
        assert broker.roots() == [root.der]
        agent = await broker.attest()
        assert agent.svid is not None
        assert agent.svid.chain[-1] == middle.der
        assert len(agent.svid.chain) == 3
        entry = await broker.entry(ANY, agent.path, USER)
        # Over the network, with the SVID below the CA: the broker takes its own.
        (result,) = await agent.sign(entry.id)
        svid = parse_x509_svid(tuple(result.svid.cert_chain))
        assert verified(broker, svid) == "ok"
        state = await authorities(broker).GetX509AuthorityState(la_pb.GetX509AuthorityStateRequest())
        assert state.active.upstream_authority_subject_key_id == root.authority_id
        assert state.active.authority_id == svid.authority_id


async def test_a_root_in_the_files_is_its_own_bundle(folder: Path, files: Files) -> None:
    root = made()
    files.write(root)
    async with running(folder, **files.flags(bundle=False)) as broker:
        assert broker.roots() == [root.der]
        agent = await broker.attest()
        assert agent.svid is not None
        assert len(agent.svid.chain) == 2


async def test_others_below_the_same_root_are_nobody(folder: Path, files: Files) -> None:
    root = made()
    files.write(made(root), root)
    async with running(folder, **files.flags()) as broker:
        sibling = made(root)
        assert verified(broker, forge(sibling, ANY)[0]) == "intermediate_not_listed"
        admin = await broker.entry(ANY, "/spire/agent/x", USER, admin=True)
        assert admin.admin
        client = broker.client()
        client.use(*forge(sibling, ANY))
        assert await status(client.channel, "/spire.api.server.entry.v1.Entry/ListEntries") == "UNAVAILABLE"
        # Nor a leaf straight below the CA upstream: that is not the broker's own either.
        upstream = broker.broker.authority
        assert len(own(broker.broker.state)) == 1
        assert listed(broker.broker.state, None) == {key: {EVERY_ID} for key in own(broker.broker.state)}
        assert upstream.active().upstream


async def test_downstreams_of_a_broker_below_a_root(folder: Path, files: Files) -> None:
    root = made()
    files.write(root)
    async with running(folder, **files.flags()) as broker:
        below = await Below.make(broker)
        ca = await below.ca()
        assert len(ca.above) == 2
        assert verified(broker, forge(ca, ANY)[0]) == "ok"
        assert verified(broker, forge(ca, "/segment/inference/x")[0]) == "segment_not_listed"
        client = broker.client()
        client.use(*forge(ca, below.entry.spiffe_id.path))
        assert await status(client.channel, METHOD) == "UNAVAILABLE"


async def test_it_leaves_a_root_behind(folder: Path, files: Files) -> None:
    """SPIRE's suite force-rotation-upstream-authority."""
    old, new = made(), made()
    files.write(old)
    async with running(folder, **files.flags()) as broker:
        stub = authorities(broker)
        agent = await broker.attest()
        entry = await broker.entry(ANY, agent.path, USER)
        (result,) = await agent.sign(entry.id)
        before = parse_x509_svid(tuple(result.svid.cert_chain))

        async def taint(key_id: str) -> None:
            request = la_pb.TaintX509UpstreamAuthorityRequest(subject_key_id=key_id)
            await stub.TaintX509UpstreamAuthority(request)

        async def revoke(key_id: str) -> None:
            request = la_pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=key_id)
            await stub.RevokeX509UpstreamAuthority(request)

        assert (await refusal(taint(old.authority_id)))[0] == "INVALID_ARGUMENT"
        assert (await refusal(taint("")))[0] == "INVALID_ARGUMENT"
        files.write(new)
        # The next root is in the bundle before anything is signed below it.
        await async_until(lambda: broker.roots() == [old.der, new.der])
        active = await activate_next(broker)
        assert active.upstream_authority_subject_key_id == new.authority_id
        (result,) = await agent.sign(entry.id)
        after = parse_x509_svid(tuple(result.svid.cert_chain))
        assert [verified(broker, one) for one in (before, after)] == ["ok", "ok"]
        local = await stub.GetX509AuthorityState(la_pb.GetX509AuthorityStateRequest())
        request = la_pb.TaintX509AuthorityRequest(authority_id=local.old.authority_id)
        assert (await refusal(stub.TaintX509Authority(request)))[0] == "FAILED_PRECONDITION"
        assert (await refusal(revoke(old.authority_id)))[0] == "FAILED_PRECONDITION"
        assert (await refusal(taint("ab")))[0] == "INVALID_ARGUMENT"
        await taint(old.authority_id)
        assert [root.tainted for root in (await broker.bundle()).x509_authorities] == [True, False]
        await revoke(old.authority_id)
        assert broker.roots() == [new.der]
        assert [verified(broker, one) for one in (before, after)] == ["chain_untrusted", "ok"]


async def test_a_rotation_below_it_ends_when_nobody_runs_on_the_old_ca(folder: Path, files: Files) -> None:
    """What the root above vouches for cannot be taken back here; keys for tokens are ours alone."""
    root = made()
    files.write(root)
    async with running(folder, jwt_svid_ttl="1s", **files.flags()) as broker:
        stub = admin_grpc.AuthorityAdminStub(broker.admin)
        rotate = stub.StartRotation
        code, words = await refusal(rotate(admin_pb2.StartRotationRequest(kinds=["jwt", "x509"], emergency=True)))
        assert (code, "the x509 authority is below one upstream" in words) == ("FAILED_PRECONDITION", True)
        # Of several kinds all are started, or none.
        assert broker.broker.rotations.reports == {}
        old = broker.broker.authority.active()
        await rotate(admin_pb2.StartRotationRequest(kinds=["x509", "jwt"], drain=0))
        reports = broker.broker.rotations.reports
        await async_until(lambda: {one.rotation.stage for one in reports.values()} == {Stage.DONE})
        slots = broker.broker.authority.slots
        assert slots.other is not None
        assert (slots.other.authority_id, slots.other.status) == (old.authority_id, Status.OLD)
        assert broker.broker.jwt_authority.slots.other is not None
        assert broker.broker.jwt_authority.slots.other.status is Status.REVOKED
        assert broker.roots() == [root.der]


async def test_without_one_there_is_nothing_to_taint(broker: RunningBroker) -> None:
    stub = authorities(broker)
    for call, request in (
        (stub.TaintX509UpstreamAuthority, la_pb.TaintX509UpstreamAuthorityRequest(subject_key_id="ab")),
        (stub.RevokeX509UpstreamAuthority, la_pb.RevokeX509UpstreamAuthorityRequest(subject_key_id="ab")),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="upstream authority is not configured") as caught:
            await call(request)
        assert code_of(caught.value) == "FAILED_PRECONDITION"


async def test_files_that_do_not_go_together_change_nothing(folder: Path, files: Files) -> None:
    root, other = made(), made()
    files.write(root)
    async with running(folder, **files.flags()) as broker:
        # The key stays as it is, so that at no moment all three go together.
        wrong = Files(folder)
        wrong.key = folder / "another.key"
        wrong.write(other)
        await broker.broker.authority.tick()
        assert broker.roots() == [root.der]
        active = await activate_next(broker)
        assert active.upstream_authority_subject_key_id == root.authority_id


async def test_a_restart_goes_on_below_it_and_a_root_of_before_stays(folder: Path, files: Files) -> None:
    async with running(folder) as broker:
        (first,) = broker.roots()
        agent = await broker.attest()
        assert agent.svid is not None
        old = agent.svid
    root = made()
    files.write(root)
    async with running(folder, **files.flags()) as broker:
        assert broker.roots() == [first]
        await activate_next(broker)
        assert broker.roots() == [first, root.der]
        client = await broker.attest()
        assert client.svid is not None
        assert len(client.svid.chain) == 2
        assert len(old.chain) == 1
    async with running(folder, **files.flags()) as broker:
        assert len(own(broker.broker.state)) == 1
        assert await broker.attest()


REFUSED = {
    "no CA": (lambda: made(made(path_length=0)), "cannot be used"),
    "another root's": (lambda: made(made()), "cannot be used"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_ca_that_nobody_would_believe_is_not_used(folder: Path, files: Files, case: str) -> None:
    make, sentence = REFUSED[case]
    files.write(make(), made())
    broker = Broker(load(None, {}, flags(folder, POLICY, **files.flags())))
    with pytest.raises(Exception, match=sentence):
        await broker.start()


def test_what_is_wrong_with_files_is_said(folder: Path, files: Files) -> None:
    root = made()
    files.write(root)
    assert validate(load(None, {}, flags(folder, **files.flags()))) == []
    files.write(made(root), root)
    (finding,) = validate(load(None, {}, flags(folder, **files.flags(bundle=False))))
    assert "upstream.bundle: is missing" in finding
    files.bundle.write_text("nothing")
    (finding,) = validate(load(None, {}, flags(folder, **files.flags())))
    assert "upstream.bundle" in finding
    with pytest.raises(ConfigError, match="key"):
        load(None, {}, flags(folder, upstream_certificate=str(files.certificate)))
