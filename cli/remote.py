# SPDX-License-Identifier: Apache-2.0
"""A broker elsewhere: its TCP port, mTLS by the core, as an identity that the Workload API gives to this process.

The broker must prove that it is `spiffe://<trust domain>/spire/server`, by the bundle that came with the identity. What
it then allows depends on the entry: only one with `admin` may administer.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from firedoor.certs import SpiffeId
from firedoor.certs.certificate import split_der
from firedoor.cli import workload
from firedoor.cli.errors import NotFound, Refused, UsageError
from firedoor.wire import workload_pb2


@contextmanager
def open_channel(server: str, auth_socket: str, as_id: str | None) -> Iterator[tuple[grpc.Channel, Callable[[], str]]]:
    """Connect to the broker at `server`; yield the channel, and what says why a connection failed."""
    if not _is_address(server):
        raise UsageError(f"--server {server!r} is not HOST:PORT, such as broker.internal:8081")
    svid = choose(list(workload.fetch(auth_socket, "--identity").svids), as_id)
    from firedoor.mtls import Core, Material, MtlsError, Svid

    spiffe_id = SpiffeId.parse(svid.spiffe_id)
    core = Core(data_threads=1)
    try:
        # The socket takes this process alone; the folder keeps others from it all the same.
        with tempfile.TemporaryDirectory(prefix="firedoor-") as folder:
            try:
                mine = Svid(id=svid.spiffe_id, chain=split_der(svid.x509_svid), key=svid.x509_svid_key)
                bundles = {spiffe_id.trust_domain.name: split_der(svid.bundle)}
                core.publish(Material(trust_domain=spiffe_id.trust_domain.name, bundles=bundles, svids=[mine]))
                door = core.connector(
                    path=str(Path(folder, "broker.sock")),
                    addresses=[server],
                    expect=str(spiffe_id.trust_domain.with_path("/spire/server")),
                    as_id=svid.spiffe_id,
                )
            except MtlsError as error:
                raise Refused(f"the identity cannot be used: {error}") from None
            options = [("grpc.default_authority", "localhost"), ("grpc.enable_retries", 0)]
            with grpc.insecure_channel(f"unix:{door.path}", options=options) as channel:
                yield channel, door.last_error
    finally:
        core.stop()


def choose(svids: list[workload_pb2.X509SVID], as_id: str | None) -> workload_pb2.X509SVID:
    """Return the identity that is meant: the one named, or the first, which is what the Workload API calls default."""
    if as_id is None and svids:
        return svids[0]
    for svid in svids:
        if svid.spiffe_id == as_id:
            return svid
    has = ", ".join(svid.spiffe_id for svid in svids) or "none"
    raise NotFound(f"this process has no identity {as_id or ''}".rstrip() + f"; it has {has}")


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 65536
