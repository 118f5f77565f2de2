# SPDX-License-Identifier: Apache-2.0
"""Every subcommand of the stock `spire-server`, at our admin socket and at a real server's: the answers are the same.

What each side makes for itself (IDs, times, keys) is left out; what differs on purpose stands in `DIFFERENT` with the
reason, and docs/spire.md says it. Where SPIRE answers Internal, its code is not compared: ours says whose fault it is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import spiffe
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe.svid.errors import JwtSvidError

from tests.simulator import SimulatedTrustDomain
from tests.spire.conftest import Estate
from tests.spire.programs import SpireAgent, SpireServer
from tests.spire.sides import TD, Side, comparable
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

Step = Callable[[Side], list[str]]
OTHER = SimulatedTrustDomain("other.org", at=int(time.time()))
PEM = OTHER.bundle.to_pem()
JWKS = OTHER.bundle.to_json().decode()
MINTED = f"spiffe://{TD}/minted/a"
FOREIGN = "spiffe://foreign.org/x"
RESERVED = f"spiffe://{TD}/spire/x"
VERBS = ("activate", "taint", "revoke")
# What is run by hand and needs no server, and what starts one.
NOT_CLIENTS = {"run", "validate"}


def words(*given: str) -> Step:
    return lambda _: list(given)


def entry(command: str, path: str, *more: str) -> Step:
    return lambda side: ["entry", command, *side.entry(path, *more)]


def agent(command: str, *more: str) -> Step:
    return lambda side: ["agent", command, "-spiffeID", side.parent, *more]


def authority(kind: str, verb: str, which: str) -> Step:
    def step(side: Side) -> list[str]:
        shown = side.cli.json("localauthority", kind, "show")
        return ["localauthority", kind, verb, "-authorityID", shown[which]["authority_id"]]

    return step


def federate(command: str, name: str, url: str, profile: str, *more: str) -> Step:
    place = ["-trustDomain", name, "-bundleEndpointURL", url, "-bundleEndpointProfile", profile]
    return words("federation", command, *place, *more)


def with_input(step: Step, text: str) -> Step:
    def given(side: Side) -> list[str]:
        return step(side)

    given.text = text  # type: ignore[attr-defined]
    return given


SPIFFE = ("https_spiffe", "-endpointSpiffeID", "spiffe://other.org/spire/server")
TOPICS: Mapping[str, list[Step]] = {
    "agents": [
        words("agent", "list"),
        words("agent", "count"),
        agent("show"),
        words("agent", "show", "-spiffeID", f"spiffe://{TD}/spire/agent/nobody"),
        words("agent", "show", "-spiffeID", f"spiffe://{TD}/x"),
        words("agent", "show", "-spiffeID", "spiffe://foreign.org/spire/agent/x"),
        words("agent", "list", "-attestationType", "x509pop"),
        words("agent", "list", "-attestationType", "join_token"),
        words("agent", "list", "-banned", "true"),
        words("agent", "list", "-banned", "false"),
        words("agent", "list", "-canReattest", "true"),
        words("agent", "list", "-expiresBefore", "2099-01-01 00:00:00 -0700 -07"),
        words("agent", "list", "-expiresBefore", "2001-01-01 00:00:00 -0700 -07"),
        words("agent", "list", "-selector", "a:b"),
        words("agent", "count", "-banned", "true"),
        words("agent", "purge"),
        words("agent", "purge", "-expiredFor", "1s", "-dryRun"),
        words("agent", "ban", "-spiffeID", f"spiffe://{TD}/spire/agent/nobody"),
        words("agent", "evict", "-spiffeID", f"spiffe://{TD}/spire/agent/nobody"),
    ],
    "entries": [
        entry("create", "/a"),
        entry("create", "/a"),
        entry("create", "/b", "-x509SVIDTTL", "60", "-jwtSVIDTTL", "30", "-dns", "b.example.org", "-hint", "h"),
        entry("create", "/admin", "-admin"),
        entry("create", "/below", "-downstream"),
        entry("create", "/options", "-disableX509SVIDPrefetch", "-jwtSVIDIncludeJTI", "-entryExpiry", "4102444800"),
        entry("create", "/federated", "-federatesWith", "spiffe://nobody.org"),
        lambda side: ["entry", "create", "-parentID", side.parent, "-spiffeID", FOREIGN, "-selector", "a:b"],
        lambda side: ["entry", "create", "-parentID", side.parent, "-spiffeID", RESERVED, "-selector", "a:b"],
        lambda side: ["entry", "create", "-parentID", FOREIGN, "-spiffeID", f"spiffe://{TD}/x", "-selector", "a:b"],
        words("entry", "create", "-node", "-spiffeID", f"spiffe://{TD}/cluster", "-selector", "a:b"),
        lambda side: ["entry", "create", *side.entry("/stored"), "-storeSVID"],
        lambda side: ["entry", "create", "-entryID", "chosen", *side.entry("/chosen")],
        lambda side: ["entry", "create", "-entryID", "chosen", *side.entry("/chosen-again")],
        words("entry", "show", "-entryID", "chosen"),
        words("entry", "show", "-entryID", "nobody"),
        lambda side: ["entry", "update", "-entryID", "chosen", *side.entry("/renamed", "-hint", "x")],
        lambda side: ["entry", "update", "-entryID", "nobody", *side.entry("/renamed")],
        words("entry", "show", "-spiffeID", f"spiffe://{TD}/a"),
        lambda side: ["entry", "show", "-parentID", side.parent],
        words("entry", "show", "-downstream"),
        words("entry", "show", "-hint", "h"),
        words("entry", "show", "-selector", "a:b", "-matchSelectorsOn", "exact"),
        words("entry", "show", "-selector", "a:b", "-selector", "c:d", "-matchSelectorsOn", "any"),
        words("entry", "show", "-selector", "a:b", "-selector", "c:d", "-matchSelectorsOn", "subset"),
        words("entry", "show", "-selector", "a:b", "-matchSelectorsOn", "superset"),
        words("entry", "show"),
        words("entry", "count"),
        words("entry", "count", "-selector", "a:b"),
        words("entry", "delete", "-entryID", "chosen"),
        words("entry", "delete", "-entryID", "chosen"),
    ],
    "bundles": [
        words("bundle", "show"),
        words("bundle", "count"),
        words("bundle", "list"),
        words("bundle", "list", "-id", "spiffe://other.org"),
        with_input(words("bundle", "set", "-id", "spiffe://other.org"), PEM),
        with_input(words("bundle", "set", "-id", "spiffe://other.org", "-format", "spiffe"), JWKS),
        with_input(words("bundle", "set", "-id", f"spiffe://{TD}"), PEM),
        with_input(words("bundle", "set", "-id", "spiffe://other.org"), "junk"),
        words("bundle", "list"),
        words("bundle", "list", "-format", "spiffe"),
        words("bundle", "list", "-id", "spiffe://other.org"),
        words("bundle", "count"),
        entry("create", "/c", "-federatesWith", "spiffe://other.org"),
        words("entry", "show", "-federatesWith", "spiffe://other.org"),
        words("bundle", "delete", "-id", "spiffe://other.org"),
        words("bundle", "delete", "-id", "spiffe://other.org", "-mode", "dissociate"),
        words("bundle", "delete", "-id", "spiffe://other.org", "-mode", "delete"),
        words("bundle", "delete", "-id", f"spiffe://{TD}"),
        words("entry", "show", "-federatesWith", "spiffe://other.org"),
        with_input(words("bundle", "set", "-id", "spiffe://other.org"), PEM),
        entry("create", "/d", "-federatesWith", "spiffe://other.org"),
        words("bundle", "delete", "-id", "spiffe://other.org", "-mode", "delete"),
        words("entry", "show", "-spiffeID", f"spiffe://{TD}/d"),
    ],
    "tokens": [
        words("token", "generate"),
        words("token", "generate", "-ttl", "0"),
        words("token", "generate", "-ttl", "60", "-spiffeID", f"spiffe://{TD}/node"),
        words("token", "generate", "-spiffeID", FOREIGN),
        words("entry", "show", "-spiffeID", f"spiffe://{TD}/node"),
    ],
    "federation": [
        words("federation", "list"),
        federate("create", "web.org", "https://127.0.0.1:1/", "https_web"),
        federate("create", "web.org", "https://127.0.0.1:1/", "https_web"),
        federate("create", "zoo.org", "https://127.0.0.1:1/x", *SPIFFE),
        words("federation", "refresh", "-id", "spiffe://zoo.org"),
        federate("create", "bad.org", "http://127.0.0.1:1/x", "https_web"),
        federate("create", "bad.org", "https://a:b@127.0.0.1:1/x", "https_web"),
        federate("create", TD, "https://127.0.0.1:1/x", "https_web"),
        words("federation", "list"),
        words("federation", "show", "-trustDomain", "zoo.org"),
        words("federation", "show", "-trustDomain", "nobody.org"),
        federate("update", "web.org", "https://127.0.0.1:1/y", *SPIFFE),
        federate("update", "nobody.org", "https://127.0.0.1:1/y", "https_web"),
        words("federation", "refresh", "-id", "spiffe://web.org"),
        words("federation", "refresh", "-id", "spiffe://nobody.org"),
        words("federation", "delete", "-id", "spiffe://web.org"),
        words("federation", "delete", "-id", "spiffe://web.org"),
        words("federation", "delete", "-id", "spiffe://zoo.org"),
        words("federation", "list"),
    ],
    "minting": [
        words("x509", "mint", "-spiffeID", MINTED),
        words("x509", "mint", "-spiffeID", MINTED, "-ttl", "10m", "-dns", "a.example.org"),
        words("x509", "mint", "-spiffeID", FOREIGN),
        words("x509", "mint", "-spiffeID", f"spiffe://{TD}/spire/x"),
        words("jwt", "mint", "-spiffeID", MINTED, "-audience", "models"),
        words("jwt", "mint", "-spiffeID", MINTED, "-audience", "models", "-ttl", "1m"),
        words("jwt", "mint", "-spiffeID", FOREIGN, "-audience", "models"),
        words("wit", "mint", "-spiffeID", MINTED),
        words("wit", "mint", "-spiffeID", MINTED, "-keyType", "rsa-2048", "-signingAlgorithm", "PS256"),
        words("wit", "mint", "-spiffeID", FOREIGN),
    ],
    "the server itself": [
        words("healthcheck"),
        words("healthcheck", "-verbose"),
        words("debug", "getinfo"),
        words("logger", "get"),
        words("logger", "set", "-level", "warn"),
        words("logger", "set", "-level", "trace"),
        words("logger", "set", "-level", "nonsense"),
        words("logger", "get"),
        words("logger", "reset"),
        words("upstreamauthority", "taint", "-subjectKeyID", "aa"),
        words("upstreamauthority", "revoke", "-subjectKeyID", "aa"),
    ],
    **{
        f"{kind} authorities": [
            words("localauthority", kind, "show"),
            *(words("localauthority", kind, verb, "-authorityID", "nobody") for verb in VERBS),
            *(words("localauthority", kind, verb) for verb in VERBS),
            *(authority(kind, verb, "active") for verb in ("taint", "revoke")),
            words("localauthority", kind, "prepare"),
            words("localauthority", kind, "show"),
            words("localauthority", kind, "prepare"),
            *(authority(kind, verb, "prepared") for verb in ("taint", "revoke", "activate")),
            words("localauthority", kind, "show"),
            *(authority(kind, verb, "old") for verb in ("activate", "revoke", "taint", "taint")),
            words("localauthority", kind, "show"),
            words("bundle", "show"),
            authority(kind, "revoke", "old"),
            words("localauthority", kind, "show"),
            words("bundle", "show"),
        ]
        for kind in ("x509", "jwt")
    },
}
# What SPIRE says, and what we say instead: its sentences tell what its database says, ours what is wrong.
DIFFERENT: tuple[tuple[str, str], ...] = (
    ("UNIQUE constraint failed: federated_trust_domains.trust_domain", "federation relationship already exists"),
    ("UNIQUE constraint failed: registered_entries.entry_id", "entry ID already exists"),
    ("datastore-sql: cannot delete bundle", "cannot delete bundle"),
    ("unable to fetch federation relationship: record not found", "federation relationship not found"),
    ("failed to update entry", "entry not found"),
    ("local copy of bundle not found", "there is no bundle of other.org to verify"),
    ("connect: connection refused", "Connect call failed"),
)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    """A real server and a broker, a stock agent below each, both as new."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "s").mkdir(mode=0o700)
    (folder / "f").mkdir(mode=0o700)
    spire, estate = SpireServer(folder / "s"), Estate(folder / "f")
    try:
        spire.start()
        estate.start_broker("--log-level", "debug")

        def below_spire(name: str) -> SpireAgent:
            made = SpireAgent(folder / "s" / name, spire.address, spire.bundle_pem(), join_token=spire.token())
            estate.agents_started.append(made)
            return made

        theirs, ours = below_spire("a"), estate.agent("a")
        theirs.start()
        ours.start()
        for cli in (spire.cli, estate.cli):
            until(lambda cli=cli: cli.json("agent", "list")["agents"][0]["agent_version"], "the agent's version")
        yield Side("SPIRE", spire.cli, theirs, below_spire), Side("firedoor", estate.cli, ours, estate.agent)
    finally:
        estate.close()
        spire.close()


def answers(side: Side, step: Step, *more: str) -> dict[str, Any]:
    given: str = getattr(step, "text", "")
    return comparable(side.cli(*step(side), *more, given=given))


def without_codes(answer: dict[str, Any]) -> str:
    """Return an answer as text without gRPC's codes."""
    text = json.dumps(answer, sort_keys=True)
    text = re.sub(r"code = \w+|code: \w+", "code", text)
    return re.sub(r'"code": \d+, "message"', '"code", "message"', text)


def same(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Compare the two answers."""
    if theirs == ours:
        return True
    left, right = json.dumps(theirs, sort_keys=True), json.dumps(ours, sort_keys=True)
    if "Internal" in left or '"code": 13' in left or ("Internal" not in left and "failed to update entry" in left):
        left, right = without_codes(theirs), without_codes(ours)
    for said, instead in DIFFERENT:
        quoted, better = json.dumps(said)[1:-1], json.dumps(instead)[1:-1]
        if quoted in left and better in right:
            return theirs["code"] == ours["code"]
    return left == right


@pytest.mark.parametrize("topic", TOPICS)
def test_answers_like_a_real_server(sides: tuple[Side, Side], topic: str) -> None:
    spire, firedoor = sides
    wrong = []
    for output in ("json", "pretty"):
        for step in TOPICS[topic]:
            theirs, ours = (answers(side, step, "-output", output) for side in (spire, firedoor))
            if not same(theirs, ours):
                wrong.append(f"{' '.join(step(firedoor))}\n  SPIRE    {theirs}\n  firedoor {ours}")
        clean(sides)
    assert not wrong, "\n".join(wrong)


def clean(sides: tuple[Side, Side]) -> None:
    """Delete the entries, so that the next round begins anew."""
    for side in sides:
        for found in side.cli.json("entry", "show")["entries"]:
            side.cli.ok("entry", "delete", "-entryID", found["id"])


# What is done to an agent, whose ID comes last, and what is seen of it.
TAKEN_AWAY = (
    ("agent", "show", "-spiffeID"),
    ("agent", "ban", "-spiffeID"),
    ("agent", "show", "-spiffeID"),
    ("agent", "list", "-banned", "true"),
    ("agent", "count", "-banned", "true"),
    ("agent", "list", "-banned", "false"),
    ("agent", "ban", "-spiffeID"),
    ("agent", "evict", "-spiffeID"),
    ("agent", "show", "-spiffeID"),
    ("agent", "evict", "-spiffeID"),
    ("agent", "list"),
    ("agent", "count"),
)


@pytest.mark.parametrize("output", ["json", "pretty"])
def test_an_agent_is_banned_and_evicted_as_at_a_real_server(sides: tuple[Side, Side], output: str) -> None:
    said: list[list[dict[str, Any]]] = []
    for side in sides:
        agent = side.another(f"taken-away-{output}")
        agent.start()
        path = f"/spire/agent/join_token/{agent.join_token}"
        own = ["agent", "show", "-spiffeID", f"spiffe://{TD}{path}"]
        until(lambda side=side, own=own: side.cli.json(*own)["agent_version"], "the agent's version")
        words = [[*step, f"spiffe://{TD}{path}"] if step[-1] == "-spiffeID" else [*step] for step in TAKEN_AWAY]
        said.append([comparable(side.cli(*one, "-output", output)) for one in words])
        assert agent.ended() != 0
    wrong = [(step, *pair) for step, *pair in zip(TAKEN_AWAY, *said, strict=True) if not same(*pair)]
    assert not wrong, "\n".join(f"{' '.join(step)}\n  SPIRE    {one}\n  firedoor {other}" for step, one, other in wrong)


def test_every_subcommand_is_asked(sides: tuple[Side, Side]) -> None:
    _, firedoor = sides
    asked = {" ".join(step(firedoor)) for steps in TOPICS.values() for step in steps if not _needs_state(step)}
    asked |= {"localauthority x509 activate", "localauthority jwt activate"}
    for name in firedoor.cli.subcommands():
        if name not in NOT_CLIENTS:
            assert any(line == name or line.startswith(name + " ") for line in asked), name


def _needs_state(step: Step) -> bool:
    return step.__qualname__.startswith("authority.")


def test_what_is_minted_is_valid(sides: tuple[Side, Side], tmp_path: Path) -> None:
    """Both sides' minted SVIDs, as SPIRE's own command writes them: others' code verifies them by the bundle shown."""
    for side in sides:
        folder = tmp_path / side.name
        folder.mkdir()
        began = time.time()
        side.cli.ok("x509", "mint", "-spiffeID", MINTED, "-ttl", "10m", "-dns", "a.example.org", "-write", str(folder))
        assert {path.name for path in folder.iterdir()} == {"svid.pem", "key.pem", "bundle.pem"}
        svid = spiffe.X509Svid.load(str(folder / "svid.pem"), str(folder / "key.pem"), serialization.Encoding.PEM)
        assert str(svid.spiffe_id) == MINTED
        roots = x509.load_pem_x509_certificates(side.cli.ok("bundle", "show").encode())
        assert roots == x509.load_pem_x509_certificates((folder / "bundle.pem").read_bytes())
        (root,) = (one for one in roots if one.subject == svid.leaf.issuer)
        svid.leaf.verify_directly_issued_by(root)
        names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["a.example.org"]
        ends = svid.leaf.not_valid_after_utc.timestamp()

        token = side.cli.ok("jwt", "mint", "-spiffeID", MINTED, "-audience", "models", "-ttl", "1m").strip()
        shown = json.loads(side.cli.ok("bundle", "show", "-format", "spiffe"))["keys"]
        keys = {"keys": [one for one in shown if one["use"] == "jwt-svid"]}
        bundle = spiffe.JwtBundle.parse(spiffe.TrustDomain(TD), json.dumps(keys).encode())
        found = spiffe.JwtSvid.parse_and_validate(token, bundle, {"models"})
        assert str(found.spiffe_id) == MINTED
        with pytest.raises(JwtSvidError):
            spiffe.JwtSvid.parse_and_validate(token, bundle, {"else"})
        # Both were made since, and live as long as was asked for; times are whole seconds.
        for made in (ends - 600, found.expiry - 60):
            assert began - 2 < made < time.time() + 2


def test_a_fallback_segment_lets_nobody_be_minted(sides: tuple[Side, Side]) -> None:
    """The one thing that a SPIRE user must do first: say which IDs may be minted."""
    _, firedoor = sides
    answer = firedoor.cli("x509", "mint", "-spiffeID", f"spiffe://{TD}/web")
    assert answer.code == 1
    assert "its admission would have to say `mint: true`" in answer.err
