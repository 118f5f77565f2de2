# SPDX-License-Identifier: Apache-2.0
"""`firedoor entry`: which workload, seen below which agent, gets which SPIFFE ID."""

import argparse
from collections.abc import Sequence
from typing import Any

from firedoor.cli.admin import (
    Admin,
    add_broker_socket,
    add_keep_svids,
    broker,
    check_status,
    id_text,
    keeping,
    selector,
    spiffe_id,
    wire_id,
)
from firedoor.cli.errors import UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group, duration
from firedoor.wire import admin_grpc, admin_pb2, entry_grpc, entry_pb2, types

CREATE_EXAMPLE = """\
$ firedoor entry create --spiffe-id spiffe://example.org/segment/inference/host/gpu-1/svc/vllm \\
    --parent-id spiffe://example.org/node/gpu-1 --selector unix:uid:1001"""
LIST_EXAMPLE = "$ firedoor entry list --selector unix:uid:1001 --output json"
SHOW_EXAMPLE = "$ firedoor entry show 2b4e5f0c-7d11-4f5e-9b53-0a8e6f8d2c11"
UPDATE_EXAMPLE = """\
$ firedoor entry update 2b4e5f0c-7d11-4f5e-9b53-0a8e6f8d2c11 --x509-svid-ttl 15m \\
    --selector unix:uid:1001 --selector unix:path:/usr/bin/vllm
$ firedoor entry update 2b4e5f0c-7d11-4f5e-9b53-0a8e6f8d2c11 --dns-name "" --no-admin"""
DELETE_EXAMPLE = "$ firedoor entry delete 2b4e5f0c-7d11-4f5e-9b53-0a8e6f8d2c11"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    create = words.leaf("create", "register a workload", CREATE_EXAMPLE, run_create)
    create.add_argument("--spiffe-id", required=True, metavar="ID", help="the identity that the workload gets")
    create.add_argument(
        "--parent-id", required=True, metavar="ID", help="the agent, or a node alias of agents, that attests it"
    )
    create.add_argument(
        "--selector", required=True, action="append", metavar="TYPE:VALUE", help="all must hold; repeat it"
    )
    create.add_argument(
        "--x509-svid-ttl",
        type=duration,
        default=0,
        metavar="TIME",
        help="how long an X.509-SVID lives (the broker's default)",
    )
    create.add_argument(
        "--federates-with", action="append", default=[], metavar="TD", help="a trust domain whose bundle it gets"
    )
    create.add_argument("--dns-name", action="append", default=[], metavar="NAME", help="a DNS name in the certificate")
    create.add_argument("--hint", default="", help="tells several identities of one workload apart")
    create.add_argument("--expires-at", type=int, default=0, metavar="UNIX", help="when the entry itself ends")
    create.add_argument("--admin", action="store_true", help="may call the broker's admin APIs")
    create.add_argument("--downstream", action="store_true", help="may get a CA of its own")
    create.add_argument(
        "--segment",
        action="append",
        metavar="NAME",
        help="with --downstream: what it may issue for (the fallback segment)",
    )
    update = words.leaf("update", "change the fields of an entry that are given", UPDATE_EXAMPLE, run_update)
    _add_changes(update)
    listing = words.leaf("list", "show entries", LIST_EXAMPLE, run_list)
    listing.add_argument("--spiffe-id", metavar="ID", help="only with this identity")
    listing.add_argument("--parent-id", metavar="ID", help="only below this parent")
    listing.add_argument(
        "--selector", action="append", default=[], metavar="TYPE:VALUE", help="only with these selectors among its own"
    )
    shown = words.leaf("show", "show one entry", SHOW_EXAMPLE, run_show)
    shown.add_argument("id", metavar="ENTRY")
    delete = words.leaf("delete", "delete entries", DELETE_EXAMPLE, run_delete)
    delete.add_argument("ids", metavar="ENTRY", nargs="+")
    add_keep_svids(delete)
    for leaf in (create, update, listing, shown, delete):
        add_broker_socket(leaf)


def _add_changes(update: argparse.ArgumentParser) -> None:
    """Add what can be changed. What is not given stays; a list is replaced whole, and "" empties it."""
    add = update.add_argument
    add("id", metavar="ENTRY")
    add("--spiffe-id", metavar="ID", help="the identity that the workload gets")
    add("--parent-id", metavar="ID", help="the agent, or a node alias of agents, that attests it")
    add("--selector", action="append", metavar="TYPE:VALUE", help="all must hold; these replace the old ones")
    add("--x509-svid-ttl", type=duration, metavar="TIME", help="how long an X.509-SVID lives; 0: the broker's default")
    add("--federates-with", action="append", metavar="TD", help='these replace the old ones; "" for none')
    add("--dns-name", action="append", metavar="NAME", help='these replace the old ones; "" for none')
    add("--hint", help="tells several identities of one workload apart")
    add("--expires-at", type=int, metavar="UNIX", help="when the entry itself ends; 0: never")
    add("--admin", action=argparse.BooleanOptionalAction, help="may call the broker's admin APIs, or no longer")
    add("--downstream", action=argparse.BooleanOptionalAction, help="may get a CA of its own, or no longer")
    add("--segment", action="append", metavar="NAME", help='what a downstream may issue for; "" for the fallback alone')


def run_create(options: argparse.Namespace) -> int:
    """Register one workload."""
    entry = types.Entry(
        spiffe_id=wire_id(spiffe_id(options.spiffe_id)),
        parent_id=wire_id(spiffe_id(options.parent_id)),
        selectors=_selectors(options.selector),
        x509_svid_ttl=options.x509_svid_ttl,
        federates_with=options.federates_with,
        dns_names=options.dns_name,
        hint=options.hint,
        expires_at=options.expires_at,
        admin=options.admin,
        downstream=options.downstream,
    )
    with broker(options) as connection:
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry])
        stub = entry_grpc.EntryStub(connection.channel)
        answer = connection.call(stub.BatchCreateEntry, request, metadata=_listing(options))
        check_status(answer.results[0].status)
        _show_one(connection, answer.results[0].entry, options.output)
    return Exit.DONE


def run_update(options: argparse.Namespace) -> int:
    """Change the fields that are given, in one step."""
    fields = _changes(options)
    if not fields and options.segment is None:
        raise UsageError("nothing to change: give at least one field, such as --x509-svid-ttl 15m")
    request = entry_pb2.BatchUpdateEntryRequest(
        entries=[types.Entry(id=options.id, **fields)], input_mask=types.EntryMask(**dict.fromkeys(fields, True))
    )
    with broker(options) as connection:
        stub = entry_grpc.EntryStub(connection.channel)
        answer = connection.call(stub.BatchUpdateEntry, request, metadata=_listing(options))
        check_status(answer.results[0].status)
        _show_one(connection, answer.results[0].entry, options.output)
    return Exit.DONE


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that are given, by the names of SPIRE's entry."""
    given = {
        "spiffe_id": wire_id(spiffe_id(options.spiffe_id)) if options.spiffe_id else None,
        "parent_id": wire_id(spiffe_id(options.parent_id)) if options.parent_id else None,
        "selectors": _selectors(options.selector) if options.selector else None,
        "x509_svid_ttl": options.x509_svid_ttl,
        "federates_with": _listed(options.federates_with),
        "dns_names": _listed(options.dns_name),
        "hint": options.hint,
        "expires_at": options.expires_at,
        "admin": options.admin,
        "downstream": options.downstream,
    }
    return {name: value for name, value in given.items() if value is not None}


def _listed(given: list[str] | None) -> list[str] | None:
    return None if given is None else [text for text in given if text]


def run_list(options: argparse.Namespace) -> int:
    """Show the entries that the filters leave."""
    wanted = entry_pb2.ListEntriesRequest.Filter()
    if options.spiffe_id:
        wanted.by_spiffe_id.CopyFrom(wire_id(spiffe_id(options.spiffe_id)))
    if options.parent_id:
        wanted.by_parent_id.CopyFrom(wire_id(spiffe_id(options.parent_id)))
    if options.selector:
        # Entries whose selectors include all of these.
        superset = types.SelectorMatch.MATCH_SUPERSET
        wanted.by_selectors.CopyFrom(types.SelectorMatch(selectors=_selectors(options.selector), match=superset))
    with broker(options) as connection:
        listed = entry_grpc.EntryStub(connection.channel).ListEntries
        pages = connection.pages(listed, entry_pb2.ListEntriesRequest(filter=wanted))
        found = [one for page in pages for one in page.entries]
    if options.output == "json":
        show_json([as_json(entry) for entry in found])
        return Exit.DONE
    rows = [(e.id, id_text(e.spiffe_id), id_text(e.parent_id), " ".join(_selector_texts(e))) for e in found]
    show(table(("ENTRY", "SPIFFE ID", "PARENT", "SELECTORS"), rows))
    return Exit.DONE


def run_show(options: argparse.Namespace) -> int:
    """Show one entry."""
    with broker(options) as connection:
        entry = connection.call(
            entry_grpc.EntryStub(connection.channel).GetEntry, entry_pb2.GetEntryRequest(id=options.id)
        )
        _show_one(connection, entry, options.output)
    return Exit.DONE


def run_delete(options: argparse.Namespace) -> int:
    """Delete entries; stop with the first that cannot be."""
    with broker(options) as connection:
        request = entry_pb2.BatchDeleteEntryRequest(ids=options.ids)
        stub = entry_grpc.EntryStub(connection.channel)
        answer = connection.call(stub.BatchDeleteEntry, request, metadata=keeping(options))
    deleted = [result.id for result in answer.results if result.status.code == 0]
    if options.output == "json":
        show_json({"deleted": deleted})
    else:
        show("\n".join(f"deleted {entry}" for entry in deleted))
    for result in answer.results:
        check_status(result.status)
    return Exit.DONE


def as_json(entry: types.Entry) -> dict[str, Any]:
    """Return an entry as scripts read it."""
    return {
        "id": entry.id,
        "spiffe_id": id_text(entry.spiffe_id),
        "parent_id": id_text(entry.parent_id),
        "selectors": _selector_texts(entry),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "federates_with": list(entry.federates_with),
        "dns_names": list(entry.dns_names),
        "hint": entry.hint,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at,
        "revision_number": entry.revision_number,
        "created_at": entry.created_at,
    }


def _listing(options: argparse.Namespace) -> Sequence[tuple[str, str]]:
    """Return the metadata with what a downstream may issue for: SPIRE's entry has no field for it."""
    return (("firedoor-downstream-segments", ",".join(options.segment)),) if options.segment is not None else ()


def _downstream(connection: Admin, entry: types.Entry) -> admin_pb2.Downstream:
    """Return what the broker says of a downstream entry beside SPIRE's fields."""
    if not entry.downstream:
        return admin_pb2.Downstream()
    stub = admin_grpc.DownstreamAdminStub(connection.channel)
    found = connection.call(stub.ListDownstreams, admin_pb2.ListDownstreamsRequest()).downstreams
    return next((one for one in found if one.entry_id == entry.id), admin_pb2.Downstream())


def _origin(connection: Admin, entry: types.Entry) -> admin_pb2.EntryOrigin:
    """Return what made an entry; nothing for one that was made by hand, whose ID does not begin so."""
    if not entry.id.startswith("kubernetes."):
        return admin_pb2.EntryOrigin()
    stub = admin_grpc.EntryAdminStub(connection.channel)
    found = connection.call(stub.ListOrigins, admin_pb2.ListOriginsRequest(entry_ids=[entry.id])).origins
    return next(iter(found), admin_pb2.EntryOrigin())


def _show_one(connection: Admin, entry: types.Entry, output: str) -> None:
    below, made = _downstream(connection, entry), _origin(connection, entry)
    if output == "json":
        cas = [
            {"serial": one.serial, "key_sha256": one.key_sha256, "not_after": one.not_after}
            for one in below.authorities
        ]
        more = {"segments": list(below.segments), "authorities": cas} if entry.downstream else {}
        origin = {"origin": made.origin, "kept": made.kept} if made.origin else {}
        show_json({**as_json(entry), **more, **origin})
        return
    lines = [
        ("entry", entry.id),
        *([("made by", made.origin + (", which would undo a change" if made.kept else ""))] if made.origin else []),
        ("spiffe id", id_text(entry.spiffe_id)),
        ("parent", id_text(entry.parent_id)),
        *(("selector", text) for text in _selector_texts(entry)),
        ("x509-svid ttl", f"{entry.x509_svid_ttl} s" if entry.x509_svid_ttl else "the broker's default"),
        *(("federates with", name) for name in entry.federates_with),
        *(("dns name", name) for name in entry.dns_names),
        *(("issues for", name) for name in below.segments),
        *(("its CA", f"{one.serial}, until {when(one.not_after)}") for one in below.authorities),
        ("expires", when(entry.expires_at)),
        ("revision", str(entry.revision_number)),
    ]
    show("\n".join(f"{name:<15}{value}" for name, value in lines))


def _selectors(texts: list[str]) -> list[types.Selector]:
    return [types.Selector(type=parsed.type, value=parsed.value) for parsed in map(selector, texts)]


def _selector_texts(entry: types.Entry) -> list[str]:
    return [f"{carried.type}:{carried.value}" for carried in entry.selectors]
