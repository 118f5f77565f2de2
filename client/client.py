# SPDX-License-Identifier: Apache-2.0
"""What a program asks its sidecar: who am I, my SVIDs, may this peer do that. For threads; see `aio` for asyncio."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from firedoor import answers, questions
from firedoor.answers import Bundles, Decision, Identity, JwtSvid, ValidJwt, X509Svid
from firedoor.certs import SpiffeId
from firedoor.endpoint import CHANNEL_OPTIONS, HEADER, target
from firedoor.errors import ClientClosed, translated
from firedoor.freshness import Tokens
from firedoor.source import X509Source
from firedoor.wire import auth_grpc, auth_pb2, workload_grpc

TIMEOUT = 10.0


class Client:
    """One connection to the auth socket. Every method raises FiredoorError; all may be called by several threads.

    A call waits up to `timeout` seconds for a sidecar that is starting.
    """

    def __init__(self, socket: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._channel = grpc.insecure_channel(target(socket, os.environ), options=CHANNEL_OPTIONS)
        self._auth = auth_grpc.AuthStub(self._channel)
        self._workload = workload_grpc.SpiffeWorkloadAPIStub(self._channel)
        self._lock = threading.Lock()
        self._source: X509Source | None = None
        self._tokens = Tokens()
        self._closed = False

    def whoami(self) -> tuple[Identity, ...]:
        """Return this program's identities, the first one first."""
        with self._calling():
            response = self._auth.WhoAmI(
                auth_pb2.WhoAmIRequest(), timeout=self._timeout, metadata=HEADER, wait_for_ready=True
            )
        return answers.identities(response)

    def x509_source(self) -> X509Source:
        """Return the source behind the next two; it starts at the first call and ends with the client."""
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._source is None:
                self._source = X509Source(self._channel, self._timeout)
            return self._source

    def x509_svid(self) -> X509Svid:
        """Return the first X.509-SVID, as it is now; cheap, because a stream keeps it fresh."""
        return self.x509_source().svid

    def bundles(self) -> Bundles:
        """Return the trust bundles by trust domain, as they are now."""
        return self.x509_source().bundles

    def jwt_svid(self, audience: str | Sequence[str], *, identity: SpiffeId | str | None = None) -> JwtSvid:
        """Return a JWT-SVID for an audience, at most half of its life old."""
        names, who = questions.audiences(audience), questions.own(identity)
        with self._lock:
            found = self._tokens.find(names, who, time.time())
        if found is not None:
            return found
        request = questions.jwt(names, who)
        with self._calling():
            response = self._auth.FetchJWTSVID(request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True)
        fresh = answers.jwt_svid(response)
        with self._lock:
            self._tokens.keep(names, who, fresh, time.time())
        return fresh

    def validate_jwt_svid(self, token: str, audience: str) -> ValidJwt:
        """Have the sidecar validate what somebody presented. Raise RequestRefused when it does not hold."""
        request = questions.validation(token, audience)
        with self._calling():
            response = self._workload.ValidateJWTSVID(
                request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True
            )
        return answers.valid_jwt(response)

    def check(
        self,
        peer: SpiffeId | str,
        *,
        method: str = "",
        path: str = "",
        authority: str = "",
        grpc_service: str = "",
        grpc_method: str = "",
        service_port: int = 0,
        protocol: str = "",
        identity: SpiffeId | str | None = None,
    ) -> Decision:
        """Ask whether a peer may do this to us: by the flows of the present policy, denied unless one allows it.

        Without `service_port` and `protocol` those of the one inbound listener of `identity` count.
        """
        given = {
            "method": method,
            "path": path,
            "authority": authority,
            "grpc_service": grpc_service,
            "grpc_method": grpc_method,
            "service_port": service_port,
            "protocol": protocol,
        }
        request = questions.check(peer, identity, given)
        with self._calling():
            response = self._auth.Check(request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True)
        return answers.decision(response)

    def close(self) -> None:
        """End the stream and the connection."""
        with self._lock:
            self._closed, source, self._source = True, self._source, None
        if source is not None:
            source.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        if self._closed:
            raise ClientClosed("the client is closed")
        try:
            yield
        except grpc.RpcError as error:
            raise translated(error) from error
