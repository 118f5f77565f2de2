# SPDX-License-Identifier: Apache-2.0
"""`firedoor svid fetch x509`: what a workload gets from its auth socket, seen as the calling process."""

import argparse
import os
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from firedoor.certs.certificate import pem_encode, split_der
from firedoor.cli import places
from firedoor.cli.admin import CALL_SECONDS
from firedoor.cli.errors import Refused, Unreachable, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group
from firedoor.wire import workload_grpc, workload_pb2

EXAMPLE = """\
$ firedoor svid fetch x509 --write /tmp/svid
$ openssl x509 -in /tmp/svid/svid.0.pem -noout -text"""

# Every Workload API request carries it, so that a browser can be told from a workload.
METADATA = (("workload.spiffe.io", "true"),)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    fetch = Group(parser).group("fetch", "fetch an SVID from the auth socket")
    leaf = fetch.leaf("x509", "fetch the X.509-SVIDs of the calling process", EXAMPLE, run)
    leaf.add_argument(
        "--auth-socket", metavar="PATH", default=places.auth_socket(), help="the sidecar's auth socket (%(default)s)"
    )
    leaf.add_argument("--write", metavar="DIR", help="write svid.N.pem, svid.N.key (0600) and bundle.N.pem there")


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


def fetch(path: str) -> workload_pb2.X509SVIDResponse:
    """Return the first answer of the Workload API at `path`."""
    if not Path(path).exists():
        raise Unreachable(f"there is no auth socket at {path}: start a sidecar, or name its socket with --auth-socket")
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=METADATA, timeout=CALL_SECONDS)
        try:
            return next(iter(stream))
        except StopIteration:
            raise Refused("the auth socket ended the stream without an answer") from None
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unreachable(f"the sidecar at {path} does not answer ({error.details()})") from None
            raise Refused(f"{error.details()} ({error.code().name})") from None


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
            key = load_der_private_key(svid.x509_svid_key, None)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _replace(folder / f"svid.{i}.key", pem, 0o600)
            _replace(folder / f"svid.{i}.pem", _pem(svid.x509_svid), 0o644)
            _replace(folder / f"bundle.{i}.pem", _pem(svid.bundle), 0o644)
    except OSError as error:
        raise UsageError(f"--write {folder}: {error.strerror}") from None


def _replace(path: Path, data: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)


def _pem(data: bytes) -> bytes:
    return pem_encode(split_der(data)).encode()
