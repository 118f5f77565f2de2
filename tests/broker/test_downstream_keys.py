# SPDX-License-Identifier: Apache-2.0
"""Keys for tokens that authorities below the broker publish: who may, what is taken, and when they leave the bundle."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from firedoor.broker.downstream import MAX_KEYS, limited
from firedoor.broker.rpc import downstream as downstream_rpc
from firedoor.certs import (
    JwtIssuer,
    JwtSvidError,
    KeyLimits,
    KeyType,
    TrustDomain,
    generate_key,
    mint_jwt,
    public_key_der,
    validate_jwt_svid,
)
from firedoor.segments import membership_of
from firedoor.wire import admin_pb2, bundle_grpc, bundle_pb2, entry_pb2, types
from tests.broker.below import PATH, USER, Below, identity
from tests.broker.harness import TD, RunningBroker, code_of, running, status
from tests.broker.test_control import Stream, part
from tests.broker.test_downstream import ANY, ban, delete, evict, no_longer, refusal
from tests.waiting import async_until

ENGINES = ("sqlite", "postgresql")

METHODS = {kind: f"/spire.api.server.bundle.v1.Bundle/Publish{kind.upper()}Authority" for kind in ("jwt", "wit")}
OUR_TD = TrustDomain.parse(TD)


async def publish(below: Below, kind: str = "jwt", **fields: Any) -> list[str]:
    """Publish a key and return the IDs of all of its kind."""
    given = {"key_id": secrets.token_hex(8), "expires_at": int(time.time()) + 600, **fields}
    given.setdefault("public_key", public_key_der(generate_key(KeyType.EC_P256).public_key()))
    stub = bundle_grpc.BundleStub(below.client.channel)
    if kind == "jwt":
        request = bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=types.JWTKey(**given))
        return [one.key_id for one in (await stub.PublishJWTAuthority(request)).jwt_authorities]
    wit = bundle_pb2.PublishWITAuthorityRequest(wit_authority=types.WITKey(**given))
    return [one.key_id for one in (await stub.PublishWITAuthority(wit)).wit_authorities]


def in_bundle(broker: RunningBroker, kind: str = "jwt") -> dict[str, int]:
    bundle = broker.broker.state.bundles[OUR_TD]
    return {one.key_id: one.expires_at for one in (bundle.jwt_keys if kind == "jwt" else bundle.wit_keys)}


def validated(broker: RunningBroker, key: Any, key_id: str, path: str) -> str:
    """Say what sidecars make of a token: "ok" or the code of its refusal."""
    now = int(time.time())
    issuer = JwtIssuer.load(OUR_TD, key_id, public_key_der(key.public_key()), key, not_after=now + 600)
    made = mint_jwt(OUR_TD.with_path(path), ["models"], issuer, at=now, token_id="1", ttl=60)
    state, current = broker.broker.state, broker.broker.policy.current
    limits = KeyLimits(OUR_TD, limited(state, current.policy), membership_of(current.table).segment_of)
    try:
        validate_jwt_svid(made.token, "models", state.bundles, now, limits=limits)
    except JwtSvidError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("kind", ["jwt", "wit"])
async def test_a_key_is_in_the_bundle(broker: RunningBroker, kind: str) -> None:
    below = await Below.make(broker)
    before = in_bundle(broker, kind)
    end = int(time.time()) + 600
    assert await publish(below, kind, key_id="theirs", expires_at=end) == [*before, "theirs"]
    assert in_bundle(broker, kind) == {**before, "theirs": end}
    said = next(line for line in reversed(broker.audit()) if line.get("method") == METHODS[kind])
    assert (said["event"], said["kind"], said["authority_id"]) == ("publish_downstream_key", kind, "theirs")
    assert (said["entry_id"], said["agent_id"]) == (below.entry.id, below.agent.id)
    (shown,) = (await broker.downstream.ListDownstreams(admin_pb2.ListDownstreamsRequest())).downstreams
    assert list(shown.token_keys) == ["theirs"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [(ANY, "ok"), ("/segment/inference/x", "segment_not_listed"), ("/elsewhere", "segment_not_listed")],
)
async def test_it_vouches_for_ids_of_its_segments_alone(broker: RunningBroker, path: str, expected: str) -> None:
    below, key = await Below.make(broker), generate_key(KeyType.EC_P256)
    await publish(below, key_id="theirs", public_key=public_key_der(key.public_key()))
    assert validated(broker, key, "theirs", path) == expected


async def test_sidecars_are_told(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downstream_rpc, "_WAIT_SECONDS", 3600.0)
    stream = Stream(await broker.attest())
    below = await Below.make(broker)
    update = await stream.having()
    asked = asyncio.create_task(publish(below, key_id="theirs"))
    while not part(update, "bundles").token_keys:
        assert not asked.done()
        update = await stream.next()
    stream.ack(update)
    assert "theirs" in await asked
    (one,) = part(update, "bundles").token_keys
    assert (one.key_id, list(one.segments)) == ("theirs", ["registry"])
    stream.stop()


async def test_only_through_a_downstream_entry(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    other = await broker.entry(ANY, below.agent.path, USER)
    for method in METHODS.values():
        for client in (await identity(broker, below.agent, other.id), below.agent, broker.client()):
            assert await status(client.channel, method) == "PERMISSION_DENIED"
        assert await status(below.client.channel, method) == "INVALID_ARGUMENT"
    same = await broker.entry(PATH, below.agent.path, [*USER, "unix:uid:1"])
    below.client = await identity(broker, below.agent, same.id)
    assert (await refusal(publish(below)))[0] == "PERMISSION_DENIED"


RSA_1024 = rsa.generate_private_key(65537, 1024).public_key()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no ID": ({"key_id": ""}, "invalid JWT authority: a key ID has 1 to 255 printable bytes"),
    "a long ID": ({"key_id": "k" * 256}, "invalid JWT authority: a key ID has 1 to 255 printable bytes"),
    "an ID of lines": ({"key_id": "a\nb"}, "invalid JWT authority: a key ID has 1 to 255 printable bytes"),
    "a long key": ({"public_key": bytes(2049)}, "invalid JWT authority: the key is longer than 2048 bytes"),
    "no key": ({"public_key": b""}, "invalid JWT authority"),
    "junk": ({"public_key": b"junk"}, "invalid JWT authority"),
    "Ed25519": ({"public_key": public_key_der(ed25519.Ed25519PrivateKey.generate().public_key())}, "verifies no JWT"),
    "a short RSA key": ({"public_key": public_key_der(RSA_1024)}, "verifies no JWT"),
    "expired": ({"expires_at": 1}, "invalid JWT authority: it has expired"),
    "an end below 0": ({"expires_at": -1}, "invalid JWT authority: it has expired"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_keys_that_are_not_taken(broker: RunningBroker, case: str) -> None:
    fields, sentence = REFUSED[case]
    below, before = await Below.make(broker), in_bundle(broker)
    code, said = await refusal(publish(below, **fields))
    assert (code, sentence in said) == ("INVALID_ARGUMENT", True), said
    assert in_bundle(broker) == before


async def test_an_end_is_capped(broker: RunningBroker) -> None:
    below, ttl = await Below.make(broker), broker.broker.config.ca_ttl
    await publish(below, key_id="far", expires_at=2**40)
    await publish(below, key_id="never", expires_at=0)
    latest = int(time.time()) + ttl
    assert all(latest - 60 < in_bundle(broker)[one] <= latest for one in ("far", "never"))


async def test_a_key_of_somebody_else_cannot_be_replaced(broker: RunningBroker) -> None:
    below, other = await Below.make(broker), await Below.make(broker, path="/segment/registry/other")
    (ours,) = in_bundle(broker)
    assert (await refusal(publish(below, key_id=ours)))[0] == "ALREADY_EXISTS"
    key = public_key_der(generate_key(KeyType.EC_P256).public_key())
    await publish(below, key_id="theirs", public_key=key)
    generation = broker.broker.state.generation
    await publish(below, key_id="theirs", public_key=key)
    assert broker.broker.state.generation == generation
    for who, again in ((other, key), (below, None)):
        fields = {"public_key": again} if again else {}
        assert (await refusal(publish(who, key_id="theirs", **fields)))[0] == "ALREADY_EXISTS"
    assert (await refusal(publish(below, "wit", key_id="theirs", public_key=key)))[0] == "ALREADY_EXISTS"


async def test_the_oldest_give_way(broker: RunningBroker) -> None:
    below, other = await Below.make(broker), await Below.make(broker, path="/segment/registry/other")
    own = set(in_bundle(broker))
    await publish(other, key_id="beside")
    await asyncio.gather(*(publish(below, key_id=f"k{n}") for n in range(2 * MAX_KEYS)))
    await publish(below, "wit", key_id="other-kind")
    assert len(set(in_bundle(broker)) - own - {"beside"}) == MAX_KEYS
    assert "beside" in in_bundle(broker)
    assert "other-kind" in in_bundle(broker, "wit")
    await publish(below, key_id="newest")
    assert "newest" in in_bundle(broker)
    assert len(broker.broker.state.downstream_keys) == MAX_KEYS + 2


async def test_no_storm_of_news(broker: RunningBroker) -> None:
    """Each key and CA is a generation for every sidecar: an entry has a hundred at once, and one a second."""
    below, key = await Below.make(broker), public_key_der(generate_key(KeyType.EC_P256).public_key())
    other = await Below.make(broker, path="/segment/registry/other")

    async def again() -> str:
        try:
            await publish(below, key_id="theirs", public_key=key)
        except grpc.aio.AioRpcError as error:
            return code_of(error)
        return "OK"

    codes = await asyncio.gather(*(again() for _ in range(200)))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert codes.count("OK") >= 100
    assert await publish(other)


@pytest.mark.parametrize("cut", [ban, evict, delete, no_longer], ids=lambda cut: cut.__name__)
async def test_what_takes_it_out_of_the_bundle(
    broker: RunningBroker, cut: Callable[[RunningBroker, Below], Awaitable[None]]
) -> None:
    below, key = await Below.make(broker), generate_key(KeyType.EC_P256)
    await publish(below, key_id="theirs", public_key=public_key_der(key.public_key()))
    assert validated(broker, key, "theirs", ANY) == "ok"
    await cut(broker, below)
    # For sidecars at once, for everybody else within a second or so.
    assert validated(broker, key, "theirs", ANY) in ("segment_not_listed", "key_unknown")
    await async_until(lambda: "theirs" not in in_bundle(broker))
    assert not broker.broker.state.downstream_keys


async def test_an_administrator_revokes_it(broker: RunningBroker) -> None:
    below = await Below.make(broker)
    await publish(below, key_id="theirs")
    authority = broker.broker.jwt_authority
    from firedoor.broker.authority import change_bundle

    await change_bundle(broker.broker.state, lambda bundle: bundle.with_tainted_key("theirs"))
    await authority.revoke("theirs")
    assert "theirs" not in in_bundle(broker)
    await async_until(lambda: not broker.broker.state.downstream_keys)


async def test_a_restart_forgets_nothing(folder: Path) -> None:
    key = generate_key(KeyType.EC_P256)
    async with running(folder) as broker:
        await publish(await Below.make(broker), key_id="theirs", public_key=public_key_der(key.public_key()))
    async with running(folder) as again:
        assert validated(again, key, "theirs", ANY) == "ok"
        assert validated(again, key, "theirs", "/segment/inference/x") == "segment_not_listed"
        (entry,) = again.broker.state.entries
        await again.entries.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry.id]))
        await async_until(lambda: "theirs" not in in_bundle(again))
