# SPDX-License-Identifier: Apache-2.0
"""What must be in no log of a sidecar: join tokens, JWT-SVIDs, keys, the values of selectors."""

import logging
import time
from pathlib import Path

import grpc.aio
import pytest

from firedoor.sidecar import updates
from firedoor.wire import health_grpc, health_pb2, svid_pb2, types, workload_grpc, workload_pb2
from tests.sidecar.harness import UID, Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import SpireLike
from tests.sidecar.test_workload_api import HEADER
from tests.simulator import SimulatedTrustDomain

TOKEN = "b5c1a1f2-0001-4000-8000-feedfacecafe"
VALUE = "hunter2-registry-password"


class Signs(SpireLike):
    """A server that signs JWT-SVIDs too."""

    async def NewJWTSVID(self, request: svid_pb2.NewJWTSVIDRequest, context: object) -> svid_pb2.NewJWTSVIDResponse:
        path = self.entries[request.entry_id].spiffe_id.path
        token = self.trust.token(path, *request.audience)
        return svid_pb2.NewJWTSVIDResponse(svid=types.JWTSVID(token=token))


async def test_in_no_log(
    running: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    server = Signs(SimulatedTrustDomain("example.org", at=int(time.time())))
    server.trust.rotate_jwt()
    server.tokens = {TOKEN.encode()}
    secret = types.Selector(type="k8s", value=f"pod-label:password:{VALUE}")
    server.entries = {"x": entry("x"), "y": entry("y", selectors=[UID, secret])}
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, server, await server.start(tmp_path / "server"))
    (tmp_path / "token").write_text(TOKEN)
    one = running(settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x", "y"}, "SVIDs")
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'auth.sock'}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        given = await stub.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["models"]), metadata=HEADER, timeout=60)
        token = given.svids[0].svid
        for wrong in (f"{token}x", token[:-4], "x"):
            request = workload_pb2.ValidateJWTSVIDRequest(svid=wrong, audience="models")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ValidateJWTSVID(request, metadata=HEADER, timeout=60)
            assert wrong not in str(refused.value.details()) or wrong == "x"
        svids = await stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60).read()
        assert await health_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    key = svids.svids[0].x509_svid_key
    # The server goes away and comes back without the entries: that is worth a line or two, too.
    server.entries.clear()
    await one.until(lambda p: not ids(p), "the end of the entries")
    await one.stop()
    await server.stop()
    said = caplog.text + "".join(str(vars(record)) for record in caplog.records) + "".join(capfd.readouterr())
    assert "attested" in said
    # An agent is named by its token, once that is spent; here the server gave it another name.
    for word in (TOKEN, VALUE, token, token.rpartition(".")[2], key.hex(), repr(key[30:60])[2:-1]):
        assert word not in said
