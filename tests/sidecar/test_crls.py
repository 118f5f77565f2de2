# SPDX-License-Identifier: Apache-2.0
"""Revocation lists on their way to local programs: only what verifies is handed on, and nothing else waits for it."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
import spiffe

from firedoor.certs import X509Issuer, issue_crl
from firedoor.sidecar import crls as crls_module
from firedoor.sidecar.config import Config
from firedoor.sidecar.crls import vouched
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.view import View
from firedoor.wire import control_pb2, workload_grpc, workload_pb2
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.test_workload_api import HEADER, Reporter
from tests.simulator import Authority, SimulatedTrustDomain

A = entry("/segment/a/x", f"unix:uid:{os.geteuid()}")


def made(authority: Authority, trust: SimulatedTrustDomain, *serials: str, number: int = 1) -> control_pb2.Crl:
    """Return a list as the broker tells it."""
    issuer = X509Issuer.load(trust.td, authority.der, authority.key, authority.above)
    der = issue_crl(issuer, dict.fromkeys(serials, trust.at), number=number, at=trust.at).der
    return control_pb2.Crl(der=der, signers=[authority.der, *authority.above])


def view(trust: SimulatedTrustDomain, *crls: control_pb2.Crl) -> View:
    return View(TD, synced=True, generation=(1, 1), crls=crls).with_bundles(trust.bundles().values())


def test_what_verifies_is_handed_on(trust: SimulatedTrustDomain, caplog: pytest.LogCaptureFixture) -> None:
    other = SimulatedTrustDomain("other.org", at=trust.at)
    old, below = trust.authority, trust.intermediate()
    trust.rotate()
    good = [made(old, trust, "ab"), made(trust.authority, trust), made(below, trust, "cd")]
    forged = control_pb2.Crl(der=made(other.authority, trust, "ab").der, signers=[trust.authority.der])
    bad = [made(other.authority, other), forged, control_pb2.Crl(der=b"x", signers=[old.der])]
    found = view(trust, good[0], *bad, *good[1:])
    assert vouched(found, trust.at) == tuple(one.der for one in good)
    assert caplog.text.count("a revocation list cannot be used") == len(bad)
    # A day later they should have been replaced.
    assert vouched(found, trust.at + 24 * 3600 + 1) == ()


def test_not_more_than_an_answer_takes(
    trust: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lists = [made(trust.authority, trust)]
    lists.append(made(trust.rotate(), trust))
    monkeypatch.setattr(crls_module, "MAX_BYTES", len(lists[0].der))
    assert vouched(view(trust, *lists), trust.at) == (lists[0].der,)
    assert "more revocation lists than local programs can be given" in caplog.text


def test_a_server_without_our_control_stream_has_none(trust: SimulatedTrustDomain) -> None:
    assert vouched(view(trust), trust.at) == ()
    assert vouched(View(TD, crls=(made(trust.authority, trust),)), trust.at) == ()


@pytest.fixture
async def stub(bench: Bench, settings: Config) -> AsyncIterator[Any]:
    sockets = Sockets(bench.core, settings)
    bench.entitle(A)
    await sockets.open_auth(*bench.apis(), lambda: bench.holder.view.synced)
    await sockets.open_admin(Reporter(), lambda: bench.holder.view.synced, bench.delegated())
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        yield workload_grpc.SpiffeWorkloadAPIStub(channel)
    await sockets.close()


async def test_the_workload_api_has_them(stub: Any, bench: Bench, settings: Config) -> None:
    trust = bench.trust
    svids = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
    bundles = stub.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=HEADER)
    async with asyncio.timeout(60):
        for stream in (svids, bundles):
            assert list((await stream.read()).crl) == []
        # Another list is another answer, at once.
        for number in (1, 2):
            lists = [made(trust.authority, trust, f"{number}ab", number=number)]
            bench.holder.set(view=replace(bench.holder.view, crls=tuple(lists)))
            for stream in (svids, bundles):
                answer = await stream.read()
                assert list(answer.crl) == [lists[0].der]
        # What is no list keeps nothing else from counting.
        bench.holder.set(view=replace(bench.holder.view, crls=(control_pb2.Crl(der=b"x"),)))
        answer = await svids.read()
        assert (list(answer.crl), len(answer.svids)) == ([], 1)
    svids.cancel()
    bundles.cancel()


@pytest.mark.peer
async def test_py_spiffe_reads_such_an_answer(stub: Any, bench: Bench, settings: Config) -> None:
    bench.holder.set(view=replace(bench.holder.view, crls=(made(bench.trust.authority, bench.trust, "ab"),)))

    def fetch() -> None:
        with spiffe.WorkloadApiClient(f"unix://{settings.auth_socket}") as api:
            assert [str(one.spiffe_id) for one in api.fetch_x509_context().x509_svids] == [str(A.spiffe_id)]
            assert len(api.fetch_x509_bundles().bundles) == 1

    await asyncio.wait_for(asyncio.to_thread(fetch), 60)
