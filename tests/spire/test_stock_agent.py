# SPDX-License-Identifier: Apache-2.0
"""A stock spire-agent below our broker: it attests, syncs, serves workloads that are not ours, and obeys."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from spiffe.workloadapi.errors import FetchX509SvidError

from tests.simulator import SimulatedTrustDomain
from tests.spire.conftest import TD, UID, Estate, agent_path, api, own_serial
from tests.spire.programs import SpireAgent, Workload
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

WEB = f"spiffe://{TD}/web"
MakeWorkload = Callable[[dict[str, str]], Workload]


def held(agent: SpireAgent) -> list[str]:
    """Return the IDs that this process gets from an agent."""
    try:
        with api(agent) as client:
            return [str(svid.spiffe_id) for svid in client.fetch_x509_svids()]
    except FetchX509SvidError:
        return []


def serials(agent: SpireAgent) -> set[int]:
    with api(agent) as client:
        return {svid.leaf.serial_number for svid in client.fetch_x509_svids()}


@pytest.fixture
def agent(estate: Estate) -> SpireAgent:
    """A broker, a stock agent that has attested, and one entry for this user."""
    estate.start_broker()
    made = estate.agent()
    made.start()
    estate.entry(agent_path(made), "/web")
    until(lambda: held(made) == [WEB], "an SVID")
    return made


def test_join_token(estate: Estate, agent: SpireAgent, workload: MakeWorkload) -> None:
    with api(agent) as client:
        svid = client.fetch_x509_svid()
        assert str(svid.spiffe_id) == WEB
        assert [one.trust_domain.name for one in client.fetch_x509_bundles().bundles] == [TD]
        token = client.fetch_jwt_svid(audience={"models"})
        assert str(client.validate_jwt_svid(token.token, audience="models").spiffe_id) == WEB
    program = workload(agent.environment)
    made = program.ask("token", "-audience", "models")
    assert made["id"] == WEB
    assert program.ask("validate", "-audience", "models", given=made["token"])["id"] == WEB
    # It tells its version a little later.
    version = until(lambda: estate.cli.json("agent", "list")["agents"][0]["agent_version"], "the agent's version")
    assert version.startswith("1.15.3")


def test_svids_are_renewed_and_so_is_the_agents_own(estate: Estate) -> None:
    estate.start_broker("--x509-svid-ttl", "24s", "--agent-ttl", "24s")
    agent = estate.agent()
    agent.start()
    estate.entry(agent_path(agent), "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    first = own_serial(estate)
    seen: set[int] = set()

    def renewed() -> bool:
        seen.update(serials(agent))
        return len(seen) >= 3

    until(renewed, "three SVIDs")

    until(lambda: own_serial(estate) != first, "another SVID of the agent")
    # It goes on as the renewed agent: what comes later still reaches it.
    estate.entry(agent_path(agent), "/later")
    until(lambda: set(held(agent)) == {WEB, f"spiffe://{TD}/later"}, "the later entry's SVID")


def test_changes_of_entries_reach_it(estate: Estate, agent: SpireAgent) -> None:
    parent = f"spiffe://{TD}{agent_path(agent)}"
    second = estate.entry(agent_path(agent), "/second", more=("-hint", "internal"))
    until(lambda: set(held(agent)) == {WEB, f"spiffe://{TD}/second"}, "the second entry's SVID")
    estate.cli.ok(
        *("entry", "update", "-entryID", second, "-parentID", parent, "-spiffeID", f"spiffe://{TD}/renamed"),
        *("-selector", UID, "-dns", "renamed.example.org"),
    )
    until(lambda: set(held(agent)) == {WEB, f"spiffe://{TD}/renamed"}, "the renamed entry's SVID")
    # A twin for another user never comes.
    estate.entry(agent_path(agent), "/other", "unix:uid:4000000000")
    estate.cli.ok("entry", "delete", "-entryID", second)
    until(lambda: held(agent) == [WEB], "the end of the entry")


def test_entries_by_node_alias_and_by_the_tokens_alias(estate: Estate) -> None:
    """SPIRE's suite `entries`."""
    estate.start_broker()
    agent = estate.agent(token=estate.join_token("-spiffeID", f"spiffe://{TD}/cluster/one"))
    agent.start()
    estate.entry("/cluster/one", "/by-token")
    until(lambda: held(agent) == [f"spiffe://{TD}/by-token"], "an SVID by the token's alias")
    # Entries below an entry that the agent is entitled to are the agent's as well (nested agents).
    estate.entry("/by-token", "/below")
    until(lambda: f"spiffe://{TD}/below" in held(agent), "an SVID of an entry below an entry")


def test_512_entries_reach_it(estate: Estate) -> None:
    """SPIRE's suite `sync-authorized-entries`: more than one page of its sync."""
    estate.start_broker()
    agent = estate.agent()
    agent.start()
    for number in range(511):
        estate.create_entry(agent_path(agent), f"/unused/{number}", "uid:4000000000")
    estate.create_entry(agent_path(agent), "/last")
    until(lambda: held(agent) == [f"spiffe://{TD}/last"], "the last entry's SVID")
    assert estate.cli.json("entry", "count")["count"] == 512


def test_a_banned_agent_shuts_down_and_cannot_come_back(estate: Estate, agent: SpireAgent) -> None:
    """SPIRE's suite `evict-agent`, the first half."""
    estate.cli.ok("agent", "ban", "-spiffeID", f"spiffe://{TD}{agent_path(agent)}")
    agent.logged("Agent is banned: removing SVID and shutting down")
    agent.ended()
    (shown,) = estate.cli.json("agent", "list")["agents"]
    assert shown["banned"] is True
    agent.begin()
    agent.ended()
    agent.logged("failed to attest: agent is banned")


def test_an_evicted_agent_needs_another_token(estate: Estate, agent: SpireAgent) -> None:
    """SPIRE's suites `evict-agent` and `node-re-attestation` for join tokens, which cannot attest again."""
    estate.cli.ok("agent", "evict", "-spiffeID", f"spiffe://{TD}{agent_path(agent)}")
    assert "agents" not in estate.cli.json("agent", "list") or estate.cli.json("agent", "list")["agents"] == []
    agent.ended()
    again = estate.agent("b")
    again.start()
    estate.entry(agent_path(again), "/web")
    until(lambda: held(again) == [WEB], "an SVID with another token")


def test_survives_a_restart_of_the_broker(estate: Estate, agent: SpireAgent) -> None:
    (broker, *_) = estate.programs
    before = serials(agent)
    broker.stop()
    # While the broker is down it serves what it has.
    assert serials(agent) == before
    estate.start_broker()
    estate.entry(agent_path(agent), "/later")
    until(lambda: f"spiffe://{TD}/later" in held(agent), "an SVID after the restart")


def test_a_restarted_agent_goes_on_with_its_svid(estate: Estate, agent: SpireAgent) -> None:
    agent.stop()
    agent.start()
    until(lambda: held(agent) == [WEB], "an SVID without another token")


def test_federated_bundles_reach_workloads(estate: Estate, agent: SpireAgent, workload: MakeWorkload) -> None:
    other = SimulatedTrustDomain("other.org", at=int(time.time()))
    program = workload(agent.environment).follow("watch")
    program.until(lambda line: set(line["bundles"]) == {TD})
    estate.cli.ok(
        "bundle", "set", "-id", "spiffe://other.org", "-format", "spiffe", given=other.bundle.to_json().decode()
    )
    estate.entry(agent_path(agent), "/federated", more=("-federatesWith", "spiffe://other.org"))
    line = program.until(lambda line: set(line["bundles"]) == {TD, "other.org"})
    assert line["bundles"]["other.org"] == [other.roots[0].authority_id]
    other.rotate()
    estate.cli.ok(
        "bundle", "set", "-id", "spiffe://other.org", "-format", "spiffe", given=other.bundle.to_json().decode()
    )
    program.until(lambda line: len(line["bundles"].get("other.org", ())) == 2)
    estate.cli.ok("bundle", "delete", "-id", "spiffe://other.org", "-mode", "dissociate")
    program.until(lambda line: set(line["bundles"]) == {TD})


def rotate(estate: Estate, kind: str, agent: SpireAgent, followed: Callable[[str, str], object]) -> str:
    """Force a rotation by the stock command line, step by step; `followed` says whether the workloads have the new."""

    def do(*words: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = estate.cli.json("localauthority", kind, *words)
        return found

    first = do("show")["active"]["authority_id"]
    second = do("prepare")["prepared_authority"]["authority_id"]
    until(lambda: second in trusted(agent, kind), "the prepared authority in the workload's bundle")
    do("activate", "-authorityID", second)
    do("taint", "-authorityID", first)
    until(lambda: followed(first, second), "SVIDs of the new authority", seconds=90)
    do("revoke", "-authorityID", first)
    until(lambda: first not in trusted(agent, kind), "the end of the revoked authority")
    return second


def trusted(agent: SpireAgent, kind: str) -> set[str]:
    """Return the IDs of the authorities in the bundle that a workload gets."""
    with api(agent) as client:
        if kind == "jwt":
            (keys,) = client.fetch_jwt_bundles().bundles
            return set(keys.jwt_authorities)
        (bundle,) = client.fetch_x509_bundles().bundles
        return {
            one.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
            for one in bundle.x509_authorities
        }


def signers(agent: SpireAgent) -> set[str]:
    """Return the IDs of the authorities that signed the SVIDs that a workload gets."""
    with api(agent) as client:
        found = [svid.leaf.extensions for svid in client.fetch_x509_svids()]
    keys = [one.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier for one in found]
    return {key.hex() for key in keys if key}


def test_a_forced_rotation_fails_no_handshake(estate: Estate, agent: SpireAgent, workload: MakeWorkload) -> None:
    """SPIRE's suite `force-rotation-self-signed`, with go-spiffe workloads shaking hands all the while."""
    program = workload(agent.environment)
    looping = program.follow("loop")
    assert looping.next() == {"looping": True}
    serial = own_serial(estate)
    # An agent whose own certificate is revoked is locked out, as with SPIRE: it must have another one before.
    second = rotate(estate, "x509", agent, lambda _, new: signers(agent) == {new} and own_serial(estate) != serial)
    assert signers(agent) == {second}
    # The agent itself has a certificate of the new authority: what is written later still reaches it.
    estate.entry(agent_path(agent), "/later")
    until(lambda: f"spiffe://{TD}/later" in held(agent), "an SVID after the revocation", seconds=90)
    ended = looping.end()
    assert (ended["failed"], ended["failures"]) == (0, [])
    assert ended["made"] > 100


def test_a_forced_rotation_of_jwt_keys(estate: Estate, agent: SpireAgent, workload: MakeWorkload) -> None:
    """SPIRE's suite `force-rotation-jwt-authority`: cached tokens of a tainted key are not handed out any more."""
    program = workload(agent.environment)

    def signer() -> str:
        token: str = program.ask("token", "-audience", "models")["token"]
        header = token.partition(".")[0]
        return str(json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"])

    before = program.ask("token", "-audience", "models")["token"]
    rotate(estate, "jwt", agent, lambda _, new: signer() == new)
    after = program.ask("token", "-audience", "models")["token"]
    assert program.ask("validate", "-audience", "models", given=after)["id"] == WEB
    assert "error" in program.ask("validate", "-audience", "models", given=before)


def test_a_rotation_waits_for_it_and_fails_no_handshake(
    estate: Estate, agent: SpireAgent, workload: MakeWorkload
) -> None:
    """It has no stream of ours: it counts by the bundles that it fetched, and by what it was issued last."""
    program = workload(agent.environment)
    looping = program.follow("loop")
    assert looping.next() == {"looping": True}
    before = signers(agent)
    (done,) = json.loads(
        estate.run("authority", "rotate", "--drain", "2s", "--timeout", "2m", "--output", "json", seconds=150)
    )
    assert (done["stage"], done["over"]) == ("done", [])
    assert signers(agent) == {done["new_authority_id"]} != before
    # Its own certificate too: what is written later still reaches it.
    estate.entry(agent_path(agent), "/later")
    until(lambda: f"spiffe://{TD}/later" in held(agent), "an SVID after the revocation", seconds=90)
    ended = looping.end()
    assert (ended["failed"], ended["failures"]) == (0, [])
