# SPDX-License-Identifier: Apache-2.0
"""Who is calling on a Unix socket: the front's word for the connection, the kernel's for the process behind it."""

from collections.abc import Hashable

from firedoor.certs import Selector
from firedoor.mtls import CallerUnknown, Front
from firedoor.sidecar.attestor import LiveCaller, WorkloadAttestor
from firedoor.sidecar.errors import CallerRefused, NotReady
from firedoor.sidecar.holder import Holder


class Connection:
    """Whoever opened one connection. The front closes it when the process ends, so nobody needs to watch that here."""

    ended = None

    def __init__(self, caller: LiveCaller, callers: "Callers") -> None:
        self._caller, self._callers = caller, callers
        self._selectors: frozenset[Selector] | None = None
        self._counted: Hashable = None

    def counted_as(self) -> Hashable:
        """Return with whom its streams are counted. Raise SidecarError."""
        self._counted = self._callers.counted_as(self._caller)
        return self._counted

    async def attest(self) -> frozenset[Selector]:
        """Return the selectors of the process, as it was when this was asked first. Raise SidecarError."""
        if self._selectors is None:
            self._selectors = await self._callers.attest_process(self._caller, self._counted)
        return self._selectors


class Callers:
    """Attests whoever opened a connection; the same for gRPC and for HTTP."""

    def __init__(self, holder: Holder, attestor: WorkloadAttestor) -> None:
        self._holder, self._attestor = holder, attestor
        self._front: Front | None = None

    def serve_on(self, front: Front) -> None:
        """Say which front knows the callers."""
        self._front = front

    def connection(self, peer: str) -> Connection:
        """Return who opened a connection, named as the server sees it. Raise SidecarError."""
        if self._front is None:
            raise NotReady("the sidecar is starting")
        try:
            return Connection(self._front.caller(peer), self)
        except CallerUnknown as error:
            raise CallerRefused(str(error)) from error

    async def attest(self, peer: str) -> frozenset[Selector]:
        """Return the selectors of the process at a connection. Raise SidecarError."""
        return await self.connection(peer).attest()

    def counted_as(self, process: LiveCaller) -> Hashable:
        """Return with whom streams of a process are counted. Raise CallerRefused when it is gone."""
        return self._attestor.counted_as(process)

    async def attest_process(self, process: LiveCaller, counted: Hashable = None) -> frozenset[Selector]:
        """Return the selectors of a process. Raise CallerRefused when it is gone or changes meanwhile."""
        return await self._attestor.attest(process, self._holder.view.selector_keys, counted)
