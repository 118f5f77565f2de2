# SPDX-License-Identifier: Apache-2.0
"""Emergency access by the command line: two people, a stream that it opens, and its end."""

import json
import socket
import ssl
import subprocess
import sys
from typing import Any

from tests.e2e.conftest import POLICY, World
from tests.e2e.test_datapath import SERVER, inbound, listening, records
from tests.e2e.test_revocation import App, app, cuts, ended
from tests.waiting import SHORT, until

__all__ = ["app"]

ANN, BOB = "/segment/inference/user/ann", "/segment/inference/user/bob"
SECONDS = SHORT
# The server's segment lets streams outlive SVIDs; these must not.
WITH_EMERGENCY = (
    POLICY.replace("function: registry\n", "function: registry\n  expiry: {until-revoked: 1h}\n")
    + """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: emergency}
spec:
  function: emergency
  trust: high
  members: ["spiffe://{td}/segment/emergency/**"]
  admission: {breakglass: true}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: emergency-repairs-registry}
spec:
  owner: security
  reason: repairs
  from: {segment: emergency}
  to: {segment: registry, port: 9000}
  allow: [{tcp: {}}]
"""
)


def breakglass(world: World, who: str, *words: str, code: int = 0) -> Any:
    where = ("--server", world.address, "--identity", str(world.auth_socket("people")))
    command = [sys.executable, "-m", "firedoor.cli", "breakglass", *words, *where]
    command += ["--as", f"spiffe://example.org{who}", "--output", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout) if code == 0 else ran.stderr


def test_a_running_stream_is_cut_when_the_time_is_over(world: World, app: App) -> None:
    world.write_policy(WITH_EMERGENCY)
    world.start_broker("--operator-ids", "spiffe://example.org/segment/inference/user/*")
    world.create_entry(world.enrol(), SERVER)
    world.start_sidecar("--inbound", inbound(app), name="r").ready()
    parent = world.enrol()
    for path in (ANN, BOB):
        world.create_entry(parent, path)
    world.start_sidecar(name="people").ready()
    until(lambda: (found := world.status("people")) and len(found.svids) == 2, "both SVIDs")

    grant = breakglass(world, ANN, "request", "--reason", "the scheduler is down", "--ttl", f"{SECONDS}s")["id"]
    assert "another person must" in breakglass(world, ANN, "approve", grant, code=4)
    breakglass(world, BOB, "approve", grant)
    folder = world.folder / "access"
    breakglass(world, ANN, "take", grant, "--write", str(folder))
    context = ssl.create_default_context(cafile=str(folder / "bundle.pem"))
    context.check_hostname = False
    context.load_cert_chain(folder / "svid.pem", folder / "svid.key")
    host, _, port = listening(world, "r").rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=20 + SECONDS)
    with context.wrap_socket(plain) as peer:
        peer.sendall(b"you")
        assert peer.recv(100) == b"hello you"
        assert "this grant is" in breakglass(world, ANN, "take", grant, "--write", str(world.folder / "x"), code=4)
        assert ended(peer)
    assert until(lambda: cuts(world, "r"), "the cut is counted") == 1
    (used,) = until(lambda: [one for one in records(world, "r") if one["decision"] == "allowed"], "its record")
    assert (used["alert"], used["source"]) == (True, f"spiffe://example.org/segment/emergency/grant/{grant}")
    status = world.status("r")
    assert status is not None
    assert status.counters["alerts"] == 1
    until(lambda: breakglass(world, BOB, "list")[0]["state"] == "ended", "its end")
    assert breakglass(world, BOB, "list")[0]["ended_by"] == "time"
