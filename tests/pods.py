# SPDX-License-Identifier: Apache-2.0
"""Pods as the API has them, and a kubelet's read API over TLS that tells them."""

from __future__ import annotations

import json
import secrets
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web

from tests.tls_server import serving_tls

NODE = "gpu-1"


def container_id() -> str:
    """Return what a runtime could call a container."""
    return secrets.token_hex(32)


def status(name: str, container: str, image: str = "registry.example/app:1") -> dict[str, Any]:
    """Return what a kubelet says of a container that runs."""
    return {
        "name": name,
        "image": image,
        "imageID": f"{image.partition(':')[0]}@sha256:{name:0>64}",
        "containerID": f"containerd://{container}",
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        "ready": True,
        "restartCount": 0,
    }


def pod(name: str, *containers: Mapping[str, Any], namespace: str = "inference", **metadata: Any) -> dict[str, Any]:
    """Return a pod that runs on the node."""
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": str(uuid.uuid4()), **metadata},
        "spec": {"nodeName": NODE, "serviceAccountName": "vllm"},
        "status": {"phase": "Running", "containerStatuses": [dict(one) for one in containers]},
    }


def cgroup_of(found: Mapping[str, Any], container: str, *, kind: str = "burstable") -> str:
    """Return where a container is by the driver `cgroupfs`, below the kubelet's root."""
    return f"kubepods/{kind}/pod{found['metadata']['uid']}/{container}"


class Kubelet:
    """Tells `items` at /pods to whoever shows the token."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.items: list[Any] = []
        self.token, self.asked = secrets.token_hex(16), 0
        # The ports of those who connected.
        self.connections: set[int] = set()
        # Answered instead, with this status.
        self.instead: tuple[int, bytes] | None = None
        self.address = ""
        authority = trustme.CA()
        served = authority.issue_cert(*(names or (NODE, "127.0.0.1")))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served.configure_cert(self.context)
        self.ca_file, self.token_file = folder / "kubelet-ca.pem", folder / "kubelet-token"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.token_file.write_text(self.token)

    async def _pods(self, request: web.Request) -> web.Response:
        self.asked += 1
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        if self.instead is not None:
            return web.Response(status=self.instead[0], body=self.instead[1])
        body = json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.items})
        return web.Response(body=body.encode(), content_type="application/json")

    def settings(self, **more: str) -> dict[str, str]:
        """Return the flags of a sidecar that asks it."""
        given = {"node": NODE, "kubelet": self.address, "ca": str(self.ca_file), "token": str(self.token_file), **more}
        return {f"k8s_workloads_{key}": value for key, value in given.items()}


@asynccontextmanager
async def kubelet(folder: Path, items: Sequence[Any] = (), names: Sequence[str] = ()) -> AsyncIterator[Kubelet]:
    """Run it on loopback."""
    made = Kubelet(folder, *names)
    made.items = list(items)
    app = web.Application()
    app.router.add_get("/pods", made._pods)
    async with serving_tls(app, made.context) as made.address:
        yield made
