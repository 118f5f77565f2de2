# SPDX-License-Identifier: Apache-2.0
"""Where a node's sidecar learns which pods there are: the node's kubelet, or the cluster's API server.

Both answer with a PodList over TLS, to whoever shows a token. Token and CA are files that the kubelet renews; what is
in them counts at each call. Nothing is followed, and no more is read than the pods of a node can have. No error holds a
token.
"""

import asyncio
import importlib
import json
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import quote

from firedoor.sidecar.errors import NotReady
from firedoor.sidecar.pod_objects import Pod, PodUnreadable, read_pods

if TYPE_CHECKING:
    # Loaded when pods are asked for: see on_demand.py.
    import aiohttp

    from firedoor.sidecar.pod_http import Call

log = logging.getLogger(__name__)

# Where a pod finds what its own cluster gave it.
IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# SPIRE's, for the kubelet.
_SECONDS: Final = 10.0
# Hundreds of pods with all that the API lets them have are rare; they are some ten KiB each.
_MAX_ANSWER: Final = 32 * 1024 * 1024
# etcd takes objects of 1.5 MiB; in JSON a byte is six where it is escaped.
_MAX_OBJECT: Final = 16 * 1024 * 1024
_MAX_FILE: Final = 256 * 1024
_OK: Final = 200
GONE: Final = 410
# A kubelet is restarted within a minute; labels may have changed since.
_AWAY_SECONDS: Final = 300.0
NOT_KNOWN: Final = "which pods are on this node is not known yet"
JsonObject = Mapping[str, Any]


class Forgotten(Exception):
    """The API server does not know any more what a watch was to go on from."""


class PodSource(Protocol):
    """Says which pods are on this node."""

    @property
    def trouble(self) -> str:
        """Why they cannot be told; nothing when they can."""

    async def pods(self, max_age: float) -> Sequence[Pod]:
        """Return them as they were at most so many seconds ago, if they can be asked for. Raise NotReady."""

    async def close(self) -> None:
        """Close what is open."""


@dataclass(frozen=True, slots=True)
class PodAccess:
    """Whom to ask for the pods of which node, and as whom. `server_name`: whose certificate it shows."""

    node: str
    asks: Literal["kubelet", "api-server"]
    # host:port of the kubelet; URL of the API server, empty for that of our own cluster.
    address: str
    server_name: str
    ca: Path
    token: Path

    @property
    def who(self) -> str:
        """The one who is asked, in words."""
        return f"the kubelet at {self.address}" if self.asks == "kubelet" else "the API server"

    @property
    def url(self) -> str:
        """Return where the pods of the node are listed. Raise NotReady."""
        if self.asks == "kubelet":
            return f"https://{self.address}/pods"
        # Anybody may name a node in pods of his own: those that its kubelet does not take have failed, and are no news.
        fields = f"spec.nodeName={self.node},status.phase!=Failed,status.phase!=Succeeded"
        return f"{self._server()}/api/v1/pods?fieldSelector={quote(fields, safe='')}"

    def _server(self) -> str:
        if self.address:
            return self.address.rstrip("/")
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise NotReady("k8s_workloads.server is missing, and this sidecar runs in no pod, which would say it")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def check(self) -> None:
        """Read what is needed, as it is now. Raise NotReady."""
        _ = self.url, self.bearer(), self.trusting(self.roots())

    def bearer(self) -> str:
        """Return our token. Raise NotReady."""
        token = _read(self.token, "token").strip()
        if not token or not token.isascii() or len(token.split()) != 1:
            raise NotReady(f"k8s_workloads.token: {self.token} holds no token: one word is expected")
        return token.decode("ascii")

    def roots(self) -> str:
        """Return what is in the file of the CA. Raise NotReady."""
        return _read(self.ca, "ca").decode("latin-1")

    def trusting(self, roots: str) -> ssl.SSLContext:
        """Return a context that trusts these, and nobody else. Raise NotReady."""
        try:
            # Without a text it would trust what the system trusts.
            if "-----BEGIN" not in roots:
                raise ValueError("empty")
            context = ssl.create_default_context(cadata=roots)
        except (ssl.SSLError, ValueError):
            raise NotReady(f"k8s_workloads.ca: {self.ca} holds no certificates in PEM") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _read(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise NotReady(f"k8s_workloads.{key}: {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise NotReady(f"k8s_workloads.{key}: {path} is longer than {_MAX_FILE // 1024} KiB")
    return data


class PodClient:
    """Asks whoever an access names. `close` when done."""

    def __init__(self, access: PodAccess) -> None:
        self.access = access
        self._context: tuple[str, ssl.SSLContext] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def list(self) -> JsonObject:
        """Return the answer that lists the pods of the node. Raise NotReady."""
        call = await self._call("")
        from firedoor.sidecar.pod_http import fetch

        try:
            async with asyncio.timeout(_SECONDS):
                status, data = await fetch(call, _MAX_ANSWER)
        except TimeoutError:
            raise self.unavailable(f"it did not answer within {_SECONDS:.0f} s") from None
        except OSError as error:
            raise self.unavailable(str(error)) from None
        if status != _OK:
            raise self.unavailable(self._refusal(status))
        return await asyncio.to_thread(self._read, data)

    async def watch(self, version: str, seconds: int) -> AsyncIterator[JsonObject]:
        """Yield what changes after a version, for so long at most. Raise NotReady, or Forgotten."""
        more = f"&watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={quote(version, safe='')}"
        call = await self._call(more)
        from firedoor.sidecar.pod_http import StatusRefused, lines

        try:
            # Whoever is gone without a word is found out by the silence.
            async for line in lines(call, _MAX_OBJECT, seconds + _SECONDS):
                yield await asyncio.to_thread(self._read, line)
        except StatusRefused as error:
            if error.status == GONE:
                raise Forgotten from None
            raise self.unavailable(self._refusal(error.status)) from None
        except TimeoutError:
            raise self.unavailable("it fell silent") from None
        except OSError as error:
            raise self.unavailable(str(error)) from None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, more: str) -> "Call":
        await asyncio.to_thread(importlib.import_module, "firedoor.sidecar.pod_http")
        from firedoor.sidecar.pod_http import Call, session

        if self._session is None:
            self._session = session()
        token, context = await asyncio.to_thread(self._credentials)
        return Call(self._session, self.access.url + more, token, context, self.access.server_name or None)

    def _credentials(self) -> tuple[str, ssl.SSLContext]:
        """Return both as they are now. A context that stays is one whose connections are used again."""
        token, roots = self.access.bearer(), self.access.roots()
        if self._context is None or self._context[0] != roots:
            self._context = (roots, self.access.trusting(roots))
        return token, self._context[1]

    def _read(self, data: bytes) -> JsonObject:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise self.unavailable("its answer is no JSON") from None
        if not isinstance(found, dict):
            raise self.unavailable("its answer is no object")
        return found

    def _refusal(self, status: int) -> str:
        if status not in (401, 403):
            return f"it answers {status}"
        rights = {
            "kubelet": "get nodes/pods, or nodes/proxy before Kubernetes 1.33",
            "api-server": "list and watch pods",
        }
        right = rights[self.access.asks]
        return f"it answers {status}: the account of this sidecar needs the right to {right} (docs/kubernetes-nodes.md)"

    def unavailable(self, why: str) -> NotReady:
        """Return the error that says who does not answer, and why."""
        return NotReady(f"{self.access.who} does not tell the pods of this node: {why}")


class ListedPods:
    """Lists them when somebody asks; once for all who ask meanwhile.

    What was seen last counts for some minutes while nobody answers: no other container ever has the ID of one that was
    in it, and a kubelet that is restarted takes no identity from anybody.
    """

    def __init__(self, client: PodClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._asking: asyncio.Task[Sequence[Pod]] | None = None
        self._seen: Sequence[Pod] = ()
        # When that was asked for, by the monotonic clock.
        self._seen_at: float | None = None
        self.trouble = NOT_KNOWN

    async def pods(self, max_age: float) -> Sequence[Pod]:
        """Return them as they were at most so many seconds ago, if they can be asked for. Raise NotReady."""
        if self._younger_than(max_age):
            return self._seen
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # Nobody may be waiting for its error any more.
            self._asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Whoever goes away does not end it for the others.
        try:
            return await asyncio.shield(self._asking)
        except NotReady:
            if not self._younger_than(_AWAY_SECONDS):
                raise
            return self._seen

    def _younger_than(self, seconds: float) -> bool:
        return self._seen_at is not None and self._clock() - self._seen_at <= seconds

    async def close(self) -> None:
        """Close what is open."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._client.close()

    async def _ask(self) -> Sequence[Pod]:
        asked_at = self._clock()
        try:
            self._seen = await self._list()
        except NotReady as error:
            if str(error) != self.trouble:
                log.warning("pods cannot be told", extra={"reason": str(error)})
            self.trouble = str(error)
            raise
        self._seen_at, self.trouble = asked_at, ""
        return self._seen

    async def _list(self) -> Sequence[Pod]:
        answer = await self._client.list()
        try:
            return await asyncio.to_thread(read_pods, answer, self._client.access.node)
        except PodUnreadable as error:
            raise self._client.unavailable(str(error)) from None
