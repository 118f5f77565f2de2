# SPDX-License-Identifier: Apache-2.0
"""The streams of a socket that pods of a node share: with whom each is counted, by its real cgroup."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firedoor.sidecar import seats
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.errors import CallerRefused
from firedoor.sidecar.node_workload import NodeAttestor
from firedoor.sidecar.pod_finder import PodFinder
from firedoor.sidecar.pod_source import ListedPods
from tests.cgroups import Tree
from tests.pods import Kubelet, cgroup_of, container_id, kubelet, pod, status
from tests.sidecar.harness import Start, entry, ids, settings
from tests.sidecar.programs import end, sleeper, talker
from tests.sidecar.spire_like import SpireLike
from tests.sidecar.test_node_workload import Caller, of, read_config

FIRST, SECOND = container_id(), container_id()

# Opens a stream for each line, and holds it.
HOLDS = """
import sys, grpc
from firedoor.wire import health_grpc, health_pb2, workload_grpc, workload_pb2
channel = grpc.insecure_channel("unix:" + {socket!r})
stub, health = workload_grpc.SpiffeWorkloadAPIStub(channel), health_grpc.HealthStub(channel)
header = [("workload.spiffe.io", "true")]
opens = {{
    "fetch": lambda: stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=header),
    "watch": lambda: health.Watch(health_pb2.HealthCheckRequest()),
}}
held = []
for line in sys.stdin:
    call = opens[line.strip()]()
    try:
        next(call)
        held.append(call)
        print("served", flush=True)
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)
"""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Kubelet]:
    items = [pod("web-0", status("app", FIRST), namespace="web"), pod("vllm-0", status("app", SECOND))]
    async with kubelet(tmp_path, items) as found:
        yield found


async def opened(program: subprocess.Popen[bytes], what: str) -> str:
    assert program.stdin
    assert program.stdout
    program.stdin.write(f"{what}\n".encode())
    program.stdin.flush()
    return (await asyncio.to_thread(program.stdout.readline)).decode().strip()


@pytest.fixture
async def programs(
    server: SpireLike, running: Start, tmp_path: Path, node: Kubelet, cgroups: Tree, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """Run a program of one user in each pod, and a sidecar that gives a caller three streams of either kind."""
    monkeypatch.setattr(seats, "INSPECTING", 3)
    server.entries = {"vllm": entry("vllm", selectors=of("ns:inference")), "web": entry("web", selectors=of("ns:web"))}
    one = running(settings(tmp_path, max_streams="3", **node.settings(cgroup_root=cgroups.root)))
    await one.until(lambda p: ids(p) == {"vllm", "web"}, "its SVIDs")
    script = HOLDS.format(socket=str(tmp_path / "auth.sock"))
    with talker(script) as first, talker(script) as second:
        for program, made, container in zip((first, second), node.items, (FIRST, SECOND), strict=True):
            cgroups.move(program.pid, cgroup_of(made, container))
        yield first, second


async def test_one_pod_at_its_limit_takes_nothing_from_another_of_its_uid(
    programs: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:
    first, second = programs
    assert [await opened(first, "fetch") for _ in range(3)] == ["served"] * 3
    words = "RESOURCE_EXHAUSTED 3 streams are open already; close some, or raise max_streams"
    assert await opened(first, "fetch") == words
    assert [await opened(second, "fetch") for _ in range(3)] == ["served"] * 3
    assert await opened(second, "fetch") == words


async def test_health_at_its_limit_takes_nothing_from_identities(
    programs: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:
    first, second = programs
    assert [await opened(first, "watch") for _ in range(3)] == ["served"] * 3
    words = "RESOURCE_EXHAUSTED 3 streams of health and reflection are open already; close some"
    assert await opened(first, "watch") == words
    assert await opened(first, "fetch") == "served"
    assert await opened(second, "watch") == "served"


@contextlib.asynccontextmanager
async def attestor(found: Kubelet, root: str) -> AsyncIterator[NodeAttestor]:
    made = read_config(found, cgroup_root=root)
    finder = PodFinder(ListedPods(made.access))
    try:
        yield NodeAttestor(UnixAttestor(), finder, made.places)
    finally:
        await finder.close()


async def test_neither_users_nor_cgroups_of_its_own_make_a_pod_several_callers(node: Kubelet, cgroups: Tree) -> None:
    web, vllm = node.items
    async with attestor(node, cgroups.root) as found:
        with sleeper() as process:
            caller = Caller(process)

            def at(path: str, uid: int = 0) -> object:
                cgroups.move(process.pid, path)
                caller.uid = uid
                return found.counted_as(caller)

            inside = cgroup_of(web, FIRST)
            first = at(inside)
            assert [at(inside, 1001), at(f"{inside}/a"), at(cgroup_of(web, container_id()))] == [first] * 3
            assert at(cgroup_of(vllm, SECOND)) not in (first, 0)
            # Of no pod: by user, as anywhere.
            assert [at("user.slice", 0), at("user.slice/a", 1001)] == [0, 1001]
            # Of a pod that cannot be told: they have places of their own, however many users and cgroups.
            beside = inside.rpartition("/")[0]
            unknown = at(f"{beside}/crio-conmon-{FIRST}.scope")
            assert [at(beside, 1001), at(f"{beside}/x/y")] == [unknown] * 2
            assert unknown not in (first, 0, 1001)
            end(process)
            with pytest.raises(CallerRefused):
                found.counted_as(caller)
    # No question to anybody: a caller without an identity costs no more than this.
    assert node.asked == 0


async def test_who_is_counted_as_one_pod_is_not_attested_as_another(node: Kubelet, cgroups: Tree) -> None:
    async with attestor(node, cgroups.root) as found:
        with sleeper() as process:
            caller = Caller(process)
            cgroups.move(process.pid, cgroup_of(node.items[0], FIRST))
            counted = found.counted_as(caller)
            assert "k8s:ns:web" in {str(one) for one in await found.attest(caller, (), counted)}
            cgroups.move(process.pid, cgroup_of(node.items[1], SECOND))
            with pytest.raises(CallerRefused, match="has moved to another container"):
                await found.attest(caller, (), counted)
