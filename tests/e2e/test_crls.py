# SPDX-License-Identifier: Apache-2.0
"""Revocation lists from the broker through a sidecar to OpenSSL."""

import json
from pathlib import Path

import grpc
from cryptography import x509

from firedoor.certs import read_crl, split_der
from firedoor.wire import workload_grpc, workload_pb2
from tests.e2e.conftest import World
from tests.openssl import verify
from tests.waiting import until

HEADER = (("workload.spiffe.io", "true"),)
PATH = "/segment/inference/host/h/svc/vllm"


def answer(world: World, name: str = "s") -> workload_pb2.X509SVIDResponse:
    """Return what the Workload API gives this process now."""
    with grpc.insecure_channel(f"unix:{world.auth_socket(name)}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=60)
        found: workload_pb2.X509SVIDResponse = next(iter(stream))
        stream.cancel()
        return found


def openssl(world: World, chain: list[bytes], lists: list[bytes], roots: bytes) -> str:
    at = max(read_crl(one).this_update for one in lists) + 11
    return verify(world.folder, chain, split_der(roots), lists, at)


def test_the_workload_apis_lists_are_openssls(world: World, tmp_path: Path) -> None:
    world.start_broker()
    world.create_entry(world.enrol(), PATH)
    world.start_sidecar().ready()
    before = answer(world)
    chain, roots = split_der(before.svids[0].x509_svid), before.svids[0].bundle
    assert openssl(world, chain, list(before.crl), roots) == "OK"
    world.run("svid", "revoke", "--id", f"spiffe://example.org{PATH}", "--reason", "the disk was stolen")

    def followed() -> workload_pb2.X509SVIDResponse | None:
        """Between the one that was revoked and the next it has none to give."""
        try:
            now = answer(world)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.PERMISSION_DENIED:  # type: ignore[attr-defined]
                raise
            return None
        another = now.svids[0].x509_svid != before.svids[0].x509_svid
        return now if another and any(read_crl(one).revoked() for one in now.crl) else None

    after = until(followed, "a list with the one that was revoked, and another SVID")
    assert after is not None
    assert "certificate revoked" in openssl(world, chain, list(after.crl), roots)
    assert openssl(world, split_der(after.svids[0].x509_svid), list(after.crl), roots) == "OK"

    # The administrator sees the same.
    (shown,) = json.loads(world.run("bundle", "crl", "--output", "json"))
    serial = x509.load_der_x509_certificate(chain[0]).serial_number
    assert [one["serial"] for one in shown["revoked"]] == [f"{serial:x}"]
    pem = world.run("bundle", "crl", "--authority", shown["authority_id"].upper()).encode()
    assert [x509.load_pem_x509_crl(pem)] == [x509.load_der_x509_crl(one) for one in after.crl]
