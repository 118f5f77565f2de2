# SPDX-License-Identifier: Apache-2.0
"""Who is calling on the auth socket: the front's word for the connection, the kernel's for the process behind it."""

from firedoor.certs import Selector
from firedoor.mtls import CallerUnknown, Front
from firedoor.sidecar.attestor import UnixAttestor
from firedoor.sidecar.errors import CallerRefused, NotReady
from firedoor.sidecar.holder import Holder


class Callers:
    """Attests whoever opened a connection; the same for gRPC and for HTTP."""

    def __init__(self, holder: Holder, attestor: UnixAttestor) -> None:
        self._holder, self._attestor = holder, attestor
        self._front: Front | None = None

    def serve_on(self, front: Front) -> None:
        """Say which front knows the callers."""
        self._front = front

    async def attest(self, peer: str) -> frozenset[Selector]:
        """Return the selectors of the process at a connection, named as the server sees it. Raise SidecarError."""
        if self._front is None:
            raise NotReady("the sidecar is starting")
        try:
            caller = self._front.caller(peer)
        except CallerUnknown as error:
            raise CallerRefused(str(error)) from error
        return await self._attestor.attest(caller, self._costly_keys())

    def _costly_keys(self) -> set[str]:
        """Return which selector keys any entry asks for, so that no executable is read and hashed for nothing."""
        return {one.key for entry in self._holder.view.entries.values() for one in entry.selectors}
