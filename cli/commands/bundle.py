# SPDX-License-Identifier: Apache-2.0
"""`firedoor bundle`: what peers verify with, our own and those of other trust domains."""

import argparse

from firedoor.cli import crls
from firedoor.cli.admin import add_broker_socket, broker, check_status
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table
from firedoor.cli.parsing import Group
from firedoor.cli.trust_bundles import add_format, read_file, show_bundle, trust_domain
from firedoor.wire import bundle_grpc, bundle_pb2, types

EXAMPLE = """\
$ firedoor bundle show > bundle.json
$ firedoor sidecar run --bootstrap-bundle bundle.json ...
$ firedoor bundle show partner.example --format pem"""
LIST_EXAMPLE = "$ firedoor bundle list"
SET_EXAMPLE = "$ firedoor bundle set partner.example partner.json"
DELETE_EXAMPLE = "$ firedoor bundle delete partner.example --mode dissociate"

_MODES = {
    "restrict": bundle_pb2.BatchDeleteFederatedBundleRequest.RESTRICT,
    "delete": bundle_pb2.BatchDeleteFederatedBundleRequest.DELETE,
    "dissociate": bundle_pb2.BatchDeleteFederatedBundleRequest.DISSOCIATE,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    shown = words.leaf("show", "print the trust bundle, or that of another trust domain", EXAMPLE, run_show)
    shown.add_argument("trust_domain", metavar="TD", nargs="?", help="another trust domain")
    add_format(shown)
    listing = words.leaf("list", "show the bundles of other trust domains", LIST_EXAMPLE, run_list)
    put = words.leaf("set", "set the bundle of another trust domain", SET_EXAMPLE, run_set)
    put.add_argument("trust_domain", metavar="TD")
    put.add_argument("file", metavar="FILE", help="SPIFFE's format or PEM")
    delete = words.leaf("delete", "delete the bundle of another trust domain", DELETE_EXAMPLE, run_delete)
    delete.add_argument("trust_domain", metavar="TD")
    delete.add_argument(
        "--mode",
        choices=tuple(_MODES),
        default="restrict",
        help="what of entries that federate with it: restrict refuses (default), delete them, dissociate them",
    )
    for leaf in (shown, listing, put, delete):
        add_broker_socket(leaf)
    crls.configure(words)


def run_show(options: argparse.Namespace) -> int:
    """Print one bundle."""
    with broker(options) as connection:
        stub = bundle_grpc.BundleStub(connection.channel)
        if options.trust_domain is None:
            carried = connection.call(stub.GetBundle, bundle_pb2.GetBundleRequest())
        else:
            request = bundle_pb2.GetFederatedBundleRequest(trust_domain=trust_domain(options.trust_domain).name)
            carried = connection.call(stub.GetFederatedBundle, request)
    show_bundle(carried, options)
    return Exit.DONE


def run_list(options: argparse.Namespace) -> int:
    """Show what is held of other trust domains."""
    with broker(options) as connection:
        listed = bundle_grpc.BundleStub(connection.channel).ListFederatedBundles
        pages = connection.pages(listed, bundle_pb2.ListFederatedBundlesRequest())
        found = [one for page in pages for one in page.bundles]
    if options.output == "json":
        show_json([as_json(one) for one in found])
        return Exit.DONE
    rows = [
        (one.trust_domain, str(len(one.x509_authorities)), str(len(one.jwt_authorities)), str(one.sequence_number))
        for one in found
    ]
    show(table(("TRUST DOMAIN", "X.509 AUTHORITIES", "JWT AUTHORITIES", "SEQUENCE"), rows))
    return Exit.DONE


def run_set(options: argparse.Namespace) -> int:
    """Set one bundle, whatever its sequence number."""
    domain = trust_domain(options.trust_domain)
    request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[read_file(options.file, domain)])
    with broker(options) as connection:
        answer = connection.call(bundle_grpc.BundleStub(connection.channel).BatchSetFederatedBundle, request)
    check_status(answer.results[0].status)
    if options.output == "json":
        show_json(as_json(answer.results[0].bundle))
    else:
        show(f"set the bundle of {domain}")
    return Exit.DONE


def run_delete(options: argparse.Namespace) -> int:
    """Delete one bundle."""
    domain = trust_domain(options.trust_domain)
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[domain.name], mode=_MODES[options.mode])
    with broker(options) as connection:
        answer = connection.call(bundle_grpc.BundleStub(connection.channel).BatchDeleteFederatedBundle, request)
    check_status(answer.results[0].status)
    if options.output == "json":
        show_json({"deleted": domain.name})
    else:
        show(f"deleted the bundle of {domain}")
    return Exit.DONE


def as_json(bundle: types.Bundle) -> dict[str, object]:
    """Return what is known of a bundle, without its keys."""
    return {
        "trust_domain": bundle.trust_domain,
        "x509_authorities": len(bundle.x509_authorities),
        "jwt_authorities": len(bundle.jwt_authorities),
        "sequence": bundle.sequence_number,
        "refresh_hint": bundle.refresh_hint,
    }
