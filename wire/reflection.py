# SPDX-License-Identifier: Apache-2.0
"""Answers of gRPC's server reflection: tools that were built without our contracts can ask for them.

Both versions of the protocol have them; they differ in their package alone. A server tells of its own services and of
what their messages are made of, and of no other file.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from grpc import StatusCode

from firedoor.wire._generated import grpc_reflection_v1_reflection_pb2, grpc_reflection_v1alpha_reflection_pb2
from firedoor.wire._pool import POOL

# A name in a contract of ours is far shorter.
_MAX_NAME: Final = 1024


class Reflection:
    """What `grpc.reflection.v1.ServerReflection`, or `v1alpha`, answers; `messages` is the module with its messages."""

    def __init__(self, services: Iterable[ServiceDescriptor], messages: ModuleType) -> None:
        self._messages: Any = messages
        own = messages.DESCRIPTOR.services_by_name["ServerReflection"]
        self._services = sorted({service.full_name: service for service in (*services, own)}.items())
        self._files: dict[str, FileDescriptor] = {}
        for _, service in self._services:
            self._add(service.file)

    def _add(self, file: FileDescriptor) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for dependency in file.dependencies:
                self._add(dependency)

    def answer(self, request: Any) -> Any:
        """Answer one question by itself."""
        return self._messages.ServerReflectionResponse(
            valid_host=request.host[:_MAX_NAME], original_request=request, **self._answer(request)
        )

    def _answer(self, request: Any) -> dict[str, Any]:
        match request.WhichOneof("message_request"):
            case "list_services":
                names = [self._messages.ServiceResponse(name=name) for name, _ in self._services]
                return {"list_services_response": self._messages.ListServiceResponse(service=names)}
            case "file_by_filename":
                return self._file(self._files.get(request.file_by_filename))
            case "file_containing_symbol":
                return self._file(self._holding(request.file_containing_symbol))
            case "file_containing_extension" | "all_extension_numbers_of_type":
                return self._error(StatusCode.NOT_FOUND, "there are no extensions")
            case _:
                return self._error(StatusCode.UNIMPLEMENTED, "an unknown question")

    def _holding(self, symbol: str) -> FileDescriptor | None:
        try:
            found: FileDescriptor = POOL.FindFileContainingSymbol(symbol[:_MAX_NAME])
        except KeyError:
            return None
        return self._files.get(found.name)

    def _file(self, file: FileDescriptor | None) -> dict[str, Any]:
        if file is None:
            return self._error(StatusCode.NOT_FOUND, "no service here has it")
        # What it imports as well, so that one question suffices.
        names, found = [file], {file.name: file}
        while names:
            for dependency in names.pop().dependencies:
                if dependency.name not in found:
                    found[dependency.name] = dependency
                    names.append(dependency)
        serialized = [each.serialized_pb for each in found.values()]
        return {"file_descriptor_response": self._messages.FileDescriptorResponse(file_descriptor_proto=serialized)}

    def _error(self, code: StatusCode, message: str) -> dict[str, Any]:
        number: int = code.value[0]
        return {"error_response": self._messages.ErrorResponse(error_code=number, error_message=message)}


def reflections(services: Iterable[ServiceDescriptor]) -> dict[ServiceDescriptor, Reflection]:
    """Return what a server with these services answers, by the service of each version of the protocol."""
    told = list(services)
    versions = (grpc_reflection_v1_reflection_pb2, grpc_reflection_v1alpha_reflection_pb2)
    own = [messages.DESCRIPTOR.services_by_name["ServerReflection"] for messages in versions]
    return {service: Reflection([*told, *own], messages) for service, messages in zip(own, versions, strict=True)}
