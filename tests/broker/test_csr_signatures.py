# SPDX-License-Identifier: Apache-2.0
"""A request for a certificate proves that somebody holds its key, at every door: SPIRE does not ask at two of them.

The forged one has somebody's public key and is signed by another, as of who saw a certificate and not its key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor.certs import KeyType, generate_key, make_csr
from firedoor.wire import admin_pb2, agent_grpc, agent_pb2, svid_pb2
from tests.broker.below import Below
from tests.broker.harness import POLICY, TD, RunningBroker, running
from tests.broker.test_breakglass import ANN, BOB, EMERGENCY, EVE, People, workload

USER = ["unix:user:registry"]
MINTED = f"spiffe://{TD}/segment/minted/x"
MINTING = """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: minted}
spec:
  function: minted
  trust: low
  members: ["spiffe://{td}/segment/minted/**"]
  admission: {entry: ["unix:user:nobody"], mint: true}
"""


def _der(tag: int, body: bytes) -> bytes:
    """Encode one value."""
    size = len(body)
    long = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x80 | len(long)]) + long) + body


def signed_by_another(*uris: str) -> bytes:
    """Return a request for one key that another has signed."""
    made = make_csr(generate_key(KeyType.EC_P256), uris=uris)
    request = x509.load_der_x509_csr(made)
    inner = request.tbs_certrequest_bytes
    other = ec.generate_private_key(ec.SECP256R1()).sign(inner, ec.ECDSA(hashes.SHA256()))
    # What stands between the two is how it is signed.
    start = made.index(inner) + len(inner)
    algorithm = made[start : start + 2 + made[start + 1]]
    found = _der(0x30, inner + algorithm + _der(0x03, b"\x00" + other))
    assert not x509.load_der_x509_csr(found).is_signature_valid
    return found


async def attest(broker: RunningBroker, csr: bytes) -> None:
    await broker.client().attest(await broker.token(), csr)


async def renew(broker: RunningBroker, csr: bytes) -> None:
    agent = await broker.attest()
    request = agent_pb2.RenewAgentRequest(params=agent_pb2.AgentX509SVIDParams(csr=csr))
    await agent_grpc.AgentStub(agent.channel).RenewAgent(request)


async def issue(broker: RunningBroker, csr: bytes) -> None:
    agent = await broker.attest()
    made = await broker.entry("/segment/registry/x", agent.path, USER)
    (result,) = await agent.sign(made.id, csr=csr)
    if result.status.code:
        code = next(one for one in grpc.StatusCode if one.value[0] == result.status.code)
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), result.status.message)


async def mint(broker: RunningBroker, csr: bytes) -> None:
    await broker.svids.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr))


async def downstream(broker: RunningBroker, csr: bytes) -> None:
    await (await Below.make(broker)).ask(generate_key(KeyType.EC_P256), csr=csr)


async def break_glass(broker: RunningBroker, csr: bytes) -> None:
    people = People(broker, **{name: await workload(broker, name) for name in (ANN, BOB, EVE)})
    grant = await people.request(ANN)
    await people.approve(BOB, grant)
    try:
        await people._stubs[ANN].TakeAccess(admin_pb2.TakeAccessRequest(id=grant, csr=csr))
    except grpc.aio.AioRpcError:
        assert await people.state(grant) == "approved", "it is not used up"
        raise


DOORS: dict[str, Callable[[RunningBroker, bytes], Awaitable[None]]] = {
    "AttestAgent": attest,
    "RenewAgent": renew,
    "BatchNewX509SVID": issue,
    "MintX509SVID": mint,
    "NewDownstreamX509CA": downstream,
    "TakeAccess": break_glass,
}


@pytest.mark.parametrize("door", DOORS)
async def test_a_request_that_another_key_signed_is_refused(folder: Path, door: str) -> None:
    ids = ",".join(f"spiffe://{TD}/segment/registry/{name}" for name in (ANN, BOB))
    uris = (MINTED,) if door == "MintX509SVID" else ()
    async with running(folder, POLICY + EMERGENCY + MINTING, operator_ids=ids) as broker:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DOORS[door](broker, signed_by_another(*uris))
        assert (refused.value.code(), refused.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid CSR signature",
        )
        # Its twin, which has signed for itself.
        await DOORS[door](broker, make_csr(generate_key(KeyType.EC_P256), uris=uris))
