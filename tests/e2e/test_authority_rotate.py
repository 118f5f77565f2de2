# SPDX-License-Identifier: Apache-2.0
"""`firedoor authority rotate` beside programs that are stopped and killed while it is under way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import grpc

from firedoor.cli.exits import Exit
from firedoor.wire import admin_grpc, admin_pb2
from tests.e2e.conftest import World
from tests.waiting import PATIENCE, until

PATH = "/segment/registry/host/h/svc/x"
STAGES = ("spread", "reissue", "retire")


def command(world: World, *words: str) -> list[str]:
    return [sys.executable, "-m", "firedoor.cli", *words, "--admin-socket", str(world.folder / "b.sock")]


def ran(world: World, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(command(world, *words), capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stdout, done.stderr


def rotation(world: World) -> admin_pb2.Rotation | None:
    """Return how the rotation stands; None when there is none, or no broker."""
    with world.admin() as channel:
        stub = admin_grpc.AuthorityAdminStub(channel)
        try:
            found = stub.ListAuthorities(admin_pb2.ListAuthoritiesRequest(), timeout=PATIENCE).rotations
        except grpc.RpcError:
            return None
    return found[0] if found else None


def stage(world: World) -> str:
    found = rotation(world)
    return found.stage if found else ""


def begin(world: World) -> str:
    """Start a broker and a sidecar that holds an SVID; return the agent's ID."""
    world.start_broker()
    parent = world.enrol()
    world.create_entry(parent, PATH)
    world.start_sidecar().ready()
    return f"spiffe://example.org{parent}"


def again(world: World) -> None:
    """Kill the broker with no chance to say anything, and start it again."""
    world.programs[-1 if world.programs[-1].log.name == "broker.log" else 0].kill()
    world.start_broker()


def test_it_survives_the_death_of_the_broker_in_each_stage(world: World) -> None:
    agent = begin(world)
    sidecar = world.programs[1].process
    sidecar.send_signal(signal.SIGSTOP)
    watching = subprocess.Popen(
        command(world, "authority", "rotate", "--drain", "3s"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    try:
        # A broker that ends before it has answered has nobody who waits for it to come back.
        assert watching.stdout.readline().startswith("x509: ")
        for number, wanted in enumerate(STAGES):
            # A stage that nobody holds up may be over before somebody looks.
            rest = [*STAGES, "done"][number:]
            until(lambda: stage(world), f"{wanted}, or what comes after", when=lambda found, rest=rest: found in rest)  # type: ignore[misc]
            again(world)
            # It stands where it stood, or has gone on from there.
            found = until(lambda: stage(world), "an answer of the broker")
            assert found in rest
            if wanted == "spread":
                assert found == wanted
                sidecar.send_signal(signal.SIGCONT)
        out, err = watching.communicate(timeout=2 * PATIENCE)
    finally:
        watching.kill()
        sidecar.send_signal(signal.SIGCONT)
    assert watching.returncode == Exit.DONE, (out, err)
    (new,) = re.findall(r"^x509: is done: (\S+) signs$", out, re.M)
    assert "went on without" not in out
    assert "the rotation goes on when it is back" in err
    status = world.status()
    assert status is not None
    assert (status.agent_id, {one.authority_id for one in status.svids}) == (agent, {new})


def test_who_is_missing_is_named_and_the_command_may_go_away(world: World) -> None:
    agent = begin(world)
    world.programs[1].kill()
    until(lambda: "is not connected" in ran(world, "authority", "rotate", "--dry-run")[1], "that the broker knows")
    code, out, _ = ran(world, "authority", "rotate", "--dry-run")
    assert (code, f"x509: {agent} is not connected, until 20" in out) == (Exit.NO, True), out
    assert rotation(world) is None
    # It ends, names who is missing, and the broker waits on.
    code, out, _ = ran(world, "authority", "rotate", "--timeout", "1s")
    assert (code, f"x509: {agent} is not connected, until 20" in out) == (Exit.NO, True), out
    # One that is killed changes nothing either.
    watching = subprocess.Popen(command(world, "authority", "rotate"), stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert "a rotation is under way; this joins it" in watching.stdout.readline()
    watching.kill()
    watching.communicate()
    found = rotation(world)
    assert found is not None
    assert (found.stage, found.missing_count, found.force) == ("spread", 1, False)
    assert f"missing: {agent}" in world.run("authority", "rotate", "--status")
    code, out, _ = ran(world, "authority", "rotate", "--force", "--timeout", "1s", "--drain", "0")
    assert (code, f"went on without 1: {agent}" in out) == (Exit.DONE, True), out
    listed = json.loads(world.run("authority", "list", "--output", "json"))["authorities"]
    assert [(one["kind"], one["status"]) for one in listed if one["kind"] == "x509"] == [
        ("x509", "active"),
        ("x509", "revoked"),
    ]
    shown = world.run("authority", "show", listed[0]["authority_id"])
    assert f"id:              {listed[0]['authority_id']}" in shown
