# SPDX-License-Identifier: Apache-2.0
"""Calls to the admin sockets of a broker and of a sidecar, with one mapping from gRPC status to our errors.

A broker elsewhere is reached at its TCP port with `--server`, as the identity that `--identity` gives (`remote.py`).
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc

from firedoor.certs import Selector, SpiffeId
from firedoor.certs.errors import CertsError
from firedoor.cli import places
from firedoor.cli.errors import CliError, NotFound, Refused, Unreachable, UsageError
from firedoor.wire import control_pb2, types

Request = TypeVar("Request")
Response = TypeVar("Response", bound=Any)

# Long enough for a busy broker, short enough for a person.
CALL_SECONDS = 30.0
# SPIRE answers pages of at most so many.
PAGE = 500


def add_broker_socket(parser: argparse.ArgumentParser) -> None:
    """Add the ways to a broker: `--admin-socket` here, or `--server` with `--identity` from elsewhere."""
    default = places.broker_admin_socket()
    parser.add_argument(
        "--admin-socket", metavar="PATH", default=default, help="the broker's admin socket (%(default)s)"
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="a broker elsewhere; needs an identity that is an admin")
    parser.add_argument(
        "--identity", metavar="AUTH_SOCKET", help="with --server: where that identity is fetched (the auth socket)"
    )
    parser.add_argument("--as", dest="as_id", metavar="ID", help="with --server: which identity, if there are several")


def add_keep_svids(parser: argparse.ArgumentParser) -> None:
    """Add `--keep-svids`."""
    parser.add_argument(
        "--keep-svids", action="store_true", help="do not revoke what was issued; it lives until it expires"
    )


def keeping(options: argparse.Namespace) -> Sequence[tuple[str, str]]:
    """Return the metadata with which the broker revokes nothing: SPIRE's requests have no field for it."""
    return (("firedoor-keep-svids", "true"),) if options.keep_svids else ()


def add_sidecar_socket(parser: argparse.ArgumentParser) -> None:
    """Add `--admin-socket` of the sidecar."""
    default = places.sidecar_admin_socket()
    parser.add_argument(
        "--admin-socket", metavar="PATH", default=default, help="the sidecar's admin socket (%(default)s)"
    )


class Admin:
    """A connection to one admin API."""

    def __init__(self, channel: grpc.Channel, path: str, who: str, why: Callable[[], str] = str) -> None:
        self.channel = channel
        self._path = path
        self._who = who
        # What the connection itself says of a failure; empty when it says nothing.
        self._why = why

    def call(
        self,
        method: Callable[..., Response],
        request: Any,
        *,
        seconds: float = CALL_SECONDS,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Response:
        """Make one call; raise a CliError that says what to repair."""
        try:
            return method(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            self._raise(error)

    def stream(self, method: Callable[..., Iterable[Response]], request: Any, *, seconds: float) -> Iterator[Response]:
        """Make a call with several answers, which ends after so long; raise a CliError that says what to repair."""
        try:
            yield from method(request, timeout=seconds)
        except grpc.RpcError as error:
            self._raise(error)

    def pages(self, method: Callable[..., Response], request: Any) -> Iterator[Response]:
        """Make a List call page by page, until there is no more."""
        request.page_size = PAGE
        while True:
            answer = self.call(method, request)
            yield answer
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def _raise(self, error: grpc.RpcError) -> NoReturn:
        code, details = error.code(), error.details() or "no reason given"
        if code is grpc.StatusCode.NOT_FOUND:
            raise NotFound(details) from None
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise Unreachable(f"the {self._who} at {self._path} does not answer ({self._why() or details})") from None
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise UsageError(details) from None
        raise Refused(details) from None


@contextmanager
def admin(path: str, who: str) -> Iterator[Admin]:
    """Open the admin socket at `path`; `who` is "broker" or "sidecar", for messages."""
    if not Path(path).exists():
        raise Unreachable(f"there is no {who} at {path}: start one, or name its socket with --admin-socket")
    # The default authority of a Unix target is its percent-encoded path, which some servers refuse.
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        yield Admin(channel, path, who)


@contextmanager
def broker(options: argparse.Namespace) -> Iterator[Admin]:
    """Open the broker that the arguments name: by its admin socket, or at its TCP port with `--server`."""
    if options.server is None:
        if options.identity is not None or options.as_id is not None:
            raise UsageError("--identity and --as go with --server; the admin socket asks for the user alone")
        with admin(options.admin_socket, "broker") as connection:
            yield connection
        return
    from firedoor.cli.remote import open_channel

    with open_channel(options.server, options.identity or places.auth_socket(), options.as_id) as (channel, why):
        yield Admin(channel, options.server, "broker", why)


def check_status(status: types.Status) -> None:
    """Raise what the status of one item of a batch says."""
    if status.code == grpc.StatusCode.OK.value[0]:
        return
    errors: dict[int, type[CliError]] = {3: UsageError, 5: NotFound}
    raise errors.get(status.code, Refused)(status.message or f"refused with status {status.code}")


def spiffe_id(text: str) -> SpiffeId:
    """Parse a SPIFFE ID from the command line."""
    try:
        return SpiffeId.parse(text)
    except CertsError as error:
        raise UsageError(f"{text!r} is no SPIFFE ID: {error}") from None


def selector(text: str) -> Selector:
    """Parse a selector from the command line."""
    try:
        return Selector.parse(text)
    except CertsError as error:
        raise UsageError(f"a --selector is wrong: {error}") from None


def serial_number(text: str) -> str:
    """Read a serial number as openssl and others print it.

    >>> serial_number("3F:9C:2B")
    '3f9c2b'
    """
    found = text.replace(":", "").lower().removeprefix("0x")
    if not found or set(found) - set("0123456789abcdef"):
        raise UsageError(f"{text!r} is no serial number in hex")
    return found


def wire_id(parsed: SpiffeId) -> types.SPIFFEID:
    """Return an ID as SPIRE's APIs carry it."""
    return types.SPIFFEID(trust_domain=parsed.trust_domain.name, path=parsed.path)


def generation_text(carried: control_pb2.Generation) -> str:
    """Return a generation as people and scripts read it."""
    return f"{carried.epoch}.{carried.number}"


def id_text(carried: types.SPIFFEID) -> str:
    """Return an ID of SPIRE's APIs as text."""
    return f"spiffe://{carried.trust_domain}{carried.path}"
