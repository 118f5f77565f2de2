# SPDX-License-Identifier: Apache-2.0
"""The sidecar's half of the control stream, over a real one: what it acknowledges, refuses, and keeps."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from firedoor.wire import control_pb2, policy_pb2, types, views
from tests.sidecar.harness import Running, Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import AGENT, SpireLike, wire_bundle
from tests.simulator import SimulatedTrustDomain
from tests.waiting import async_until

SEGMENT = policy_pb2.Segment(name="a", members=["spiffe://example.org/segment/a/**"])
TABLE = policy_pb2.Table(version=1, trust_domain="example.org", segments=[SEGMENT])
UNKNOWN = control_pb2.Part.FromString(bytes([0x9A, 0x06, 0x00]))


class Stream:
    """The server's end: publishes updates and reads answers."""

    def __init__(self, server: SpireLike) -> None:
        self.server = server
        self.answers: list[control_pb2.FromSidecar] = []

    def update(
        self, number: int, *extra: control_pb2.Part, table: policy_pb2.Table = TABLE, spread: int | None = None
    ) -> control_pb2.Update:
        """Publish the server's entries, bundle and this table as a generation."""
        parts = [
            control_pb2.Part(entries=control_pb2.Entries(entries=self.server.entries.values())),
            control_pb2.Part(bundles=control_pb2.Bundles(bundles=[wire_bundle(self.server.trust)])),
            control_pb2.Part(policy=control_pb2.Policy(table=table)),
            *extra,
        ]
        generation = control_pb2.Generation(epoch=7, number=number)
        made = control_pb2.Update(
            generation=generation, parts=parts, view_hash=views.view_hash(parts), spread_ms=spread
        )
        self.send(control_pb2.FromBroker(update=made).SerializeToString())
        return made

    def delta(self, base: control_pb2.Update, number: int, *put: types.Entry) -> control_pb2.Update:
        """Publish the server's entries as what changed since an update: these."""
        full = [control_pb2.Part(entries=control_pb2.Entries(entries=self.server.entries.values())), *base.parts[1:]]
        made = control_pb2.Update(generation=control_pb2.Generation(epoch=7, number=number), base=base.generation)
        made.view_hash = views.parts_hash([*full, *(control_pb2.Part(revocations=control_pb2.Revocations()),)])
        made.delta.base_hash = base.view_hash
        made.delta.put.add(entries=control_pb2.Entries(entries=put))
        self.send(control_pb2.FromBroker(update=made).SerializeToString())
        return made

    def send(self, data: bytes) -> None:
        assert self.server.control
        self.server.control.publish([([f"{self.server.trust.td.id}{AGENT}"], data)])

    def poll(self) -> None:
        assert self.server.control
        for kind, _, _, data in self.server.control.drain(100):
            if kind != "closed":
                self.answers.append(control_pb2.FromSidecar.FromString(data))

    def heard(self, number: int) -> bool:
        """Say whether a generation is acknowledged."""
        self.poll()
        return any(one.ack.generation.number == number for one in self.answers)

    async def answer(self, fits: Callable[[control_pb2.FromSidecar], bool]) -> control_pb2.FromSidecar:
        """Wait for an answer and take it, with all before it."""

        def first() -> control_pb2.FromSidecar | None:
            self.poll()
            return next(filter(fits, self.answers), None)

        found = await async_until(first, "an answer", when=lambda one: one is not None, state=lambda: self.answers)
        assert found is not None
        del self.answers[: self.answers.index(found) + 1]
        return found

    async def ack(self, number: int, svids: int) -> control_pb2.Ack:
        return (await self.answer(lambda a: a.ack.generation.number == number and len(a.ack.svids) == svids)).ack

    async def nack(self) -> control_pb2.Nack:
        return (await self.answer(lambda a: a.HasField("nack"))).nack


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SpireLike]:
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())), control=True)
    found.entries["x"] = entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    yield found
    await found.stop()


@pytest.fixture
def stream(server: SpireLike) -> Stream:
    return Stream(server)


@pytest.fixture
async def sidecar(stream: Stream, running: Start, tmp_path: Path) -> Running:
    """A sidecar that runs on generation 7.5."""
    stream.update(5)
    one = running(settings(tmp_path))
    await stream.ack(5, svids=1)
    return one


async def test_hello_then_update_then_ack(stream: Stream, running: Start, tmp_path: Path) -> None:
    one = running(settings(tmp_path))
    hello = (await stream.answer(lambda a: a.HasField("hello"))).hello
    assert (list(hello.versions), hello.HasField("running")) == ([1], False)
    sent = stream.update(5)
    ack = await stream.ack(5, svids=1)
    held = one.process.holder.identities["x"].svid
    assert ack.view_hash == sent.view_hash
    assert [(s.entry_id, s.not_after, s.authority_id) for s in ack.svids] == [("x", held.not_after, held.authority_id)]
    assert one.process.report.ready()


async def test_new_entries_are_acknowledged_with_their_svids(stream: Stream, sidecar: Running) -> None:
    stream.server.entries["y"] = entry("y")
    stream.update(6)
    await stream.ack(6, svids=2)
    del stream.server.entries["x"]
    stream.update(7)
    await stream.ack(7, svids=1)
    assert ids(sidecar.process) == {"y"}


def went_back(stream: Stream) -> None:
    stream.update(4)


def unknown_part(stream: Stream) -> None:
    stream.update(6, UNKNOWN)


def unknown_table(stream: Stream) -> None:
    stream.update(6, table=policy_pb2.Table(version=99, trust_domain="example.org"))


def unknown_message(stream: Stream) -> None:
    stream.send(bytes([0x9A, 0x06, 0x00]))


def garbage(stream: Stream) -> None:
    stream.send(b"\x0a\xff")


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (went_back, "generation_went_back"),
        (unknown_part, "unknown_part"),
        (unknown_table, "material_refused"),
        (unknown_message, "unknown_message"),
        (garbage, "malformed"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
async def test_refused_and_nothing_changes(
    stream: Stream, sidecar: Running, send: Callable[[Stream], None], code: str
) -> None:
    before = sidecar.process.holder.view
    send(stream)
    assert (await stream.nack()).code == code
    assert sidecar.process.holder.view is before
    assert sidecar.process.state.load_generation().generation.number == 5  # type: ignore[union-attr]
    # The twin: a good one is taken on the same stream.
    stream.update(8)
    await stream.ack(8, svids=1)


async def test_same_generation_again_is_acknowledged_again(stream: Stream, sidecar: Running) -> None:
    stream.update(5, control_pb2.Part(revocations=control_pb2.Revocations()))
    await stream.ack(5, svids=1)


async def test_nothing_is_said_twice(stream: Stream, sidecar: Running) -> None:
    for number in (6, 7):
        for _ in range(3):
            sidecar.process.agent.wake()
            await asyncio.sleep(0.05)
        stream.update(number)
        # Answers come in order: whatever else it says stands between these two.
        await sidecar.until(lambda _, number=number: stream.heard(number), "an Ack")  # type: ignore[misc]
    assert [(one.WhichOneof("kind"), one.ack.generation.number) for one in stream.answers] == [("ack", 6), ("ack", 7)]


async def test_a_delta_is_taken_and_one_upon_what_is_not_here_is_refused(
    stream: Stream, sidecar: Running, running: Start, tmp_path: Path
) -> None:
    base = stream.update(6)
    await stream.ack(6, svids=1)
    stream.server.entries["y"] = entry("y")
    sent = stream.delta(base, 7, stream.server.entries["y"])
    assert (await stream.ack(7, svids=2)).view_hash == sent.view_hash
    # It is stored whole.
    await sidecar.stop()
    again = running(settings(tmp_path))
    hello = (await stream.answer(lambda a: a.HasField("hello"))).hello
    assert (hello.running.number, hello.view_hash) == (7, sent.view_hash)
    assert list(hello.features) == ["delta", "spread", "crls"]
    # The base of the delta that it is sent again is gone with the process that had it.
    assert (await stream.nack()).code == "unknown_base"
    view = again.process.holder.view
    assert (view.generation, set(view.entries)) == ((7, 7), {"x", "y"})
    stream.update(8)
    await stream.ack(8, svids=2)


async def test_revoked_svid_is_replaced_before_the_acknowledgement(stream: Stream, sidecar: Running) -> None:
    before = sidecar.process.holder.identities["x"].svid.serial
    revocation = control_pb2.Revocation(serial=before, reason="test")
    stream.update(6, control_pb2.Part(revocations=control_pb2.Revocations(revocations=[revocation])))
    await stream.ack(6, svids=1)
    assert sidecar.process.holder.identities["x"].svid.serial != before


async def test_restart_goes_on_from_the_stored_generation(
    stream: Stream, sidecar: Running, running: Start, tmp_path: Path
) -> None:
    await sidecar.stop()
    stream.answers.clear()
    again = running(settings(tmp_path))
    assert again.process.holder.view.generation is None
    hello = (await stream.answer(lambda a: a.HasField("hello"))).hello
    assert (hello.running.epoch, hello.running.number) == (7, 5)
    stream.update(4)
    assert (await stream.nack()).code == "generation_went_back"


async def test_a_renewal_that_failed_is_tried_again_when_the_server_is_back(
    server: SpireLike, stream: Stream, running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firedoor.sidecar.backoff.FIRST_SECONDS", 600.0)
    monkeypatch.setattr(
        "firedoor.sidecar.agent.renewal_time", lambda now, _: now + (1.0 if not server.renewals else 600)
    )
    server.renews = False
    stream.update(5)
    one = running(settings(tmp_path))
    await one.until(lambda p: p.agent._failing, "a renewal that failed")
    server.renews = True
    assert server.front
    server.front.close_callers(f"{server.trust.td.id}{AGENT}")
    await one.until(lambda p: server.renewals == 1 and not p.agent._failing, "another try")


class Heard:
    """What the server's end heard on each stream, in order; taken from `stream`, which sees it too."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.kinds: dict[int, list[str]] = {}

    def poll(self) -> dict[int, list[str]]:
        assert self._stream.server.control
        for kind, _, number, data in self._stream.server.control.drain(100):
            self.kinds.setdefault(number, []).append(kind)
            if kind != "closed":
                self._stream.answers.append(control_pb2.FromSidecar.FromString(data))
        return self.kinds


def connections(one: Running) -> int:
    """Return how many times it has connected without having looked at that."""
    return [kind for kind, _ in one.process.agent._events._queue].count("connected")  # type: ignore[attr-defined]


async def test_a_stream_begins_with_one_hello_however_late_the_sidecar_looks(
    stream: Stream, sidecar: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at something else while its stream breaks and comes again, twice, and an SVID is renewed meanwhile.

    The broker ends a stream that begins with an answer, or has two Hellos.
    """
    server, heard = stream.server, Heard(stream)
    assert server.control
    # It asks for longer than this takes.
    monkeypatch.setattr("firedoor.sidecar.server.PROBE_SECONDS", 120.0)
    server.answers.clear()
    asked = server.asked
    sidecar.process.agent._events.put_nowait(("ask", b""))
    await sidecar.until(lambda _: server.asked > asked, "the question that is not answered")
    for number in (1, 2):
        server.control.forget(f"{server.trust.td.id}{AGENT}")
        await sidecar.until(lambda p, number=number: connections(sidecar) >= number, "another stream")  # type: ignore[misc]
        # An identity that changed would be acknowledged at once.
        sidecar.process.agent._updates._said = None
        sidecar.process.agent._updates.acknowledge()
    server.answers.set()
    await sidecar.until(lambda _: any("hello" in one for one in heard.poll().values()), "a Hello")
    await sidecar.until(lambda p: p.agent._events.empty(), "a look at all events")
    stream.update(6)
    await sidecar.until(lambda _: heard.poll() and any(a.ack.generation.number == 6 for a in stream.answers), "an Ack")
    last = heard.kinds[max(heard.kinds)]
    assert last[0] == "hello"
    assert last.count("hello") == 1
    assert "closed" not in last
    # A Hello that comes too late, where a machine stands still, is told in other words.
    said = caplog.text + repr([vars(record) for record in caplog.records])
    assert "a stream starts with a Hello and has one" not in said


async def test_many_renewals_leave_one_stream_that_is_told_all(
    server: SpireLike, stream: Stream, running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, times = Heard(stream), 8
    monkeypatch.setattr(
        "firedoor.sidecar.agent.renewal_time", lambda now, _: now + (0.2 if server.renewals < times else 600)
    )
    stream.update(5)
    one = running(settings(tmp_path))
    await one.until(lambda _: heard.poll() is None or server.renewals == times, "all renewals")
    stream.update(6)
    await one.until(lambda _: heard.poll() and any(a.ack.generation.number == 6 for a in stream.answers), "an Ack")
    assert server.control
    await one.until(lambda _: server.control.streams() == 1, "one stream")  # type: ignore[union-attr]
    for kinds in heard.poll().values():
        # Events of one stream are told in order, and of its answers the latest.
        assert kinds[0] == "hello"
        assert kinds.count("hello") == 1


@pytest.fixture
def longest(sidecar: Running, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the sidecar wait as long as it may, ten minutes; return the serial number that it holds."""
    monkeypatch.setattr("firedoor.sidecar.spread.LONGEST_SECONDS", 600.0)
    sidecar.process.agent._issuer.spread._uniform = lambda _, longest: longest
    return sidecar.process.holder.identities["x"].svid.serial


async def test_an_svid_that_serves_is_replaced_when_its_turn_comes(
    stream: Stream, sidecar: Running, longest: str
) -> None:
    stream.server.entries["x"].revision_number += 1
    stream.update(6, spread=600_000)
    stream.server.entries["y"] = entry("y")
    # What is missing does not wait.
    stream.update(7, spread=600_000)
    await stream.ack(7, svids=2)
    assert sidecar.process.holder.identities["x"].svid.serial == longest
    stream.update(8, spread=0)
    await sidecar.until(lambda p: p.holder.identities["x"].svid.serial != longest, "another SVID")


async def test_a_wait_that_is_over_at_once_is_not_missed(stream: Stream, sidecar: Running, longest: str) -> None:
    """Among few sidecars it is a millisecond, which may end before the sidecar asks how long it is."""
    sidecar.process.agent._issuer.spread._uniform = lambda _, most: 1e-6
    stream.server.entries["x"].revision_number += 1
    stream.update(6, spread=2)
    await sidecar.until(lambda p: p.holder.identities["x"].svid.serial != longest, "another SVID")


async def test_what_is_revoked_does_not_wait(stream: Stream, sidecar: Running, longest: str) -> None:
    stream.server.entries["x"].revision_number += 1
    revocation = control_pb2.Revocation(serial=longest, reason="test")
    stream.update(6, control_pb2.Part(revocations=control_pb2.Revocations(revocations=[revocation])), spread=600_000)
    await stream.ack(6, svids=1)
    assert sidecar.process.holder.identities["x"].svid.serial != longest
