# SPDX-License-Identifier: Apache-2.0
"""The auth and the admin socket: each a grpc.aio server of its own, at a private address behind a Unix front.

A connection that did not come through the front has no name there, and its calls are refused. Which services a caller
reaches is decided by the socket that it opened.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from firedoor.mtls import Core, Front, private_address
from firedoor.sidecar.admin import AnyProgram, Gate, Health, Reporter, SidecarAdmin
from firedoor.sidecar.auth import AuthApi, AuthService
from firedoor.sidecar.config import Config
from firedoor.sidecar.delegated import DelegatedIdentity
from firedoor.sidecar.errors import StateError
from firedoor.sidecar.inspection import AgentDebug, AgentLogger, add_reflection
from firedoor.sidecar.on_demand import OnDemand
from firedoor.sidecar.reading import ReadsRequests
from firedoor.sidecar.workload import WorkloadApi
from firedoor.wire import (
    admin_grpc,
    admin_pb2,
    agent_debug_grpc,
    agent_debug_pb2,
    agent_logger_grpc,
    agent_logger_pb2,
    auth_grpc,
    auth_pb2,
    delegated_grpc,
    delegated_pb2,
    health_grpc,
    health_pb2,
    workload_grpc,
    workload_pb2,
)

# Every local program may ask who it is; the answer depends on who asks. Only our own user gets near the other one.
AUTH_MODE = 0o666
ADMIN_MODE = 0o600
# Delegates may be anybody; each service looks at who calls.
DELEGATES_MODE = 0o666
FOLDER_MODE = 0o755
STOP_SECONDS = 1.0
_HEALTH = (health_pb2, "Health")
_ON_ADMIN_SOCKET = (
    (admin_pb2, "SidecarAdmin"),
    (agent_debug_pb2, "Debug"),
    (agent_logger_pb2, "Logger"),
    (delegated_pb2, "DelegatedIdentity"),
    _HEALTH,
)
SERVER_OPTIONS = (
    # The default cancels calls when many programs reconnect at once.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    ("grpc.so_reuseport", 0),
    # The largest request is a delegate's list of selectors.
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 16 * 1024),
)
# Calls at once on one connection of a program. The head of each may cost 2.4 MiB before it is refused: 16 KiB of HPACK
# name a field in every byte, and C-core looks at the limit on metadata when it has read them all.
# Delegates have a stream a workload, and as many as a caller may have.
CALLS = 256


class Sockets:
    """Opens and closes both."""

    def __init__(self, core: Core, config: Config) -> None:
        self._core, self._config = core, config
        self._servers: list[grpc.aio.Server] = []
        self._fronts: list[Front] = []
        self._http: OnDemand | None = None
        # The private addresses, in the order in which the sockets were opened.
        self.backends: list[str] = []
        self.http_backend = private_address()

    async def open_auth(self, api: WorkloadApi, auth: AuthApi, ready: Callable[[], bool]) -> None:
        """Serve local programs: Workload API, Auth API (by HTTP/1.1 too), health. Raise ListenError."""
        server, anybody = self._server(CALLS), AnyProgram(api.callers, api.inspecting)
        health_grpc.add_HealthServicer_to_server(Health(anybody, ready), server)
        add_reflection(server, anybody, _services((workload_pb2, "SpiffeWorkloadAPI"), (auth_pb2, "Auth"), _HEALTH))
        workload_grpc.add_SpiffeWorkloadAPIServicer_to_server(api, server)
        auth_grpc.add_AuthServicer_to_server(AuthService(auth), server)
        self._http = OnDemand(auth)
        self._http.listen(self.http_backend)
        api.callers.serve_on(await self._open_programs(server))

    async def open_admin(self, reporter: Reporter, ready: Callable[[], bool], delegated: DelegatedIdentity) -> None:
        """Serve whoever runs this sidecar, and delegates. Raise ListenError."""
        server, gate = self._server(CALLS + self._config.max_streams), Gate()
        agent_debug_grpc.add_DebugServicer_to_server(AgentDebug(gate, reporter), server)
        agent_logger_grpc.add_LoggerServicer_to_server(AgentLogger(gate), server)
        add_reflection(server, gate, _services(*_ON_ADMIN_SOCKET))
        admin_grpc.add_SidecarAdminServicer_to_server(SidecarAdmin(gate, reporter), server)
        health_grpc.add_HealthServicer_to_server(Health(gate, ready), server)
        delegated_grpc.add_DelegatedIdentityServicer_to_server(delegated, server)
        mode = DELEGATES_MODE if self._config.authorized_delegates else ADMIN_MODE
        front = await self._open(server, self._config.admin_socket, mode)
        gate.serve_on(front)
        delegated.callers.serve_on(front)

    def _server(self, calls: int) -> grpc.aio.Server:
        options = (*SERVER_OPTIONS, ("grpc.max_concurrent_streams", calls))
        return grpc.aio.server(interceptors=[ReadsRequests()], options=options)

    async def _open_programs(self, server: grpc.aio.Server) -> Front:
        config = self._config
        return await self._open(server, config.auth_socket, AUTH_MODE, self.http_backend, config.workload)

    async def _open(
        self,
        server: grpc.aio.Server,
        path: Path,
        mode: int,
        http1: str | None = None,
        workload: Literal["process", "pod"] = "process",
    ) -> Front:
        backend = private_address()
        self.backends.append(backend)
        server.add_insecure_port(backend)
        await server.start()
        self._servers.append(server)
        try:
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"the folder of the socket {path} cannot be made: {error.strerror}") from error
        front = self._core.unix_front(
            path=str(path), backend=backend, mode=mode, http1_backend=http1, workload=workload
        )
        self._fronts.append(front)
        return front

    async def close(self) -> None:
        """Close the sockets, then the servers behind them."""
        for front in self._fronts:
            front.stop()
        for server in self._servers:
            await server.stop(STOP_SECONDS)
        if self._http:
            await self._http.stop()


def _services(*named: tuple[ModuleType, str]) -> list[ServiceDescriptor]:
    return [messages.DESCRIPTOR.services_by_name[name] for messages, name in named]
