# SPDX-License-Identifier: Apache-2.0
"""`firedoor authority list|show|rotate`: the broker's own authorities, and their rotation."""

import argparse
from collections.abc import Sequence

from firedoor.cli.admin import Admin, add_broker_socket, broker
from firedoor.cli.errors import NotFound, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group, duration
from firedoor.cli.rotation import ENDED, KINDS, Watcher, as_json, finish, missing_lines, sentence
from firedoor.wire import admin_grpc, admin_pb2

LIST_EXAMPLE = "$ firedoor authority list"
SHOW_EXAMPLE = "$ firedoor authority show 5f0c2b7a51e04d8812c63f9c5f0c2b7a51e04d88"
ROTATE_EXAMPLE = """\
$ firedoor authority rotate --dry-run
$ firedoor authority rotate --kind all --timeout 1h
$ firedoor authority rotate --status
$ firedoor authority rotate --emergency"""
TIMEOUT = 600


def configure(words: Group) -> None:
    """Declare the arguments."""
    listing = words.leaf("list", "show the authorities in their slots, and their rotations", LIST_EXAMPLE, run_list)
    one = words.leaf("show", "show one authority", SHOW_EXAMPLE, run_show)
    one.add_argument("id", metavar="ID", help="the authority's ID, as `authority list` shows it")
    summary = "replace an authority step by step, each when everybody has followed the one before"
    rotate = words.leaf("rotate", summary, ROTATE_EXAMPLE, run_rotate)
    _add_rotate(rotate)
    for leaf in (listing, one, rotate):
        add_broker_socket(leaf)


def _add_rotate(leaf: argparse.ArgumentParser) -> None:
    add = leaf.add_argument
    add("--kind", choices=(*KINDS, "all"), help="whose authority (x509)")
    add("--dry-run", action="store_true", help="only say who would be missing")
    add("--status", action="store_true", help="only show the rotation that is under way, or was last")
    add("--abort", action="store_true", help="end the rotation where it stands; not once the old authority is tainted")
    add(
        "--timeout",
        type=duration,
        metavar="TIME",
        help="how long a stage waits for who is missing before this command ends, or with --force goes on (10m), "
        "or with --emergency (3s)",
    )
    add("--force", action="store_true", help="go on without those who are missing after --timeout; they are listed")
    add("--drain", type=duration, metavar="TIME", help="how long requests go on over certificates of the old one (10s)")
    add(
        "--emergency",
        action="store_true",
        help="the old one is compromised: within seconds, whoever has not followed is cut off and listed",
    )


def run_list(options: argparse.Namespace) -> int:
    """Show all authorities."""
    found = _listed(options)
    if options.output == "json":
        rotations = [as_json(one) for one in found.rotations]
        show_json({"authorities": [authority_json(one) for one in found.authorities], "rotations": rotations})
        return Exit.DONE
    rows = [(one.kind, one.slot, state(one), when(one.not_after), one.authority_id) for one in found.authorities]
    show(table(("KIND", "SLOT", "STATE", "EXPIRES", "ID"), rows))
    for one in found.rotations:
        if one.stage not in ENDED:
            show(sentence(one))
    return Exit.DONE


def run_show(options: argparse.Namespace) -> int:
    """Show one authority."""
    found = next((one for one in _listed(options).authorities if one.authority_id == options.id), None)
    if found is None:
        raise NotFound(f"the broker has no authority {options.id}")
    if options.output == "json":
        show_json(authority_json(found))
        return Exit.DONE
    lines = [("id", found.authority_id), ("kind", found.kind), ("slot", found.slot), ("state", state(found))]
    lines += [("made", when(found.issued_at)), ("expires", when(found.not_after))]
    if found.kind == "x509":
        lines += [("below", found.upstream_authority_id or "nobody"), ("SVIDs that live", str(found.live_svids))]
    show("\n".join(f"{name + ':':<17}{value}" for name, value in lines))
    return Exit.DONE


def state(one: admin_pb2.Authority) -> str:
    """Return where an authority is in its life, and whether it can still sign."""
    return f"{one.status}, key lost" if one.key_lost else one.status


def run_rotate(options: argparse.Namespace) -> int:
    """Start, join, show or end rotations."""
    if sum((options.status, options.abort, options.dry_run)) > 1:
        raise UsageError("--status, --abort and --dry-run do not go together")
    if options.emergency and (options.force or options.drain is not None):
        raise UsageError("--emergency waits for nobody; --force and --drain do not go with it")
    kinds = list(KINDS) if options.kind == "all" else [options.kind or "x509"]
    if options.status:
        return _status(options)
    if options.abort:
        return _abort(options)
    with broker(options) as connection:
        started = _start(connection, options, kinds)
    if options.emergency or options.timeout is None:
        options.timeout = max(TIMEOUT, options.timeout or 0)
    if options.dry_run:
        return _preview(options, started.rotations)
    text = options.output == "text"
    if text:
        for kind in started.joined:
            show(f"{kind}: a rotation is under way; this joins it")
    watcher = Watcher(options, kinds, show if text else lambda _: None)
    return finish(options, watcher, ended=watcher.follow())


def _start(connection: Admin, options: argparse.Namespace, kinds: list[str]) -> admin_pb2.StartRotationResponse:
    request = admin_pb2.StartRotationRequest(
        kinds=kinds, dry_run=options.dry_run, force=options.force, emergency=options.emergency
    )
    if options.force:
        request.patience = options.timeout or TIMEOUT
    elif options.emergency:
        request.patience = options.timeout or 0
    if options.drain is not None:
        request.drain = options.drain
    return connection.call(admin_grpc.AuthorityAdminStub(connection.channel).StartRotation, request)


def _preview(options: argparse.Namespace, rotations: Sequence[admin_pb2.Rotation]) -> int:
    """Say who would be missing; whether anybody would be is the exit code."""
    missing = sum(one.missing_count for one in rotations)
    if options.output == "json":
        show_json([as_json(one) for one in rotations])
        return Exit.NO if missing else Exit.DONE
    for one in rotations:
        followed = one.asked_count - one.missing_count
        show(f"{one.kind}: would replace {one.old_authority_id}; {followed} of {one.asked_count} are up to date")
        if one.missing_count:
            show("\n".join(missing_lines(one)))
    return Exit.NO if missing else Exit.DONE


def _status(options: argparse.Namespace) -> int:
    found = [one for one in _listed(options).rotations if options.kind in (None, "all", one.kind)]
    if options.output == "json":
        show_json([as_json(one) for one in found])
        return Exit.DONE
    for one in found:
        show(f"{sentence(one)} (by {one.by}, since {when(one.since)})")
        if one.missing_count:
            show("\n".join(missing_lines(one)))
        if one.over_count:
            show(f"{one.kind}: went on without {one.over_count}: {', '.join(one.over)}")
    if not found:
        show("no rotation was asked for")
    return Exit.DONE


def _abort(options: argparse.Namespace) -> int:
    """End what is under way: of one kind, or of all."""
    under_way = [one.kind for one in _listed(options).rotations if one.stage not in ENDED]
    kinds = [kind for kind in under_way if options.kind in (None, "all", kind)]
    if not kinds:
        raise NotFound("no rotation is under way")
    with broker(options) as connection:
        stub = admin_grpc.AuthorityAdminStub(connection.channel)
        done = connection.call(stub.AbortRotation, admin_pb2.AbortRotationRequest(kinds=kinds)).rotations
    if options.output == "json":
        show_json([as_json(one) for one in done])
        return Exit.DONE
    for one in done:
        show(f"{one.kind}: the rotation ended where it stood; what was prepared or signs already stays")
    return Exit.DONE


def _listed(options: argparse.Namespace) -> admin_pb2.ListAuthoritiesResponse:
    with broker(options) as connection:
        stub = admin_grpc.AuthorityAdminStub(connection.channel)
        return connection.call(stub.ListAuthorities, admin_pb2.ListAuthoritiesRequest())


def authority_json(one: admin_pb2.Authority) -> dict[str, object]:
    """Return an authority as scripts read it."""
    return {
        "kind": one.kind,
        "slot": one.slot,
        "authority_id": one.authority_id,
        "status": one.status,
        "issued_at": one.issued_at,
        "not_after": one.not_after,
        "upstream_authority_id": one.upstream_authority_id,
        "live_svids": one.live_svids,
        "key_lost": one.key_lost,
    }
