# SPDX-License-Identifier: Apache-2.0
"""go-spiffe at a sidecar whose answers hold revocation lists: it passes over them, and over nothing else."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from firedoor.certs import read_crl
from firedoor.wire import workload_grpc, workload_pb2
from tests.e2e.conftest import World
from tests.spire.programs import Workload
from tests.waiting import until

PATH = "/segment/inference/host/h/svc/vllm"
ID = f"spiffe://example.org{PATH}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.close()


@pytest.fixture
def workload(world: World) -> Iterator[Workload]:
    found = Workload({"SPIFFE_ENDPOINT_SOCKET": f"unix://{world.auth_socket()}"})
    yield found
    found.close()


def revoked(world: World) -> set[str]:
    """Return the serial numbers in the lists that a workload is given now."""
    with grpc.insecure_channel(f"unix:{world.auth_socket()}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        header = (("workload.spiffe.io", "true"),)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header, timeout=60)
        answer = next(iter(stream))
        stream.cancel()
    assert answer.crl
    return {serial for one in answer.crl for serial in read_crl(one).revoked()}


def test_go_spiffe_reads_such_answers(world: World, workload: Workload) -> None:
    world.start_broker()
    world.create_entry(world.enrol(), PATH)
    world.start_sidecar().ready()
    lines = workload.follow("watch")
    before = lines.until(lambda line: line.get("svids"))["svids"][0]
    assert (before["id"], before.get("invalid")) == (ID, None)
    assert revoked(world) == set()
    world.run("svid", "revoke", "--id", ID, "--reason", "the disk was stolen")
    after = lines.until(lambda line: line.get("svids") and line["svids"][0]["serial"] != before["serial"])
    assert (after["svids"][0]["id"], after["svids"][0].get("invalid")) == (ID, None)
    until(lambda: revoked(world) == {before["serial"]}, "a list with the one that was revoked")
    # By the bundle alone it cannot know.
    assert lines._process.poll() is None
