# SPDX-License-Identifier: Apache-2.0
"""`firedoor svid`: what a workload gets from its auth socket, seen as the calling process; and taking SVIDs back."""

import argparse
from pathlib import Path
from typing import Any

from cryptography import x509

from firedoor.certs import jose
from firedoor.certs.certificate import split_der
from firedoor.cli import places, revocation
from firedoor.cli.errors import Refused, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group
from firedoor.cli.pem_files import CERTIFICATE_MODE, KEY_MODE, replace
from firedoor.cli.watch import After, Folder, watch
from firedoor.cli.workload import certificates_pem, fetch, fetch_jwt, key_pem
from firedoor.wire import workload_pb2

EXAMPLE = """\
$ firedoor svid fetch x509 --write /tmp/svid
$ openssl x509 -in /tmp/svid/svid.0.pem -noout -text"""


JWT_EXAMPLE = """\
$ firedoor svid fetch jwt --audience spiffe://example.org/segment/storage/host/h1/svc/s3
$ firedoor svid fetch jwt --audience https://models.internal --output json | jq -r .[0].token"""


WATCH_EXAMPLE = """\
$ firedoor svid watch --dir /run/postgres/tls --exec "pg_ctl reload"
$ firedoor svid watch --dir /run/nginx/tls --signal HUP --pid-file /run/nginx.pid
$ firedoor svid watch --dir tls --once"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    fetch = words.group("fetch", "fetch an SVID from the auth socket")
    leaf = fetch.leaf("x509", "fetch the X.509-SVIDs of the calling process", EXAMPLE, run)
    leaf.add_argument(
        "--auth-socket", metavar="PATH", default=places.auth_socket(), help="the sidecar's auth socket (%(default)s)"
    )
    leaf.add_argument("--write", metavar="DIR", help="write svid.N.pem, svid.N.key (0600) and bundle.N.pem there")
    _add_jwt(fetch)
    _add_watch(words)
    revocation.configure(words)


def _add_jwt(fetch: Group) -> None:
    leaf = fetch.leaf("jwt", "fetch JWT-SVIDs of the calling process", JWT_EXAMPLE, run_jwt)
    add = leaf.add_argument
    add("--audience", action="append", required=True, metavar="A", help="who the token is for; may be given again")
    add("--id", default="", metavar="ID", help="which identity (all of them)")
    add("--auth-socket", metavar="PATH", default=places.auth_socket(), help="the sidecar's auth socket (%(default)s)")


def _add_watch(words: Group) -> None:
    leaf = words.leaf(
        "watch", "keep an SVID fresh in files, for programs that know no SPIFFE", WATCH_EXAMPLE, run_watch
    )
    add = leaf.add_argument
    add("--dir", required=True, metavar="DIR", help="where svid.pem, svid.key (0600) and bundle.pem are kept")
    add("--exec", metavar="COMMAND", help="run this when they were replaced; $FIREDOOR_SVID_DIR names the folder")
    add("--signal", metavar="NAME", help="send this signal when they were replaced, such as HUP")
    add("--pid-file", metavar="FILE", help="with --signal: who gets it")
    add("--once", action="store_true", help="write the files once and end")
    add("--as", dest="as_id", metavar="ID", help="which identity, if there are several (the first)")
    add("--auth-socket", metavar="PATH", default=places.auth_socket(), help="the sidecar's auth socket (%(default)s)")


def run_watch(options: argparse.Namespace) -> int:
    """Watch until interrupted, or write once."""
    after = After.parse(options.exec, options.signal, options.pid_file)
    folder = Folder(Path(options.dir))

    def changed(svid: workload_pb2.X509SVID) -> None:
        described = _describe(svid)
        if options.output == "json":
            show_json({"dir": options.dir, **described}, lines=True)
        else:
            show(f"{described['spiffe_id']} until {described['not_after']} in {options.dir}")

    watch(options.auth_socket, options.as_id, folder, after, changed, once=options.once)
    return Exit.DONE


def run(options: argparse.Namespace) -> int:
    """Fetch once and print or write."""
    response = fetch(options.auth_socket)
    described = [_describe(svid) for svid in response.svids]
    if options.write:
        _write(Path(options.write), response)
    if options.output == "json":
        show_json(described)
        return Exit.DONE
    for i, svid in enumerate(described):
        show(f"spiffe id  {svid['spiffe_id']}\nserial     {svid['serial']}")
        show(f"valid      {svid['not_before']} to {svid['not_after']}")
        if svid["hint"]:
            show(f"hint       {svid['hint']}")
        if options.write:
            show(f"written    {options.write}/svid.{i}.pem, svid.{i}.key, bundle.{i}.pem")
    return Exit.DONE


def run_jwt(options: argparse.Namespace) -> int:
    """Fetch tokens once and print them. Whoever holds one is taken for this process."""
    found = fetch_jwt(options.auth_socket, options.audience, options.id, "--auth-socket")
    described = [_describe_jwt(svid) for svid in found]
    if options.output == "json":
        show_json(described)
        return Exit.DONE
    for svid in described:
        show(f"spiffe id  {svid['spiffe_id']}\naudience   {', '.join(svid['audience'])}")
        show(f"expires    {svid['expires_at']}")
        if svid["hint"]:
            show(f"hint       {svid['hint']}")
        show(f"token      {svid['token']}")
    return Exit.DONE


def _describe_jwt(svid: workload_pb2.JWTSVID) -> dict[str, Any]:
    """Say what a token says. It is not validated: the sidecar that gave it did that."""
    try:
        claims = jose.read_object(jose.decode(svid.svid.split(".")[1]))
        audience = [claims["aud"]] if isinstance(claims["aud"], str) else list(claims["aud"])
        expires_at = when(int(claims["exp"]))
    except (ValueError, LookupError, TypeError):
        raise Refused("the auth socket answered with what is no JWT-SVID") from None
    return {
        "spiffe_id": svid.spiffe_id,
        "audience": audience,
        "expires_at": expires_at,
        "hint": svid.hint,
        "token": svid.svid,
    }


def _describe(svid: workload_pb2.X509SVID) -> dict[str, Any]:
    leaf = x509.load_der_x509_certificate(split_der(svid.x509_svid)[0])
    return {
        "spiffe_id": svid.spiffe_id,
        "serial": f"{leaf.serial_number:x}",
        "not_before": when(int(leaf.not_valid_before_utc.timestamp())),
        "not_after": when(int(leaf.not_valid_after_utc.timestamp())),
        "hint": svid.hint,
    }


def _write(folder: Path, response: workload_pb2.X509SVIDResponse) -> None:
    """Write one set of files an SVID; the key before the certificate that names it, each replaced in one step."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for i, svid in enumerate(response.svids):
            replace(folder / f"svid.{i}.key", key_pem(svid), KEY_MODE)
            replace(folder / f"svid.{i}.pem", certificates_pem(svid.x509_svid), CERTIFICATE_MODE)
            replace(folder / f"bundle.{i}.pem", certificates_pem(svid.bundle), CERTIFICATE_MODE)
    except OSError as error:
        raise UsageError(f"--write {folder}: {error.strerror}") from None
