# SPDX-License-Identifier: Apache-2.0
"""Plain calls of the Kubernetes API, as JSON over HTTP; also of what else answers by HTTP, such as etcd's health."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

SECONDS = 60.0
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API has said no; `message` is what a person reads."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        try:
            self.status: dict[str, Any] = json.loads(text)
        except ValueError:
            self.status = {}
        self.message = str(self.status.get("message", text))


class AlreadyExists(ApiError):
    """An object of that name is there."""


class Api:
    """One server, and who asks it."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext | None = None,
        token: str = "",
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._url, self._token, self._headers = url, token, headers
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def text(self, method: str, path: str, body: object = None, kind: str = "application/json") -> str:
        """Call and return the answer as it is. Raise ApiError, or OSError when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": kind}, method=method)
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        for name, value in self._headers:
            request.add_header(name, value)
        try:
            with self._opener.open(request, timeout=SECONDS) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read().decode(errors="replace")) from None

    def get(self, path: str) -> dict[str, Any]:
        """Read one object, or a list of them."""
        return _object(self.text("GET", path))

    def post(self, path: str, body: object) -> dict[str, Any]:
        """Create an object."""
        return _object(self.text("POST", path, body))

    def put(self, path: str, body: object) -> dict[str, Any]:
        """Replace an object."""
        return _object(self.text("PUT", path, body))

    def patch(self, path: str, body: object, kind: str = MERGE) -> dict[str, Any]:
        """Change some fields of an object."""
        return _object(self.text("PATCH", path, body, kind))

    def delete(self, path: str, body: object = None) -> dict[str, Any]:
        """Delete an object."""
        return _object(self.text("DELETE", path, body))


def _object(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _refusal(code: int, text: str) -> ApiError:
    said = ApiError(code, text)
    return AlreadyExists(code, text) if said.status.get("reason") == "AlreadyExists" else said
