# SPDX-License-Identifier: Apache-2.0
"""A stock spire-agent below our broker: it attests, syncs, serves workloads that are not ours, and obeys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from spiffe.workloadapi.errors import FetchX509SvidError

from tests.spire.conftest import TD, UID, Estate, agent_path, api
from tests.spire.programs import SpireAgent, Workload, wait_for

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
    wait_for(lambda: held(made) == [WEB], "an SVID")
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
    (shown,) = estate.cli.json("agent", "list")["agents"]
    assert shown["agent_version"] .startswith("1.15.3")
