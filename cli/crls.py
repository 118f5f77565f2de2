# SPDX-License-Identifier: Apache-2.0
"""`firedoor bundle crl`: the revocation lists of the trust domain's authorities."""

import argparse
import sys
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.certs import Crl, CrlError, read_crl
from firedoor.cli.admin import add_broker_socket, broker
from firedoor.cli.errors import NotFound, Refused, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import Group
from firedoor.wire import admin_grpc, admin_pb2

EXAMPLE = """\
$ firedoor bundle show --format pem > roots.pem
$ firedoor bundle crl > crl.pem
$ openssl verify -crl_check -CRLfile crl.pem -CAfile roots.pem svid.pem
$ firedoor bundle crl --output json | jq '.[].revoked[].serial'"""


def configure(words: Group) -> None:
    """Declare the command."""
    leaf = words.leaf("crl", "print the revocation lists (CRLs) of the X.509 authorities", EXAMPLE, run)
    leaf.add_argument("--authority", metavar="ID", help="only that of one authority, by its subject key ID in hex")
    leaf.add_argument("--format", choices=("pem", "der"), default="pem", help="pem (the default); der for one alone")
    add_broker_socket(leaf)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    with broker(options) as connection:
        stub = admin_grpc.RevocationAdminStub(connection.channel)
        found = list(connection.call(stub.ListCrls, admin_pb2.ListCrlsRequest()).crls)
    if options.authority is not None:
        wanted = options.authority.lower()
        found = [one for one in found if one.crl.authority_id == wanted]
        if not found:
            raise NotFound(f"authority {options.authority} has no revocation list; `firedoor bundle crl` shows all")
    if options.output == "json":
        show_json([_as_json(one) for one in found])
    elif options.format == "der":
        _write_der(found)
    else:
        show("".join(_pem(one) for one in found))
    return Exit.DONE


def _read(one: admin_pb2.SignedCrl) -> Crl:
    try:
        return read_crl(one.crl.der)
    except CrlError as error:
        raise Refused(f"the broker answered with what is no revocation list: {error}") from None


def _pem(one: admin_pb2.SignedCrl) -> str:
    """Return PEM, with the authority's ID above it: readers pass over what stands outside of the blocks."""
    _read(one)
    block = x509.load_der_x509_crl(one.crl.der).public_bytes(serialization.Encoding.PEM).decode("ascii")
    return f"# authority {one.crl.authority_id}\n{block}"


def _write_der(found: list[admin_pb2.SignedCrl]) -> None:
    if len(found) != 1:
        raise UsageError(f"--format der writes one list, and there are {len(found)}: name one with --authority")
    if sys.stdout.isatty():
        raise UsageError("--format der writes bytes that no terminal shows: send them to a file")
    _read(found[0])
    sys.stdout.buffer.write(found[0].crl.der)
    sys.stdout.flush()


def _as_json(one: admin_pb2.SignedCrl) -> dict[str, Any]:
    crl = _read(one)
    try:
        revoked = crl.revoked()
    except CrlError as error:
        raise Refused(f"the broker answered with what is no revocation list: {error}") from None
    return {
        "authority_id": crl.authority_id,
        "number": str(crl.number),
        "this_update": crl.this_update,
        "next_update": crl.next_update,
        "left_out": one.left_out,
        "revoked": [{"serial": serial, "revoked_at": at} for serial, at in sorted(revoked.items())],
    }
