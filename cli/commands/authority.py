# SPDX-License-Identifier: Apache-2.0
"""`firedoor authority`: the broker's own authorities and their rotation, and the CAs of servers below it."""

import argparse

from firedoor.cli import rotate
from firedoor.cli.admin import add_broker_socket, broker, serial_number
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group
from firedoor.wire import admin_grpc, admin_pb2

LIST_EXAMPLE = "$ firedoor authority downstream list"
REVOKE_EXAMPLE = """\
$ firedoor authority downstream revoke 3f9c2b7a51e04d8812c6
$ openssl x509 -in ca.pem -noout -serial | cut -d= -f2 | xargs firedoor authority downstream revoke"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    rotate.configure(words)
    below = words.group("downstream", "the CAs of servers below the broker")
    listing = below.leaf(
        "list", "show the CAs that count, and for which segments they may issue", LIST_EXAMPLE, run_list
    )
    summary = "revoke a CA: sidecars refuse what it signed, and what is under way ends"
    revoke = below.leaf("revoke", summary, REVOKE_EXAMPLE, run_revoke)
    revoke.add_argument("serial", metavar="SERIAL", help="its serial number, in hex")
    for leaf in (listing, revoke):
        add_broker_socket(leaf)


def run_list(options: argparse.Namespace) -> int:
    """Show all that count."""
    with broker(options) as connection:
        stub = admin_grpc.DownstreamAdminStub(connection.channel)
        found = connection.call(stub.ListDownstreams, admin_pb2.ListDownstreamsRequest()).downstreams
    pairs = [(entry, ca) for entry in found for ca in entry.authorities]
    if options.output == "json":
        show_json(
            [
                {
                    "entry_id": entry.entry_id,
                    "spiffe_id": entry.spiffe_id,
                    "segments": list(entry.segments),
                    **as_json(ca),
                }
                for entry, ca in pairs
            ]
        )
        return Exit.DONE
    rows = [
        (ca.serial, entry.spiffe_id, ", ".join(entry.segments) or "none", when(ca.not_after)) for entry, ca in pairs
    ]
    show(table(("SERIAL", "SERVER", "ISSUES FOR", "EXPIRES"), rows))
    return Exit.DONE


def run_revoke(options: argparse.Namespace) -> int:
    """Revoke one."""
    with broker(options) as connection:
        stub = admin_grpc.DownstreamAdminStub(connection.channel)
        request = admin_pb2.RevokeDownstreamCaRequest(serial=serial_number(options.serial))
        done = connection.call(stub.RevokeDownstreamCa, request)
    if options.output == "json":
        show_json({"entry_id": done.entry_id, "revoked": [as_json(ca) for ca in done.revoked]})
        return Exit.DONE
    lines = [f"revoked {ca.serial}" for ca in done.revoked]
    # Its server asks for another one when it rotates.
    lines.append(f"the server may get another: entry {done.entry_id} says so (firedoor entry delete)")
    show("\n".join(lines))
    return Exit.DONE


def as_json(ca: admin_pb2.DownstreamCa) -> dict[str, str | int]:
    """Return a CA as scripts read it."""
    return {
        "serial": ca.serial,
        "key_sha256": ca.key_sha256,
        "authority_id": ca.authority_id,
        "not_after": ca.not_after,
    }
