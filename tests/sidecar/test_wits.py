# SPDX-License-Identifier: Apache-2.0
"""WIT-SVIDs on a real auth socket: what a workload gets, when it is replaced, and what is never handed out."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.certs import TrustBundle, jose, jwks, validate_wit_svid
from firedoor.sidecar import keys
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import NotEntitled, NotServed, ServerUnavailable
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.wits import Wits
from firedoor.wire import control_pb2, workload_grpc, workload_pb2
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.harness import Start
from tests.sidecar.harness import settings as sidecar_settings
from tests.sidecar.spire_like import SpireLike
from tests.sidecar.test_workload_api import HEADER, code_of
from tests.simulator import SimulatedTrustDomain

UID = f"unix:uid:{os.geteuid()}"
A = entry("/segment/a/x", UID, hint="inner", created_at=1)
B = entry("/segment/a/y", UID, created_at=2)
STRANGER = entry("/segment/a/z", "unix:uid:4000000000")


@pytest.fixture
async def stub(bench: Bench, settings: Config) -> AsyncIterator[Any]:
    bench.trust.rotate_jwt()
    bench.trust.rotate_wit()
    sockets = Sockets(bench.core, settings)
    await sockets.open_auth(*bench.apis(), lambda: bench.holder.view.synced)
    async with grpc.aio.insecure_channel(f"unix:{settings.auth_socket}") as channel:
        yield workload_grpc.SpiffeWorkloadAPIStub(channel)
    await sockets.close()


def fetch(stub: Any, spiffe_id: object = "") -> Any:
    request = workload_pb2.WITSVIDRequest(spiffe_id=str(spiffe_id))
    return stub.FetchWITSVID(request, metadata=HEADER, timeout=60)


def names(response: workload_pb2.WITSVIDResponse) -> list[str]:
    return [one.spiffe_id[-2:] for one in response.svids]


async def test_a_token_and_the_key_that_it_names(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B, STRANGER)
    stream = fetch(stub)
    found = await stream.read()
    stream.cancel()
    assert [(one.spiffe_id, one.hint) for one in found.svids] == [
        ("spiffe://example.org/segment/a/x", "inner"),
        ("spiffe://example.org/segment/a/y", ""),
    ]
    proof = validate_wit_svid(found.svids[0].wit_svid, bench.trust.bundles(), bench.trust.at)
    private = json.loads(found.svids[0].wit_svid_key)
    assert private.items() > proof.confirmation.items()
    assert (str(proof.id), private["alg"]) == ("spiffe://example.org/segment/a/x", "ES256")
    # What the private part signs, the key of the token verifies.
    secret = ec.derive_private_key(int.from_bytes(jose.decode(private["d"])), ec.SECP256R1())
    public = jwks.read_key(dict(proof.confirmation))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(secret.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x", ec.ECDSA(hashes.SHA256()))
    # Each has a key of its own.
    assert len({one.wit_svid_key for one in found.svids}) == 2


async def test_one_identity_by_name(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B, STRANGER)
    stream = fetch(stub, B.spiffe_id)
    assert names(await stream.read()) == ["/y"]
    stream.cancel()
    denied = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    assert await code_of(fetch(stub, STRANGER.spiffe_id)) == denied
    assert (await code_of(fetch(stub, "no id")))[0] == grpc.StatusCode.INVALID_ARGUMENT
    bench.entitle(STRANGER)
    assert await code_of(fetch(stub)) == denied


async def test_a_stream_is_full_state_and_ends_with_the_entitlement(stub: Any, bench: Bench) -> None:
    bench.entitle(A, B)
    stream = fetch(stub)
    first = await stream.read()
    bench.entitle(A)
    second = await stream.read()
    assert [names(first), names(second)] == [["/x", "/y"], ["/x"]]
    # What is good is not replaced.
    assert second.svids[0] == first.svids[0]
    bench.entitle()
    assert await code_of(stream) == (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")


async def test_bundles_hold_keys_for_wit_svids_alone(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    stream = stub.FetchWITBundles(workload_pb2.WITBundlesRequest(), metadata=HEADER, timeout=60)
    found = json.loads((await stream.read()).bundles["spiffe://example.org"])
    assert [one["use"] for one in found["keys"]] == ["wit-svid"]
    bench.trust.rotate_wit()
    bench.entitle(A)
    text = (await stream.read()).bundles["spiffe://example.org"]
    assert TrustBundle.parse(TD, text.encode()).wit_keys == bench.trust.bundle.wit_keys
    stream.cancel()


async def test_it_is_replaced_at_half_life_by_itself(stub: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.sidecar.wits.RETRY_SECONDS", 0.1)
    bench.entitle(A)
    bench.wit_ttl = 4
    stream = fetch(stub)
    first = await stream.read()
    reading = asyncio.ensure_future(stream.read())
    bench.trust.at += 2
    second = await reading
    assert second.svids[0].wit_svid_key != first.svids[0].wit_svid_key
    # Nobody signs: what there is counts until its end, and then there is none.
    bench.away = True
    reading = asyncio.ensure_future(stream.read())
    bench.trust.at += 2
    bench.holder.notify()
    await asyncio.sleep(0.3)
    assert not reading.done()
    bench.trust.at += 2
    bench.holder.notify()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reading
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is away")


async def test_a_key_that_is_tainted_or_gone_means_another_token(bench: Bench) -> None:
    bench.trust.rotate_wit()
    bench.entitle(A)
    wits = bench.wits()
    first = await wits.get(A)
    assert await wits.get(A) is first is await wits.get(A, first)
    bench.trust.rotate_wit()
    bench.entitle(A)
    assert await wits.get(A) is first
    bundle = bench.trust.bundle.with_tainted_key(first.proof.key_id)
    bench.holder.set(view=bench.holder.view.with_bundles([bundle]))
    second = await wits.get(A, first)
    assert second.proof.key_id != first.proof.key_id
    bench.trust.wit_issuers.pop(0)
    bench.entitle(A)
    assert await wits.get(A) is second


async def test_what_is_revoked_is_not_handed_out(bench: Bench) -> None:
    bench.trust.rotate_wit()
    bench.entitle(A)
    wits = bench.wits()
    first = await wits.get(A)
    before = control_pb2.IssuedBefore(pattern=str(A.spiffe_id), time=bench.trust.at + 5)
    revoked = (control_pb2.Revocation(issued_before=before, reason="reissue"),)
    bench.holder.set(view=replace(bench.holder.view, revocations=revoked))
    # Neither what was held nor what is signed in that very moment.
    with pytest.raises(ServerUnavailable, match="revoked"):
        await wits.get(A, first)
    bench.trust.at += 5
    assert (await wits.get(A, first)).text != first.text


async def test_another_key_or_another_id_is_not_taken(bench: Bench) -> None:
    bench.trust.rotate_wit()
    bench.entitle(A, B)
    other = keys.generate()

    async def wrong_key(_: str, __: bytes, algorithm: str) -> str:
        return bench.trust.wit(A.spiffe_id.path, other.public, algorithm)

    async def wrong_id(_: str, public_key: bytes, algorithm: str) -> str:
        return bench.trust.wit(B.spiffe_id.path, public_key, algorithm)

    async def forged(_: str, public_key: bytes, algorithm: str) -> str:
        stranger = SimulatedTrustDomain("example.org", at=bench.trust.at)
        stranger.rotate_wit()
        return stranger.wit(A.spiffe_id.path, public_key, algorithm)

    for server, sentence in ((wrong_key, "another key"), (wrong_id, "another ID"), (forged, "cannot be used")):
        wits = Wits(bench.holder, server, lambda: float(bench.trust.at))
        with pytest.raises(ServerUnavailable, match=sentence):
            await wits.get(A)
        assert len(wits) == 0


async def test_there_is_a_cap(bench: Bench) -> None:
    bench.trust.rotate_wit()
    entries = [entry(f"/segment/a/{n}", UID) for n in range(5)]
    bench.entitle(*entries)
    wits = bench.wits(max_held=3)
    tokens = [await wits.get(one) for one in entries]
    assert len(wits) == 3
    bench.fetched.clear()
    # A stream that has its own asks for nothing.
    assert await wits.get(entries[0], tokens[0]) is tokens[0]
    assert bench.fetched == []


async def test_secrets_are_in_no_repr(bench: Bench) -> None:
    bench.trust.rotate_wit()
    bench.entitle(A)
    made = await bench.wits().get(A)
    assert made.text not in repr(made)
    assert json.loads(made.key)["d"] not in repr(made)


async def test_from_a_server(server: SpireLike, running: Start, tmp_path: Path) -> None:
    one = running(sidecar_settings(tmp_path))
    await one.until(lambda p: "x" in p.holder.identities, "an SVID")
    wits = one.process.apis.wits
    mine = one.process.holder.view.entries["x"]
    with pytest.raises(NotServed):
        wits.check_served()
    with pytest.raises(NotServed, match="issues no WIT-SVIDs"):
        await wits.get(mine)
    server.trust.rotate_wit()
    await one.until(lambda p: p.holder.view.bundles[TD].wit_keys, "the key")
    wits.check_served()
    made = await wits.get(mine)
    assert str(made.proof.id) == "spiffe://example.org/segment/a/x"
    one.process.holder.notify()
    server.refuse = lambda _: (5, "entry not found or not authorized")
    with pytest.raises(NotEntitled):
        await one.process.apis.wits._fetched(mine, ())
    server.refuse = lambda _: (13, "out of ink")
    with pytest.raises(ServerUnavailable, match="out of ink"):
        await one.process.apis.wits._fetched(mine, ())
