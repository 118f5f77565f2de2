# SPDX-License-Identifier: Apache-2.0
"""SPIRE's suite `delegatedidentity`: a delegate asks a real agent and our sidecar, below one server, the same things.

What each says is compared field by field; keys, times and tokens are each one's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from firedoor.wire import delegated_grpc, delegated_pb2, types
from tests.sidecar.programs import SLEEP, sleeper
from tests.spire.conftest import TD
from tests.spire.programs import SpireAgent, SpireServer
from tests.spire.test_sidecar_below_spire import UID, Node
from tests.spire.test_stock_agent import held
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

DELEGATE, POD, SLEEPER = (f"spiffe://{TD}/{name}" for name in ("delegate", "pod", "sleeper"))
PROD, STAGING = "k8s:ns:prod", "k8s:ns:staging"
OWN = {"certChain", "expiresAt", "issuedAt", "x509SvidKey", "token"}


@dataclass
class Side:
    """Whom the delegate asks."""

    name: str
    stub: Any

    def x509(self, *selectors: str, pid: int = 0) -> Any:
        request = delegated_pb2.SubscribeToX509SVIDsRequest(selectors=map(_selector, selectors), pid=pid)
        return self._first(self.stub.SubscribeToX509SVIDs(request, timeout=60))

    def jwt(self, *selectors: str, pid: int = 0) -> Any:
        request = delegated_pb2.FetchJWTSVIDsRequest(audience=["models"], selectors=map(_selector, selectors), pid=pid)
        return self.stub.FetchJWTSVIDs(request, timeout=60)

    def bundles(self) -> Any:
        return self._first(self.stub.SubscribeToX509Bundles(delegated_pb2.SubscribeToX509BundlesRequest(), timeout=60))

    @staticmethod
    def _first(call: Any) -> Any:
        try:
            return next(call)
        finally:
            call.cancel()


def _selector(text: str) -> types.Selector:
    kind, _, value = text.partition(":")
    return types.Selector(type=kind, value=value)


def said(call: Callable[[], Any]) -> Any:
    """Return an answer without what is each one's own, or how it was refused."""
    try:
        return _masked(MessageToDict(call()))
    except grpc.RpcError as error:
        return error.code().name  # type: ignore[attr-defined]


def _masked(found: Any) -> Any:
    match found:
        case dict():
            return {key: f"<{key}>" if key in OWN and value else _masked(value) for key, value in found.items()}
        case list():
            # The order of a workload's SVIDs is by random entry IDs at a real agent (docs/spire.md).
            return sorted((_masked(one) for one in found), key=str)
        case _:
            return found


class Pair:
    """A real agent and our sidecar below one server, with the same entries."""

    def __init__(self, folder: Path, server: SpireServer) -> None:
        self.server = server
        self.agent = SpireAgent(folder / "a", server.address, server.bundle_pem(), join_token=server.token())
        self.agent.workload_attestor = 'WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }'
        self.agent.more = f'authorized_delegates = ["{DELEGATE}"]'
        self.node = Node(folder / "n", server)
        self.node.by_token()
        sockets = self.agent.folder / "adm" / "admin.sock", self.node.folder / "admin.sock"
        self._channels = [grpc.insecure_channel(f"unix:{one}") for one in sockets]
        stubs = [delegated_grpc.DelegatedIdentityStub(one) for one in self._channels]
        self.sides = (Side("spire-agent", stubs[0]), Side("firedoor", stubs[1]))

    def start(self) -> None:
        self.agent.start()
        self.node.start("--authorized-delegates", DELEGATE).ready()

    def entry(self, spiffe_id: str, *selectors: str) -> list[str]:
        """Write an entry for both."""
        made = []
        theirs, own = f"spiffe://{TD}/spire/agent/join_token/{self.agent.join_token}", self.node.parent
        for self.node.parent in (theirs, own):
            more = [word for one in selectors[1:] for word in ("-selector", one)]
            made.append(self.node.entry(spiffe_id.removeprefix(f"spiffe://{TD}"), *more, selector=selectors[0]))
        return made

    def until_same(self, ask: Callable[[Side], Any], holds: Callable[[Any], object]) -> Any:
        """Wait until both have heard of the last change; return what both say."""
        for side in self.sides:
            until(lambda side=side: holds(said(lambda: ask(side))), f"{side.name} to have heard of it")
        return self.same(ask)

    def same(self, ask: Callable[[Side], Any]) -> Any:
        theirs, ours = (said(lambda side=side: ask(side)) for side in self.sides)
        assert theirs == ours
        return ours

    def close(self) -> None:
        for one in self._channels:
            one.close()
        self.agent.close()
        self.node.close()


def count(answer: Any) -> int:
    """Return how many X.509-SVIDs an answer has."""
    return len(answer.get("x509Svids", ())) if isinstance(answer, dict) else 0


@pytest.fixture
def pair(tmp_path: Path, spire_server: SpireServer) -> Iterator[Pair]:
    found = Pair(tmp_path, spire_server)
    try:
        found.start()
        yield found
    finally:
        found.close()


def test_a_delegate_is_told_the_same_as_by_a_real_agent(pair: Pair) -> None:
    """Before it is one it is told nothing, and nothing when it is none any more."""
    asked: tuple[Callable[[Side], Any], ...] = (
        lambda side: side.x509(PROD),
        lambda side: side.jwt(PROD),
        lambda side: side.bundles(),
    )
    for ask in asked:
        assert pair.same(ask) == "PERMISSION_DENIED"
    pair.entry(POD, PROD)
    pair.entry(SLEEPER, UID, f"unix:path:{SLEEP}")
    delegate = pair.entry(DELEGATE, UID)
    until(lambda: DELEGATE in held(pair.agent) and DELEGATE in pair.node.held(), "the delegate's own identity")

    got = pair.until_same(asked[0], lambda one: count(one) == 1)
    assert [one["x509Svid"]["id"]["path"] for one in got["x509Svids"]] == ["/pod"]
    got = pair.same(asked[1])
    assert [one["id"]["path"] for one in got["svids"]] == ["/pod"]
    assert list(pair.same(asked[2])["caCertificates"]) == [f"spiffe://{TD}"]
    # Whom the server has entries for, and whom not.
    for selectors in ((STAGING,), (PROD, STAGING), ()):
        pair.same(lambda side, s=selectors: side.x509(*s))
        pair.same(lambda side, s=selectors: side.jwt(*s))
    assert pair.same(lambda side: side.x509(PROD, pid=os.getpid())) == "INVALID_ARGUMENT"
    # By the number of a process, which the agent attests itself.
    with sleeper() as program:
        got = pair.until_same(lambda side: side.x509(pid=program.pid), lambda one: count(one) == 2)
        assert {one["x509Svid"]["id"]["path"] for one in got["x509Svids"]} == {"/delegate", "/sleeper"}
        got = pair.same(lambda side: side.jwt(pid=program.pid))
        assert {one["id"]["path"] for one in got["svids"]} == {"/delegate", "/sleeper"}

    for one in delegate:
        pair.server.cli.ok("entry", "delete", "-entryID", one)
    for ask in asked:
        assert pair.until_same(ask, lambda one: one == "PERMISSION_DENIED") == "PERMISSION_DENIED"
