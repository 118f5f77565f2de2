# SPDX-License-Identifier: Apache-2.0
"""Every API that a sidecar serves to programs, on what one holder holds; sockets and endpoint bring the callers."""

from collections.abc import Callable

from firedoor.sidecar import tokens, wits
from firedoor.sidecar.answers import Answers
from firedoor.sidecar.attestor import Names, UnixAttestor, WorkloadAttestor
from firedoor.sidecar.auth import AuthApi
from firedoor.sidecar.broker_api import BrokerApi, Clients
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.config import Config
from firedoor.sidecar.delegated import DelegatedIdentity
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.node_workload import NodeAttestor
from firedoor.sidecar.pod_finder import PodFinder
from firedoor.sidecar.pod_source import ListedPods
from firedoor.sidecar.pod_watch import WatchedPods
from firedoor.sidecar.pod_workload import PodWorkload
from firedoor.sidecar.streams import Streams
from firedoor.sidecar.workload import VerifierRules, WorkloadApi


class Apis:
    """The services, and what they keep between calls."""

    def __init__(
        self,
        config: Config,
        holder: Holder,
        now: Callable[[], float],
        names: Names,
        fetch_token: tokens.Fetch,
        fetch_wit: wits.Fetch,
    ) -> None:
        self.pods = _finder(config)
        attestor, most = _attestor(config, names, self.pods), config.jwt_svid_cache_max_size
        self.tokens = tokens.Tokens(holder, fetch_token, now, max_held=most)
        self.wits = wits.Wits(holder, fetch_wit, now, max_held=most)
        # Whoever speaks for others is configured, and is not shut out by all those who may ask for themselves.
        own_streams, others_streams = (Streams(holder, config.max_streams) for _ in range(2))
        rules = VerifierRules(config.allow_unauthenticated_verifiers, config.allowed_foreign_jwt_claims)
        # On a volume of one pod, whoever calls is that pod.
        token = config.pod_token if config.workload == "pod" else None
        programs = PodWorkload(token) if token else attestor
        self.workload = WorkloadApi(holder, programs, now, self.tokens, self.wits, own_streams, rules)
        own = self.workload.answers
        self.auth = AuthApi(self.workload.callers, own, config.inbound)
        others = Answers(holder, now, self.tokens, for_others=True)
        # The admin socket has callers of its own.
        callers = Callers(holder, attestor)
        self.delegated = DelegatedIdentity(own, others, callers, others_streams, config.authorized_delegates)
        asked = config.broker_api
        clients = Clients(asked.clients, asked.kubernetes_clients) if asked else Clients()
        pods = self.pods.source if self.pods else None
        self.broker = BrokerApi(others, callers, others_streams, clients, pods)
        self._counted = (own_streams, others_streams, self.workload.inspecting)

    @property
    def open_streams(self) -> int:
        """How many streams are open, of all APIs."""
        return sum(len(one) for one in self._counted)

    def look_for_pods(self) -> None:
        """Have pods asked for, when they are to be known and are not."""
        if self.pods is not None:
            self.pods.look()

    def missing(self) -> list[str]:
        """Say why programs of pods cannot be told, if that is so."""
        trouble = self.pods.source.trouble if self.pods is not None else ""
        return [f"k8s_workloads: {trouble}"] if trouble else []

    async def close(self) -> None:
        """Close what asks for pods."""
        if self.pods is not None:
            await self.pods.close()


def _finder(config: Config) -> PodFinder | None:
    node = config.k8s_workloads
    if node is None:
        return None
    source = ListedPods(node.access) if node.access.asks == "kubelet" else WatchedPods(node.access)
    return PodFinder(source, looks=node.looks)


def _attestor(config: Config, names: Names, pods: PodFinder | None) -> WorkloadAttestor:
    unix, node = UnixAttestor(names), config.k8s_workloads
    return unix if node is None or pods is None else NodeAttestor(unix, pods, node.places)
