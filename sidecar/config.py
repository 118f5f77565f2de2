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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import document as yaml_text
from firedoor.segments.findings import Position
from firedoor.sidecar import settings
from firedoor.sidecar.listeners import Inbound, Listener, Outbound, parse_inbound, parse_outbound
from firedoor.sidecar.node_certificate import X509Pop
from firedoor.sidecar.settings import Findings, Section

L = TypeVar("L", bound=Listener)

ENVIRONMENT = "FIREDOOR_SIDECAR_"
# Private sockets below the data directory; the longest name decides whether the directory's own path is short enough.
RUN_DIR = "run"
LONGEST_SOCKET_NAME = "server-boot.sock"
# About half a kilobyte each.
QUEUE = 65536
ROTATE_BYTES = 64 * 1024 * 1024
ROTATE_KEEP = 5
METRICS: str | None = "127.0.0.1:9091"


@dataclass(frozen=True, slots=True)
class Option:
    """One key: its name with dots, what its value looks like, and what it is for."""

    key: str
    metavar: str
    help: str
    several: bool = False

    @property
    def flag(self) -> str:
        """The name as a flag: `--records-path`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def name(self) -> str:
        """The name as `load` takes it from `flags`: `records_path`."""
        return self.key.replace(".", "_")

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return ENVIRONMENT + self.name.upper()


OPTIONS = (
    Option("trust_domain", "TD", "the trust domain"),
    Option("broker", "HOST:PORT", "the broker or SPIRE server; several are tried in turn", several=True),
    Option("bootstrap_bundle", "FILE", "trust bundle for the first connection: SPIFFE JSON or PEM"),
    Option("join_token_file", "FILE", "a join token, used once"),
    Option("x509pop.certificate", "FILE", "this node's certificate, PEM; intermediates may follow it"),
    Option("x509pop.key", "FILE", "its key, PEM; the node attests with both as often as it has to"),
    Option("x509pop.intermediates", "FILE", "further certificates up to the broker's CA, PEM"),
    Option("auth_socket", "PATH", "where programs ask for their identity (SPIFFE Workload API)"),
    Option("admin_socket", "PATH", "status and health, for root and the sidecar's own user"),
    Option("data_dir", "DIR", "state that survives a restart"),
    Option("keep_workload_keys", "memory|disk", "disk: serve after a restart without a broker"),
    Option("segments", "PATH", "local policy, for servers that push none"),
    Option("reset_policy", "true|false", "forget the pushed policy, so that `segments` may be used"),
    Option("records.path", "FILE|stdout", "decision records, one JSON line each"),
    Option("records.queue", "N", "how many may wait to be written before any is lost"),
    Option("records.rotate_bytes", "N", "start a new file at this size"),
    Option("records.keep", "N", "how many old files stay"),
    Option("metrics", "HOST:PORT|off", "Prometheus metrics, /live and /ready, on loopback"),
    Option("log.format", "text|json", "how logs on stderr look"),
    Option("log.level", "debug|info|warning|error", "how much is logged"),
    Option("inbound", "YAML", "listeners that hand mTLS connections to the app", several=True),
    Option("outbound", "YAML", "listeners that make mTLS connections for local programs", several=True),
)


@dataclass(frozen=True, slots=True)
class Records:
    """Where decision records go; no path is stdout."""

    path: Path | None
    queue: int
    rotate_bytes: int
    keep: int


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
    # None: the node has no certificate of its own.
    x509pop: X509Pop | None
    auth_socket: Path
    admin_socket: Path
    data_dir: Path
    keep_workload_keys: bool
    segments: Path | None
    reset_policy: bool
    records: Records
    # None: off.
    metrics: str | None
    log: Log
    inbound: tuple[Inbound, ...]
    outbound: tuple[Outbound, ...]

    @property
    def server_id(self) -> SpiffeId:
        """Whom we expect at `broker`: what SPIRE's servers and ours are called."""
        return self.trust_domain.with_path("/spire/server")

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All of them."""
        return (*self.inbound, *self.outbound)

    @property
    def run_dir(self) -> Path:
        """The folder of the private sockets."""
        return self.data_dir / RUN_DIR


def load(
    path: Path | None, env: Mapping[str, str], flags: Mapping[str, str | None], *, uid: int | None = None
) -> Config:
    """Read a configuration; `flags` has an entry for each flag that was given. Raise ConfigError with every finding."""
    findings = Findings()
    file = settings.read_file(path) if path else yaml_text.Mapping(Position("(no file)", 0), ())
    root = _overridden(file, env, flags, findings)
    config = _parse(
        Section(root, "", _top_keys(), findings), findings, _Places(env, os.geteuid() if uid is None else uid)
    )
    findings.raise_if_any()
    return config


def _top_keys() -> set[str]:
    return {option.key.partition(".")[0] for option in OPTIONS}


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


def _overridden(
    file: yaml_text.Mapping, env: Mapping[str, str], flags: Mapping[str, str | None], findings: Findings
) -> yaml_text.Mapping:
    """Put what the environment and the flags say in place of what the file says."""
    known = {option.variable: option for option in OPTIONS}
    given: dict[str, tuple[str, str]] = {}
    for variable in sorted(name for name in env if name.startswith(ENVIRONMENT)):
        if variable in known:
            given[known[variable].name] = (variable, env[variable])
        elif variable != f"{ENVIRONMENT}CONFIG":
            findings.add("environment", variable, f"no such setting{settings.nearest(variable, known)}")
    flag_of = {option.name: option.flag for option in OPTIONS}
    given |= {name: (flag_of[name], value) for name, value in flags.items() if value is not None}
    tree: dict[str, yaml_text.Node] = {key.text: value for key, value in file.entries}
    names = {key.text: key for key, _ in file.entries}
    for option in OPTIONS:
        if option.name in given:
            place, text = given[option.name]
            _place(tree, option, settings.parse_value(place, text, several=option.several))
    return yaml_text.Mapping(file.at, tuple((names.get(key, _word(key, node)), node) for key, node in tree.items()))


def _place(tree: dict[str, yaml_text.Node], option: Option, node: yaml_text.Node) -> None:
    outer, _, inner = option.key.partition(".")
    if not inner:
        tree[outer] = node
        return
    old = tree.get(outer)
    entries = old.entries if isinstance(old, yaml_text.Mapping) else ()
    kept = tuple((key, value) for key, value in entries if key.text != inner)
    tree[outer] = yaml_text.Mapping(old.at if old else node.at, (*kept, (_word(inner, node), node)))


def _word(text: str, node: yaml_text.Node) -> yaml_text.Scalar:
    return yaml_text.Scalar(node.at, text, "text")


def _parse(top: Section, findings: Findings, places: _Places) -> Config:
    trust_domain = top.require("trust_domain", TrustDomain.parse, TrustDomain.parse("missing"))
    top.require_some("broker", "the address of a broker, as host:port")
    data_dir = top.parse("data_dir", settings.path, places.state)
    config = Config(
        trust_domain=trust_domain,
        broker=top.each("broker", settings.host_port),
        bootstrap_bundle=top.parse("bootstrap_bundle", settings.path, None),
        join_token_file=top.parse("join_token_file", settings.path, None),
        x509pop=_x509pop(top, findings),
        auth_socket=top.parse("auth_socket", settings.socket_path, places.sockets / "auth.sock"),
        admin_socket=top.parse("admin_socket", settings.socket_path, places.sockets / "admin.sock"),
        data_dir=data_dir,
        keep_workload_keys=top.parse("keep_workload_keys", settings.choice("memory", "disk"), "memory") == "disk",
        segments=top.parse("segments", settings.path, None),
        reset_policy=top.parse("reset_policy", settings.boolean, False),
        records=_records(top, data_dir, findings),
        metrics=top.parse("metrics", _metrics, METRICS),
        log=_log(top, findings),
        inbound=_listeners(top, "inbound", trust_domain, findings, parse_inbound),
        outbound=_listeners(top, "outbound", trust_domain, findings, parse_outbound),
    )
    _check_socket_paths(config, top, findings)
    _check_names(config, findings)
    return config


def _x509pop(top: Section, findings: Findings) -> X509Pop | None:
    given = top.get("x509pop")
    if given is None:
        return None
    section = _section(top, "x509pop", ("certificate", "key", "intermediates"), findings)
    if top.get("join_token_file") is not None:
        findings.add(given.at, "x509pop", "a node attests by it or by join_token_file, not by both")
    nowhere = Path()
    return X509Pop(
        certificate=section.require("certificate", settings.path, nowhere),
        key=section.require("key", settings.path, nowhere),
        intermediates=section.parse("intermediates", settings.path, None),
    )


def _records(top: Section, data_dir: Path, findings: Findings) -> Records:
    section = _section(top, "records", ("path", "queue", "rotate_bytes", "keep"), findings)
    to_stdout = section.parse("path", str, "") == "stdout"
    return Records(
        path=None if to_stdout else section.parse("path", settings.path, data_dir / "decisions.jsonl"),
        queue=section.parse("queue", settings.integer(16, 10_000_000), QUEUE),
        rotate_bytes=section.parse("rotate_bytes", settings.integer(4096, 2**40), ROTATE_BYTES),
        keep=section.parse("keep", settings.integer(1, 1000), ROTATE_KEEP),
    )


def _log(top: Section, findings: Findings) -> Log:
    section = _section(top, "log", ("format", "level"), findings)
    return Log(
        format=section.parse("format", settings.choice("text", "json"), "text"),
        level=section.parse("level", settings.choice("debug", "info", "warning", "error"), "info"),
    )


def _section(top: Section, key: str, known: tuple[str, ...], findings: Findings) -> Section:
    return Section(top.get(key) or yaml_text.Mapping(top.node.at, ()), key, known, findings)


def _metrics(value: str) -> str | None:
    if value == "off":
        return None
    return settings.loopback_port(f"127.0.0.1{value}" if value.startswith(":") else value)


def _listeners(
    top: Section,
    key: str,
    trust_domain: TrustDomain,
    findings: Findings,
    parser: Callable[[yaml_text.Node, str, TrustDomain, Findings], L],
) -> tuple[L, ...]:
    return tuple(parser(node, f"{key}[{n}]", trust_domain, findings) for n, node in enumerate(top.items(key)))


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
                findings.add((top.get(key) or top.node).at, key, f"{value}: {error}")


def _check_names(config: Config, findings: Findings) -> None:
    for key, group in (("inbound", config.inbound), ("outbound", config.outbound)):
        named = [(one.at, f"{key}[{n}].name", one.name) for n, one in enumerate(group)]
        settings.unique(named, findings)


def validate(config: Config) -> list[str]:
    """Return what would keep this sidecar from working, a line each; nothing is started or changed."""
    from firedoor.sidecar import validation

    return validation.validate(config)
