# SPDX-License-Identifier: Apache-2.0
"""SPIRE's own integration suites as tests, each by its name there; test_stock_agent.py has the others.

docs/spire.md lists which of SPIRE's suites stands where.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
from cryptography import x509

from tests.spire.conftest import TD, Estate, agent_path, api, own_serial
from tests.spire.programs import SpireAgent, Workload, needed, run
from tests.spire.test_stock_agent import WEB, held, serials
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MakeWorkload = Callable[[dict[str, str]], Workload]
# SPIRE's suites have the caches hold 8, and ten identities a workload.
CACHE, IDENTITIES = 8, 10


def test_join_token(estate: Estate) -> None:
    """A token is good once, and the vanity ID of `-spiffeID` stands for the node."""
    estate.start_broker()
    token = estate.join_token("-spiffeID", f"spiffe://{TD}/cluster/one")
    agent = estate.agent(token=token)
    agent.start()
    estate.entry("/cluster/one", "/web")
    until(lambda: held(agent) == [WEB], "an SVID by the vanity ID")
    second = estate.agent("b", token)
    second.begin()
    second.logged("failed to attest: join token does not exist or has already been used")
    made = estate.cli.json("token", "generate", "-ttl", "1")
    late = estate.agent("c", made["value"])
    until(lambda: time.time() >= int(made["expires_at"]) + 1, "the token's end")
    late.begin()
    late.logged("join token expired")


def test_rotation(estate: Estate) -> None:
    """Authorities of a minute, SVIDs of twenty seconds: every chain that is fetched validates, over several of each."""
    estate.start_broker("--ca-ttl", "1m", "--x509-svid-ttl", "20s", "--agent-ttl", "24s")
    agent = estate.agent()
    agent.start()
    estate.entry(agent_path(agent), "/web")
    until(lambda: held(agent) == [WEB], "an SVID")
    signers, seen = set(), set()

    def fetched() -> bool:
        with api(agent) as client:
            svid = client.fetch_x509_svid()
            (bundle,) = client.fetch_x509_bundles().bundles
        leaf = svid.leaf
        key_id = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        (root,) = [one for one in bundle.x509_authorities if _key_id(one) == key_id]
        leaf.verify_directly_issued_by(root)
        signers.add(key_id)
        seen.add(leaf.serial_number)
        return len(signers) >= 3 and len(seen) >= 10

    until(fetched, "three authorities and ten SVIDs", seconds=200)


def _key_id(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def cached(agent: SpireAgent, kind: str) -> int:
    """Return how many SVIDs of a kind a stock agent says that it holds."""
    words = ["debug", "getinfo", "-output", "json", "-socketPath", str(agent.folder / "adm/admin.sock")]
    return int(run([needed("spire", "spire-agent"), *words]).json().get(f"cached_{kind}_svids_count", 0))


def test_fetch_x509_svids(estate: Estate) -> None:
    """All ten identities are delivered, though the agent's cache holds eight, and eight stay when nobody asks."""
    estate.start_broker()
    agent = estate.agent()
    agent.more = f"x509_svid_cache_max_size = {CACHE}"
    agent.start()
    names = {f"spiffe://{TD}/web/{number}" for number in range(IDENTITIES)}
    for number in range(IDENTITIES):
        estate.create_entry(agent_path(agent), f"/web/{number}")
    until(lambda: set(held(agent)) == names, "ten SVIDs")
    assert len(serials(agent)) == IDENTITIES
    until(lambda: cached(agent, "x509") == CACHE, "eight that stay")
    assert set(held(agent)) == names


def test_fetch_jwt_svids(estate: Estate) -> None:
    """Each fetch returns ten tokens, though the agent's cache holds eight, and has no more afterwards."""
    estate.start_broker()
    agent = estate.agent()
    agent.more = f"jwt_svid_cache_max_size = {CACHE}"
    agent.start()
    for number in range(IDENTITIES):
        estate.create_entry(agent_path(agent), f"/web/{number}")
    until(lambda: len(held(agent)) == IDENTITIES, "ten SVIDs")
    for audience in ("a", "b", "a"):
        with api(agent) as client:
            tokens = client.fetch_jwt_svids(audience={audience})
            assert len({str(one.spiffe_id) for one in tokens}) == IDENTITIES
            for one in tokens:
                client.validate_jwt_svid(one.token, audience=audience)
    until(lambda: cached(agent, "jwt") == CACHE, "eight that stay")


def test_fetch_wit_svids(estate: Estate, workload: MakeWorkload) -> None:
    """The bundle has WIT authorities, and what is minted names the key that was made for it."""
    estate.start_broker()
    assert len(estate.cli.json("bundle", "show")["wit_authorities"]) == 1
    made = estate.cli.json("wit", "mint", "-spiffeID", f"spiffe://{TD}/minted/a")
    assert made["svid"]["id"] == {"trust_domain": TD, "path": "/minted/a"}
    # SPIRE's own command leaves these keys out of a bundle that it writes.
    shown = [sys.executable, "-m", "firedoor.cli", "bundle", "show", "--admin-socket", str(estate.cli.socket)]
    bundle = run(shown).out
    answer = workload({}).ask("wit", "-domain", TD, given=f"{made['svid']['token']}\n{bundle}")
    assert "error" not in answer, answer
    assert (answer["id"], answer["expiry"]) == (f"spiffe://{TD}/minted/a", int(made["svid"]["expires_at"]))


def test_debug_endpoints(estate: Estate) -> None:
    """The server tells of itself on its own host alone; test_matrix.py asks the network."""
    estate.start_broker()
    agent = estate.agent()
    agent.start()
    until(lambda: own_serial(estate), "the agent")
    info = estate.cli.json("debug", "getinfo")
    assert (info["agents_count"], info["entries_count"]) == (1, 0)
    assert [cert["id"]["path"] for cert in info["svid_chain"]] == ["/spire/server", ""]
