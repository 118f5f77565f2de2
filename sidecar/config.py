# SPDX-License-Identifier: Apache-2.0
"""The sidecar's configuration: one YAML file; every key also as `FIREDOOR_SIDECAR_<KEY>` and as a flag, dots as `_`.

    trust_domain: example.org
    broker: ["broker.internal:8081"]
    bootstrap_bundle: /etc/firedoor/bundle.json
    join_token_file: /etc/firedoor/token
    records: {path: /var/log/firedoor/decisions.jsonl, queue: 65536, rotate_bytes: 67108864, keep: 5}
    inbound: [...]

A flag wins over the environment, the environment over the file. `load` reads and checks the form; `validate` also
looks at files, and at the policy when it is known.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import SettingsError
from firedoor.segments import document as yaml_text
from firedoor.segments.setting_values import (
    boolean,
    choice,
    host_port,
    integer,
    ip_port,
    metrics,
    split_host_port,
    text,
)
from firedoor.segments.settings import NOTHING, Findings, Option, Section, layered, read_mapping
from firedoor.sidecar import captured, dns_config, evidence_config, node_config, probes, settings
from firedoor.sidecar.capture import settings as capture_settings
from firedoor.sidecar.capture.settings import Capture
from firedoor.sidecar.dns_config import Dns
from firedoor.sidecar.errors import ConfigError
from firedoor.sidecar.http_challenge import HttpNonce
from firedoor.sidecar.listeners import Inbound, Listener, Outbound, parse_inbound, parse_outbound
from firedoor.sidecar.namespace import settings as run_settings
from firedoor.sidecar.namespace.settings import Run
from firedoor.sidecar.node_certificate import X509Pop
from firedoor.sidecar.node_config import NodeWorkloads
from firedoor.sidecar.pod_token import ClusterToken, PodProof
from firedoor.sidecar.probes import Probe
from firedoor.sidecar.ssh_certificate import SshPop

L = TypeVar("L", bound=Listener)

ENVIRONMENT = "FIREDOOR_SIDECAR_"
# Private sockets below the data directory; the longest name decides whether the directory's own path is short enough.
RUN_DIR = "run"
LONGEST_SOCKET_NAME = "server-boot.sock"
# About half a kilobyte each.
QUEUE = 65536
ROTATE_BYTES = 64 * 1024 * 1024
ROTATE_KEEP = 5
# SPIRE's default.
CACHE = 1000
LARGEST_CACHE = 10_000_000
# About 30 KiB each.
STREAMS = 1000
METRICS: str | None = "127.0.0.1:9091"

_option = partial(Option, ENVIRONMENT)

OPTIONS = (
    _option("trust_domain", "TD", "the trust domain"),
    _option("broker", "HOST:PORT", "the broker or SPIRE server; several are tried in turn", several=True),
    _option("bootstrap_bundle", "FILE", "trust bundle for the first connection: SPIFFE JSON or PEM"),
    _option("join_token_file", "FILE", "a join token, used once"),
    *evidence_config.options(ENVIRONMENT),
    _option("auth_socket", "PATH", "where programs ask for their identity (SPIFFE Workload API)"),
    _option("workload", "process|pod", "pod: whoever reaches auth_socket is this pod, told by its token"),
    *node_config.options(ENVIRONMENT),
    _option("admin_socket", "PATH", "status and health, for root and the sidecar's own user"),
    _option("authorized_delegates", "ID", "who may ask there for identities of other programs", several=True),
    _option("broker_api.listen", "IP:PORT", "where the SPIFFE Broker API is served; off without it"),
    _option("broker_api.clients", "ID", "who may ask there for identities of other programs", several=True),
    _option("broker_api.kubernetes_clients", "ID", "who may ask there for those of pods of this node", several=True),
    _option("allow_unauthenticated_verifiers", "true|false", "whether bundles go to programs without an identity too"),
    _option("allowed_foreign_jwt_claims", "CLAIM", "what ValidateJWTSVID tells of foreign tokens", several=True),
    _option("data_dir", "DIR", "state that survives a restart"),
    _option("keep_workload_keys", "memory|disk", "disk: serve after a restart without a broker"),
    _option("x509_svid_cache_max_size", "N", "how many X.509-SVIDs are held, beside those that somebody uses now"),
    _option("jwt_svid_cache_max_size", "N", "how many JWT-SVIDs are held, and as many WIT-SVIDs"),
    _option("max_streams", "N", "how many streams one user or pod, or one client of the Broker API, may have open"),
    _option("segments", "PATH", "local policy, for servers that push none"),
    _option("reset_policy", "true|false", "forget the pushed policy, so that `segments` may be used"),
    _option("records.path", "FILE|stdout", "decision records, one JSON line each"),
    _option("records.queue", "N", "how many may wait to be written before any is lost"),
    _option("records.rotate_bytes", "N", "start a new file at this size"),
    _option("records.keep", "N", "how many old files stay"),
    _option("metrics", "HOST:PORT|off", "Prometheus metrics, /live and /ready, on loopback"),
    _option("log.format", "text|json", "how logs on stderr look"),
    _option("log.level", "debug|info|warning|error", "how much is logged"),
    _option("inbound", "YAML", "listeners that hand mTLS connections to the app", several=True),
    _option("outbound", "YAML", "listeners that make mTLS connections for local programs", several=True),
    *capture_settings.options(ENVIRONMENT),
    *run_settings.options(ENVIRONMENT),
    *captured.options(ENVIRONMENT),
    *dns_config.options(ENVIRONMENT),
)


@dataclass(frozen=True, slots=True)
class Records:
    """Where decision records go; no path is stdout."""

    path: Path | None
    queue: int
    rotate_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class BrokerApiConfig:
    """Where the SPIFFE Broker API is served, and to whom."""

    listen: str
    # By the number of a process.
    clients: frozenset[SpiffeId]
    # By an object of Kubernetes.
    kubernetes_clients: frozenset[SpiffeId] = frozenset()


@dataclass(frozen=True, slots=True)
class Log:
    """How to log."""

    format: str
    level: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that a sidecar is told."""

    trust_domain: TrustDomain
    broker: tuple[str, ...]
    bootstrap_bundle: Path | None
    join_token_file: Path | None
    # At most one of these and of the token; None: the node has no such thing.
    x509pop: X509Pop | None
    sshpop: SshPop | None
    http_challenge: HttpNonce | None
    pod_token: ClusterToken | None
    auth_socket: Path
    # Who calls there: processes that are told apart, or this pod.
    workload: Literal["process", "pod"]
    # None: what pod a process is of is not asked.
    k8s_workloads: NodeWorkloads | None
    admin_socket: Path
    authorized_delegates: frozenset[SpiffeId]
    # None: off.
    broker_api: BrokerApiConfig | None
    allow_unauthenticated_verifiers: bool
    # Beside the registered ones.
    allowed_foreign_jwt_claims: frozenset[str]
    data_dir: Path
    keep_workload_keys: bool
    x509_svid_cache_max_size: int
    jwt_svid_cache_max_size: int
    max_streams: int
    segments: Path | None
    reset_policy: bool
    records: Records
    # None: off.
    metrics: str | None
    log: Log
    inbound: tuple[Inbound, ...]
    outbound: tuple[Outbound, ...]
    # None: nothing is captured.
    capture: Capture | None
    # What is captured is served by these; without an identity for it there are none.
    captured: tuple[Listener, ...]
    probes: tuple[Probe, ...]
    # None: nothing is captured.
    dns: Dns | None = None
    # The ports of our listeners that others reach, for the rules of capture.
    open_ports: tuple[int, ...] = ()
    # None: `firedoor run` does not start this sidecar.
    run: Run | None = None

    @property
    def server_id(self) -> SpiffeId:
        """Whom we expect at `broker`: what SPIRE's servers and ours are called."""
        return self.trust_domain.with_path("/spire/server")

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All of them."""
        return (*self.inbound, *self.outbound, *self.captured)

    @property
    def run_dir(self) -> Path:
        """The folder of the private sockets."""
        return self.data_dir / RUN_DIR


def load(
    path: Path | None, env: Mapping[str, str], flags: Mapping[str, str | None], *, uid: int | None = None
) -> Config:
    """Read a configuration; `flags` has an entry for each flag that was given. Raise ConfigError with every finding."""
    findings = Findings()
    try:
        file = read_mapping(str(path), _read(path)) if path else NOTHING
        places = _Places(env, os.geteuid() if uid is None else uid)
        config = _parse(layered(file, OPTIONS, env, flags, findings), findings, places)
        findings.raise_if_any()
    except SettingsError as error:
        raise ConfigError(error.findings) from None
    return config


def defaults(config: Config, env: Mapping[str, str]) -> Config:
    """Return a configuration with root's places as they are when nothing names others."""
    places = _Places(env, 0)
    state, sockets = places.state, places.sockets
    return replace(config, data_dir=state, auth_socket=sockets / "auth.sock", admin_socket=sockets / "admin.sock")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: the file cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: the file cannot be read: it is not UTF-8"]) from error


@dataclass(frozen=True, slots=True)
class _Places:
    """Where things are when nothing says otherwise."""

    env: Mapping[str, str]
    uid: int

    @property
    def state(self) -> Path:
        if self.uid == 0:
            return Path("/var/lib/firedoor/sidecar")
        base = self.env.get("XDG_STATE_HOME") or f"{self.env.get('HOME', '/nonexistent')}/.local/state"
        return Path(base) / "firedoor/sidecar"

    @property
    def sockets(self) -> Path:
        if self.uid == 0:
            return Path("/run/firedoor/sidecar")
        return Path(self.env.get("XDG_RUNTIME_DIR") or f"/run/user/{self.uid}") / "firedoor/sidecar"


def _parse(top: Section, findings: Findings, places: _Places) -> Config:
    trust_domain = top.require("trust_domain", TrustDomain.parse, TrustDomain.parse("missing"))
    top.require_some("broker", "the address of a broker, as host:port")
    data_dir = top.parse("data_dir", settings.path, places.state)
    config = Config(
        trust_domain=trust_domain,
        broker=top.each("broker", host_port),
        bootstrap_bundle=top.parse("bootstrap_bundle", settings.path, None),
        join_token_file=top.parse("join_token_file", settings.path, None),
        x509pop=evidence_config.x509pop(top),
        sshpop=evidence_config.sshpop(top),
        http_challenge=evidence_config.http_challenge(top),
        pod_token=evidence_config.pod_token(top),
        workload=cast("Literal['process', 'pod']", top.parse("workload", choice("process", "pod"), "process")),
        k8s_workloads=node_config.node_workloads(top),
        auth_socket=top.parse("auth_socket", settings.socket_path, places.sockets / "auth.sock"),
        admin_socket=top.parse("admin_socket", settings.socket_path, places.sockets / "admin.sock"),
        authorized_delegates=frozenset(top.each("authorized_delegates", settings.own_workload_id(trust_domain))),
        broker_api=_broker_api(top, trust_domain),
        allow_unauthenticated_verifiers=top.parse("allow_unauthenticated_verifiers", boolean, False),
        allowed_foreign_jwt_claims=frozenset(top.each("allowed_foreign_jwt_claims", text)),
        data_dir=data_dir,
        keep_workload_keys=top.parse("keep_workload_keys", choice("memory", "disk"), "memory") == "disk",
        x509_svid_cache_max_size=top.parse("x509_svid_cache_max_size", integer(1, LARGEST_CACHE), CACHE),
        jwt_svid_cache_max_size=top.parse("jwt_svid_cache_max_size", integer(1, LARGEST_CACHE), CACHE),
        max_streams=top.parse("max_streams", integer(1, 1_000_000), STREAMS),
        segments=top.parse("segments", settings.path, None),
        reset_policy=top.parse("reset_policy", boolean, False),
        records=_records(top, data_dir),
        metrics=top.parse("metrics", metrics, METRICS),
        log=_log(top),
        inbound=_listeners(top, "inbound", trust_domain, findings, parse_inbound),
        outbound=_listeners(top, "outbound", trust_domain, findings, parse_outbound),
        capture=capture_settings.parse(top),
        run=run_settings.parse(top),
        captured=(),
        probes=(),
    )
    evidence_config.check_one(top)
    if config.workload == "pod" and not isinstance(config.pod_token, PodProof):
        findings.add(top.at("workload"), "workload", "`pod` needs k8s_pod, whose token says which pod it is")
    if config.workload == "pod" and config.k8s_workloads is not None:
        findings.add(top.at("k8s_workloads"), "k8s_workloads", "is for the socket of a node, not of one pod")
    _check_socket_paths(config, top, findings)
    _check_names(config, findings)
    return _with_capture(_with_open_ports(config, top, findings), top, findings)


def _broker_api(top: Section, trust_domain: TrustDomain) -> BrokerApiConfig | None:
    if top.get("broker_api") is None:
        return None
    section = top.section("broker_api")
    by_object = section.get("kubernetes_clients") is not None
    if not by_object:
        section.require_some("clients", "the SPIFFE ID of a program that may ask")
    elif top.get("k8s_workloads") is None:
        key = section.path("kubernetes_clients")
        section.findings.add(
            section.at("kubernetes_clients"), key, "needs k8s_workloads, which says which pods are here"
        )
    return BrokerApiConfig(
        listen=section.require("listen", ip_port, ""),
        clients=frozenset(section.each("clients", settings.own_workload_id(trust_domain))),
        kubernetes_clients=frozenset(section.each("kubernetes_clients", settings.own_workload_id(trust_domain))),
    )


def _records(top: Section, data_dir: Path) -> Records:
    section = top.section("records")
    to_stdout = section.parse("path", str, "") == "stdout"
    return Records(
        path=None if to_stdout else section.parse("path", settings.path, data_dir / "decisions.jsonl"),
        queue=section.parse("queue", integer(16, 10_000_000), QUEUE),
        rotate_bytes=section.parse("rotate_bytes", integer(4096, 2**40), ROTATE_BYTES),
        keep=section.parse("keep", integer(1, 1000), ROTATE_KEEP),
    )


def _log(top: Section) -> Log:
    section = top.section("log")
    return Log(
        format=section.parse("format", choice("text", "json"), "text"),
        level=section.parse("level", choice("debug", "info", "warning", "error"), "info"),
    )


def _listeners(
    top: Section,
    key: str,
    trust_domain: TrustDomain,
    findings: Findings,
    parser: Callable[[yaml_text.Node, str, TrustDomain, Findings], L],
) -> tuple[L, ...]:
    return tuple(parser(node, f"{key}[{n}]", trust_domain, findings) for n, node in enumerate(top.items(key)))


def _with_open_ports(config: Config, top: Section, findings: Findings) -> Config:
    if config.capture is None:
        return config
    listens = [(f"inbound[{n}].listen", one.listen) for n, one in enumerate(config.inbound) if one.listen]
    if config.broker_api is not None and config.broker_api.listen:
        listens.append(("broker_api.listen", config.broker_api.listen))
    if config.http_challenge is not None:
        listens.append(("http_challenge.listen", config.http_challenge.listen))
    ports = capture_settings.open_ports(config.capture, listens, partial(findings.add, top.at("capture")))
    return replace(config, open_ports=ports)


def _with_capture(config: Config, top: Section, findings: Findings) -> Config:
    capture = config.capture
    if capture is None:
        return config
    section = top.section("capture")
    # No app of the namespace is there; loopback alone does not keep a peer away that is led through us.
    reserved = {capture.probe_port, capture.dns_port, *config.open_ports}
    if config.metrics is not None:
        reserved.add(split_host_port(config.metrics)[1])
    ipv6 = _ipv6_addresses()
    places = captured.Places(
        inbound=capture.inbound_port,
        outbound=capture.outbound_port,
        reserved=tuple(sorted(reserved - {0})),
        ipv6=ipv6 is not None,
        ipv6_loopback="00000000000000000000000000000001" in (ipv6 or ""),
    )
    listeners = captured.parse(section, config.trust_domain, places)
    taken = {(one.direction, one.name) for one in listeners}
    for one in config.listeners:
        if (one.direction, one.name) in taken:
            findings.add(one.at, one.direction, f"the name `{one.name}` is that of a listener of capture")
    relay = tuple(f"{host}:{capture.dns_port}" for host in ("127.0.0.1", "[::1]")[: 1 + places.ipv6_loopback])
    return replace(
        config,
        captured=listeners,
        probes=probes.parse(section),
        dns=dns_config.parse(section, relay, elsewhere=config.run is not None),
    )


def _ipv6_addresses() -> str | None:
    """Return what the kernel lists of them; None when it knows no IPv6."""
    try:
        return Path("/proc/net/if_inet6").read_text(encoding="ascii")
    except OSError:
        return None


def _check_socket_paths(config: Config, top: Section, findings: Findings) -> None:
    """Check what was not checked where it was read: the defaults, and the sockets in the data directory."""
    paths: dict[str, Any] = {
        "auth_socket": config.auth_socket,
        "admin_socket": config.admin_socket,
        "data_dir": config.run_dir / LONGEST_SOCKET_NAME,
    }
    for key, value in paths.items():
        if top.get(key) is None or key == "data_dir":
            try:
                settings.check_socket_path(value)
            except ValueError as error:
                findings.add(top.at(key), key, f"{value}: {error}")


def _check_names(config: Config, findings: Findings) -> None:
    for key, group in (("inbound", config.inbound), ("outbound", config.outbound)):
        named = [(one.at, f"{key}[{n}].name", one.name) for n, one in enumerate(group)]
        settings.unique(named, findings)


def validate(config: Config) -> list[str]:
    """Return what would keep this sidecar from working, a line each; nothing is started or changed."""
    from firedoor.sidecar import validation

    return validation.validate(config)
