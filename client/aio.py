# SPDX-License-Identifier: Apache-2.0
"""The same as `Client` and `X509Source` for asyncio. Each belongs to the event loop that it was made in."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from firedoor import answers, questions
from firedoor.answers import Bundles, Decision, Identity, JwtSvid, ValidJwt, X509Context, X509Svid
from firedoor.certs import SpiffeId
from firedoor.client import TIMEOUT
from firedoor.endpoint import CHANNEL_OPTIONS, HEADER, target
from firedoor.errors import AnswerUnusable, ClientClosed, FiredoorError, SidecarUnavailable, translated
from firedoor.freshness import Backoff, Freshest, Tokens
from firedoor.wire import auth_grpc, auth_pb2, workload_grpc, workload_pb2


class AsyncX509Source:
    """Holds the newest X.509-SVIDs and bundles. Made by `AsyncClient.x509_source`."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        self._timeout = timeout
        self._freshest = Freshest()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def version(self) -> int:
        """How many answers have come; grows with each rotation."""
        return self._freshest.version

    async def context(self) -> X509Context:
        """Return the newest answer; the first one is waited for. Raise FiredoorError."""
        try:
            async with asyncio.timeout(self._timeout):
                while (found := self._present()) is None:
                    await self._changed.wait()
                return found
        except TimeoutError:
            raise self._freshest.missing(self._timeout) from None

    @property
    def latest(self) -> X509Context:
        """The newest answer, without waiting. Raise FiredoorError when there is none."""
        found = self._present()
        if found is None:
            raise self._freshest.missing(0)
        return found

    async def svid(self) -> X509Svid:
        """Return the first of this program's X.509-SVIDs, as it is now."""
        return (await self.context()).svids[0]

    async def bundles(self) -> Bundles:
        """Return the bundles of the own and of federated trust domains."""
        return (await self.context()).bundles

    async def changes(self) -> AsyncIterator[X509Context]:
        """Yield the newest answer at once and whenever there is a newer one."""
        seen = 0
        while not self._task.done():
            changed = self._changed
            if self.version > seen:
                seen = self.version
                yield await self.context()
            else:
                await changed.wait()

    async def close(self) -> None:
        """End the stream."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._notify()

    def _present(self) -> X509Context | None:
        if self._task.cancelling() or self._task.cancelled():
            raise ClientClosed("the client is closed")
        return self._freshest.current(time.time())

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run(self) -> None:
        backoff, again = Backoff(), True
        while again:
            again = self._freshest.failed(await self._follow(backoff))
            self._notify()
            if again:
                await asyncio.sleep(backoff.failed())

    async def _follow(self, backoff: Backoff) -> FiredoorError:
        """Read one stream to its end; return why it ended."""
        call = self._stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        try:
            async for response in call:
                self._freshest.answered(answers.x509_context(response))
                backoff.reset()
                self._notify()
        except grpc.RpcError as error:
            return translated(error)
        except AnswerUnusable as error:
            return error
        finally:
            call.cancel()
        return SidecarUnavailable("the sidecar has ended the stream")


class AsyncClient:
    """One connection to the auth socket, for one event loop. Every method raises FiredoorError."""

    def __init__(self, socket: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(target(socket, os.environ), options=CHANNEL_OPTIONS)
        self._auth = auth_grpc.AuthStub(self._channel)
        self._workload = workload_grpc.SpiffeWorkloadAPIStub(self._channel)
        self._source: AsyncX509Source | None = None
        self._tokens = Tokens()
        self._closed = False

    async def whoami(self) -> tuple[Identity, ...]:
        """Return this program's identities, the first one first."""
        async with self._calling():
            response = await self._auth.WhoAmI(
                auth_pb2.WhoAmIRequest(), timeout=self._timeout, metadata=HEADER, wait_for_ready=True
            )
        return answers.identities(response)

    def x509_source(self) -> AsyncX509Source:
        """Return the source behind the next two; it starts at the first call and ends with the client."""
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._source is None:
            self._source = AsyncX509Source(self._channel, self._timeout)
        return self._source

    async def x509_svid(self) -> X509Svid:
        """Return the first X.509-SVID, as it is now; cheap, because a stream keeps it fresh."""
        return await self.x509_source().svid()

    async def bundles(self) -> Bundles:
        """Return the trust bundles by trust domain, as they are now."""
        return await self.x509_source().bundles()

    async def jwt_svid(self, audience: str | Sequence[str], *, identity: SpiffeId | str | None = None) -> JwtSvid:
        """Return a JWT-SVID for an audience, at most half of its life old."""
        names, who = questions.audiences(audience), questions.own(identity)
        found = self._tokens.find(names, who, time.time())
        if found is not None:
            return found
        request = questions.jwt(names, who)
        async with self._calling():
            response = await self._auth.FetchJWTSVID(
                request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True
            )
        fresh = answers.jwt_svid(response)
        self._tokens.keep(names, who, fresh, time.time())
        return fresh

    async def validate_jwt_svid(self, token: str, audience: str) -> ValidJwt:
        """Have the sidecar validate what somebody presented. Raise RequestRefused when it does not hold."""
        request = questions.validation(token, audience)
        async with self._calling():
            response = await self._workload.ValidateJWTSVID(
                request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True
            )
        return answers.valid_jwt(response)

    async def check(
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
        """Ask whether a peer may do this to us; see `Client.check`."""
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
        async with self._calling():
            response = await self._auth.Check(request, timeout=self._timeout, metadata=HEADER, wait_for_ready=True)
        return answers.decision(response)

    async def close(self) -> None:
        """End the stream and the connection."""
        self._closed = True
        if self._source is not None:
            await self._source.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _calling(self) -> AsyncIterator[None]:
        if self._closed:
            raise ClientClosed("the client is closed")
        try:
            yield
        except grpc.RpcError as error:
            raise translated(error) from error
