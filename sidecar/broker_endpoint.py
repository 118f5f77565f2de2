# SPDX-License-Identifier: Apache-2.0
"""Where the SPIFFE Broker API listens: a TLS front as this agent, open while it has an SVID, and a server behind it."""

import logging

import grpc.aio

from firedoor.mtls import Core, Front, ListenError, private_address
from firedoor.sidecar.broker_api import BrokerApi
from firedoor.sidecar.config import BrokerApiConfig
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.reading import ReadsRequests
from firedoor.wire import brokerapi_grpc

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # A request is a reference and some audiences.
    ("grpc.max_receive_message_length", 64 * 1024),
)


class BrokerEndpoint:
    """Opens and closes it; nothing of it exists when the configuration has no `broker_api`."""

    def __init__(self, core: Core, holder: Holder, config: BrokerApiConfig | None, api: BrokerApi) -> None:
        self._core, self._holder, self._config, self._api = core, holder, config, api
        self._server: grpc.aio.Server | None = None
        self.backend = private_address()
        self._front: Front | None = None
        # As whom it is open.
        self._as_id = ""
        self.reason = "the sidecar has not attested yet"

    @property
    def address(self) -> str:
        """Where it is open, empty while it is not."""
        return self._front.address if self._front else ""

    async def start(self) -> None:
        """Start the server; nobody reaches it before `adjust`."""
        if self._config is None:
            return
        self._server = grpc.aio.server(interceptors=[ReadsRequests()], options=SERVER_OPTIONS)
        brokerapi_grpc.add_APIServicer_to_server(self._api, self._server)
        self._server.add_insecure_port(self.backend)
        await self._server.start()

    def adjust(self) -> None:
        """Open the front once there is an agent, and anew when the agent is another one."""
        agent = self._holder.agent
        if self._config is None or agent is None or str(agent.spiffe_id) == self._as_id:
            return
        self._close()
        as_id = str(agent.spiffe_id)
        try:
            self._front = self._core.tls_front(
                listen=self._config.listen, as_id=as_id, backend=self.backend, client="required"
            )
        except ListenError as error:
            if str(error) != self.reason:
                log.error("the Broker API is not served", extra={"reason": str(error)})
            self.reason = str(error)
            return
        self._as_id, self.reason = as_id, ""
        self._api.serve_on(self._front)
        log.info("the Broker API is served", extra={"address": self._front.address})

    def missing(self) -> list[str]:
        """Say why it is not open, although it should be."""
        return [f"broker_api is not open: {self.reason}"] if self._config and self._front is None else []

    def _close(self) -> None:
        if self._front is not None:
            self._front.stop()
            self._front, self._as_id = None, ""

    async def close(self) -> None:
        """Close it."""
        self._close()
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)
