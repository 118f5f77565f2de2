# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: who asks whom for what, what should come of it, and how that is proved.

A row is `allowed` when the client got its answer and the program's own log grew. It is `denied` when the client got
nothing, the program's log did not grow, *and* the sidecar that should refuse has recorded the refusal with the reason
that the row expects: a dead process denies too, and proves nothing. What is neither is `failed`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from firedoor.cli.demo import peers
from firedoor.cli.demo.errors import DemoError
from firedoor.cli.demo.files import brief_identity, outbound_address
from firedoor.cli.demo.records import POLL_SECONDS, WAIT_SECONDS, Record
from firedoor.cli.demo.stage import Stage
from firedoor.cli.demo.world import LLM_PORT, MODELS_PORT, TOOLS_PORT, UPLOAD_PORT, identity

Verdict = Literal["allowed", "denied", "skipped", "failed"]

# Which certificate a client without a sidecar presents.
Who = Callable[[Stage], peers.Identity | None]

# What each program writes when a request has reached it.
APP_LOG = {"models": '"GET /models/llm', "tools": '"POST /mcp', "llm": "call /grpc.health.v1.Health/Check"}


@dataclass(frozen=True)
class Answer:
    """What the client saw."""

    ok: bool
    detail: str
    ms: float


@dataclass(frozen=True)
class Denial:
    """Where a refusal must be recorded: whose sidecar, which listener, and with which of these reasons."""

    segment: str
    listener: str
    reasons: tuple[str, ...]

    def fits(self, record: Record) -> bool:
        """Say whether a record is that refusal."""
        return bool(record["decision"] == "denied" and record["listener"] == self.listener)


@dataclass(frozen=True)
class Row:
    """One line of the table. `denial` is None where the client itself is told the reason (the auth socket)."""

    source: str
    destination: str
    action: str
    expected: Verdict
    ask: Callable[[Stage], Answer]
    app: str | None = None
    denial: Denial | None = None
    needs_users: bool = False
    # How long to wait before the row can be tried.
    wait: Callable[[], float] = field(default=lambda: 0.0)


@dataclass(frozen=True)
class Result:
    """What came of a row."""

    observed: Verdict
    why: str
    ms: float | None


class Kept:
    """SVIDs for the rows without a sidecar, fetched as the users that they belong to."""

    def __init__(self, stage: Stage) -> None:
        self.inference = self._fetch(stage, "inference", identity("inference"))
        self.training = self._fetch(stage, "training", identity("training"))
        self.forged = peers.forged(identity("inference"))
        self.foreign = peers.foreign("elsewhere.example", "/segment/inference/host/demo/svc/llm")
        self._old: peers.Identity | None = None

    def fresh(self, stage: Stage) -> peers.Identity:
        """Return the present SVID of those that live for seconds. The first one is kept."""
        found = self._fetch(stage, "inference", brief_identity())
        self._old = self._old or found
        return found

    def expired(self, stage: Stage) -> peers.Identity:
        """Return the first one, which has expired by now."""
        return self._old or self.fresh(stage)

    def seconds_to_expiry(self) -> float:
        """Return how long the first one is still good for."""
        return self._old.not_after + 1 - time.time() if self._old else 0.0

    @staticmethod
    def _fetch(stage: Stage, segment: str, spiffe_id: str) -> peers.Identity:
        answer = stage.clients[segment].ask({"do": "svid", "at": str(stage.world.auth_socket(segment))})
        if not answer["ok"]:
            raise DemoError(f"the workload of {segment} got no identity: {answer['detail']}")
        return peers.from_workload_api(answer["detail"], spiffe_id)


def judge(row: Row, stage: Stage) -> Result:
    """Do what the row says and prove what came of it."""
    if row.needs_users and not stage.world.separate:
        return Result("skipped", "not shown: needs root", None)
    for tail in stage.tails.values():
        tail.mark()
    before = _app_count(row, stage)
    answer = row.ask(stage)
    if answer.ok:
        if row.app is not None and not _grows(row, stage, before):
            return Result("failed", f"answered, but {row.app} saw no request", answer.ms)
        return Result("allowed", _flow(stage) or answer.detail, answer.ms)
    if row.denial is None:
        refused = answer.detail.startswith("PERMISSION_DENIED")
        return Result("denied" if refused else "failed", answer.detail, answer.ms)
    return _denied(row, stage, answer, before)


def _denied(row: Row, stage: Stage, answer: Answer, before: int) -> Result:
    where = row.denial
    assert where is not None
    record = stage.tails[where.segment].wait_for(where.fits)
    if record is None:
        found = next((r for tail in stage.tails.values() for r in tail.since_mark() if r["decision"] == "denied"), None)
        if found is None:
            return Result("failed", f"no sidecar denied it: {answer.detail}", answer.ms)
        return Result("denied" if row.expected == "allowed" else "failed", _place(found), answer.ms)
    if _app_count(row, stage) != before:
        return Result("failed", f"denied, but {row.app} saw a request", answer.ms)
    if row.expected == "denied" and record["reason"] not in where.reasons:
        return Result("failed", f"denied for another reason: {_place(record)}", answer.ms)
    return Result("denied", _place(record), answer.ms)


def _place(record: Record) -> str:
    return f"{record['reason']} ({record['direction']} {record['listener']})"


def _flow(stage: Stage) -> str:
    """Return the flow that the records of this row name."""
    records = (r for tail in stage.tails.values() for r in tail.since_mark())
    return next((f"flow {r['flow']}" for r in records if r.get("flow")), "")


def _app_count(row: Row, stage: Stage) -> int:
    return stage.apps[row.app].logged(APP_LOG[row.app]) if row.app else 0


def _grows(row: Row, stage: Stage, before: int) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while _app_count(row, stage) <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


# How a row asks.


def by(user: str, action: str, listener: str, *, owner: str | None = None) -> Callable[[Stage], Answer]:
    """Let a segment's client act through an outbound listener, its own or another `owner`'s."""

    def ask(stage: Stage) -> Answer:
        at = outbound_address(stage.world, owner or user, listener)
        return _told(stage.clients[user].ask({"do": action, "at": at}))

    return ask


def at_auth_socket(user: str, owner: str) -> Callable[[Stage], Answer]:
    """Let a segment's user ask for an identity at an auth socket."""

    def ask(stage: Stage) -> Answer:
        answer = _told(stage.clients[user].ask({"do": "svid", "at": str(stage.world.auth_socket(owner))}))
        return Answer(answer.ok, identity(owner) if answer.ok else answer.detail, answer.ms)

    return ask


def _told(answer: dict[str, object]) -> Answer:
    return Answer(bool(answer["ok"]), str(answer["detail"]), float(str(answer["ms"])))


def straight(who: Who | None, port: str = "in-models") -> Callable[[Stage], Answer]:
    """Come to an inbound listener without a sidecar; `who` None: without TLS."""

    def ask(stage: Stage) -> Answer:
        address, started = ("127.0.0.1", stage.world.ports[port]), time.perf_counter()
        try:
            line = peers.ask_in_plaintext(address) if who is None else peers.ask_over_tls(address, who(stage))
            return Answer(True, line, (time.perf_counter() - started) * 1000)
        except OSError as error:
            return Answer(False, str(error), (time.perf_counter() - started) * 1000)

    return ask


def table(kept: Kept) -> list[Row]:
    """Return all rows, each denial near its twin that is allowed; the one that must wait comes last."""
    return [*_flows(), *_without_a_sidecar(kept), *_local(), _too_late(kept)]


def _flows() -> list[Row]:
    registry, upload, tools, llm = (
        f"registry:{MODELS_PORT}",
        f"registry:{UPLOAD_PORT}",
        f"mcp-tools:{TOOLS_PORT}",
        f"inference:{LLM_PORT}",
    )
    no_flow, other_port = ("no_flow",), ("no_flow", "port_not_named")
    return [
        Row(
            "inference",
            registry,
            "S3 GET",
            "allowed",
            by("inference", "s3", "models"),
            "models",
            Denial("inference", "models", no_flow),
        ),
        Row(
            "inference",
            tools,
            "MCP call",
            "allowed",
            by("inference", "mcp", "tools"),
            "tools",
            Denial("inference", "tools", no_flow),
        ),
        Row(
            "mcp-tools",
            llm,
            "gRPC call",
            "allowed",
            by("mcp-tools", "health", "llm"),
            "llm",
            Denial("mcp-tools", "llm", no_flow),
        ),
        Row(
            "training",
            upload,
            "S3 GET",
            "allowed",
            by("training", "s3", "upload"),
            "models",
            Denial("training", "upload", no_flow),
        ),
        Row(
            "training",
            registry,
            "S3 GET",
            "denied",
            by("training", "s3", "models"),
            "models",
            Denial("training", "models", other_port),
        ),
        Row(
            "training",
            tools,
            "MCP call",
            "denied",
            by("training", "mcp", "tools"),
            "tools",
            Denial("training", "tools", no_flow),
        ),
        Row(
            "mcp-tools",
            registry,
            "S3 GET",
            "denied",
            by("mcp-tools", "s3", "models"),
            "models",
            Denial("mcp-tools", "models", no_flow),
        ),
        Row(
            "inference",
            upload,
            "S3 GET, other port",
            "denied",
            by("inference", "s3", "upload"),
            "models",
            Denial("inference", "upload", other_port),
        ),
        Row(
            "inference",
            registry,
            "right address, wrong identity",
            "denied",
            by("inference", "s3", "astray"),
            "tools",
            Denial("inference", "astray", ("unexpected_id",)),
        ),
    ]


def _without_a_sidecar(kept: Kept) -> list[Row]:
    own = "TLS, its own SVID"
    return [
        _straight("inference, no sidecar", own, "allowed", lambda _: kept.inference, "no_flow"),
        _straight("training, no sidecar", own, "denied", lambda _: kept.training, "no_flow", "port_not_named"),
        _straight("anybody", "TLS, no certificate", "denied", lambda _: None, "no_certificate"),
        _straight("anybody", "no TLS", "denied", None, "handshake_failed"),
        _straight("a stranger", "inference's ID, signed by itself", "denied", lambda _: kept.forged, "chain_untrusted"),
        _straight("elsewhere.example", "SVID of that domain", "denied", lambda _: kept.foreign, "unknown_trust_domain"),
        _straight("inference, no sidecar", "an SVID of seconds", "allowed", kept.fresh, "no_flow"),
    ]


def _too_late(kept: Kept) -> Row:
    row = _straight("inference, no sidecar", "that SVID, expired", "denied", kept.expired, "expired")
    return replace(row, wait=kept.seconds_to_expiry)


def _straight(source: str, action: str, expected: Verdict, who: Who | None, *reasons: str) -> Row:
    """Make a row for a client that comes to the registry's inbound listener without a sidecar."""
    denial = Denial("registry", "models", reasons)
    return Row(source, f"registry:{MODELS_PORT}", action, expected, straight(who), "models", denial)


def _local() -> list[Row]:
    auth, out = "inference's auth socket", "inference's outbound"
    denial = Denial("inference", "models", ("client_not_entitled",))
    return [
        Row("user of inference", auth, "fetch X.509-SVID", "allowed", at_auth_socket("inference", "inference")),
        Row(
            "user of training",
            auth,
            "fetch X.509-SVID",
            "denied",
            at_auth_socket("training", "inference"),
            needs_users=True,
        ),
        Row(
            "user of training",
            out,
            "S3 GET",
            "denied",
            by("training", "s3", "models", owner="inference"),
            "models",
            denial,
            needs_users=True,
        ),
    ]
