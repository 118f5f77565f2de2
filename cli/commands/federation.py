# SPDX-License-Identifier: Apache-2.0
"""`firedoor federation`: trust domains whose bundles the broker fetches, from where, and what servers must prove."""

import argparse

from firedoor.cli.admin import add_broker_socket, broker, check_status, spiffe_id
from firedoor.cli.errors import UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table
from firedoor.cli.parsing import Group
from firedoor.cli.trust_bundles import read_file, trust_domain
from firedoor.wire import trustdomain_grpc, types
from firedoor.wire import trustdomain_pb2 as pb

CREATE_EXAMPLE = """\
$ firedoor federation create partner.example --url https://partner.example:8443/ \\
    --endpoint-id spiffe://partner.example/spire/server --bundle partner.json
$ firedoor federation create cloud.example --url https://cloud.example/bundle.json"""
LIST_EXAMPLE = "$ firedoor federation list"
SHOW_EXAMPLE = "$ firedoor federation show partner.example"
UPDATE_EXAMPLE = "$ firedoor federation update partner.example --url https://bundles.partner.example/"
DELETE_EXAMPLE = "$ firedoor federation delete partner.example"
REFRESH_EXAMPLE = "$ firedoor federation refresh partner.example"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    create = words.leaf("create", "have the bundle of another trust domain fetched", CREATE_EXAMPLE, run_create)
    update = words.leaf("update", "change what is given of a relationship", UPDATE_EXAMPLE, run_update)
    shown = words.leaf("show", "show one relationship", SHOW_EXAMPLE, run_show)
    delete = words.leaf("delete", "fetch a bundle no more; what is held stays", DELETE_EXAMPLE, run_delete)
    refresh = words.leaf("refresh", "fetch a bundle now", REFRESH_EXAMPLE, run_refresh)
    for leaf in (create, update, shown, delete, refresh):
        leaf.add_argument("trust_domain", metavar="TD")
    create.add_argument("--url", required=True, metavar="URL", help="its bundle endpoint, https")
    update.add_argument("--url", metavar="URL", help="its bundle endpoint, https")
    create.add_argument("--endpoint-id", metavar="ID", help="whom it must prove to be; without it, the web's PKI")
    update.add_argument("--endpoint-id", metavar="ID", help="whom the endpoint must prove to be")
    update.add_argument("--web", action="store_true", help="go by the web's PKI instead")
    for leaf in (create, update):
        leaf.add_argument("--bundle", metavar="FILE", help="its bundle of now, which verifies the endpoint")
    listing = words.leaf("list", "show the trust domains whose bundles are fetched", LIST_EXAMPLE, run_list)
    for leaf in (create, update, shown, delete, refresh, listing):
        add_broker_socket(leaf)


def _relationship(options: argparse.Namespace) -> types.FederationRelationship:
    """Return what the arguments say of a relationship."""
    domain = trust_domain(options.trust_domain)
    made = types.FederationRelationship(trust_domain=domain.name, bundle_endpoint_url=options.url or "")
    if options.endpoint_id is not None:
        made.https_spiffe.endpoint_spiffe_id = str(spiffe_id(options.endpoint_id))
    else:
        made.https_web.SetInParent()
    if options.bundle is not None:
        made.trust_domain_bundle.CopyFrom(read_file(options.bundle, domain))
    return made


def run_create(options: argparse.Namespace) -> int:
    """Add one relationship; its bundle is fetched at once."""
    request = pb.BatchCreateFederationRelationshipRequest(federation_relationships=[_relationship(options)])
    with broker(options) as connection:
        stub = trustdomain_grpc.TrustDomainStub(connection.channel)
        answer = connection.call(stub.BatchCreateFederationRelationship, request)
    check_status(answer.results[0].status)
    _show_one(answer.results[0].federation_relationship, options.output)
    return Exit.DONE


def run_update(options: argparse.Namespace) -> int:
    """Change one relationship, in one step."""
    if options.web and options.endpoint_id is not None:
        raise UsageError("--web and --endpoint-id exclude each other")
    mask = types.FederationRelationshipMask(
        bundle_endpoint_url=options.url is not None,
        bundle_endpoint_profile=options.web or options.endpoint_id is not None,
        trust_domain_bundle=options.bundle is not None,
    )
    if not mask.ListFields():
        raise UsageError("nothing to change: give at least one of --url, --endpoint-id, --web and --bundle")
    request = pb.BatchUpdateFederationRelationshipRequest(
        federation_relationships=[_relationship(options)], input_mask=mask
    )
    with broker(options) as connection:
        stub = trustdomain_grpc.TrustDomainStub(connection.channel)
        answer = connection.call(stub.BatchUpdateFederationRelationship, request)
    check_status(answer.results[0].status)
    _show_one(answer.results[0].federation_relationship, options.output)
    return Exit.DONE


def run_show(options: argparse.Namespace) -> int:
    """Show one relationship."""
    request = pb.GetFederationRelationshipRequest(trust_domain=trust_domain(options.trust_domain).name)
    with broker(options) as connection:
        stub = trustdomain_grpc.TrustDomainStub(connection.channel)
        found = connection.call(stub.GetFederationRelationship, request)
    _show_one(found, options.output)
    return Exit.DONE


def run_list(options: argparse.Namespace) -> int:
    """Show all relationships."""
    with broker(options) as connection:
        listed = trustdomain_grpc.TrustDomainStub(connection.channel).ListFederationRelationships
        pages = connection.pages(listed, pb.ListFederationRelationshipsRequest())
        found = [one for page in pages for one in page.federation_relationships]
    if options.output == "json":
        show_json([as_json(one) for one in found])
        return Exit.DONE
    rows = [(one.trust_domain, _profile(one), one.bundle_endpoint_url, _held(one)) for one in found]
    show(table(("TRUST DOMAIN", "PROFILE", "ENDPOINT", "BUNDLE"), rows))
    return Exit.DONE


def run_delete(options: argparse.Namespace) -> int:
    """Forget one relationship."""
    domain = trust_domain(options.trust_domain)
    request = pb.BatchDeleteFederationRelationshipRequest(trust_domains=[domain.name])
    with broker(options) as connection:
        stub = trustdomain_grpc.TrustDomainStub(connection.channel)
        answer = connection.call(stub.BatchDeleteFederationRelationship, request)
    check_status(answer.results[0].status)
    if options.output == "json":
        show_json({"deleted": domain.name})
    else:
        show(f"deleted the relationship with {domain}; `firedoor bundle delete {domain}` ends the trust in it")
    return Exit.DONE


def run_refresh(options: argparse.Namespace) -> int:
    """Fetch one bundle."""
    domain = trust_domain(options.trust_domain)
    with broker(options) as connection:
        stub = trustdomain_grpc.TrustDomainStub(connection.channel)
        connection.call(stub.RefreshBundle, pb.RefreshBundleRequest(trust_domain=domain.name), seconds=60)
    if options.output == "json":
        show_json({"refreshed": domain.name})
    else:
        show(f"refreshed the bundle of {domain}")
    return Exit.DONE


def _show_one(one: types.FederationRelationship, output: str) -> None:
    if output == "json":
        show_json(as_json(one))
        return
    lines = [
        ("trust domain", one.trust_domain),
        ("endpoint", one.bundle_endpoint_url),
        ("profile", _profile(one)),
        *([("endpoint id", one.https_spiffe.endpoint_spiffe_id)] if one.HasField("https_spiffe") else []),
        ("bundle", _held(one)),
    ]
    show("\n".join(f"{name:<14}{value}" for name, value in lines))


def _profile(one: types.FederationRelationship) -> str:
    return one.WhichOneof("bundle_endpoint_profile") or "-"


def _held(one: types.FederationRelationship) -> str:
    if not one.HasField("trust_domain_bundle"):
        return "none yet"
    bundle = one.trust_domain_bundle
    return f"sequence {bundle.sequence_number}, {len(bundle.x509_authorities)} X.509, {len(bundle.jwt_authorities)} JWT"


def as_json(one: types.FederationRelationship) -> dict[str, object]:
    """Return a relationship as scripts read it."""
    bundle = one.trust_domain_bundle if one.HasField("trust_domain_bundle") else None
    return {
        "trust_domain": one.trust_domain,
        "url": one.bundle_endpoint_url,
        "profile": _profile(one),
        "endpoint_id": one.https_spiffe.endpoint_spiffe_id if one.HasField("https_spiffe") else None,
        "bundle_sequence": bundle.sequence_number if bundle else None,
        "x509_authorities": len(bundle.x509_authorities) if bundle else 0,
        "jwt_authorities": len(bundle.jwt_authorities) if bundle else 0,
    }
