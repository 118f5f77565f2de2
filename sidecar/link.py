# SPDX-License-Identifier: Apache-2.0
"""The connections to the server as this agent: a channel for calls, and the control stream.

The server takes a renewed SVID from its first use on and refuses the old one after it, so both are opened anew when
the agent SVID changes.

A stream begins with one Hello: the server ends one that begins with an answer, or has a second. Events may wait while
streams come and go, so what is sent goes by the stream that is there now, not by the event that is worked on. The core
sends nothing on a stream whose beginning was not taken.
"""

import itertools
from collections.abc import Callable
from typing import Literal

from firedoor.certs import SpiffeId
from firedoor.mtls import ControlClient, Core
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import ServerUnavailable
from firedoor.sidecar.server import Server
from firedoor.sidecar.servers import Servers
from firedoor.wire import control_pb2

# "ask" is our own: a while after a disconnection.
EventKind = Literal["connected", "message", "disconnected", "unsupported", "ask"]
EVENTS_AT_ONCE = 64


class Link:
    """What connects this agent to its server now."""

    def __init__(
        self, core: Core, config: Config, servers: Servers, told: Callable[[tuple[EventKind, bytes]], None]
    ) -> None:
        self._core, self._config, self._servers = core, config, servers
        # Takes each event; it must be quick.
        self._told = told
        # Two names in turn: the old socket may still be in use while the new one opens.
        self._names = itertools.cycle(("server-0.sock", "server-1.sock"))
        self._server: Server | None = None
        self._control: ControlClient | None = None
        self.connected = False
        # Whether the present stream had its Hello.
        self._greeted = False

    @property
    def server(self) -> Server:
        """Return the channel. Raise ServerUnavailable before there is one."""
        if self._server is None:
            raise ServerUnavailable("the sidecar has not attested yet")
        return self._server

    async def open(self, agent_id: SpiffeId) -> None:
        """Connect as this agent, with the SVID that the core has now; what was open is closed."""
        old_server, old_control = self._server, self._control
        config = self._config
        addresses, path = self._servers.order, config.run_dir / next(self._names)
        self._server = Server.open(self._core, path, addresses, config.server_id, agent_id)
        self._control = self._core.control_client(
            addresses=addresses, as_id=str(agent_id), expect=str(config.server_id)
        )
        self.connected = self._greeted = False
        if old_control is not None:
            old_control.stop()
        if old_server is not None:
            await old_server.close()

    def greet(self, hello: control_pb2.Hello) -> None:
        """Begin the present stream, unless that was done."""
        self.take()
        if self._control is not None and self.connected and not self._greeted:
            self._greeted = True
            self._control.send(control_pb2.FromSidecar(hello=hello).SerializeToString())

    def send(self, message: control_pb2.FromSidecar) -> None:
        """Answer on the present stream; lost before its Hello, after which every state is told again."""
        # Another stream may have come that nobody has looked at; what is sent is for the one that was.
        self.take()
        if self._control is not None and self._greeted:
            self._control.send(message.SerializeToString())

    def spread(self, milliseconds: int) -> None:
        """Say over how long to come back when the server ends the control stream."""
        if self._control is not None:
            self._control.spread(milliseconds)

    def take(self) -> None:
        """Hand over what the control stream has to say."""
        if self._control is None:
            return
        for kind, data in self._control.drain(EVENTS_AT_ONCE):
            if kind != "message":
                self.connected, self._greeted = kind == "connected", False
            self._told((kind, data))

    async def close(self) -> None:
        """Close both."""
        if self._control is not None:
            self._control.stop()
        if self._server is not None:
            await self._server.close()
