# SPDX-License-Identifier: Apache-2.0
"""An ID of the fallback is claimed by a segment: who is entitled loses no request, who is not is denied."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import POLICY, UID, World
from tests.e2e.test_datapath import SERVER, App, ask, inbound, listening, outbound, records
from tests.waiting import PATIENCE, until

FALLBACK = (
    POLICY.replace("{segment: inference}", "{segment: estate}")
    + """\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: estate}
spec:
  function: estate
  trust: low
  mode: enforce
  fallback: true
  admission: {entry: [], node: []}
"""
)
MEMBERS = 'members: ["spiffe://{td}/segment/inference/**"]'
# The same flow from the segment that claims the ID.
CLAIMED = FALLBACK.replace("{segment: estate}", "{segment: inference}").replace(
    MEMBERS, 'members: ["spiffe://{td}/segment/inference/**", "spiffe://{td}/ns/**"]'
)
ENTITLED, OTHER = "/ns/entitled", "/ns/other"
assert "/ns/**" in CLAIMED


class Asking:
    """Asks again and again, a connection a request, and keeps what came of it."""

    def __init__(self, request: Callable[[], bytes]) -> None:
        self.answers: list[bytes] = []
        self._request, self._ended = request, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            self.answers.append(self._request())

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)


@pytest.fixture
def app() -> Iterator[App]:
    found = App()
    yield found
    found.close()


@pytest.fixture
def three(world: World, app: App) -> World:
    """A broker with a fallback segment, a server, and two clients whose IDs are the fallback's."""
    policy = CLAIMED.replace(f'entry: ["unix:{UID}"]', f'entry: ["unix:{UID}", "unix:gid:{os.getegid()}"]', 1)
    (world.folder / "claimed.yaml").write_text(policy)
    world.write_policy(FALLBACK)
    world.start_broker()
    world.create_entry(world.enrol(), SERVER)
    world.start_sidecar("--inbound", inbound(app), name="r").ready()
    gid = f"gid:{os.getegid()}"
    for name, path, selectors in (("e", ENTITLED, (UID, gid)), ("o", OTHER, (UID,))):
        world.create_entry(world.enrol(), path, *selectors)
        spec = outbound(world.folder / name, listening(world, "r")).replace("/segment/inference/host/h2/svc/vllm", path)
        (world.folder / name).mkdir(mode=0o700)
        world.start_sidecar("--outbound", spec, name=name).ready()
    return world


def test_claimed_id_is_denied_until_reissued_and_no_entitled_request_fails(three: World, app: App) -> None:
    sockets = {name: three.folder / name / "out.sock" for name in ("e", "o")}
    assert [ask(one) for one in sockets.values()] == [b"hello you"] * 2
    status = three.status("e")
    assert status is not None
    before = status.svids[0].not_before
    entitled = Asking(lambda: ask(sockets["e"]))
    try:
        three.write_policy((three.folder / "claimed.yaml").read_text())
        three.programs[0].process.send_signal(signal.SIGHUP)
        until(lambda: ask(sockets["o"]) == b"", "the denial")
        seen = len(entitled.answers)
        until(lambda: len(entitled.answers) > seen + 20, "some more requests")
    finally:
        entitled.stop()
    assert set(entitled.answers) == {b"hello you"}
    status = three.status("e")
    assert status is not None
    assert status.svids[0].not_before > before
    assert status.svids[0].segment == "inference"
    # The old one stays denied, although nothing but its issue time is against it: its flow allows the segment.
    reached = app.accepted
    assert ask(sockets["o"]) == b""
    assert app.accepted == reached

    def last() -> object:
        """Records come in their time, one for each answer and in the order of the decisions."""
        mine = [one for one in records(three, "r") if one["source"] == f"spiffe://example.org{ENTITLED}"]
        return len(mine) > len(entitled.answers) and mine[-1]["source_segment"]

    assert until(last, "the record of the last answer") == "inference"
