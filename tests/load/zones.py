# SPDX-License-Identifier: Apache-2.0
"""Four segments, a sidecar each, two brokers on one PostgreSQL: `registry` has a network namespace of its own.

    outside   both brokers; inference, training and storage
    inside    registry: to a link that can be cut towards the brokers alone

Every process but `registry` runs under a clock of its own, which may be set (Debian's faketime).
"""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization

from firedoor.certs import NOT_BEFORE_CUSHION, split_der
from firedoor.wire import admin_pb2, entry_grpc, entry_pb2, types, workload_grpc, workload_pb2
from tests import faketime, netns
from tests.e2e.brokers import Brokers
from tests.e2e.conftest import UID, Program
from tests.e2e.namespaces import INSIDE_V4, OUTSIDE_V4, Namespace
from tests.load.conftest import FLOW, GET, SEGMENT
from tests.load.programs import App
from tests.postgres import Server
from tests.waiting import PATIENCE, until

SEGMENTS = ("training", "inference", "registry", "storage")
IDS = {name: f"/segment/{name}/host/h/svc/x" for name in SEGMENTS}
# A program beside the training one, whose SVID is stolen.
STRAY = "/segment/training/host/h/svc/stray"
BROKERS = {"one": f"{OUTSIDE_V4}:8081", "two": f"{OUTSIDE_V4}:8082"}
# A name, who connects to whom, where, the protocol and the service port.
LISTENERS = (
    ("models", "inference", "registry", f"{INSIDE_V4}:19000", "http", 9000),
    ("pushes", "training", "registry", f"{INSIDE_V4}:19001", "tcp", 9001),
    ("data", "training", "storage", f"{OUTSIDE_V4}:19002", "http", 9002),
    ("blobs", "registry", "storage", f"{OUTSIDE_V4}:19003", "http", 9003),
)
PUSHES = (INSIDE_V4, 19001)
TOKEN_TTL = 20
LONG = 3600
HEADER = (("workload.spiffe.io", "true"),)
FAKETIME = faketime.library()


def missing() -> str:
    """Say in a sentence why this cannot run here; nothing when it can."""
    return netns.missing() or ("" if FAKETIME else faketime.MISSING)


def policy(*more: str) -> str:
    """Write the policy; `more` are flows besides."""
    text = "".join(SEGMENT.format(name=name, uid=UID, more="") for name in SEGMENTS)
    for name, source, destination, _, protocol, port in LISTENERS:
        action = GET.format("models") if protocol == "http" else "{tcp: {}}"
        text += FLOW.format(name=name, source=source, destination=destination, port=port, action=action)
    return text + "".join(more)


LATE = FLOW.format(name="late", source="inference", destination="registry", port=9000, action=GET.format("late"))


class Timepiece:
    """The clock of one process: the real one, and some seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set it, for a process that runs or is yet to start."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)

    def words(self) -> list[str]:
        """Return the words before a command that is to go by it. Time since the start stays as it is."""
        values = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": self._file,
            "FAKETIME_NO_CACHE": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "NO_FAKE_STAT": 1,
        }
        return ["env", *(f"{name}={value}" for name, value in values.items())]


def listener(name: str, identity: str, protocol: str, port: int, **more: object) -> dict[str, object]:
    spiffe_id = f"spiffe://example.org{IDS[identity]}"
    return {"name": name, "as": spiffe_id, "protocol": protocol, "service_port": port, **more}


class Zones(Brokers):
    """The world."""

    def __init__(self, folder: Path, inside: Namespace, outside: Namespace) -> None:
        super().__init__(folder)
        self._inside, self._outside = inside, outside
        self.clocks = {name: Timepiece(folder / f"{name}.clock") for name in (*BROKERS, *SEGMENTS)}
        self._entries: list[str] = []
        self._ttl = LONG
        self.write_policy(policy())

    def _start(self, log: str, *words: str) -> Program:
        name = log.removesuffix(".log")
        space = self._inside if name == "registry" else self._outside
        clock = [] if name == "registry" else self.clocks[name].words()
        self.programs.append(Program(self.folder / log, *words, prefix=[*space.entering(), *clock]))
        return self.programs[-1]

    def begin(self, server: Server, apps: Mapping[str, App]) -> None:
        """Start everything; `apps` by their segments."""
        self.share(server)
        self.listening = dict(BROKERS)
        for name in BROKERS:
            self.start_one(name, "--jwt-svid-ttl", f"{TOKEN_TTL}s")
        self.address = ",".join(BROKERS.values())
        self.at("one")
        for name in ("registry", "storage", "training", "inference"):
            self._enrol(name, IDS[name], *([STRAY] if name == "training" else []))
            self._start_of(name, apps).ready()

    def _enrol(self, name: str, *paths: str) -> None:
        parent = self.enrol()
        (self.folder / "token").replace(self.folder / f"{name}.token")
        for path in paths:
            self._entries.append(self.create_entry(parent, path, x509_svid_ttl=LONG))

    def _start_of(self, name: str, apps: Mapping[str, App]) -> Program:
        inbound, outbound = [], []
        for title, source, destination, address, protocol, port in LISTENERS:
            if destination == name:
                app = apps[name].http if protocol == "http" else apps[name].opaque
                inbound.append(listener(title, name, protocol, port, listen=address, app={"address": app}))
            if source == name:
                expect = [f"spiffe://example.org/segment/{destination}/**"]
                where = f"unix:{self.socket(title)}"
                outbound.append(listener(title, name, protocol, port, listen=where, addresses=[address], expect=expect))
        words = ["--inbound", json.dumps(inbound)] if inbound else []
        words += ["--outbound", json.dumps(outbound)] if outbound else []
        return self.start_sidecar("--join-token-file", str(self.folder / f"{name}.token"), *words, name=name)

    def socket(self, name: str) -> Path:
        """Return where an outbound listener is bound."""
        return self.folder / f"{name}.sock"

    def program(self, name: str) -> Program:
        """Return what runs under this name now."""
        return next(one for one in reversed(self.programs) if one.log.name == f"{name}.log")

    # --- what runs -------------------------------------------------------------------------------------------------

    def svids(self) -> dict[str, admin_pb2.SvidStatus]:
        """Return what sidecars hold, by SPIFFE ID; nothing of one that does not answer."""
        found = [self.status(name) for name in SEGMENTS]
        return {one.spiffe_id: one for status in found if status for one in status.svids}

    def signers(self) -> set[str]:
        """Return the authorities that signed what sidecars hold."""
        return {one.authority_id for one in self.svids().values()}

    def generation(self, name: str) -> tuple[int, int]:
        status = self.status(name)
        return (status.generation.epoch, status.generation.number) if status else (0, 0)

    def authorities(self, broker: str) -> set[str]:
        """Return the X.509 authorities of a broker that sign, or signed and are not revoked."""
        self.at(broker)
        found = json.loads(self.run("authority", "list", "--output", "json"))["authorities"]
        return {one["authority_id"] for one in found if one["status"] != "revoked" and one["kind"] == "x509"}

    def rotate(self, *words: str) -> None:
        """Rotate authorities of each broker, to the end, all at once."""
        with ThreadPoolExecutor(len(BROKERS)) as pool:
            answers = list(pool.map(lambda broker: self._rotate(broker, *words), BROKERS))
        for done in (one for answer in answers for one in answer):
            assert (done["stage"], done["over"]) == ("done", []), done

    def _rotate(self, broker: str, *words: str) -> list[dict[str, Any]]:
        command = ["authority", "rotate", *words, "--output", "json"]
        socket = ["--admin-socket", str(self.folder / f"{broker}.sock")]
        ran = subprocess.run(
            [sys.executable, "-m", "firedoor.cli", *command, *socket], capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        found: list[dict[str, Any]] = json.loads(ran.stdout)
        return found

    def busiest(self) -> str:
        """Return the broker that signed more of what sidecars hold."""
        signed = [one.authority_id for one in self.svids().values()]
        own = {name: self.authorities(name) for name in BROKERS}
        return max(BROKERS, key=lambda name: sum(one in own[name] for one in signed))

    # --- what is changed --------------------------------------------------------------------------------------------

    def edit_entries(self) -> None:
        """Change every entry a little: its holder fetches another SVID. Tokens live long from now on."""
        self._ttl -= 1
        entries = [types.Entry(id=one, x509_svid_ttl=self._ttl, jwt_svid_ttl=LONG) for one in self._entries]
        mask = types.EntryMask(x509_svid_ttl=True, jwt_svid_ttl=True)
        with self.admin() as channel:
            request = entry_pb2.BatchUpdateEntryRequest(entries=entries, input_mask=mask)
            answer = entry_grpc.EntryStub(channel).BatchUpdateEntry(request, timeout=PATIENCE)
        assert {one.status.code for one in answer.results} == {0}, answer

    def renewed(self) -> dict[str, admin_pb2.SvidStatus]:
        """Wait until every SVID was issued since the entries were changed; return them."""

        def of_now() -> dict[str, admin_pb2.SvidStatus]:
            found = self.svids()
            lives = {one.not_after - one.not_before for one in found.values()}
            return found if len(found) == len(self._entries) and lives == {self._ttl + NOT_BEFORE_CUSHION} else {}

        return until(of_now, "another SVID for every entry")

    def renew(self) -> dict[str, admin_pb2.SvidStatus]:
        """Have every SVID replaced; return them."""
        self.edit_entries()
        return self.renewed()

    def edit(self, text: str) -> None:
        """Make this the policy."""
        self.write_policy(text)
        for name in BROKERS:
            self.program(name).process.send_signal(signal.SIGHUP)

    def revoke(self, path: str) -> None:
        """Take an identity away for good."""
        gone = set(self._with(path))
        self._entries = [one for one in self._entries if one not in gone]
        self.run("svid", "revoke", "--id", f"spiffe://example.org{path}", "--delete-entries")

    def _with(self, path: str) -> Iterable[str]:
        with self.admin() as channel:
            found = entry_grpc.EntryStub(channel).ListEntries(entry_pb2.ListEntriesRequest(), timeout=PATIENCE).entries
        return {one.id for one in found if one.spiffe_id.path == path}

    # --- what is proved ---------------------------------------------------------------------------------------------

    def told(self, name: str, what: str, cause: Callable[[], object]) -> float:
        """Return by how many seconds the clock is off by which a process logs something that we cause."""
        before = self._lines(name, what)
        cause()
        line = until(lambda: self._lines(name, what)[len(before) :], f"a line of {name}")[-1]
        return _seconds_off(line.split()[0])

    def _lines(self, name: str, what: str) -> list[str]:
        return [one for one in self.program(name).text.split("\n")[:-1] if what in one]

    def recorded(self, name: str) -> float:
        """Return by how many seconds the data path's clock is off, from what it recorded last."""
        line = (self.folder / name / "decisions.jsonl").read_text().rpartition("\n")[0].rpartition("\n")[2]
        return _seconds_off(json.loads(line)["time"])

    def steal(self) -> ssl.SSLContext:
        """Take the stray program's SVID and key, as whoever reads its memory would."""
        with grpc.insecure_channel(f"unix:{self.auth_socket('training')}") as channel:
            fetch = workload_grpc.SpiffeWorkloadAPIStub(channel).FetchX509SVID
            answer = next(iter(fetch(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=PATIENCE)))
        (svid,) = (one for one in answer.svids if one.spiffe_id.endswith(STRAY))
        return client_context(self.folder / "stolen.pem", svid)


def client_context(file: Path, svid: Any) -> ssl.SSLContext:
    """Make a TLS client with an SVID, which takes any server."""
    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    file.touch(mode=0o600)
    file.write_text(pem + "".join(ssl.DER_cert_to_PEM_cert(one) for one in split_der(svid.x509_svid)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(file)
    return context


def _seconds_off(time: str) -> float:
    return (datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds()


class Partition:
    """The wire between `inside` and the brokers, cut without a word: packets are dropped in both directions."""

    TABLE = "partition"

    def __init__(self, inside: Namespace) -> None:
        self._inside = inside

    def begin(self) -> None:
        ports = ", ".join(one.rpartition(":")[2] for one in BROKERS.values())
        rules = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; ip {end} {OUTSIDE_V4} tcp {port} {{ {ports} }} "
            "counter drop; }\n"
            for hook, end, port in (("input", "saddr", "sport"), ("output", "daddr", "dport"))
        )
        self._inside.run("nft", "-f", "-", given=f"table inet {self.TABLE} {{ {rules} }}")

    def end(self) -> dict[str, int]:
        """Mend it; return how many packets were dropped, by direction."""
        listed = json.loads(self._inside.run("nft", "-j", "list", "table", "inet", self.TABLE))["nftables"]
        rules = [one["rule"] for one in listed if "rule" in one]
        self._inside.run("nft", "delete", "table", "inet", self.TABLE)
        return {one["chain"]: part["counter"]["packets"] for one in rules for part in one["expr"] if "counter" in part}
