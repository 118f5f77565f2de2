# SPDX-License-Identifier: Apache-2.0
"""The stock `spire-agent` command line at our sidecar's sockets answers as at a real agent's, in the same state.

Both are agents of one real spire-server. SPIRE's suite `agent-cli` is among this.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.spire.conftest import TD
from tests.spire.programs import Answer, SpireAgent, SpireServer, needed, run
from tests.spire.sides import comparable
from tests.spire.test_sidecar_below_spire import UID, WEB, Node
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

STRANGER = "unix:uid:4000000000"
# How long the program waits for an agent; five seconds by itself.
PATIENT = f"{PATIENCE:.0f}s"
_MADE = (
    (re.compile(r"after [0-9.]+(m|µ|n)?s"), "after <DURATION>"),
    (re.compile(r"join_token/[0-9a-f-]{36}"), "join_token/<TOKEN>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "<TIME>"),
    (re.compile(r"(Cached JWT SVIDs: +)\d+"), r"\1<COUNT>"),
    (re.compile(r'("cached_jwt_svids_count"|"last_sync_success"): [^,]+'), r"\1: 0"),
)


@dataclass
class Side:
    """One agent, as the command line finds it."""

    name: str
    public: Path
    admin: Path

    def __call__(self, *words: str) -> Answer:
        """Run a subcommand at the socket where it belongs."""
        if words[:2] in (("api", "fetch"), ("api", "validate")) and "-timeout" not in words:
            words = (*words, "-timeout", PATIENT)
        socket = self.admin if words[0] in ("logger", "debug") else self.public
        return run([needed("spire", "spire-agent"), *words, "-socketPath", str(socket)])

    def shown(self, *words: str) -> Any:
        """Run one and return what it said, without what each side makes for itself."""
        found = json.dumps(comparable(self(*words)), ensure_ascii=False)
        for pattern, name in _MADE:
            found = pattern.sub(name, found)
        return _read(json.loads(found))


def _read(found: Any) -> Any:
    """Return the same with keys and bundles of JWTs in a form that can be compared."""
    match found:
        case {"keys": list(keys)}:
            # Ours says of each key what it is for and until when, and which bundle it is.
            return [{name: key[name] for name in ("kid", "kty", "crv", "x", "y")} for key in keys]
        case {"bundles": dict(bundles)}:
            return {name: _read(json.loads(base64.b64decode(value))) for name, value in bundles.items()}
        case dict():
            return {name: "<KEY>" if name == "x509_svid_key" else _read(value) for name, value in found.items()}
        case list():
            return [_read(each) for each in found]
        case _:
            return found


@dataclass
class Pair:
    """A real agent and our sidecar below the same server."""

    server: SpireServer
    agent: SpireAgent
    node: Node
    real: Side
    ours: Side

    def entry(self, path: str, selector: str = UID) -> list[str]:
        """Write the same entry for both."""
        own, theirs = self.node.parent, f"spiffe://{TD}/spire/agent/join_token/{self.agent.join_token}"
        made = []
        for self.node.parent in (theirs, own):
            made.append(self.node.entry(path, selector=selector))
        return made

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.real, self.ours


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "spire").mkdir(mode=0o700)
    server = SpireServer(folder / "spire")
    server.start()
    agent = SpireAgent(folder / "a", server.address, server.bundle_pem(), join_token=server.token())
    node = Node(folder / "n", server)
    real = Side("spire-agent", agent.socket, agent.folder / "adm" / "admin.sock")
    found = Pair(server, agent, node, real, Side("firedoor", node.folder / "auth.sock", node.folder / "admin.sock"))
    try:
        node.by_token()
        agent.start()
        node.start("--log-level", "debug").ready()
        yield found
    finally:
        node.close()
        agent.close()
        server.close()


NOTHING: dict[str, tuple[str, ...]] = {
    "healthcheck": ("healthcheck",),
    "fetch x509": ("api", "fetch", "x509", "-timeout", PATIENT),
    "fetch x509 -silent": ("api", "fetch", "x509", "-timeout", PATIENT, "-silent"),
    "fetch jwt": ("api", "fetch", "jwt", "-audience", "a", "-timeout", PATIENT),
}


@pytest.mark.parametrize("case", NOTHING)
def test_without_an_identity(pair: Pair, case: str) -> None:
    """Stands before all that asks for `web`, which stays."""
    real, ours = (side.shown(*NOTHING[case]) for side in pair.sides)
    assert ours == real


@pytest.fixture(scope="module")
def web(pair: Pair) -> None:
    """An entry that gives this user an identity at both."""
    pair.entry("/web")
    for side in pair.sides:
        until(lambda side=side: WEB in side("api", "fetch", "x509").out, f"an SVID of {side.name}")


SAME: dict[str, tuple[str, ...]] = {
    "healthcheck": ("healthcheck",),
    "healthcheck -shallow -verbose": ("healthcheck", "-shallow", "-verbose"),
    "fetch": ("api", "fetch"),
    "fetch x509": ("api", "fetch", "x509"),
    "fetch x509 json": ("api", "fetch", "x509", "-output", "json"),
    "fetch jwt json": ("api", "fetch", "jwt", "-audience", "models", "-output", "json"),
    "fetch jwt two audiences": ("api", "fetch", "jwt", "-audience", "a", "-audience", "b", "-output", "json"),
    "fetch jwt named": ("api", "fetch", "jwt", "-audience", "a", "-spiffeID", WEB, "-output", "json"),
    "fetch jwt of another": ("api", "fetch", "jwt", "-audience", "a", "-spiffeID", f"spiffe://{TD}/other"),
    "fetch jwt without audience": ("api", "fetch", "jwt"),
    "logger get": ("logger", "get"),
    "logger get json": ("logger", "get", "-output", "json"),
    "logger set warn": ("logger", "set", "-level", "warn"),
    "logger set trace": ("logger", "set", "-level", "trace", "-output", "json"),
    "logger set panic": ("logger", "set", "-level", "panic"),
    "logger set nothing": ("logger", "set"),
    "logger set nonsense": ("logger", "set", "-level", "loud"),
    "logger reset": ("logger", "reset"),
    "debug getinfo": ("debug", "getinfo"),
    "debug getinfo json": ("debug", "getinfo", "-output", "json"),
}


@pytest.mark.parametrize("case", SAME)
def test_answers_like_a_real_agent(pair: Pair, web: None, case: str) -> None:
    real, ours = (side.shown(*SAME[case]) for side in pair.sides)
    assert ours == real


def test_fetches_jwt_for_people(pair: Pair, web: None) -> None:
    """The bundle is printed as each side writes JSON; what stands in it is the same."""
    found = []
    for side in pair.sides:
        token, _, bundle = side("api", "fetch", "jwt", "-audience", "models").out.partition(f"bundle(spiffe://{TD}):\n")
        keys = [{name: key[name] for name in ("kid", "kty", "crv", "x", "y")} for key in json.loads(bundle)["keys"]]
        found.append((re.sub(r"eyJ[\w.-]+", "<JWT>", token), keys))
    assert found[0] == found[1]


def test_validates_what_the_other_was_given(pair: Pair, web: None) -> None:
    tokens = []
    for side in pair.sides:
        (answer, _) = side("api", "fetch", "jwt", "-audience", "models", "-output", "json").json()
        tokens.append(answer["svids"][0]["svid"])
    for token in tokens:
        real, ours = (side("api", "validate", "jwt", "-audience", "models", "-svid", token) for side in pair.sides)
        assert (ours.code, ours.out.splitlines()[:2]) == (real.code, real.out.splitlines()[:2])
        assert _claims(ours) == _claims(real)
        for wrong in ((token, "others"), (token[:-8], "models"), ("x", "models")):
            words = ("api", "validate", "jwt", "-svid", wrong[0], "-audience", wrong[1])
            real, ours = (side(*words) for side in pair.sides)
            assert (ours.code, ours.text.partition(":")[0]) == (real.code, real.text.partition(":")[0])
            assert ours.text.startswith("SVID is not valid: ")


def _claims(answer: Answer) -> Any:
    return json.loads(answer.out.partition("Claims    : ")[2])


def test_writes_files(pair: Pair, web: None, tmp_path: Path) -> None:
    names = []
    for side in pair.sides:
        folder = tmp_path / side.name
        folder.mkdir()
        assert side("api", "fetch", "x509", "-write", str(folder)).code == 0
        names.append(sorted(file.name for file in folder.iterdir()))
        leaf = x509.load_pem_x509_certificate((folder / "svid.0.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "svid.0.key").read_bytes(), None)
        assert leaf.public_key() == key.public_key()
        root = x509.load_pem_x509_certificate((folder / "bundle.0.pem").read_bytes())
        leaf.verify_directly_issued_by(root)
    assert names[0] == names[1]


def received(log: str, count: int) -> list[str]:
    """Return whose SVIDs came last, once they are so many and all of them are printed."""
    last = log.rpartition("Received ")[2]
    found = re.findall(r"SPIFFE ID:\t\t(\S+)\n", last)
    return found if last.startswith(f"{count} svids after ") and len(found) == count else []


def test_watches(pair: Pair, web: None, tmp_path: Path) -> None:
    """`api watch` prints what it has, and again when there is something new."""
    logs = {side.name: tmp_path / side.name for side in pair.sides}
    watching = []
    for side in pair.sides:
        with logs[side.name].open("wb") as sink:
            command = [needed("spire", "spire-agent"), "api", "watch", "-socketPath", str(side.public)]
            watching.append(subprocess.Popen(command, stdout=sink, stderr=sink))
    later: list[str] = []
    try:
        for name, log in logs.items():
            until(lambda log=log: f"SPIFFE ID:\t\t{WEB}\n" in log.read_text(), f"the SVID at {name}")
        later = pair.entry("/web/later")
        for name, log in logs.items():
            # A real agent orders them by the entries' IDs, which are random; ours by when they were made.
            found = until(lambda log=log: received(log.read_text(), 2), f"the second one at {name}")  # type: ignore[misc]
            assert set(found) == {WEB, f"{WEB}/later"}
        assert found == [WEB, f"{WEB}/later"]
    finally:
        for one in watching:
            one.kill()
            one.wait()
        for entry in later:
            pair.server.cli.ok("entry", "delete", "-entryID", entry)
        for side in pair.sides:
            until(lambda side=side: "/later" not in side("api", "fetch", "x509").out, f"{side.name} to forget it")


def test_debug_counts_what_it_holds(pair: Pair, web: None) -> None:
    for side in pair.sides:
        info = side("debug", "getinfo", "-output", "json").json()
        assert info["cached_x509_svids_count"] == 1
        assert time.time() - int(info["last_sync_success"]) < 60
        assert info["svid_chain"][0]["id"]["path"].startswith("/spire/agent/join_token/")


def test_an_agent_that_is_gone(tmp_path: Path) -> None:
    for words, text in (
        (("healthcheck", "-verbose"), "Agent is unhealthy: unable to determine health"),
        (("debug", "getinfo"), "Error: rpc error: code = Unavailable"),
    ):
        answer = Side("nobody", tmp_path / "none.sock", tmp_path / "none.sock")(*words)
        assert answer.code == 1
        assert text in answer.text
