# SPDX-License-Identifier: Apache-2.0
"""The questions as messages, from what a program hands in. Raises BadArgument."""

from collections.abc import Sequence
from typing import Any

from firedoor.answers import spiffe_id
from firedoor.certs import SpiffeId
from firedoor.errors import BadArgument
from firedoor.wire import auth_pb2, workload_pb2


def audiences(audience: str | Sequence[str]) -> tuple[str, ...]:
    """Return an audience as it is asked for."""
    found = (audience,) if isinstance(audience, str) else tuple(audience)
    if not found or not all(found):
        raise BadArgument("a JWT-SVID needs an audience: who it is for")
    return found


def own(identity: SpiffeId | str | None) -> str:
    """Return one of the program's own IDs as text; empty for the first."""
    return "" if identity is None else str(spiffe_id(identity))


def jwt(audience: tuple[str, ...], identity: str) -> auth_pb2.FetchJWTSVIDRequest:
    """Ask for a token."""
    try:
        return auth_pb2.FetchJWTSVIDRequest(audience=audience, spiffe_id=identity)
    except (TypeError, ValueError) as error:
        raise BadArgument("an audience is text") from error


def validation(token: str, audience: str) -> workload_pb2.ValidateJWTSVIDRequest:
    """Ask whether a token holds for an audience."""
    (one,) = audiences(audience)
    try:
        return workload_pb2.ValidateJWTSVIDRequest(audience=one, svid=token)
    except (TypeError, ValueError) as error:
        raise BadArgument("a token is text") from error


def check(peer: SpiffeId | str, identity: SpiffeId | str | None, fields: dict[str, Any]) -> auth_pb2.CheckRequest:
    """Ask for a decision."""
    try:
        return auth_pb2.CheckRequest(peer=str(spiffe_id(peer)), self=own(identity), **fields)
    except (TypeError, ValueError) as error:
        raise BadArgument("service_port is a number, all else text") from error
