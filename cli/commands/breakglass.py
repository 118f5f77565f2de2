# SPDX-License-Identifier: Apache-2.0
"""`firedoor breakglass`: emergency access that one person asks for and another one approves."""

import argparse
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from firedoor.certs import KeyType, generate_key, make_csr
from firedoor.certs.certificate import pem_encode
from firedoor.cli.admin import Admin, add_broker_socket, broker
from firedoor.cli.errors import UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group, duration
from firedoor.cli.pem_files import CERTIFICATE_MODE, KEY_MODE, replace
from firedoor.wire import admin_grpc, admin_pb2, bundle_grpc, bundle_pb2

_SERVER = "--server 10.0.0.5:8081 --identity /run/firedoor/sidecar/auth.sock"
REQUEST_EXAMPLE = f'$ firedoor breakglass request --reason "INC-4711: scheduler is down" --ttl 30m {_SERVER}'
APPROVE_EXAMPLE = f"$ firedoor breakglass approve 5f7e2a9c0b4d4e0f8a1b2c3d4e5f6a7b {_SERVER}"
TAKE_EXAMPLE = f"$ firedoor breakglass take 5f7e2a9c0b4d4e0f8a1b2c3d4e5f6a7b --write /dev/shm/access {_SERVER}"
END_EXAMPLE = f"$ firedoor breakglass end 5f7e2a9c0b4d4e0f8a1b2c3d4e5f6a7b {_SERVER}"
LIST_EXAMPLE = "$ firedoor breakglass list"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    request = words.leaf(
        "request", "ask for access; it waits 15 minutes for another person", REQUEST_EXAMPLE, run_request
    )
    request.add_argument("--reason", required=True, metavar="TEXT", help="why; whoever approves reads it")
    request.add_argument(
        "--ttl", type=duration, default=1800, metavar="TIME", help="how long, from when it is taken (30m)"
    )
    request.add_argument("--segment", default="", metavar="NAME", help="which segment, if several are for break-glass")
    approve = words.leaf("approve", "approve what somebody else asked for", APPROVE_EXAMPLE, run_approve)
    take = words.leaf("take", "get the SVID, once; nothing renews it", TAKE_EXAMPLE, run_take)
    take.add_argument(
        "--write", required=True, metavar="DIR", help="write svid.pem, svid.key (0600) and bundle.pem there"
    )
    end = words.leaf("end", "end a grant: connections that it opened are cut", END_EXAMPLE, run_end)
    for leaf in (approve, take, end):
        leaf.add_argument("id", metavar="GRANT")
    listing = words.leaf("list", "show who asked for what, and what became of it", LIST_EXAMPLE, run_list)
    for leaf in (request, approve, take, end, listing):
        add_broker_socket(leaf)


def run_request(options: argparse.Namespace) -> int:
    """Ask."""
    request = admin_pb2.RequestAccessRequest(reason=options.reason, ttl=options.ttl, segment=options.segment)
    with _named(options) as connection:
        made = connection.call(_stub(connection).RequestAccess, request)
    return _show(options, made, f"another person approves it: firedoor breakglass approve {made.id}")


def run_approve(options: argparse.Namespace) -> int:
    """Approve."""
    with _named(options) as connection:
        done = connection.call(_stub(connection).ApproveAccess, admin_pb2.ApproveAccessRequest(id=options.id))
    return _show(options, done, f"{done.requester} takes it: firedoor breakglass take {done.id} --write DIR")


def run_take(options: argparse.Namespace) -> int:
    """Take."""
    key, folder = generate_key(KeyType.EC_P256), _folder(options.write)
    with _named(options) as connection:
        bundle = connection.call(bundle_grpc.BundleStub(connection.channel).GetBundle, bundle_pb2.GetBundleRequest())
        request = admin_pb2.TakeAccessRequest(id=options.id, csr=make_csr(key))
        done = connection.call(_stub(connection).TakeAccess, request)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        replace(folder / "svid.key", private, KEY_MODE)
        replace(folder / "svid.pem", pem_encode(done.cert_chain).encode(), CERTIFICATE_MODE)
        roots = [one.asn1 for one in bundle.x509_authorities]
        replace(folder / "bundle.pem", pem_encode(roots).encode(), CERTIFICATE_MODE)
    except OSError as error:
        raise UsageError(f"--write {folder}: {error.strerror}") from None
    return _show(options, done.grant, f"{done.spiffe_id} is in {folder}/svid.pem and svid.key")


def run_end(options: argparse.Namespace) -> int:
    """End."""
    with _named(options) as connection:
        done = connection.call(_stub(connection).EndAccess, admin_pb2.EndAccessRequest(id=options.id))
    return _show(options, done, f"ended by {done.ended_by}")


def run_list(options: argparse.Namespace) -> int:
    """Show all grants."""
    with broker(options) as connection:
        found = connection.call(_stub(connection).ListAccess, admin_pb2.ListAccessRequest()).grants
    if options.output == "json":
        show_json([as_json(one) for one in found])
        return Exit.DONE
    rows = [
        (one.id, one.state, one.segment, one.requester, one.approver or "-", when(one.ends_at), one.reason)
        for one in found
    ]
    show(table(("GRANT", "STATE", "SEGMENT", "ASKED BY", "APPROVED BY", "UNTIL", "REASON"), rows))
    return Exit.DONE


def as_json(grant: admin_pb2.Grant) -> dict[str, Any]:
    """Return a grant as scripts read it."""
    return {field.name: getattr(grant, field.name) for field in grant.DESCRIPTOR.fields}


def _named(options: argparse.Namespace) -> Any:
    """Open the broker as somebody. Raise UsageError at the admin socket."""
    if options.server is None:
        raise UsageError(
            "break-glass is for people with names: say --server HOST:PORT and --identity AUTH_SOCKET; "
            "at the admin socket nobody has one"
        )
    return broker(options)


def _folder(text: str) -> Path:
    """Make the folder before anything is taken that can be taken once. Raise UsageError."""
    folder = Path(text)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(folder / "svid.key", b"", KEY_MODE)
    except OSError as error:
        raise UsageError(f"--write {folder}: {error.strerror}") from None
    return folder


def _stub(connection: Admin) -> admin_grpc.BreakGlassStub:
    return admin_grpc.BreakGlassStub(connection.channel)


def _show(options: argparse.Namespace, grant: admin_pb2.Grant, then: str) -> int:
    if options.output == "json":
        show_json(as_json(grant))
        return Exit.DONE
    show(f"grant {grant.id} is {grant.state}: segment {grant.segment}, {grant.ttl} s, {grant.reason}\n{then}")
    return Exit.DONE
