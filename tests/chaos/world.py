# SPDX-License-Identifier: Apache-2.0
"""Two brokers on PostgreSQL, sidecars `server` and `client`, programs that ask, and observers of all of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import grpc

from firedoor.certs import TrustBundle, TrustDomain
from firedoor.wire import agent_grpc, agent_pb2, bundle_grpc, bundle_pb2, entry_grpc, entry_pb2, types
from tests.chaos.ledger import Ledger
from tests.chaos.observed import Accepted, Counts, Generation, Journal, Life, Seen
from tests.chaos.policy import IDS, OPERATORS, PORT, SELECTORS, policy
from tests.chaos.records import RecordReader
from tests.e2e.brokers import Brokers
from tests.e2e.conftest import Program
from tests.faketime import library
from tests.load.programs import App, KeepAlive
from tests.load.traffic import Traffic
from tests.netns import Place, enter
from tests.postgres import Server
from tests.waiting import NotInTime, until

T = TypeVar("T")

BROKERS = ("one", "two")
# Which entries are behind which sidecar.
HOLDERS = {"server": ("registry",), "client": ("inference", "good", "bad", "ann", "bob")}
ASKING = ("inference", "good", "bad")
# An administrator tries again for so long, with any broker; a fault may take both, and the database.
PATIENCE = 120.0
QUEUE = 64
# What no other try makes different.
_FINAL = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED)
OK, ALREADY_EXISTS, NOT_FOUND = 0, 6, 5
FAKETIME = library()


class Planted(Program):
    """A program with faults in it that a test turns on."""

    module = "tests.chaos.planted"


@dataclass
class Living:
    """A life of a sidecar that goes on."""

    name: str
    program: Program
    reader: RecordReader
    # How many of its records the journal has.
    taken: int = 0
    last: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0))


class ChaosWorld(Brokers):
    """Everything that runs, and the journal of what was seen of it."""

    def __init__(self, folder: Path, server: Server, place: Place | None, program: type[Program] = Program) -> None:
        prefix = ("nsenter", f"--net=/run/netns/{place.name}") if place else ()
        super().__init__(folder, prefix=prefix)
        self.postgres, self.place, self._program = server, place, program
        self.share(server)
        self.journal = Journal()
        self.ledger = Ledger(server, self._words[1].split("/")[3].split("?")[0], self.trust_domain)
        self.traffic = Traffic(self.enter)
        self.app = App()
        self.endpoints: dict[str, str] = {}
        self.brokers: dict[str, Program] = {}
        self.lives: dict[str, Living] = {}
        self.pools = {name: KeepAlive(self.socket(name), least=2) for name in ASKING}
        self.agents_of: dict[str, str] = {}
        self._edits: set[str] = set()
        self._editing = threading.Lock()
        self.inbound = ""
        self._numbers = 0
        # For people, of the faults.
        self.notes: list[str] = []
        # How many ask that nobody asks anything.
        self._held = 0
        self._holding = threading.Lock()
        self._over = threading.Event()
        self._observers: list[threading.Thread] = []
        self.clock = folder / "clock"
        self.clock.write_text("+0")
        self.write_policy(policy())

    def enter(self) -> None:
        """Put the calling thread where the programs are."""
        if self.place:
            enter(f"/run/netns/{self.place.name}")

    # --- starting -----------------------------------------------------------------------------------------------

    def _start(self, log: str, *words: str) -> Program:
        program = self._program(self.folder / log, *words, prefix=(*self.prefix, *self._faked(log)))
        self.programs.append(program)
        return program

    def _faked(self, log: str) -> tuple[str, ...]:
        """Return what gives the client a clock of its own."""
        if log != "client.log" or FAKETIME is None:
            return ()
        settings = (
            f"FAKETIME_TIMESTAMP_FILE={self.clock}",
            "FAKETIME_CACHE_DURATION=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )
        return ("env", f"LD_PRELOAD={FAKETIME}", *settings)

    def begin(self) -> None:
        """Start everything, and wait until the pair that may speaks."""
        self.traffic.__enter__()
        self.traffic.call(self.app.start())
        self.start_broker_named("one")
        self.ledger.begin()
        self.start_broker_named("two")
        for name in HOLDERS:
            self.enrol_sidecar(name)
            self.lives[name].program.ready()
            if name == "server":
                status = self.status("server")
                assert status is not None
                self.inbound = status.listeners[0].listen
        until(lambda: self.speaks("inference"), "a first answer")
        for observe in (*(self._watch_sidecar(name) for name in HOLDERS), *(self._watch_bundle(n) for n in BROKERS)):
            self._observers.append(threading.Thread(target=observe, daemon=True))
            self._observers[-1].start()

    def start_broker_named(self, name: str) -> None:
        """Start a broker, however often it takes while its database is away."""
        end = time.monotonic() + PATIENCE
        while True:
            program = self._start(f"{name}.log", *self._broker_words(name))
            line = _first_line(program, end)
            if line:
                break
            program.kill()
            if time.monotonic() > end:
                raise NotInTime(f"not within {PATIENCE:.0f} s: that {name} is ready\n{program.text}")
        self.brokers[name] = program
        told = dict(re.findall(r"\b(\w+)=(\S+)", line))
        self.listening[name], self.endpoints[name] = told["listen"], told["bundle_endpoint"]

    def _broker_words(self, name: str) -> tuple[str, ...]:
        anywhere, folder = "127.0.0.1:0", self.folder
        return (
            *("broker", "run", "--trust-domain", self.trust_domain, "--metrics", "off", "--operator-ids", OPERATORS),
            *("--listen", self.listening.get(name, anywhere), "--data-dir", str(folder / name)),
            *("--bundle-endpoint-listen", self.endpoints.get(name, anywhere), "--anonymous-connections", "1024"),
            *("--admin-socket", str(folder / f"{name}.sock"), "--segments", str(folder / "policy.yaml"), *self._words),
        )

    def enrol_sidecar(self, name: str) -> None:
        """Make a node an agent by a fresh token, and start its sidecar with nothing of before."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        bundle = self.ask(
            lambda channel: bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
        )
        roots = [one.asn1 for one in bundle.x509_authorities]
        text = TrustBundle.of(TrustDomain.parse(self.trust_domain), roots).to_json()
        (self.folder / f"{name}.bundle").write_bytes(text)
        token = self.token(f"/node/{name}")
        (self.folder / f"{name}.token").write_text(token + "\n")
        self.agents_of[name] = f"/spire/agent/join_token/{token}"
        for one in HOLDERS[name]:
            self.put_entry(one)
        self.start_life(name)

    def token(self, alias: str = "") -> str:
        """Return a join token."""
        given = types.SPIFFEID(trust_domain=self.trust_domain, path=alias) if alias else None
        request = agent_pb2.CreateJoinTokenRequest(ttl=600, agent_id=given)
        made = self.ask(lambda channel: agent_grpc.AgentStub(channel).CreateJoinToken(request, timeout=10))
        return str(made.value)

    def start_life(self, name: str) -> None:
        """Start a sidecar on what it has stored."""
        self._numbers += 1
        reader = RecordReader(self.folder / f"{name}.{self._numbers}.records")
        self.address = ",".join(self.listening[one] for one in BROKERS)
        program = self._start(
            f"{name}.log",
            *("sidecar", "run", "--trust-domain", self.trust_domain, "--broker", self.address, "--metrics", "off"),
            *("--bootstrap-bundle", str(self.folder / f"{name}.bundle")),
            *("--join-token-file", str(self.folder / f"{name}.token"), "--data-dir", str(self.folder / name)),
            *("--auth-socket", str(self.auth_socket(name)), "--admin-socket", str(self.admin_socket(name))),
            *("--records-path", str(reader.fifo), "--records-queue", str(QUEUE), *self._listeners(name)),
        )
        self.lives[name] = Living(f"{name} {self._numbers}", program, reader)

    def _listeners(self, name: str) -> tuple[str, str]:
        common = {"name": "models", "protocol": "http", "service_port": PORT}
        if name == "server":
            one = {
                "as": self.id("registry"),
                "listen": self.inbound or "127.0.0.1:0",
                "app": {"address": self.app.http},
            }
            return "--inbound", json.dumps([common | one])
        more = {"addresses": [self.inbound], "expect": ["spiffe://example.org/segment/registry/**"]}
        found = [
            common | more | {"name": one, "as": self.id(one), "listen": f"unix:{self.socket(one)}"} for one in ASKING
        ]
        return "--outbound", json.dumps(found)

    def end_life(self, name: str) -> None:
        """Kill a sidecar, and write down what its records say."""
        life = self.lives[name]
        life.program.kill()
        self._close_life(life, settled=False)

    def _close_life(self, life: Living, *, settled: bool) -> None:
        life.reader.close()
        self._take_records(life)
        end: Literal["settled", "killed"] = "settled" if settled else "killed"
        self.journal.lives.append(Life(life.name, end, life.last, life.taken))

    def gather(self) -> None:
        """Take what the records of those that live say so far."""
        for life in self.lives.values():
            self._take_records(life)

    def _take_records(self, life: Living) -> None:
        records = life.reader.records(life.taken)
        life.taken += len(records)
        for one in records:
            if one["decision"] == "allowed":
                epoch, number = one["generation"]
                peer = one["source" if one["direction"] == "inbound" else "destination"]
                self.journal.accepted.append(Accepted(life.name, (epoch, number), peer, one["peer_serial"]))

    # --- administrators -----------------------------------------------------------------------------------------

    def ask(self, call: Callable[[grpc.Channel], T], *at: str) -> T:
        """Have an administrator ask until a broker answers."""
        end = time.monotonic() + PATIENCE
        while True:
            for name in at or BROKERS:
                with grpc.insecure_channel(f"unix:{self.folder / f'{name}.sock'}") as channel:
                    try:
                        return call(channel)
                    except grpc.RpcError as error:
                        if error.code() in _FINAL or time.monotonic() > end:
                            raise
            time.sleep(0.2)

    def id(self, name: str) -> str:
        return f"spiffe://{self.trust_domain}{IDS[name]}"

    def put_entry(self, name: str) -> str:
        """Have an entry, once the policy in force lets it be; return its ID."""
        holder = next(one for one, names in HOLDERS.items() if name in names)
        entry = types.Entry(
            id=f"entry-{name}",
            spiffe_id=types.SPIFFEID(trust_domain=self.trust_domain, path=IDS[name]),
            parent_id=types.SPIFFEID(trust_domain=self.trust_domain, path=f"/node/{holder}"),
            selectors=[types.Selector(type="unix", value=one) for one in SELECTORS[name]],
        )
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry])

        def created() -> str:
            made = self.ask(lambda channel: entry_grpc.EntryStub(channel).BatchCreateEntry(request, timeout=10))
            (result,) = made.results
            return str(result.entry.id) if result.status.code in (OK, ALREADY_EXISTS) else ""

        return until(created, f"an entry for {name}", seconds=PATIENCE)

    def drop_entry(self, name: str) -> None:
        """Delete an entry."""
        request = entry_pb2.BatchDeleteEntryRequest(ids=[f"entry-{name}"])
        done = self.ask(lambda channel: entry_grpc.EntryStub(channel).BatchDeleteEntry(request, timeout=10))
        assert done.results[0].status.code in (OK, NOT_FOUND), done

    def command(self, broker: str, *words: str, seconds: float = PATIENCE) -> bool:
        """Run a command at one broker; say whether it ended well and in time."""
        where = ("--admin-socket", str(self.folder / f"{broker}.sock"))
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "firedoor.cli", *words, *where],
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return ran.returncode == 0

    def edit(self, edit: str, *, on: bool) -> None:
        """Change the policy in one regard."""
        with self._editing:
            (self._edits.add if on else self._edits.discard)(edit)
            self.write_policy(policy(self._edits))

    # --- traffic ------------------------------------------------------------------------------------------------

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}.out"

    def load(self, rate: float) -> None:
        """Have everybody ask without end, whatever becomes of it."""
        for name in ASKING:
            self.traffic.start(name, rate, lambda number, name=name: self._one(name, number))  # type: ignore[misc]

    async def _one(self, name: str, number: int) -> None:
        if not self._held:
            await self.pools[name].request(number)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Have nobody ask anything."""
        with self._holding:
            self._held += 1
        try:
            yield
        finally:
            with self._holding:
                self._held -= 1

    def speaks(self, name: str) -> bool:
        """Say whether one request on a connection of its own is answered."""

        async def once() -> bool:
            pool = KeepAlive(self.socket(name))
            try:
                await pool.request(7)
            except (OSError, EOFError, ValueError):
                return False
            finally:
                await pool.close()
            return True

        return self.traffic.call(once())

    # --- observers ----------------------------------------------------------------------------------------------

    def _watch_sidecar(self, name: str) -> Callable[[], None]:
        def run() -> None:
            while not self._over.wait(0.2):
                self.look(name)

        return run

    def look(self, name: str) -> Counts | None:
        """Look at a sidecar's counters and generation."""
        life = self.lives[name]
        status = self.status(name)
        if status is None or self.lives[name] is not life:
            return None
        names = ("decisions", "records_written", "records_waiting", "records_lost")
        found = Counts(*(status.counters[one] for one in names))
        life.last = found
        if status.HasField("generation") and status.generation.epoch:
            # Enrolled anew it has forgotten everything, and is another observer.
            observer = f"the generation of {name} as {self.agents_of[name]}"
            self.journal.seen.append(Seen(observer, (status.generation.epoch, status.generation.number)))
        return found

    def _watch_bundle(self, name: str) -> Callable[[], None]:
        def run() -> None:
            while not self._over.wait(0.2):
                with contextlib.suppress(OSError, ValueError):
                    self.journal.seen.append(Seen(f"the bundle of broker {name}", (0, self.sequence(name))))

        def entered() -> None:
            self.enter()
            run()

        return entered

    def sequence(self, name: str) -> int:
        """Fetch a broker's bundle and return its sequence number. Raise OSError or ValueError.

        For a thread that is where the brokers are.
        """
        host, _, port = self.endpoints[name].rpartition(":")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=context)
        try:
            connection.request("GET", "/")
            return int(json.loads(connection.getresponse().read())["spiffe_sequence"])
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    # --- the end ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """While nobody asks: wait until all records have arrived, and end every life. What is wrong stays wrong."""
        for name in self.lives:
            self.settle_one(name)

    def settle_one(self, name: str, seconds: float = 30) -> None:
        """The same of one sidecar."""
        life = self.lives[name]
        end = time.monotonic() + seconds
        before: Counts | None = None
        while time.monotonic() < end:
            now = self.look(name)
            if now and now == before and len(life.reader.lines) + now.lost + now.waiting == now.decisions:
                break
            before = now
            time.sleep(0.1)
        life.program.kill()
        self._close_life(life, settled=True)

    def in_force(self) -> Generation:
        """Return the generation that the brokers have committed last."""
        self.ledger.read_into(self.journal)
        return max(one.generation for one in self.journal.in_force)

    def collect(self) -> Journal:
        """Read what brokers wrote down."""
        self.ledger.read_into(self.journal)
        for name in BROKERS:
            for line in (self.folder / name / "audit.jsonl").read_text().splitlines():
                one = json.loads(line)
                if (
                    one.get("event") in ("issue", "mint", "breakglass_take")
                    and one.get("serial")
                    and not one.get("refused")
                ):
                    self.journal.handed[one["serial"]] = one["event"]
        return self.journal

    def stop_watching(self) -> None:
        """End the observers."""
        self._over.set()
        for thread in self._observers:
            thread.join(30)

    def how(self) -> str:
        """Describe everybody, for who reads of a failure: what sidecars say, and the last lines of every log."""
        said = [f"{name}: {self.status(name)}" for name in HOLDERS]
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join((*said, *(f"{one.name}:\n{_tail(one)}" for one in logs)))

    def close(self) -> None:
        """End everything."""
        self.stop_watching()
        self.traffic.stop()
        for pool in self.pools.values():
            self.traffic.call(pool.close())
        self.traffic.call(self.app.stop())
        super().close()
        self.traffic.__exit__()
        for life in self.lives.values():
            life.reader.close()


def _first_line(program: Program, end: float) -> str:
    """Wait for what a program prints when it is ready; nothing when it ends before."""
    assert program.process.stdout
    while time.monotonic() < end:
        if select.select([program.process.stdout], [], [], 0.2)[0]:
            return program.process.stdout.readline().decode()
    return ""


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
