# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of clusters: whose pods attest, and whose objects are the policy.

k8s_pod:
clusters:
- {name: prod}                                                        # the cluster of this broker
- {name: edge, server: "https://10.0.0.1:6443", ca: edge-ca.pem, token: edge-token}
- {name: lab, jwks: lab-keys.json, issuer: "https://lab.example.org"} # nobody is asked
k8s_psat:
clusters:
- {name: prod, service_accounts: ["spire:spire-agent"]}
kubernetes_policy: {cluster: prod}  # and server, ca, token when it is not the cluster of this broker
kubernetes_controllers: {cluster: prod, namespace: firedoor}
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from firedoor.broker import values
from firedoor.broker.errors import ConfigError
from firedoor.broker.kubernetes import registration_config, trust_config
from firedoor.broker.kubernetes.controllers import ControllerRules
from firedoor.broker.kubernetes.pod_attestors import PodCluster, PsatCluster
from firedoor.broker.kubernetes.registering import Attesting
from firedoor.broker.read_files import ReadFiles, read_capped
from firedoor.certs import BundleError, ClusterKeys
from firedoor.certs.pod_token import is_namespace, is_object_name
from firedoor.cluster.access import IN_CLUSTER, Access, server_address
from firedoor.cluster.errors import AccessUnusable
from firedoor.segments.setting_values import boolean, cluster_name, text
from firedoor.segments.settings import Option, Section

C = TypeVar("C", bound="PodRules | PsatRules")
_log = logging.getLogger("firedoor.broker.k8s_pod")
_ACCESS: Final = ("name", "server", "ca", "token")
_POD: Final = (*_ACCESS, "jwks", "issuer")
_PSAT: Final = (*_ACCESS, "service_accounts", "pod_labels", "node_labels", "agent_id_by_pod")
_POD_AUDIENCE: Final = "firedoor"
# SPIRE's default.
_PSAT_AUDIENCE: Final = "spire-server"


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("k8s_pod.clusters", "YAML", "clusters whose pods attest, each by its own token", several=True),
        option("k8s_pod.audience", "NAME", "the audience of those tokens"),
        option("k8s_psat.clusters", "YAML", "clusters whose nodes' agents attest, as SPIRE's do", several=True),
        option("k8s_psat.audience", "NAME", "the audience of their tokens"),
        option("kubernetes_policy.cluster", "NAME", "the policy is the Segments, Flows and Services of this cluster"),
        option("kubernetes_policy.server", "URL", "its API server; that of the broker's own cluster unless given"),
        option("kubernetes_policy.ca", "FILE", "its CA"),
        option("kubernetes_policy.token", "FILE", "the token that the broker comes with"),
        option("kubernetes_controllers.cluster", "NAME", "the cluster whose objects are followed and written"),
        option("kubernetes_controllers.server", "URL", "its API server; that of the broker's own unless given"),
        option("kubernetes_controllers.ca", "FILE", "its CA"),
        option("kubernetes_controllers.token", "FILE", "the token that the broker comes with"),
        option("kubernetes_controllers.namespace", "NAME", "where the Lease is; the namespace of the broker's own pod"),
        option(
            "kubernetes_controllers.directory",
            "true|false",
            "fill the directory from Services, EndpointSlices and Pods",
        ),
        *trust_config.options(environment),
        *registration_config.options(environment),
    )


@dataclass(frozen=True, slots=True)
class PodRules:
    """One cluster of `k8s_pod`. `jwks` without `access`: nobody is asked."""

    name: str
    access: Access | None
    jwks: Path | None
    issuer: str

    def open(self) -> PodCluster:
        """Read the cluster's keys, if they are what counts. Raise ConfigError."""
        keys = None if self.jwks is None else ReadFiles([self.jwks], read_cluster_keys, "keys of a cluster", _log)
        return PodCluster(self.name, self.access, keys, self.issuer)


@dataclass(frozen=True, slots=True)
class PsatRules:
    """One cluster of `k8s_psat`."""

    name: str
    access: Access
    service_accounts: frozenset[tuple[str, str]]
    pod_labels: tuple[str, ...]
    node_labels: tuple[str, ...]
    agent_id_by_pod: bool

    def open(self) -> PsatCluster:
        """Return the cluster."""
        return PsatCluster(
            self.name, self.access, self.service_accounts, self.pod_labels, self.node_labels, self.agent_id_by_pod
        )


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """The cluster whose custom resources are the policy."""

    cluster: str
    access: Access


@dataclass(frozen=True, slots=True)
class KubernetesRules:
    """Clusters whose pods attest, by the attestor; none, and it is off. `policy`: where the policy is, if in one."""

    pod_audience: str
    pods: tuple[PodRules, ...]
    psat_audience: str
    agents: tuple[PsatRules, ...]
    policy: PolicyRules | None = None
    controllers: ControllerRules | None = None

    def attesting(self, cluster: str) -> Attesting:
        """Return who attests the pods of a cluster."""
        own = any(one.name == cluster for one in self.pods)
        # An agent that is named by its pod is not found by its node.
        of_nodes = any(one.name == cluster and not one.agent_id_by_pod for one in self.agents)
        return Attesting(self.pod_audience if own else "", of_nodes)

    def checks(self) -> Iterator[Callable[[], object]]:
        """Yield what reads each file as the broker will. Each raises ConfigError."""
        for kind, clusters in (("k8s_pod", self.pods), ("k8s_psat", self.agents)):
            for one in clusters:
                if one.access is not None:
                    yield partial(_check, one.access, f"{kind}.clusters: {one.name}")
        for pod in self.pods:
            if pod.jwks is not None:
                yield partial(read_cluster_keys, [pod.jwks])
        if self.policy is not None:
            yield partial(_check, self.policy.access, "kubernetes_policy")
        if self.controllers is not None:
            yield partial(_check, self.controllers.access, "kubernetes_controllers")


def kubernetes(top: Section) -> KubernetesRules:
    """Read `k8s_pod` and `k8s_psat`."""
    pod, psat = top.section("k8s_pod"), top.section("k8s_psat")
    for key, section in (("k8s_pod", pod), ("k8s_psat", psat)):
        if top.get(key) is not None:
            section.require_some("clusters", "clusters whose pods attest, such as {name: prod}")
    return KubernetesRules(
        pod_audience=pod.parse("audience", _audience, _POD_AUDIENCE),
        pods=_each(pod, _POD, _pod),
        psat_audience=psat.parse("audience", _audience, _PSAT_AUDIENCE),
        agents=_each(psat, _PSAT, _psat),
        policy=_policy(top),
        controllers=_controllers(top),
    )


def _policy(top: Section) -> PolicyRules | None:
    section = top.section("kubernetes_policy")
    if top.get("kubernetes_policy") is None:
        return None
    return PolicyRules(section.require("cluster", cluster_name, "", ", the cluster's name"), _access(section))


def _controllers(top: Section) -> ControllerRules | None:
    section = top.section("kubernetes_controllers")
    if top.get("kubernetes_controllers") is None:
        return None
    return ControllerRules(
        cluster=section.require("cluster", cluster_name, "", ", the cluster's name"),
        access=_access(section),
        namespace=section.parse("namespace", _namespace, "") or _own_namespace(section),
        bundle=trust_config.bundle_rules(section),
        registration=registration_config.registration_rules(section),
        certificate_ttl=trust_config.certificate_ttl(section),
        directory=section.parse("directory", boolean, default=False),
    )


def _own_namespace(section: Section) -> str:
    """Return the namespace of the pod that this broker runs in."""
    try:
        return _namespace((IN_CLUSTER / "namespace").read_text("ascii").strip())
    except (OSError, ValueError):
        return section.require("namespace", _namespace, "", ": this broker runs in no pod, which would say its own")


def _namespace(value: str) -> str:
    if not is_namespace(value):
        raise ValueError("must be a name of a namespace")
    return value


def read_cluster_keys(paths: Sequence[Path]) -> ClusterKeys:
    """Read a cluster's JWK set. Raise ConfigError."""
    (path,) = paths
    try:
        return ClusterKeys.read(read_capped("k8s_pod.clusters: jwks", path))
    except BundleError as error:
        raise ConfigError(f"k8s_pod.clusters: jwks: {path}: {error}") from None


def _each(section: Section, known: Sequence[str], read: Callable[[Section], C]) -> tuple[C, ...]:
    found: dict[str, C] = {}
    for number, node in enumerate(section.items("clusters")):
        one = Section(node, section.path(f"clusters[{number}]"), known, section.findings)
        cluster = read(one)
        if cluster.name in found:
            section.findings.add(
                one.at("name"), one.path("name"), f"the name `{cluster.name}` stands in the list twice"
            )
        found[cluster.name] = cluster
    return tuple(found.values())


def _pod(section: Section) -> PodRules:
    name, jwks = section.require("name", cluster_name, ""), section.parse("jwks", values.path, None)
    issuer = section.parse("issuer", text, "")
    if (jwks is None) != (not issuer):
        section.findings.add(section.node.at, section.prefix, "jwks and issuer go together")
    # With the keys at hand the API server is asked for the pod alone, and only where it is named.
    asked = jwks is None or section.get("server") is not None
    return PodRules(name, _access(section) if asked else None, jwks, issuer)


def _psat(section: Section) -> PsatRules:
    section.require_some("service_accounts", "the accounts of agents, such as spire:spire-agent")
    return PsatRules(
        name=section.require("name", cluster_name, ""),
        access=_access(section),
        service_accounts=frozenset(section.each("service_accounts", _account)),
        pod_labels=section.each("pod_labels", text),
        node_labels=section.each("node_labels", text),
        agent_id_by_pod=section.parse("agent_id_by_pod", boolean, False),
    )


def _access(section: Section) -> Access:
    server = section.parse("server", server_address, "")
    files: Mapping[str, Path] = {"ca": IN_CLUSTER / "ca.crt", "token": IN_CLUSTER / "token"}
    if server:
        for key in files:
            section.require(key, values.path, Path(), ", which `server` needs")
    ca, token = (section.parse(key, values.path, files[key]) for key in ("ca", "token"))
    return Access(server, ca, token)


def _check(access: Access, setting: str) -> None:
    """Read what is needed, as it is now. Raise ConfigError."""
    try:
        access.check()
    except AccessUnusable as error:
        raise ConfigError(f"{setting}: {error}") from None


def _audience(value: str) -> str:
    if not value or len(value) > 255:
        raise ValueError("must have 1 to 255 characters")
    return value


def _account(value: str) -> tuple[str, str]:
    namespace, _, name = value.partition(":")
    if not is_namespace(namespace) or not is_object_name(name):
        raise ValueError("must be NAMESPACE:SERVICE-ACCOUNT")
    return namespace, name
