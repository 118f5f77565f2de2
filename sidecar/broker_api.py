# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Broker API: a program that is trusted with it asks for the identities of others, over mTLS.

It has nothing to do with our broker. Who calls is the SVID that the front verified; what it says about a workload is a
reference, and what that workload is, is looked up here (SPIFFE Broker API: never trust attributes that a client tells).
"""

import ipaddress
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message

from firedoor.certs import SpiffeId
from firedoor.mtls import Caller, CallerUnknown, Front
from firedoor.sidecar.answers import Answers, jwt_bundles, x509_bundles
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.demand import Subscription
from firedoor.sidecar.errors import (
    CallerRefused,
    DelegateRefused,
    NotEntitled,
    NotReady,
    NotServed,
    ReferenceInvalid,
    RequestRefused,
    SidecarError,
    WorkloadGone,
)
from firedoor.sidecar.named_pod import ObjectReference, find_pod
from firedoor.sidecar.named_process import hold, question_time
from firedoor.sidecar.pod_source import PodSource
from firedoor.sidecar.streams import Answer, Selectors, Streams, Subject
from firedoor.sidecar.workload import check_header
from firedoor.wire import brokerapi_grpc, brokerapi_pb2, details
from firedoor.wire.well_known import Any as AnyMessage

M = TypeVar("M", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

HEADER = "broker.spiffe.io"
DOMAIN = "spiffe.io"
REASONS: dict[type[SidecarError], str] = {
    ReferenceInvalid: "WORKLOAD_REFERENCE_INVALID",
    WorkloadGone: "WORKLOAD_NOT_FOUND",
    NotEntitled: "WORKLOAD_NOT_ENTITLED",
}


class _Request(Protocol):
    """What every request has."""

    @property
    def reference(self) -> brokerapi_pb2.WorkloadReference: ...


class _Workload(Subject, Protocol):
    """Whom a request refers to."""

    @property
    def recheck_seconds(self) -> float | None:
        """How often a stream looks again by itself; None: it is told."""

    async def confirm(self) -> None:
        """Raise WorkloadGone when it is gone."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Who may ask about processes of this node, and who about objects of Kubernetes."""

    by_pid: Collection[SpiffeId] = ()
    by_object: Collection[SpiffeId] = ()


class BrokerApi(brokerapi_grpc.APIServicer):
    """Serves the clients that the configuration names. `answers` are those for others than the workload itself."""

    def __init__(
        self,
        answers: Answers,
        callers: Callers,
        streams: Streams,
        clients: Clients,
        pods: PodSource | None = None,
    ) -> None:
        self._answers, self._callers, self._streams = answers, callers, streams
        self._clients, self._pods = clients, pods
        self._front: Front | None = None

    def serve_on(self, front: Front) -> None:
        """Say which front knows the callers."""
        self._front = front

    async def SubscribeToX509SVID(
        self, request: brokerapi_pb2.SubscribeToX509SVIDRequest, context: Context
    ) -> AsyncIterator[brokerapi_pb2.SubscribeToX509SVIDResponse]:
        """Stream a workload's X.509-SVIDs."""

        async def answer(selectors: Selectors, wanted: Subscription) -> brokerapi_pb2.SubscribeToX509SVIDResponse:
            return self._answers.x509(selectors, wanted, brokerapi_pb2.SubscribeToX509SVIDResponse())

        async with self._stream(request, context, answer) as responses:
            async for response in responses:
                yield response

    async def SubscribeToX509Bundles(
        self, request: brokerapi_pb2.SubscribeToX509BundlesRequest, context: Context
    ) -> AsyncIterator[brokerapi_pb2.SubscribeToX509BundlesResponse]:
        """Stream the X.509 bundles that a workload may trust."""

        async def answer(selectors: Selectors, _: Subscription) -> brokerapi_pb2.SubscribeToX509BundlesResponse:
            bundles = x509_bundles(self._answers.bundles(selectors))
            return brokerapi_pb2.SubscribeToX509BundlesResponse(bundles=bundles, crl=self._answers.holder.crls)

        async with self._stream(request, context, answer) as responses:
            async for response in responses:
                yield response

    async def FetchJWTSVID(
        self, request: brokerapi_pb2.FetchJWTSVIDRequest, context: Context
    ) -> brokerapi_pb2.FetchJWTSVIDResponse:
        """Return JWT-SVIDs of a workload: of one identity, or of all."""
        asked_at = question_time()
        response = brokerapi_pb2.FetchJWTSVIDResponse()
        try:
            caller = self._caller(context)
            async with self._workload(request, caller, asked_at) as workload:
                selectors = await workload.attest()
                for entry, token in await self._answers.tokens(selectors, request.spiffe_id, request.audience):
                    response.svids.add(spiffe_id=str(entry.spiffe_id), svid=token.text, hint=entry.hint)
                await workload.confirm()
        except SidecarError as error:
            await _end(context, error)
        return response

    async def SubscribeToJWTBundles(
        self, request: brokerapi_pb2.SubscribeToJWTBundlesRequest, context: Context
    ) -> AsyncIterator[brokerapi_pb2.SubscribeToJWTBundlesResponse]:
        """Stream the keys with which a workload may verify JWT-SVIDs."""

        async def answer(selectors: Selectors, _: Subscription) -> brokerapi_pb2.SubscribeToJWTBundlesResponse:
            bundles = jwt_bundles(self._answers.bundles(selectors))
            return brokerapi_pb2.SubscribeToJWTBundlesResponse(bundles=bundles)

        async with self._stream(request, context, answer) as responses:
            async for response in responses:
                yield response

    def _stream(self, request: _Request, context: Context, answer: Answer[M]) -> aclosing[AsyncGenerator[M, None]]:
        """Answer at once and at every change, while the workload lives."""
        asked_at = question_time()

        async def run() -> AsyncGenerator[M, None]:
            try:
                caller = self._caller(context)
                async with self._workload(request, caller, asked_at) as workload:
                    due = lambda: workload.recheck_seconds  # noqa: E731
                    async with aclosing(self._streams.run(caller.spiffe_id, workload, answer, due)) as responses:
                        async for response in responses:
                            yield response
            except SidecarError as error:
                await _end(context, error)

        return aclosing(run())

    def _caller(self, context: Context) -> Caller:
        """Return who calls. Raise HeaderMissing, CallerRefused or DelegateRefused."""
        check_header(context.invocation_metadata(), HEADER)
        if self._front is None:
            raise NotReady("the sidecar is starting")
        try:
            caller = self._front.caller(context.peer())
        except CallerUnknown as error:
            raise CallerRefused(str(error)) from error
        if caller.spiffe_id is None:
            raise CallerRefused("this API is for callers with an X.509-SVID")
        if caller.spiffe_id not in {str(one) for one in (*self._clients.by_pid, *self._clients.by_object)}:
            raise DelegateRefused(f"{caller.spiffe_id} is not among broker_api.clients")
        return caller

    @asynccontextmanager
    async def _workload(self, request: _Request, caller: Caller, asked_at: float) -> AsyncIterator[_Workload]:
        """Hold whom a request refers to.

        Raise ReferenceInvalid, RequestRefused, NotServed, DelegateRefused, WorkloadGone or NotReady.
        """
        found = _reference(request.reference.reference)
        if isinstance(found, int):
            _check_among(caller, self._clients.by_pid, "broker_api.clients")
            if not on_this_node(caller.remote):
                raise ReferenceInvalid("a PID means a process of this node, and the caller is on another one")
            with hold(found, asked_at, self._callers) as process:
                yield process
            return
        if self._pods is None:
            raise NotServed("this sidecar knows no Kubernetes objects: refer to the workload by its PID")
        _check_among(caller, self._clients.by_object, "broker_api.kubernetes_clients")
        yield await find_pod(self._pods, ObjectReference.read(found))


def _check_among(caller: Caller, clients: Collection[SpiffeId], key: str) -> None:
    if caller.spiffe_id not in {str(one) for one in clients}:
        raise DelegateRefused(f"{caller.spiffe_id} is not among {key}")


def _reference(reference: AnyMessage) -> int | brokerapi_pb2.KubernetesObjectReference:
    """Read a reference to a process or an object. Raise ReferenceInvalid or RequestRefused."""
    if not reference.type_url:
        raise ReferenceInvalid("workload reference must be provided")
    process, object_ = brokerapi_pb2.WorkloadPIDReference(), brokerapi_pb2.KubernetesObjectReference()
    try:
        if reference.Unpack(process):
            return process.pid
        if reference.Unpack(object_):
            return object_
    except DecodeError:
        raise ReferenceInvalid("the workload reference cannot be read") from None
    raise RequestRefused("the workload reference is of a type that is not known here")


def on_this_node(remote: str) -> bool:
    """Say whether a peer, `host:port`, is reached by an address of this node (of this network namespace)."""
    try:
        address = ipaddress.ip_address(remote.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the kernel says from where it would be, and that is the same address for its own alone.
            probe.connect((str(address), 9))
        except OSError:
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == address


async def _end(context: Context, error: SidecarError) -> None:
    """End a call with its status, and for programs the reason."""
    reason = REASONS.get(type(error))
    number: int = error.status.value[0]
    trailing = details.error_info_metadata(number, str(error), reason, DOMAIN) if reason else ()
    await context.abort(error.status, str(error), trailing)
