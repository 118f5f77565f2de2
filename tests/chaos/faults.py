# SPDX-License-Identifier: Apache-2.0
"""The faults: how each begins, how it heals, and what it needs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from firedoor.wire import admin_grpc, admin_pb2, agent_grpc, agent_pb2, types
from tests.broker.test_database import small_disk
from tests.broker.test_faults import fill
from tests.chaos.breakglass import access
from tests.chaos.plan import Step
from tests.chaos.policy import BROKEN, MOVED, NARROWED, WIDENED
from tests.chaos.strangers import ask_for_anothers, spend_twice
from tests.chaos.world import BROKERS, FAKETIME, ChaosWorld

# Begins the fault on somebody, waits inside its `with`, heals it.
Fault = Callable[[ChaosWorld, str], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    whom: tuple[str, ...]
    fault: Fault
    # What nothing else may touch meanwhile; `{}` is whom it befalls.
    uses: tuple[str, ...] = ("{}",)
    # "root" or "faketime", where it needs that.
    needs: str = ""


# --- brokers and their database ----------------------------------------------------------------------------------


@contextmanager
def broker_killed(world: ChaosWorld, whom: str) -> Iterator[None]:
    world.brokers[whom].kill()
    yield
    world.start_broker_named(whom)


@contextmanager
def broker_stopped(world: ChaosWorld, whom: str) -> Iterator[None]:
    world.brokers[whom].process.send_signal(signal.SIGSTOP)
    yield
    world.brokers[whom].process.send_signal(signal.SIGCONT)


@contextmanager
def postgres_restarted(world: ChaosWorld, _: str) -> Iterator[None]:
    world.postgres.stop()
    yield
    world.postgres.start()


@contextmanager
def postgres_killed(world: ChaosWorld, _: str) -> Iterator[None]:
    world.postgres.crash()
    yield
    world.postgres.start()


# --- sidecars ----------------------------------------------------------------------------------------------------


@contextmanager
def sidecar_killed(world: ChaosWorld, whom: str) -> Iterator[None]:
    world.end_life(whom)
    yield
    world.start_life(whom)


@contextmanager
def agent_banned(world: ChaosWorld, whom: str) -> Iterator[None]:
    request = agent_pb2.BanAgentRequest(id=_agent(world, whom))
    world.ask(lambda channel: agent_grpc.AgentStub(channel).BanAgent(request, timeout=10))
    yield
    world.end_life(whom)
    world.enrol_sidecar(whom)


@contextmanager
def agent_evicted(world: ChaosWorld, whom: str) -> Iterator[None]:
    request = agent_pb2.DeleteAgentRequest(id=_agent(world, whom))
    with contextlib.suppress(grpc.RpcError):  # It may be gone, by a call without an answer.
        world.ask(lambda channel: agent_grpc.AgentStub(channel).DeleteAgent(request, timeout=10))
    yield
    world.end_life(whom)
    world.enrol_sidecar(whom)


def _agent(world: ChaosWorld, whom: str) -> types.SPIFFEID:
    return types.SPIFFEID(trust_domain=world.trust_domain, path=world.agents_of[whom])


@contextmanager
def records_unread(world: ChaosWorld, whom: str) -> Iterator[None]:
    reader = world.lives[whom].reader
    reader.pause()
    yield
    reader.resume()


@contextmanager
def disk_full(world: ChaosWorld, whom: str) -> Iterator[None]:
    """The sidecar starts anew on a small disk, which is full a moment later, and goes back."""
    folder, disk = world.folder / whom, world.folder / f"disk-{whom}-{time.monotonic_ns()}"
    world.end_life(whom)
    with small_disk(disk):
        kept = folder.rename(folder.with_name(f"{whom}.kept"))
        subprocess.run(["cp", "-a", str(kept), str(disk / whom)], check=True)
        folder.symlink_to(disk / whom)
        world.start_life(whom)
        fill(disk)
        yield
        (disk / "filler").unlink()
        world.end_life(whom)
        folder.unlink()
        subprocess.run(["cp", "-a", f"{disk / whom}/.", str(kept)], check=True)
        kept.rename(folder)
    world.start_life(whom)


@contextmanager
def clock_stepped(world: ChaosWorld, whom: str) -> Iterator[None]:
    _set_clock(world.clock, whom)
    yield
    _set_clock(world.clock, "+0")


def _set_clock(file: Path, text: str) -> None:
    new = file.with_name("clock.new")
    new.write_text(text)
    new.replace(file)


# --- the network -------------------------------------------------------------------------------------------------


@contextmanager
def partition(world: ChaosWorld, whom: str) -> Iterator[None]:
    """Whatever goes to or comes from a broker's ports is dropped without a word."""
    assert world.place
    ports = f"{world.listening[whom].rpartition(':')[2]}"
    rules = f"tcp dport {ports} drop; tcp sport {ports} drop;"
    world.place.nft(f"table inet cut_{whom} {{ chain c {{ type filter hook output priority 0; {rules} }}; }}")
    yield
    world.place.nft(f"delete table inet cut_{whom}")


# --- administrators ----------------------------------------------------------------------------------------------


@contextmanager
def entry_deleted(world: ChaosWorld, whom: str) -> Iterator[None]:
    world.drop_entry(whom)
    yield
    world.put_entry(whom)


def edited(edit: str) -> Fault:
    @contextmanager
    def fault(world: ChaosWorld, _: str) -> Iterator[None]:
        world.edit(edit, on=True)
        yield
        world.edit(edit, on=False)

    return fault


@contextmanager
def svids_revoked(world: ChaosWorld, whom: str) -> Iterator[None]:
    target: dict[str, Any] = {
        "id": {"spiffe_id": world.id("inference")},
        "pattern": {"spiffe_id": "spiffe://{td}/ns/**"},
        "segment": {"segment": "registry"},
        "agent": {"agent_id": f"spiffe://{world.trust_domain}{world.agents_of['client']}"},
        "serial": {"serial": _serial(world, "registry")},
    }[whom]
    request = admin_pb2.RevokeSvidsRequest(reason="chaos", **target)
    with contextlib.suppress(grpc.RpcError):  # Nothing may live of it just now.
        world.ask(lambda channel: admin_grpc.RevocationAdminStub(channel).RevokeSvids(request, timeout=20))
    yield


def _serial(world: ChaosWorld, name: str) -> str:
    """Return the serial number that was handed out last to somebody."""
    found = "0"
    for broker in BROKERS:
        for line in (world.folder / broker / "audit.jsonl").read_text().splitlines():
            one = json.loads(line)
            if one.get("event") == "issue" and one.get("spiffe_id") == world.id(name) and one.get("serial"):
                found = str(one["serial"])
    return found


def rotated(*words: str) -> Fault:
    @contextmanager
    def fault(world: ChaosWorld, whom: str) -> Iterator[None]:
        world.command(whom, "authority", "rotate", *words, seconds=20)
        yield

    return fault


@contextmanager
def breakglass(world: ChaosWorld, whom: str) -> Iterator[None]:
    with access(world, whom):
        yield


@contextmanager
def token_twice(world: ChaosWorld, _: str) -> Iterator[None]:
    world.traffic.submit(spend_twice(world)).result(180)
    yield


@contextmanager
def stranger(world: ChaosWorld, whom: str) -> Iterator[None]:
    world.traffic.submit(ask_for_anothers(world, whom)).result(180)
    yield


SIDECARS: Final = ("client", "server")
KINDS: Final[dict[str, Kind]] = {
    "broker-killed": Kind(BROKERS, broker_killed),
    "broker-stopped": Kind(BROKERS, broker_stopped),
    "postgres-restarted": Kind(("postgres",), postgres_restarted),
    "postgres-killed": Kind(("postgres",), postgres_killed),
    "sidecar-killed": Kind(SIDECARS, sidecar_killed),
    "agent-banned": Kind(SIDECARS, agent_banned),
    "agent-evicted": Kind(SIDECARS, agent_evicted),
    "records-unread": Kind(SIDECARS, records_unread),
    "disk-full": Kind(SIDECARS, disk_full, needs="root"),
    "clock-stepped": Kind(("+240", "-240"), clock_stepped, ("clock",), needs="faketime"),
    "partition": Kind(BROKERS, partition, ("link to {}",), needs="root"),
    "entry-deleted": Kind(("inference", "good", "bad", "registry"), entry_deleted, ("entry of {}",)),
    "admission-narrowed": Kind(("inference",), edited(NARROWED), (NARROWED,)),
    "admission-widened": Kind(("inference",), edited(WIDENED), (WIDENED,)),
    "members-moved": Kind(("/ns/**",), edited(MOVED), (MOVED,)),
    "policy-broken": Kind(("everybody",), edited(BROKEN), (BROKEN,)),
    "svids-revoked": Kind(("id", "pattern", "segment", "agent", "serial"), svids_revoked, ()),
    "authority-rotated": Kind(BROKERS, rotated("--force", "--timeout", "2s", "--drain", "1s"), ("authority of {}",)),
    "authority-stolen": Kind(BROKERS, rotated("--emergency"), ("authority of {}",)),
    "breakglass": Kind(("client",), breakglass, ("breakglass",)),
    "token-twice": Kind(("both",), token_twice, ()),
    "stranger": Kind(("inference", "registry"), stranger, ()),
}


def possible() -> dict[str, tuple[str, ...]]:
    """Return the kinds that this machine can have, and whom they befall."""
    lacking = {""} | ({"root"} if os.geteuid() == 0 else set()) | ({"faketime"} if FAKETIME is not None else set())
    return {name: kind.whom for name, kind in KINDS.items() if kind.needs in lacking}


def uses(step: Step) -> tuple[str, ...]:
    """Return what no other fault may touch during a step, in one order for all."""
    return tuple(sorted(one.format(step.whom) for one in KINDS[step.kind].uses))
