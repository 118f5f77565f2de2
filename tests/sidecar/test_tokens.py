# SPDX-License-Identifier: Apache-2.0
"""The JWT half of the Workload API, with py-spiffe and bare grpcio on a real socket; and what is kept for how long."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
import spiffe
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from spiffe.workloadapi.errors import FetchJwtSvidError, ValidateJwtSvidError

from firedoor.certs import JwtKey, KeyType, TrustBundle, generate_key, jose, public_key_der
from firedoor.sidecar import bundles
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import NotEntitled, RequestRefused, ServerUnavailable, UpdateRefused
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.tokens import Tokens
from firedoor.wire import control_pb2, types, workload_grpc, workload_pb2
from tests.sidecar.conftest import TD, Bench, entry
from tests.sidecar.test_workload_api import HEADER, client, code_of, in_thread
from tests.simulator import SimulatedTrustDomain

UID = f"unix:uid:{os.geteuid()}"
A = entry("/segment/a/x", UID, hint="inner", created_at=1)
B = entry("/segment/a/y", UID, created_at=2)
STRANGER = entry("/segment/a/z", "unix:uid:4000000000")


@pytest.fixture
async def socket(bench: Bench, settings: Config) -> AsyncIterator[str]:
    bench.trust.rotate_jwt()
    sockets = Sockets(bench.core, settings)
    await sockets.open_auth(*bench.apis(), lambda: bench.holder.view.synced)
    yield f"unix:{settings.auth_socket}"
    await sockets.close()


@pytest.fixture
async def stub(socket: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(socket) as channel:
        yield workload_grpc.SpiffeWorkloadAPIStub(channel)


def fetch(stub: Any, *audience: str, spiffe_id: object = "") -> Any:
    request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=str(spiffe_id))
    return stub.FetchJWTSVID(request, metadata=HEADER, timeout=60)


def validate(stub: Any, token: str, audience: str = "models") -> Any:
    request = workload_pb2.ValidateJWTSVIDRequest(svid=token, audience=audience)
    return stub.ValidateJWTSVID(request, metadata=HEADER, timeout=60)


# --- py-spiffe ----------------------------------------------------------------------------------------------------


@pytest.mark.peer
async def test_py_spiffe_fetches_and_validates(socket: str, bench: Bench) -> None:
    bench.entitle(A, B, STRANGER)
    with client(socket) as api:
        one = await in_thread(lambda: api.fetch_jwt_svid({"models"}))
        named = await in_thread(lambda: api.fetch_jwt_svid({"models"}, spiffe.SpiffeId(str(B.spiffe_id))))
        every = await in_thread(lambda: api.fetch_jwt_svids({"models", "tools"}))
        found = await in_thread(lambda: api.validate_jwt_svid(one.token, "models"))
        with pytest.raises(ValidateJwtSvidError, match="another audience"):
            await in_thread(lambda: api.validate_jwt_svid(one.token, "tools"))
        with pytest.raises(FetchJwtSvidError, match="no identity issued"):
            await in_thread(lambda: api.fetch_jwt_svid({"models"}, spiffe.SpiffeId(str(STRANGER.spiffe_id))))
    assert str(one.spiffe_id) == str(A.spiffe_id) == str(found.spiffe_id)
    assert str(named.spiffe_id) == str(B.spiffe_id)
    assert [str(each.spiffe_id) for each in every] == [str(A.spiffe_id), str(B.spiffe_id)]


@pytest.mark.peer
async def test_py_spiffe_fetches_bundles(socket: str, bench: Bench) -> None:
    other, stranger = (SimulatedTrustDomain(name, at=bench.trust.at) for name in ("other.org", "stranger.org"))
    other.rotate_jwt()
    stranger.rotate_jwt()
    bench.entitle(entry("/segment/a/x", UID, federates_with=(other.td,)), others=(other, stranger))
    with client(socket) as api:
        found = await in_thread(api.fetch_jwt_bundles)
        token = bench.trust.token("/segment/a/x", "models")
        bundle = found.get_bundle_for_trust_domain(spiffe.TrustDomain("example.org"))
        assert bundle is not None
        assert str(spiffe.JwtSvid.parse_and_validate(token, bundle, {"models"}).spiffe_id) == str(A.spiffe_id)
        names = {str(one.trust_domain.name) for one in found.bundles}
        assert names == {"example.org", "other.org"}
        foreign = await in_thread(lambda: api.validate_jwt_svid(other.token("/a", "models"), "models"))
        assert str(foreign.spiffe_id) == "spiffe://other.org/a"
        with pytest.raises(ValidateJwtSvidError, match="no trust bundle"):
            await in_thread(lambda: api.validate_jwt_svid(stranger.token("/a", "models"), "models"))


# --- who gets what ------------------------------------------------------------------------------------------------


async def test_requests_that_say_too_little(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(fetch(stub)) == (invalid, "audience must be specified")
    assert (await code_of(fetch(stub, "")))[0] == invalid
    assert (await code_of(fetch(stub, "a" * 5000)))[0] == invalid
    assert (await code_of(fetch(stub, "a", spiffe_id="models")))[0] == invalid
    assert await code_of(validate(stub, "x", "")) == (invalid, "audience must be specified")
    assert await code_of(validate(stub, "")) == (invalid, "svid must be specified")
    assert (await code_of(validate(stub, "x")))[0] == invalid
    (found,) = (await fetch(stub, "a")).svids
    assert (found.spiffe_id, found.hint) == (str(A.spiffe_id), "inner")


async def test_a_caller_without_an_identity_gets_nothing(stub: Any, bench: Bench) -> None:
    bench.entitle(STRANGER)
    token = bench.trust.token("/segment/a/x", "models")
    denied = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    bundles = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=HEADER, timeout=60)
    for call in (fetch(stub, "a"), fetch(stub, "a", spiffe_id=STRANGER.spiffe_id), validate(stub, token), bundles):
        assert await code_of(call) == denied
    assert not bench.fetched
    bench.entitle(STRANGER, A)
    assert (await validate(stub, token)).spiffe_id == str(A.spiffe_id)


async def test_bundles_hold_keys_for_tokens_alone_and_follow_a_rotation(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    stream = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=HEADER, timeout=60)
    first = json.loads((await stream.read()).bundles["spiffe://example.org"])
    assert [(key["use"], key["kid"]) for key in first["keys"]] == [
        ("jwt-svid", bench.trust.jwt_issuers[0].authority_id)
    ]
    second = bench.trust.rotate_jwt()
    bench.entitle(A)
    fresh = json.loads((await stream.read()).bundles["spiffe://example.org"])
    assert [key["kid"] for key in fresh["keys"]][1:] == [second.authority_id]
    stream.cancel()


async def test_claims(stub: Any, bench: Bench) -> None:
    other = SimulatedTrustDomain("other.org", at=bench.trust.at)
    other.rotate_jwt()
    bench.entitle(entry("/segment/a/x", UID, federates_with=(other.td,)), others=(other,))
    answer = await validate(stub, bench.trust.token("/segment/a/x", "models"))
    claims = json_format.MessageToDict(answer.claims)
    assert (claims["sub"], claims["aud"]) == (str(A.spiffe_id), ["models"])
    assert (claims["exp"], claims["iat"]) == (bench.trust.at + 300, bench.trust.at)


async def test_an_expired_token_is_refused_at_its_moment(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    token = bench.trust.token("/segment/a/x", "models", ttl=60)
    bench.trust.at += 59
    assert (await validate(stub, token)).spiffe_id
    bench.trust.at += 1
    assert await code_of(validate(stub, token)) == (grpc.StatusCode.INVALID_ARGUMENT, "the token has expired")


async def test_a_revocation_of_its_id_refuses_what_was_issued_before(stub: Any, bench: Bench) -> None:
    bench.entitle(A)
    token = bench.trust.token("/segment/a/x", "models")
    revoke(bench, bench.trust.at)
    assert (await validate(stub, token)).spiffe_id
    revoke(bench, bench.trust.at + 1)
    code, details = await code_of(validate(stub, token))
    assert (code, "revoked" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def revoke(bench: Bench, before: int) -> None:
    pattern = control_pb2.IssuedBefore(pattern="spiffe://example.org/segment/a/**", time=before)
    view = replace(bench.holder.view, revocations=(control_pb2.Revocation(issued_before=pattern),))
    bench.holder.set(view=view)


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(bench: Bench) -> Tokens:
    bench.trust.rotate_jwt()
    bench.entitle(A, B)
    return bench.tokens()


async def test_a_token_is_kept_for_half_of_its_life(tokens: Tokens, bench: Bench) -> None:
    first = await tokens.get(A, ["models", "tools"])
    bench.trust.at += 149
    assert await tokens.get(A, ["models", "tools"]) is first
    assert (await tokens.get(A, ["models"])).text != first.text
    assert (await tokens.get(B, ["models", "tools"])).text != first.text
    bench.trust.at += 1
    assert (await tokens.get(A, ["models", "tools"])).text != first.text
    assert len(bench.fetched) == 4


async def test_a_server_that_is_away_changes_nothing_until_the_token_ends(tokens: Tokens, bench: Bench) -> None:
    first = await tokens.get(A, ["models"])
    issuers, bench.trust.jwt_issuers = bench.trust.jwt_issuers, []
    bench.trust.at += 299
    assert await tokens.get(A, ["models"]) is first
    bench.trust.at += 1
    with pytest.raises(ServerUnavailable):
        await tokens.get(A, ["models"])
    bench.trust.jwt_issuers = issuers
    assert (await tokens.get(A, ["models"])).text != first.text


async def test_what_its_key_signed_goes_with_the_key(tokens: Tokens, bench: Bench) -> None:
    first = await tokens.get(A, ["models"])
    bench.trust.rotate_jwt()
    bench.entitle(A, B)
    assert await tokens.get(A, ["models"]) is first
    del bench.trust.jwt_issuers[0]
    bench.entitle(A, B)
    assert (await tokens.get(A, ["models"])).text != first.text
    assert len(tokens) == 1


async def test_what_is_revoked_goes(tokens: Tokens, bench: Bench) -> None:
    first = await tokens.get(A, ["models"])
    revoke(bench, bench.trust.at)
    assert await tokens.get(A, ["models"]) is first
    bench.trust.at += 1
    revoke(bench, bench.trust.at)
    assert (await tokens.get(A, ["models"])).text != first.text


async def test_an_entry_that_changes_loses_its_tokens(tokens: Tokens, bench: Bench) -> None:
    first = await tokens.get(A, ["models"])
    changed = entry("/segment/a/x", UID, hint="inner", created_at=1, revision=(2,))
    bench.entitle(changed, B)
    assert (await tokens.get(changed, ["models"])).text != first.text
    bench.entitle(B)
    await tokens.get(B, ["models"])
    assert len(tokens) == 1


async def test_there_is_a_hard_cap_and_the_longest_unused_goes_first(bench: Bench) -> None:
    bench.trust.rotate_jwt()
    bench.entitle(A)
    tokens = Tokens(bench.holder, bench.fetch, lambda: float(bench.trust.at), max_held=3)
    first = await tokens.get(A, ["0"])
    for audience in ("1", "2", "0", "3", "4"):
        await tokens.get(A, [audience])
    assert len(tokens) == 3
    assert await tokens.get(A, ["0"]) is first
    before = len(bench.fetched)
    await tokens.get(A, ["1"])
    assert len(bench.fetched) == before + 1


async def test_many_who_ask_at_once_wait_for_one_answer(tokens: Tokens, bench: Bench) -> None:
    asked = [asyncio.ensure_future(tokens.get(A, ["models"])) for _ in range(50)]
    await asyncio.sleep(0)
    asked[0].cancel()
    found = await asyncio.gather(*asked[1:])
    assert len(set(map(id, found))) == len(bench.fetched) == 1


REFUSED: dict[str, Any] = {
    "another ID": lambda trust, audience: trust.token("/segment/a/other", *audience),
    "another audience": lambda trust, audience: trust.token("/segment/a/x", "other"),
    "more audiences": lambda trust, audience: trust.token("/segment/a/x", *audience, "other"),
    "ended": lambda trust, audience: _late(trust, audience),
    "another trust domain": lambda trust, audience: _foreign(trust, audience),
    "nonsense": lambda trust, audience: "nonsense",
}


def _late(trust: SimulatedTrustDomain, audience: tuple[str, ...]) -> str:
    token = trust.token("/segment/a/x", *audience, ttl=1)
    trust.at += 1
    return token


def _foreign(trust: SimulatedTrustDomain, audience: tuple[str, ...]) -> str:
    other = SimulatedTrustDomain("other.org", at=trust.at)
    other.rotate_jwt()
    return other.token("/segment/a/x", *audience)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_a_server_may_not_send(bench: Bench, name: str) -> None:
    bench.trust.rotate_jwt()
    bench.entitle(A)

    async def send(_: str, audience: tuple[str, ...]) -> str:
        return str(REFUSED[name](bench.trust, audience))

    tokens = Tokens(bench.holder, send, lambda: float(bench.trust.at))
    with pytest.raises(ServerUnavailable, match="JWT-SVID"):
        await tokens.get(A, ["models"])
    assert not len(tokens)


async def test_a_server_that_refuses_takes_back_what_is_kept(tokens: Tokens, bench: Bench) -> None:
    await tokens.get(A, ["models"])
    bench.trust.at += 150

    async def refuse(_: str, __: tuple[str, ...]) -> str:
        raise NotEntitled

    tokens._fetch = refuse
    with pytest.raises(NotEntitled):
        await tokens.get(A, ["models"])
    assert not len(tokens)
    with pytest.raises(RequestRefused):
        await tokens.get(A, [])


def test_no_token_is_in_a_repr(bench: Bench) -> None:
    bench.trust.rotate_jwt()
    bench.entitle(A)
    token = asyncio.run(bench.tokens().get(A, ["models"]))
    assert token.text not in repr(token)


# --- bundles from the wire ------------------------------------------------------------------------------------------


def wire_keys(*keys: types.JWTKey) -> TrustBundle:
    return bundles.from_wire(types.Bundle(trust_domain="example.org", jwt_authorities=keys))


def test_keys_from_the_wire() -> None:
    public = public_key_der(generate_key(KeyType.EC_P256).public_key())
    good = types.JWTKey(key_id="k", public_key=public, expires_at=7, tainted=True)
    found = wire_keys(good, types.JWTKey(key_id="junk", public_key=b"x"), types.JWTKey(public_key=public))
    assert found.jwt_keys == (JwtKey("k", public, 7, tainted=True),)
    assert json.loads(found.to_jwt_json())["keys"][0]["kid"] == "k"
    with pytest.raises(UpdateRefused):
        wire_keys(good, good)
    stored = bundles.load(bundles.dump([wire_keys(types.JWTKey(key_id="k", public_key=public, expires_at=7))]))
    assert stored[TD].jwt_keys == (JwtKey("k", public, 7),)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _json, max_size=4))
def test_all_claims_that_validate_fit_into_a_struct(claims: dict[str, Any]) -> None:
    try:
        read = jose.read_object(json.dumps(claims).encode())
    except ValueError:
        return
    response = workload_pb2.ValidateJWTSVIDResponse()
    response.claims.update(read)
    assert workload_pb2.ValidateJWTSVIDResponse.FromString(response.SerializeToString()) == response


async def test_a_tainted_key_means_another_token(bench: Bench) -> None:
    bench.trust.rotate_jwt()
    bench.entitle(A)
    tokens = bench.tokens()
    first = await tokens.get(A, ["models"])
    bench.trust.rotate_jwt()
    bundle = bench.trust.bundle.with_tainted_key(first.proof.key_id)
    bench.holder.set(view=bench.holder.view.with_bundles([bundle]))
    assert (await tokens.get(A, ["models"])).proof.key_id == bench.trust.jwt_issuers[-1].authority_id
