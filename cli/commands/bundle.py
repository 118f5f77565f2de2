# SPDX-License-Identifier: Apache-2.0
"""`firedoor bundle show`: what a sidecar starts with and what peers verify with."""

import argparse
import json

from firedoor.certs import JwtKey, TrustBundle, TrustDomain, X509Root
from firedoor.cli.admin import add_broker_socket, broker
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import Group
from firedoor.wire import bundle_grpc, bundle_pb2, types

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
    with broker(options) as connection:
        carried = connection.call(bundle_grpc.BundleStub(connection.channel).GetBundle, bundle_pb2.GetBundleRequest())
    bundle = read(carried)
    if options.format == "pem" and options.output == "text":
        show(bundle.to_pem())
    else:
        show_json(json.loads(bundle.to_json()))
    return Exit.DONE


def read(carried: types.Bundle) -> TrustBundle:
    """Return a bundle of SPIRE's APIs as a value."""
    domain = TrustDomain.parse(carried.trust_domain.removeprefix("spiffe://"))
    return TrustBundle(
        domain,
        tuple(X509Root(one.asn1, one.tainted) for one in carried.x509_authorities),
        tuple(JwtKey(one.key_id, one.public_key, one.expires_at, one.tainted) for one in carried.jwt_authorities),
        carried.sequence_number,
        carried.refresh_hint,
        tuple(JwtKey(one.key_id, one.public_key, one.expires_at, one.tainted) for one in carried.wit_authorities),
    )
