# SPDX-License-Identifier: Apache-2.0
"""`firedoor bundle show`: what a sidecar starts with and what peers verify with."""

import argparse
import json
import ssl

from firedoor.certs import TrustBundle
from firedoor.cli.admin import add_broker_socket, admin
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import Group
from firedoor.wire import bundle_grpc, bundle_pb2

EXAMPLE = """\
$ firedoor bundle show > bundle.json
$ firedoor sidecar run --bootstrap-bundle bundle.json ..."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shown = Group(parser).leaf("show", "print the trust bundle", EXAMPLE, run)
    shown.add_argument(
        "--format", choices=("spiffe", "pem"), default="spiffe", help="spiffe (JWKS, the default) or pem"
    )
    add_broker_socket(shown)


def run(options: argparse.Namespace) -> int:
    """Print the bundle."""
    with admin(options.admin_socket, "broker") as broker:
        carried = broker.call(bundle_grpc.BundleStub(broker.channel).GetBundle, bundle_pb2.GetBundleRequest())
    roots = [authority.asn1 for authority in carried.x509_authorities]
    if options.format == "pem" and options.output == "text":
        show("".join(ssl.DER_cert_to_PEM_cert(root) for root in roots))
    else:
        show_json(json.loads(TrustBundle.from_wire_fields(carried).to_jwks()))
    return Exit.DONE
