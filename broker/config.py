# SPDX-License-Identifier: Apache-2.0
"""The broker's configuration: one YAML file; every key also as `FIREDOOR_BROKER_<KEY>` and as a flag, dots as `_`.

    trust_domain: example.org
    listen: 0.0.0.0:8081
    segments: /etc/firedoor/segments
    ca_ttl: 24h
    log: {format: json}

A flag wins over the environment, the environment over the file. `load` reads and checks the form and names every
problem with file, line and key; `validate` also looks at the files that it names, and at the policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, cast, get_args

from firedoor.broker import attestor_config, endpoint_config, upstream_config, values
from firedoor.broker.attestor_config import SshPopRules, X509PopRules
from firedoor.broker.db import postgres, sqlite
from firedoor.broker.endpoint_config import BundleEndpoint, Oidc
from firedoor.broker.errors import ConfigError, DatabaseError
from firedoor.broker.files import MAX_SOCKET_PATH
from firedoor.broker.http_challenge import HttpChallengeRules
from firedoor.broker.injector import settings as injector_settings
from firedoor.broker.injector.settings import InjectorRules
from firedoor.broker.keys import settings as key_settings
from firedoor.broker.keys.settings import KeyManagerRules
from firedoor.broker.kubernetes import config as kubernetes_config
from firedoor.broker.oidc import read_issuer
from firedoor.broker.policy import compile_documents
from firedoor.broker.policy_origin import read_files
from firedoor.broker.ratelimit import Rate
from firedoor.broker.relationship_file import read_relationships
from firedoor.broker.roles import Role, Roles, read_holder
from firedoor.broker.sshpop import read_authority_files
from firedoor.broker.upstream.disk import UpstreamFiles
from firedoor.broker.upstream.vault import UpstreamVault
from firedoor.broker.vouchers import read_ca_files
from firedoor.certs import KeyType, TrustDomain
from firedoor.certs.authority import Kind
from firedoor.segments import Loader, PolicyErrors, SettingsError
from firedoor.segments.setting_values import boolean, choice, duration, host_port, integer, metrics, number
from firedoor.segments.settings import NOTHING, Findings, Option, Section, layered, read_mapping

ENVIRONMENT: Final = "FIREDOOR_BROKER_"
_METRICS: Final[str | None] = "127.0.0.1:9090"
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
# A year: an SVID of this length is a mistake already.
_MOST_SECONDS: Final = 366 * 86400


def _state_dir(kind: Literal["state", "run"]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/firedoor/broker" if kind == "state" else "/run/firedoor/broker")
    if kind == "state":
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "firedoor/broker"
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "firedoor/broker"


_option = partial(Option, ENVIRONMENT)
OPTIONS: Final = (
    _option("trust_domain", "TD", "the trust domain"),
    _option("listen", "HOST:PORT", "where sidecars and agents connect"),
    _option("data_dir", "DIR", "the database and the keys"),
    _option("admin_socket", "PATH", "where root and the broker's own user administer"),
    _option("admin_ids", "PATTERN", "who administers over the network beside entries that say so", several=True),
    _option(
        "operator_ids", "PATTERN", "who may do all but mint, replace the policy and make administrators", several=True
    ),
    _option("policy_ids", "PATTERN", "who may see everything and replace the policy", several=True),
    _option("viewer_ids", "PATTERN", "who may see everything", several=True),
    _option("segments", "PATH", "policy file or folder; without it the policy is in the database"),
    _option("database", "URL", "sqlite:////path/to/file, or postgresql://user@host/name for several brokers"),
    _option("database_password_file", "FILE", "the password for PostgreSQL, which the URL must not have"),
    _option("ca_ttl", "DURATION", "how long an authority lives"),
    _option("ca_key_type", "TYPE", "ec-p256, ec-p384, rsa-2048 or rsa-4096"),
    _option("rotation.x509", "DURATION", "how old an X.509 authority gets; by its own clock unless given"),
    _option("rotation.jwt", "DURATION", "how old a JWT authority gets; by its own clock unless given"),
    _option("rotation.wit", "DURATION", "how old a WIT authority gets; by its own clock unless given"),
    _option("x509_svid_ttl", "DURATION", "how long an SVID lives"),
    _option("jwt_svid_ttl", "DURATION", "how long a JWT-SVID lives"),
    _option("jwt_issuer", "URL", "the iss of JWT-SVIDs, for relying parties of OIDC; none unless given"),
    _option("agent_ttl", "DURATION", "how long an agent's SVID lives"),
    _option("breakglass_ttl", "DURATION", "the longest emergency access that two people open"),
    *key_settings.options(ENVIRONMENT),
    _option("key_passphrase_file", "FILE", "encrypts the keys on disk"),
    _option("metrics", "HOST:PORT|off", "metrics, /live and /ready, on loopback"),
    _option("metrics_for_all", "true|false", "`metrics` may be another address: whoever reaches it may read them"),
    _option("audit_log", "FILE|off", "one JSON line an event; in the data directory by default"),
    _option("log.format", "text|json", "how logs on stderr look"),
    _option("log.level", "debug|info|warning|error", "how much is logged"),
    *attestor_config.options(ENVIRONMENT),
    *kubernetes_config.options(ENVIRONMENT),
    *injector_settings.options(ENVIRONMENT),
    *endpoint_config.options(ENVIRONMENT),
    *upstream_config.options(ENVIRONMENT),
    _option(
        "anonymous_connections",
        "N",
        "connections of callers without a certificate at once, an eighth of them for one address",
    ),
    _option("rate_limits.attestation", "N", "attestations a second and address"),
    _option("rate_limits.attestation_burst", "N", "attestations at once"),
    _option("rate_limits.signing", "N", "signatures a second and address"),
    _option("rate_limits.signing_burst", "N", "signatures at once"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that a broker is told. Times are seconds."""

    trust_domain: TrustDomain
    listen: str
    data_dir: Path
    admin_socket: Path
    roles: Roles
    segments: Path | None
    database: str
    database_password_file: Path | None
    ca_ttl: int
    ca_key_type: KeyType
    # How old an authority gets before it is rotated; kinds that are not here go by the clock of authorities.
    rotation: Mapping[Kind, int]
    x509_svid_ttl: int
    jwt_svid_ttl: int
    agent_ttl: int
    breakglass_ttl: int
    # Empty: tokens have none.
    jwt_issuer: str
    key_manager: KeyManagerRules
    key_passphrase_file: Path | None
    # None: off.
    metrics: str | None
    audit_log: Path | None
    log_format: LogFormat
    log_level: LogLevel
    x509pop: X509PopRules
    # None: off.
    sshpop: SshPopRules | None
    http_challenge: HttpChallengeRules | None
    kubernetes: kubernetes_config.KubernetesRules
    # None: off.
    injector: InjectorRules | None
    bundle_endpoint: BundleEndpoint | None
    oidc: Oidc | None
    federation_relationships: Path | None
    # None: the broker is a root itself.
    upstream: upstream_config.Upstream | None
    # Each may cost 40 MiB of memory for a moment; raise it where many nodes share an address.
    anonymous_connections: int
    attestation: Rate
    signing: Rate


def load(path: Path | None, env: Mapping[str, str], flags: Mapping[str, str | None]) -> Config:
    """Read the configuration. Raise ConfigError with every problem."""
    findings = Findings()
    try:
        file = read_mapping(str(path), _read(path)) if path else NOTHING
        config = _parse(layered(file, OPTIONS, env, flags, findings), findings)
        findings.raise_if_any()
    except SettingsError as error:
        raise ConfigError(*error.findings) from None
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the file cannot be read: it is not UTF-8") from error


def _parse(top: Section, findings: Findings) -> Config:
    hint = f"; set it there, as {ENVIRONMENT}TRUST_DOMAIN or with --trust-domain"
    ttl, log = duration(1, _MOST_SECONDS), top.section("log")
    data_dir = top.parse("data_dir", values.path, _state_dir("state"))
    x509_svid_ttl = top.parse("x509_svid_ttl", ttl, 3600)
    audit_log: Path | None = data_dir / "audit.jsonl"
    bundle_endpoint = endpoint_config.bundle_endpoint(top.section("bundle_endpoint"))
    jwt_issuer = top.parse("jwt_issuer", read_issuer, "")
    metrics_for_all = top.parse("metrics_for_all", boolean, default=False)
    kubernetes = kubernetes_config.kubernetes(top)
    trust_domain = top.require("trust_domain", TrustDomain.parse, TrustDomain.parse("missing"), hint)
    config = Config(
        trust_domain=trust_domain,
        listen=top.parse("listen", host_port, "0.0.0.0:8081"),
        data_dir=data_dir,
        admin_socket=top.parse("admin_socket", values.socket_path, _state_dir("run") / "admin.sock"),
        roles=_roles(top, trust_domain),
        segments=top.parse("segments", values.path, None),
        database=top.parse("database", _database_url, f"sqlite:///{data_dir}/broker.db"),
        database_password_file=top.parse("database_password_file", values.path, None),
        ca_ttl=top.parse("ca_ttl", duration(60, 10 * _MOST_SECONDS), 86400),
        ca_key_type=top.parse("ca_key_type", KeyType.parse, KeyType.EC_P256),
        rotation=_rotation(top.section("rotation")),
        x509_svid_ttl=x509_svid_ttl,
        jwt_svid_ttl=top.parse("jwt_svid_ttl", ttl, 300),
        agent_ttl=top.parse("agent_ttl", ttl, x509_svid_ttl),
        breakglass_ttl=top.parse("breakglass_ttl", duration(1, 86400), 3600),
        jwt_issuer=jwt_issuer,
        key_manager=key_settings.key_manager(top),
        key_passphrase_file=top.parse("key_passphrase_file", values.path, None),
        metrics=top.parse("metrics", partial(metrics, open_to_all=metrics_for_all), _METRICS),
        audit_log=top.parse("audit_log", values.path_or_off, audit_log),
        log_format=cast("LogFormat", log.parse("format", choice("text", "json"), "text")),
        log_level=cast("LogLevel", log.parse("level", choice("debug", "info", "warning", "error"), "info")),
        x509pop=attestor_config.x509pop(top.section("x509pop")),
        sshpop=attestor_config.sshpop(top),
        http_challenge=attestor_config.http_challenge(top),
        kubernetes=kubernetes,
        injector=injector_settings.injector(top, kubernetes.pod_audience),
        bundle_endpoint=bundle_endpoint,
        oidc=endpoint_config.oidc(top.section("oidc"), jwt_issuer, bundle_endpoint),
        upstream=upstream_config.upstream(top.section("upstream")),
        federation_relationships=top.section("federation").parse("relationships", values.path, None),
        anonymous_connections=top.parse("anonymous_connections", integer(1, 65536), 64),
        # SPIRE allows one attestation a second and address. A machine with several sidecars starts them at once.
        attestation=_rate(top, "attestation", Rate(1.0, 100)),
        signing=_rate(top, "signing", Rate(500.0, 1000)),
    )
    _check(config, top, findings)
    return config


def _database_url(text: str) -> str:
    """Read the URL of a database; what is wrong is said without it. Raise ValueError."""
    try:
        (postgres if postgres.is_postgres(text) else sqlite).read_url(text)
    except DatabaseError as error:
        raise ValueError(str(error)) from None
    return text


def _roles(top: Section, trust_domain: TrustDomain) -> Roles:
    read = partial(read_holder, own=trust_domain)
    return Roles({role: tuple(dict.fromkeys(top.each(f"{role.value}_ids", read))) for role in Role})


def _rotation(section: Section) -> dict[Kind, int]:
    read = duration(60, 10 * _MOST_SECONDS)
    found = {kind: section.parse(kind, read, None) for kind in get_args(Kind)}
    return {kind: every for kind, every in found.items() if every is not None}


def _rate(top: Section, what: str, default: Rate) -> Rate:
    section = top.section("rate_limits")
    return Rate(
        section.parse(what, number(0.01, 1e6), default.per_second),
        section.parse(f"{what}_burst", integer(1, 1_000_000), default.burst),
    )


def _check(config: Config, top: Section, findings: Findings) -> None:
    """Check what several keys say together, and the defaults."""
    socket, length = config.admin_socket, len(os.fsencode(config.admin_socket))
    for kind, every in config.rotation.items():
        if every > config.ca_ttl // 2:
            section = top.section("rotation")
            findings.add(
                section.at(kind), section.path(kind), "is more than half of ca_ttl; another is made before that"
            )
    if length > MAX_SOCKET_PATH:
        findings.add(
            top.at("admin_socket"), "admin_socket", f"{socket} has {length} bytes; the system allows {MAX_SOCKET_PATH}"
        )
    if config.database_password_file and not postgres.is_postgres(config.database):
        findings.add(top.at("database_password_file"), "database_password_file", "an SQLite file has no password")
    controllers = config.kubernetes.controllers
    if controllers is not None and controllers.certificate_ttl > config.ca_ttl // 6:
        least = f"ca_ttl must be at least six times as long ({6 * controllers.certificate_ttl} s)"
        findings.add(
            top.at("kubernetes_controllers"),
            "kubernetes_controllers.pod_certificate_ttl",
            f"{least}: an authority that is soon replaced could sign none",
        )
    bundle, injector = controllers.bundle if controllers is not None else None, config.injector
    if bundle is not None and injector is not None and bundle.config_map != injector.bundle_config_map:
        findings.add(
            top.at("kubernetes_controllers"),
            "kubernetes_controllers.bundle_config_map",
            f"sidecars are told of another, {injector.bundle_config_map} (injector.bundle_config_map)",
        )
    if config.segments is not None and config.kubernetes.policy is not None:
        findings.add(
            top.at("kubernetes_policy"), "kubernetes_policy", "the policy is in `segments` already; remove one"
        )
    if config.key_manager == "memory" and config.key_passphrase_file:
        findings.add(top.at("key_passphrase_file"), "key_passphrase_file", "there is nothing to encrypt in memory")
    if not isinstance(config.key_manager, str) and config.key_passphrase_file:
        findings.add(top.at("key_passphrase_file"), "key_passphrase_file", "is for keys on disk; a device has its own")


def validate(config: Config) -> list[str]:
    """Look at what the configuration names without starting anything; return what must be repaired."""
    findings: list[str] = []
    if config.segments is not None:
        try:
            compile_documents(read_files(config.segments), Loader(config.trust_domain))
        except ConfigError as error:
            findings.extend(error.findings)
        except PolicyErrors as error:
            findings.extend(map(str, error.findings))
    for check in _checks(config):
        try:
            check()
        except ConfigError as error:
            findings.extend(error.findings)
    return findings


def _checks(config: Config) -> Iterator[Callable[[], object]]:
    """Yield what reads each file as the broker will. Each raises ConfigError."""
    if config.database_password_file is not None:
        yield partial(postgres.read_password, config.database_password_file)
    if config.key_passphrase_file is not None:
        yield partial(read_passphrase, config.key_passphrase_file)
    if not isinstance(config.key_manager, str):
        yield config.key_manager.check
    yield partial(read_ca_files, config.x509pop.ca_bundles)
    if config.sshpop is not None:
        yield partial(read_authority_files, config.sshpop.cert_authorities)
    yield from config.kubernetes.checks()
    served = [one.endpoint.files for one in (config.bundle_endpoint, config.oidc) if one is not None]
    for files in dict.fromkeys(served):
        if files is not None:
            yield files.read
    if isinstance(config.upstream, UpstreamFiles):
        yield partial(config.upstream.read, config.trust_domain)
    if isinstance(config.upstream, UpstreamVault):
        yield partial(config.upstream.check, config.trust_domain)
    if config.federation_relationships is not None:
        yield partial(read_relationships, config.federation_relationships, config.trust_domain)


def read_passphrase(path: Path) -> bytes:
    """Read the passphrase of the keys: the file without the newline at its end. Raise ConfigError."""
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"key_passphrase_file: {path} cannot be read: {error.strerror}") from error
    if not passphrase:
        raise ConfigError(f"key_passphrase_file: {path} is empty")
    return passphrase
