# SPDX-License-Identifier: Apache-2.0
"""A gRPC service: grpcio's server with the health service of `grpcio-health-checking`: `model_server.py PORT [HOST]`.

A line on stderr a call, as an access log.
"""

import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class AccessLog(grpc.ServerInterceptor):
    """Writes the name of each method that is called."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Log and go on."""
        sys.stderr.write(f"call {handler_call_details.method}\n")
        sys.stderr.flush()
        return continuation(handler_call_details)


class Health(health.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The service with the method that the package leaves to others."""

    def List(self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext) -> Any:
        """Tell the status of all that is served."""
        serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        return health_pb2.HealthListResponse(statuses={"llm": serving})


def main(port: str, host: str = "127.0.0.1") -> None:
    """Serve until the process is ended."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), interceptors=[AccessLog()])
    servicer = Health()
    servicer.set("llm", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"{host}:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
