# SPDX-License-Identifier: Apache-2.0
"""Signs PodCertificateRequests (KEP-4317): a kubelet gets an X.509-SVID for a pod, which needs no sidecar.

All brokers follow the requests, and the holder of the Lease answers. A pod is given what its own sidecar would be: an
entry gives it the ID, its segment admits it by what the cluster's objects show. A kubelet takes `Denied` and `Failed`
as the last word for that pod, so they are said of what cannot change. What may (an entry that is on its way, a policy)
is waited for a while, and what is wrong here or at the API server is tried again as long as the request is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

from firedoor.broker.errors import (
    AgentBanned,
    AuthorityError,
    BrokerError,
    NotAdmitted,
    NotEntitled,
    RateLimited,
)
from firedoor.broker.issuing import LEAST_POD_TTL, AuthorizedIssuance, Order, authorize_pod
from firedoor.broker.kubernetes.certificates_api import GROUP, REQUESTS, SIGNER, VERSIONS, served
from firedoor.broker.kubernetes.kept import Kept
from firedoor.broker.kubernetes.pod_keys import requested_key
from firedoor.broker.kubernetes.pod_requests import (
    NOT_ADMITTED,
    Objects,
    PodRequest,
    RequestingPod,
    RequestRefused,
    read,
    requesting_pod,
)
from firedoor.broker.kubernetes.recent import Recent
from firedoor.broker.ratelimit import Limiter, Rate
from firedoor.certs import CertsError, X509Svid
from firedoor.certs.certificate import pem_encode
from firedoor.cluster.errors import ClusterError, ClusterUnavailable, WrittenMeanwhile
from firedoor.cluster.objects import Seen
from firedoor.cluster.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firedoor.broker.audit import Audit
    from firedoor.broker.issuing import Signer
    from firedoor.broker.kubernetes.controllers import Controllers
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.pod_certificates")
# Requests that are worked on at once; each asks the API server for four objects, of which three may be known.
_WORKERS: Final = 8
# Seconds between two looks whether it is our turn, and whether the API server has another version by now.
_EVERY: Final = 1.0
_VERSION_LOOK: Final = 60.0
# How long an entry or a policy may take to come, before a refusal is the last word.
PATIENCE: Final = 30.0
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 60.0
# Requests of a namespace, and of a node: 110 pods start on one at once, or all that a Deployment has.
_OF_NAMESPACE: Final = Rate(50, 1000)
_OF_NODE: Final = Rate(10, 250)
# Kubernetes deletes them after 30 minutes, and kubelets ask anew. What is older, in seconds, nobody waits for.
_OLDEST: Final = 3600
_MOST: Final = 50_000
# Kubernetes is made for 110 pods on a node. A node that asks for more than this would take others' turn.
_MOST_OF_NODE: Final = 2000
# Seconds after a look: requests that come together are looked through together.
_PAUSE: Final = 0.01


@dataclass(slots=True)
class _Try:
    """How often an answer was tried: since when, and when next, by the monotonic clock."""

    since: float = field(default_factory=time.monotonic)
    wait: float = _FIRST_WAIT
    due: float = 0.0


@final
class PodCertificates:
    """The signer of one cluster. `run` until cancelled."""

    def __init__(
        self,
        controllers: Controllers,
        state: State,
        policy: PolicyKeeper,
        signer: Signer,
        audit: Audit,
        metrics: Metrics,
        ttl: int,
    ) -> None:
        """`ttl`: how long certificates live, in seconds, if the request lets them."""
        self._api, self._lease, self._cluster = controllers.api, controllers.lease, controllers.rules.cluster
        self._state, self._policy, self._signer = state, policy, signer
        self._audit, self._metrics, self._ttl = audit, metrics, ttl
        self._recent = Recent(controllers.api)
        self._due = asyncio.Event()
        self._requests: Kept[PodRequest] = Kept(self._read, self._due.set, "PodCertificateRequests", _MOST)
        # By the node, how many requests were open at the last look, and came since.
        self._open: Counter[str] = Counter()
        self._queue: asyncio.Queue[PodRequest] = asyncio.Queue()
        self._active: set[str] = set()
        self._tries: dict[str, _Try] = {}
        self._of_namespace, self._of_node = Limiter(_OF_NAMESPACE, "namespace"), Limiter(_OF_NODE, "node")
        # Of a namespace a node gets no more than it would in all, so that it leaves the rest to other nodes.
        self._of_both = Limiter(_OF_NODE, "node and namespace")
        self._version, self._said = "", ""

    async def run(self) -> None:
        """Answer what comes."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._hand_out())
            for _ in range(_WORKERS):
                group.create_task(self._work())

    # --- what is asked ------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            self._version = await self._served()
            if not self._version:
                self._say("the cluster has no PodCertificateRequests (Kubernetes 1.35 and later): none is signed")
                await asyncio.sleep(_VERSION_LOOK)
                continue
            only = f"?fieldSelector={quote(f'spec.signerName={SIGNER}')}"
            watch = Watch(
                self._api, self._path() + only, "PodCertificateRequest", "PodCertificateRequests", self._requests
            )
            task = asyncio.create_task(watch.run())
            try:
                await self._until_another(watch)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _until_another(self, watch: Watch) -> None:
        """Return when the API server has the requests in another version: it was replaced by a later one."""
        while True:
            await asyncio.sleep(_VERSION_LOOK)
            if watch.trouble and (version := await self._served()) != self._version and version:
                return

    async def _served(self) -> str:
        while True:
            try:
                return await served(self._api, REQUESTS)
            except ClusterUnavailable as error:
                self._say(f"PodCertificateRequests cannot be followed: {error}")
                await asyncio.sleep(_FIRST_WAIT)

    def _path(self, asked: PodRequest | None = None, version: str = "") -> str:
        below = f"namespaces/{asked.namespace}/{REQUESTS}/{asked.name}" if asked is not None else REQUESTS
        return f"{GROUP}/{version or self._version}/{below}"

    async def _hand_out(self) -> None:
        """Give workers what is due, each request to one of them."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY):
                    await self._due.wait()
            self._due.clear()
            began = time.monotonic()
            self._look(began)
            # However many there are, others have most of the time.
            await asyncio.sleep(max(_PAUSE, 4 * (time.monotonic() - began)))

    def _look(self, now: float) -> None:
        requests = self._requests.seen or {}
        self._tries = {key: one for key, one in self._tries.items() if key in requests}
        self._open = Counter(one.node for one in requests.values())
        if not self._lease.held:
            return
        oldest = self._state.clock.now() - _OLDEST
        for key, asked in requests.items():
            if key in self._active or asked.created_at < oldest:
                continue
            if self._tries.setdefault(key, _Try()).due <= now:
                self._active.add(key)
                self._queue.put_nowait(asked)

    def _read(self, seen: Seen) -> tuple[str, PodRequest | None]:
        """Read a request; None when it has its answer, or its node has more of them than it has pods."""
        key, asked = read(seen)
        if asked is None:
            return key, None
        self._open[asked.node] += 1
        if self._open[asked.node] > _MOST_OF_NODE:
            self._say(f"PodCertificateRequests of node {asked.node} are left: it has more than {_MOST_OF_NODE} open")
            return key, None
        return key, asked

    # --- an answer ----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            asked = await self._queue.get()
            try:
                await self._answer(asked)
            finally:
                self._active.discard(asked.key)

    async def _answer(self, asked: PodRequest) -> None:
        try:
            await self._sign(asked)
        except RequestRefused as refused:
            await self._refuse(asked, refused)
        except (NotEntitled, NotAdmitted, AgentBanned) as error:
            if time.monotonic() - self._try(asked).since < PATIENCE:
                self._later(asked, error)
            else:
                await self._refuse(asked, RequestRefused(NOT_ADMITTED, str(error)))
        except (BrokerError, CertsError, ClusterError) as error:
            self._later(asked, error)

    async def _sign(self, asked: PodRequest) -> None:
        """Sign what may be signed, and hand it out. Raise RequestRefused, BrokerError, CertsError or ClusterError."""
        now = time.monotonic()
        self._of_both.take(f"{asked.namespace}/{asked.node}", now)
        self._of_namespace.take(asked.namespace, now)
        asked = await self._whole(asked)
        pod = await self._looked_up(asked)
        self._of_node.take(asked.node, now)
        key = requested_key(asked)

        def authorize() -> AuthorizedIssuance:
            return authorize_pod(self._state, self._policy, pod, self._ttl, asked.max_life)

        proof = authorize()
        self._check_time()
        (made,) = await self._signer.issue([Order(proof, key, authorize)])
        if isinstance(made, BrokerError):
            raise made
        self._audit.event("pod_certificate_issued", **_names(asked, pod), **_facts(made, proof))
        if await self._written(asked, _issued(made)):
            self._metrics.pod_certificates.labels("issued").inc()
            self._metrics.pod_certificate_seconds.observe(time.monotonic() - self._try(asked).since)

    async def _whole(self, asked: PodRequest) -> PodRequest:
        """Return a request with its key: v1 does not show the one of a kubelet before 1.36."""
        if asked.csr or asked.public_key or self._version == VERSIONS[-1]:
            return asked
        found = await self._api.get(self._path(asked, VERSIONS[-1]))
        return (read(found)[1] if found is not None else None) or asked

    async def _looked_up(self, asked: PodRequest) -> RequestingPod:
        below = f"/api/v1/namespaces/{asked.namespace}"
        pod, account, node, namespace = await asyncio.gather(
            self._api.get(f"{below}/pods/{asked.pod}"),
            self._recent.get(f"{below}/serviceaccounts/{asked.account}"),
            self._recent.get(f"/api/v1/nodes/{asked.node}"),
            self._recent.get(below),
        )
        there = Objects(pod, account, node, namespace)
        return requesting_pod(self._state.trust_domain, self._cluster, asked, there)

    def _check_time(self) -> None:
        """Refuse to sign what no API server would take. Raise AuthorityError or DatabaseError."""
        self._state.check_current()
        pen = self._signer.pen()
        if pen.issuer.not_after - pen.at < LEAST_POD_TTL:
            raise AuthorityError("the authority ends within an hour, and Kubernetes takes no certificate of less")

    async def _refuse(self, asked: PodRequest, refused: RequestRefused) -> None:
        try:
            self._audit.event(
                "pod_certificate_refused", **_names(asked), refused=refused.reason, status_message=str(refused)
            )
            done = await self._written(
                asked, {"conditions": [_condition(refused.condition, refused.reason, str(refused))]}
            )
        except (BrokerError, ClusterError) as error:
            self._later(asked, error)
            return
        if done:
            self._metrics.pod_certificates.labels(refused.condition.lower()).inc()
            _log.warning("PodCertificateRequest %s is %s: %s", asked.key, refused.condition, refused)

    async def _written(self, asked: PodRequest, status: Mapping[str, Any]) -> bool:
        """Write the answer if nobody else has; say whether it is ours. Raise ClusterUnavailable."""
        if not self._lease.held:
            return False
        body = {"metadata": {"resourceVersion": asked.version, "uid": asked.uid}, "status": status}
        try:
            found = await self._api.merge(f"{self._path(asked)}/status", body)
        except WrittenMeanwhile:
            # Settled, or merely labelled: the watch shows which, and what is still open is looked at again.
            self._try(asked).due = time.monotonic() + _FIRST_WAIT
            return False
        if found is not None:
            self._requests.put(found)
        return found is not None

    def _try(self, asked: PodRequest) -> _Try:
        return self._tries.setdefault(asked.key, _Try())

    def _later(self, asked: PodRequest, error: Exception) -> None:
        """Try it again after a while, which grows."""
        one = self._try(asked)
        one.due = time.monotonic() + one.wait
        if not isinstance(error, RateLimited):
            one.wait = min(2 * one.wait, _LONGEST_WAIT)
            self._say(f"a PodCertificateRequest ({asked.key}) has to wait: {error}")
        self._metrics.pod_certificates.labels("retried").inc()

    def _say(self, what: str) -> None:
        if what != self._said:
            _log.warning("%s", what)
        self._said = what


def _names(asked: PodRequest, pod: RequestingPod | None = None) -> dict[str, str]:
    agent = {"agent_id": str(pod.agent_id)} if pod is not None else {}
    return {
        "request": asked.key,
        "pod": asked.pod,
        "pod_uid": asked.pod_uid,
        "service_account": asked.account,
        "node": asked.node,
        **agent,
    }


def _facts(made: X509Svid, proof: AuthorizedIssuance) -> dict[str, Any]:
    return {
        "spiffe_id": str(made.id),
        "entry_id": proof.entry_id,
        "serial": made.serial,
        "not_after": made.not_after,
        "authority_id": made.authority_id,
    }


def _issued(made: X509Svid) -> dict[str, Any]:
    return {
        "conditions": [_condition("Issued", "Issued", f"it is {made.id}")],
        "certificateChain": pem_encode(made.chain),
        "notBefore": _time(made.not_before),
        "beginRefreshAt": _time(made.half_life),
        "notAfter": _time(made.not_after),
    }


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    when = _time(int(time.time()))
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": when}


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
