# SPDX-License-Identifier: Apache-2.0
"""`firedoor token create`: a join token, which lets one sidecar attest once."""

import argparse

from firedoor.cli.admin import add_broker_socket, broker, spiffe_id, wire_id
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group, duration
from firedoor.wire import agent_grpc, agent_pb2

EXAMPLE = """\
$ firedoor token create --spiffe-id spiffe://example.org/node/gpu-1 --ttl 10m > token
$ firedoor sidecar run --join-token-file token ..."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    create = Group(parser).leaf("create", "make a join token; it can be used once", EXAMPLE, run)
    create.add_argument(
        "--spiffe-id", metavar="ID", help="an alias that the agent gets, such as spiffe://TD/node/gpu-1"
    )
    create.add_argument("--ttl", type=duration, default=600, metavar="TIME", help="how long it can be used (10m)")
    add_broker_socket(create)


def run(options: argparse.Namespace) -> int:
    """Make the token and print it."""
    request = agent_pb2.CreateJoinTokenRequest(ttl=options.ttl)
    if options.spiffe_id:
        request.agent_id.CopyFrom(wire_id(spiffe_id(options.spiffe_id)))
    with broker(options) as connection:
        made = connection.call(agent_grpc.AgentStub(connection.channel).CreateJoinToken, request)
    if options.output == "json":
        show_json({"token": made.value, "expires_at": when(made.expires_at), "spiffe_id": options.spiffe_id})
    else:
        show(made.value)
    return Exit.DONE
