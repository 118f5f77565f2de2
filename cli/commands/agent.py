# SPDX-License-Identifier: Apache-2.0
"""`firedoor agent`: the sidecars (and other agents) that have attested."""

import argparse
from typing import Any

from firedoor.cli.admin import (
    add_broker_socket,
    add_keep_svids,
    broker,
    id_text,
    keeping,
    spiffe_id,
    wire_id,
)
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group
from firedoor.wire import agent_grpc, agent_pb2, types

LIST_EXAMPLE = "$ firedoor agent list"
SHOW_EXAMPLE = "$ firedoor agent show spiffe://example.org/spire/agent/join_token/5f7e2a9c"
EVICT_EXAMPLE = "$ firedoor agent evict spiffe://example.org/spire/agent/join_token/5f7e2a9c"
BAN_EXAMPLE = "$ firedoor agent ban spiffe://example.org/spire/agent/join_token/5f7e2a9c"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    listing = words.leaf("list", "show the agents that have attested", LIST_EXAMPLE, run_list)
    shown = words.leaf("show", "show one agent", SHOW_EXAMPLE, run_show)
    ban = words.leaf("ban", "cut an agent off for good; it cannot attest again", BAN_EXAMPLE, run_ban)
    evict = words.leaf("evict", "cut an agent off now; it may attest again", EVICT_EXAMPLE, run_evict)
    add_keep_svids(ban)
    for leaf in (shown, ban, evict):
        leaf.add_argument("id", metavar="ID")
    for leaf in (listing, shown, ban, evict):
        add_broker_socket(leaf)


def run_list(options: argparse.Namespace) -> int:
    """Show all agents."""
    with broker(options) as connection:
        stub = agent_grpc.AgentStub(connection.channel)
        found = [
            one for page in connection.pages(stub.ListAgents, agent_pb2.ListAgentsRequest()) for one in page.agents
        ]
    if options.output == "json":
        show_json([as_json(agent) for agent in found])
        return Exit.DONE
    rows = [
        (id_text(a.id), a.attestation_type, when(a.x509svid_expires_at), "yes" if a.banned else "no") for a in found
    ]
    show(table(("AGENT", "ATTESTED BY", "SVID EXPIRES", "BANNED"), rows))
    return Exit.DONE


def run_show(options: argparse.Namespace) -> int:
    """Show one agent."""
    request = agent_pb2.GetAgentRequest(id=wire_id(spiffe_id(options.id)))
    with broker(options) as connection:
        agent = connection.call(agent_grpc.AgentStub(connection.channel).GetAgent, request)
    if options.output == "json":
        show_json(as_json(agent))
        return Exit.DONE
    lines = [
        ("agent", id_text(agent.id)),
        ("attested by", agent.attestation_type),
        *(("selector", f"{s.type}:{s.value}") for s in agent.selectors),
        ("svid serial", agent.x509svid_serial_number),
        ("svid expires", when(agent.x509svid_expires_at)),
        ("banned", "yes" if agent.banned else "no"),
        ("attests again", "yes" if agent.can_reattest else "no"),
    ]
    show("\n".join(f"{name:<15}{value}" for name, value in lines))
    return Exit.DONE


def run_ban(options: argparse.Namespace) -> int:
    """Ban one agent."""
    parsed = spiffe_id(options.id)
    with broker(options) as connection:
        request = agent_pb2.BanAgentRequest(id=wire_id(parsed))
        connection.call(agent_grpc.AgentStub(connection.channel).BanAgent, request, metadata=keeping(options))
    if options.output == "json":
        show_json({"banned": str(parsed)})
    else:
        show(f"banned {parsed}")
    return Exit.DONE


def run_evict(options: argparse.Namespace) -> int:
    """Evict one agent: what was issued through it is revoked, and it has to attest anew."""
    parsed = spiffe_id(options.id)
    with broker(options) as connection:
        request = agent_pb2.DeleteAgentRequest(id=wire_id(parsed))
        connection.call(agent_grpc.AgentStub(connection.channel).DeleteAgent, request)
    if options.output == "json":
        show_json({"evicted": str(parsed)})
    else:
        show(f"evicted {parsed}")
    return Exit.DONE


def as_json(agent: types.Agent) -> dict[str, Any]:
    """Return an agent as scripts read it."""
    return {
        "id": id_text(agent.id),
        "attestation_type": agent.attestation_type,
        "selectors": [f"{s.type}:{s.value}" for s in agent.selectors],
        "x509svid_serial_number": agent.x509svid_serial_number,
        "x509svid_expires_at": agent.x509svid_expires_at,
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version,
    }
