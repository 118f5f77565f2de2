# SPDX-License-Identifier: Apache-2.0
"""`firedoor token create`: a join token, which lets one sidecar attest once."""

import argparse
import time

from firedoor.certs import SpiffeId
from firedoor.cli.admin import Admin, add_broker_socket, broker, check_status, spiffe_id, wire_id
from firedoor.cli.errors import NotFound, Refused, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group, duration
from firedoor.wire import agent_grpc, agent_pb2, entry_grpc, entry_pb2, types

EXAMPLE = """\
$ firedoor token create --spiffe-id spiffe://example.org/node/gpu-1 --ttl 10m > token
$ firedoor sidecar run --join-token-file token ...
$ firedoor token create --replaces spiffe://example.org/spire/agent/join_token/5f0c... > token"""
# An agent that attests by a token has an ID that ends in it.
JOIN_TOKEN_PATH = "/spire/agent/join_token/"  # noqa: S105


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    create = Group(parser).leaf("create", "make a join token; it can be used once", EXAMPLE, run)
    create.add_argument(
        "--spiffe-id", metavar="ID", help="an alias that the agent gets, such as spiffe://TD/node/gpu-1"
    )
    create.add_argument("--ttl", type=duration, default=600, metavar="TIME", help="how long it can be used (10m)")
    create.add_argument(
        "--replaces", metavar="AGENT_ID", help="an agent that expired: its entries go to the one that uses the token"
    )
    add_broker_socket(create)


def run(options: argparse.Namespace) -> int:
    """Make the token and print it."""
    request = agent_pb2.CreateJoinTokenRequest(ttl=options.ttl)
    if options.spiffe_id:
        request.agent_id.CopyFrom(wire_id(spiffe_id(options.spiffe_id)))
    with broker(options) as connection:
        before = _expired(connection, spiffe_id(options.replaces)) if options.replaces else None
        made = connection.call(agent_grpc.AgentStub(connection.channel).CreateJoinToken, request)
        moved = _hand_over(connection, before, made.value) if before else 0
    if options.output == "json":
        told = {"token": made.value, "expires_at": when(made.expires_at), "spiffe_id": options.spiffe_id}
        show_json({**told, "replaces": options.replaces, "entries": moved} if before else told)
    else:
        show(made.value)
    return Exit.DONE


def _expired(connection: Admin, agent: SpiffeId) -> SpiffeId:
    """Return the agent if another may take its place. Raise UsageError or Refused."""
    if not agent.path.startswith(JOIN_TOKEN_PATH):
        raise UsageError(f"{agent} did not attest by a join token: it attests again by itself, with the same ID")
    try:
        stub = agent_grpc.AgentStub(connection.channel)
        found = connection.call(stub.GetAgent, agent_pb2.GetAgentRequest(id=wire_id(agent)))
    except NotFound:
        # It was evicted; its entries are still there.
        return agent
    if found.banned:
        raise Refused(f"{agent} is banned: nobody takes its place")
    if found.x509svid_expires_at > time.time():
        end = when(found.x509svid_expires_at)
        raise Refused(f"{agent} is good until {end}; if it is gone for good, `firedoor agent evict` it first")
    return agent


def _hand_over(connection: Admin, before: SpiffeId, token: str) -> int:
    """Give the entries below an agent to the one that will use a token; return how many there are."""
    stub = entry_grpc.EntryStub(connection.channel)
    request = entry_pb2.ListEntriesRequest(filter=entry_pb2.ListEntriesRequest.Filter(by_parent_id=wire_id(before)))
    found = [entry for page in connection.pages(stub.ListEntries, request) for entry in page.entries]
    parent = types.SPIFFEID(trust_domain=before.trust_domain.name, path=JOIN_TOKEN_PATH + token)
    for entry in found:
        changed = entry_pb2.BatchUpdateEntryRequest(
            entries=[types.Entry(id=entry.id, parent_id=parent)], input_mask=types.EntryMask(parent_id=True)
        )
        check_status(connection.call(stub.BatchUpdateEntry, changed).results[0].status)
    return len(found)
