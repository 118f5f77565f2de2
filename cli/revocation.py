# SPDX-License-Identifier: Apache-2.0
"""`firedoor svid revoke` and `firedoor svid revoked`: certificates that end before their time."""

import argparse
from typing import Any

from firedoor.cli.admin import add_broker_socket, broker, generation_text, serial_number
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group
from firedoor.wire import admin_grpc, admin_pb2, control_pb2

REVOKE_EXAMPLE = """\
$ firedoor svid revoke --segment training --dry-run
$ firedoor svid revoke --id "spiffe://example.org/segment/inference/host/gpu-7/**" --reason "disk was stolen"
$ firedoor svid revoke --serial 3f9c2b7a51e04d8812c6 --delete-entries"""
REVOKED_EXAMPLE = "$ firedoor svid revoked"


def configure(words: Group) -> None:
    """Declare both commands."""
    summary = "revoke SVIDs now: connections of their holders end, and no other begins with them"
    revoke = words.leaf("revoke", summary, REVOKE_EXAMPLE, run_revoke)
    one = revoke.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--id", dest="spiffe_id", metavar="PATTERN", help="those of an ID, or of all that a pattern matches"
    )
    one.add_argument("--segment", metavar="NAME", help="those of a segment")
    one.add_argument("--agent", dest="agent_id", metavar="ID", help="those that were issued through an agent")
    one.add_argument("--serial", metavar="SERIAL", help="the one with this serial number, in hex")
    revoke.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit log")
    revoke.add_argument(
        "--delete-entries", action="store_true", help="delete the entries too: nobody is issued another"
    )
    revoke.add_argument("--dry-run", action="store_true", help="only say what would end")
    listing = words.leaf("revoked", "show what is revoked and could still be valid", REVOKED_EXAMPLE, run_revoked)
    for leaf in (revoke, listing):
        add_broker_socket(leaf)


def run_revoke(options: argparse.Namespace) -> int:
    """Revoke one target."""
    request = admin_pb2.RevokeSvidsRequest(
        reason=options.reason, delete_entries=options.delete_entries, dry_run=options.dry_run
    )
    for target in ("spiffe_id", "segment", "agent_id", "serial"):
        if getattr(options, target) is not None:
            given = getattr(options, target)
            setattr(request, target, serial_number(given) if target == "serial" else given)
    with broker(options) as connection:
        done = connection.call(admin_grpc.RevocationAdminStub(connection.channel).RevokeSvids, request)
    if options.output == "json":
        show_json(_as_json(done, options.dry_run))
        return Exit.DONE
    show("\n".join(_lines(done, options.dry_run)))
    return Exit.DONE


def run_revoked(options: argparse.Namespace) -> int:
    """Show all revocations."""
    with broker(options) as connection:
        stub = admin_grpc.RevocationAdminStub(connection.channel)
        found = connection.call(stub.ListRevocations, admin_pb2.ListRevocationsRequest()).revocations
    if options.output == "json":
        show_json([_revocation(one) for one in found])
        return Exit.DONE
    rows = [(*_named(one.revocation), one.revocation.reason, when(one.expires_at)) for one in found]
    show(table(("WHAT", "NAME", "ISSUED BEFORE", "REASON", "UNTIL"), rows))
    return Exit.DONE


def _lines(done: admin_pb2.RevokeSvidsResponse, dry_run: bool) -> list[str]:
    would = "would end" if dry_run else "ended, in generation " + generation_text(done.generation)
    lines = [f"{done.svids} live X.509-SVIDs {would}"]
    for entry in done.entries:
        if entry.deleted:
            lines.append(f"entry {entry.entry_id} of {entry.spiffe_id} {'would be' if dry_run else 'is'} deleted")
        else:
            lines.append(f"entry {entry.entry_id} of {entry.spiffe_id} stays: its holder gets another SVID")
    return lines


def _as_json(done: admin_pb2.RevokeSvidsResponse, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "generation": generation_text(done.generation),
        "svids": done.svids,
        "revocations": [_revocation(one) for one in done.revocations],
        "entries": [
            {"entry_id": one.entry_id, "spiffe_id": one.spiffe_id, "deleted": one.deleted} for one in done.entries
        ],
    }


def _revocation(one: admin_pb2.RevocationInForce) -> dict[str, Any]:
    kind, name, before = _named(one.revocation)
    issued = {"issued_before": one.revocation.issued_before.time} if before else {}
    return {"kind": kind, "name": name, **issued, "reason": one.revocation.reason, "expires_at": one.expires_at}


def _named(one: control_pb2.Revocation) -> tuple[str, str, str]:
    kind = one.WhichOneof("kind")
    if kind == "issued_before":
        return "pattern", one.issued_before.pattern, when(one.issued_before.time)
    return ("serial", one.serial, "") if kind == "serial" else ("authority", one.authority_id, "")
