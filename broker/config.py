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
from pathlib import Path
from typing import Any, Final, Literal, cast

from firedoor.broker import values
from firedoor.broker.errors import ConfigError
from firedoor.broker.files import MAX_SOCKET_PATH
from firedoor.broker.policy import compile_documents, read_files
from firedoor.broker.ratelimit import Rate
from firedoor.broker.vouchers import read_ca_files
from firedoor.broker.x509pop import AgentPath
from firedoor.certs import KeyType, TrustDomain
from firedoor.segments import Document, PolicyErrors
from firedoor.segments import document as yaml_text

ENVIRONMENT: Final = "FIREDOOR_BROKER_"
_REQUIRED: Final[Any] = object()


@dataclass(frozen=True, slots=True)
class Option:
    """One key: its name with dots, what its value looks like, what it is for, and how it is read."""

    key: str
    metavar: str
    help: str
    parse: Callable[[str], Any]
    default: Any = _REQUIRED

    @property
    def flag(self) -> str:
        """The name as a flag: `--log-format`."""
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def name(self) -> str:
        """The name as `load` takes it from `flags`: `log_format`."""
        return self.key.replace(".", "_")

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return ENVIRONMENT + self.name.upper()


def _state_dir(kind: Literal["state", "run"]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/firedoor/broker" if kind == "state" else "/run/firedoor/broker")
    if kind == "state":
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "firedoor/broker"
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "firedoor/broker"


OPTIONS: Final = (
    Option("trust_domain", "TD", "the trust domain", TrustDomain.parse),
    Option("listen", "HOST:PORT", "where sidecars and agents connect", values.address, "0.0.0.0:8081"),
    Option("data_dir", "DIR", "the database and the keys", values.path, None),
    Option("admin_socket", "PATH", "where root and the broker's own user administer", values.socket_path, None),
    Option("segments", "PATH", "policy file or folder; without it the policy is in the database", values.path, None),
    Option("database", "URL", "sqlite:////path/to/file", values.text, None),
    Option("ca_ttl", "DURATION", "how long an authority lives", values.duration(60, 10 * 366 * 86400), 86400),
    Option("ca_key_type", "TYPE", "ec-p256, ec-p384, rsa-2048 or rsa-4096", KeyType.parse, KeyType.EC_P256),
    Option("x509_svid_ttl", "DURATION", "how long an SVID lives", values.duration(1, 366 * 86400), 3600),
    Option("jwt_svid_ttl", "DURATION", "how long a JWT-SVID lives", values.duration(1, 366 * 86400), 300),
    Option("agent_ttl", "DURATION", "how long an agent's SVID lives", values.duration(1, 366 * 86400), None),
    Option("key_manager", "disk|memory", "where authority keys are kept", values.one_of("disk", "memory"), "disk"),
    Option("key_passphrase_file", "FILE", "encrypts the keys on disk", values.path, None),
    Option("metrics", "HOST:PORT|off", "metrics, /live and /ready, on loopback", values.loopback, "127.0.0.1:9090"),
    Option("audit_log", "FILE|off", "one JSON line an event; in the data directory by default", values.path_or_off, ""),
    Option("log.format", "text|json", "how logs on stderr look", values.one_of("text", "json"), "text"),
    Option("log.level", "LEVEL", "how much is logged", values.one_of("debug", "info", "warning", "error"), "info"),
    Option("x509pop.ca_bundles", "FILES", "CAs that vouch for nodes' certificates, PEM: A,B", values.paths, ()),
    Option("x509pop.spiffe_prefix", "PATH", "take our own SVIDs below it instead", values.id_path, ""),
    Option("x509pop.agent_path", "TEMPLATE", "agents' IDs, such as cn/{cn}; {fingerprint}", AgentPath.parse, None),
    # SPIRE allows one attestation a second and address. A machine with several sidecars starts them at once.
    Option("rate_limits.attestation", "N", "attestations a second and address", values.number(0.01, 1e6), 1.0),
    Option("rate_limits.attestation_burst", "N", "attestations at once", values.integer(1, 1_000_000), 100),
    Option("rate_limits.signing", "N", "signatures a second and address", values.number(0.01, 1e6), 500.0),
    Option("rate_limits.signing_burst", "N", "signatures at once", values.integer(1, 1_000_000), 1000),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that a broker is told. Times are seconds."""

    trust_domain: TrustDomain
    listen: str
    data_dir: Path
    admin_socket: Path
    segments: Path | None
    database: str
    ca_ttl: int
    ca_key_type: KeyType
    x509_svid_ttl: int
    jwt_svid_ttl: int
    agent_ttl: int
    key_manager: Literal["disk", "memory"]
    key_passphrase_file: Path | None
    # None: off.
    metrics: str | None
    audit_log: Path | None
    log_format: Literal["text", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    x509pop_ca_bundles: tuple[Path, ...]
    # Empty: nodes' certificates are no SVIDs.
    x509pop_spiffe_prefix: str
    x509pop_agent_path: AgentPath
    attestation: Rate
    signing: Rate


def load(path: Path | None, env: Mapping[str, str], flags: Mapping[str, str | None]) -> Config:
    """Read the configuration. Raise ConfigError with every problem."""
    wrong: list[str] = []
    given: dict[str, tuple[str, str]] = {}
    if path is not None:
        given.update(_from_file(path, wrong))
    known = {option.name: option for option in OPTIONS}
    for option in OPTIONS:
        if option.variable in env:
            given[option.key] = (option.variable, env[option.variable])
    for name, text in flags.items():
        if name in known and text is not None:
            given[known[name].key] = (known[name].flag, text)
    found = {option.key: _value(option, given, str(path or "the configuration"), wrong) for option in OPTIONS}
    if not wrong:
        _check(found, given, wrong)
    if wrong:
        raise ConfigError(*wrong)
    return _build(found)


def _from_file(path: Path, wrong: list[str]) -> dict[str, tuple[str, str]]:
    try:
        nodes = yaml_text.read(Document(str(path), path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the file is not UTF-8 text") from error
    except PolicyErrors as error:
        raise ConfigError(*(f"{f.at}: {f.message}; {f.fix}" for f in error.findings)) from None
    if not nodes:
        return {}
    if len(nodes) > 1 or not isinstance(nodes[0], yaml_text.Mapping):
        raise ConfigError(f"{nodes[-1].at}: a configuration is one mapping of keys to values")
    return dict(_flat(nodes[0], "", wrong))


def _flat(node: yaml_text.Mapping, prefix: str, wrong: list[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    keys = {option.key for option in OPTIONS}
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for name, value in node.entries:
        key = prefix + name.text
        if key in groups and isinstance(value, yaml_text.Mapping):
            yield from _flat(value, key + ".", wrong)
        elif key not in keys:
            wrong.append(f"{name.at}: {key}: no such key{values.nearest(key, keys | groups)}")
        elif not isinstance(value, yaml_text.Scalar):
            wrong.append(f"{value.at}: {key}: must be a single value")
        elif value.type != "null":
            yield key, (str(value.at), value.text)


def _value(option: Option, given: Mapping[str, tuple[str, str]], place: str, wrong: list[str]) -> Any:
    if option.key not in given:
        if option.default is _REQUIRED:
            wrong.append(f"{place}: {option.key}: is missing; set it there, as {option.variable} or with {option.flag}")
            return None
        return option.default
    at, text = given[option.key]
    try:
        return option.parse(text)
    except values.SETTING_ERRORS as error:
        wrong.append(f"{at}: {option.key}: {error}")
        return None


def _check(found: dict[str, Any], given: Mapping[str, tuple[str, str]], wrong: list[str]) -> None:
    """Fill in the defaults that depend on others, and check what several keys say together."""

    def at(key: str) -> str:
        return given[key][0] if key in given else "default"

    found["data_dir"] = found["data_dir"] or _state_dir("state")
    found["admin_socket"] = found["admin_socket"] or _state_dir("run") / "admin.sock"
    found["database"] = found["database"] or f"sqlite:///{found['data_dir']}/broker.db"
    found["agent_ttl"] = found["agent_ttl"] or found["x509_svid_ttl"]
    if found["audit_log"] == "":
        found["audit_log"] = found["data_dir"] / "audit.jsonl"
    socket = found["admin_socket"]
    length = len(os.fsencode(socket))
    if length > MAX_SOCKET_PATH:
        wrong.append(
            f"{at('admin_socket')}: admin_socket: {socket} has {length} bytes; the system allows {MAX_SOCKET_PATH}"
        )
    _check_x509pop(found, given, wrong)
    if found["key_manager"] == "memory" and found["key_passphrase_file"]:
        wrong.append(f"{at('key_passphrase_file')}: key_passphrase_file: there is nothing to encrypt in memory")


def _check_x509pop(found: dict[str, Any], given: Mapping[str, tuple[str, str]], wrong: list[str]) -> None:
    prefix, path = found["x509pop.spiffe_prefix"], found["x509pop.agent_path"]
    if prefix and found["x509pop.ca_bundles"]:
        wrong.append(f"{given['x509pop.spiffe_prefix'][0]}: x509pop.spiffe_prefix: stands without x509pop.ca_bundles")
    if path is None:
        found["x509pop.agent_path"] = AgentPath.parse("{path}" if prefix else "{fingerprint}")
    elif not prefix and path.names_path:
        wrong.append(f"{given['x509pop.agent_path'][0]}: x509pop.agent_path: {{path}} needs x509pop.spiffe_prefix")


def _build(found: Mapping[str, Any]) -> Config:
    return Config(
        trust_domain=found["trust_domain"],
        listen=found["listen"],
        data_dir=found["data_dir"],
        admin_socket=found["admin_socket"],
        segments=found["segments"],
        database=found["database"],
        ca_ttl=found["ca_ttl"],
        ca_key_type=found["ca_key_type"],
        x509_svid_ttl=found["x509_svid_ttl"],
        jwt_svid_ttl=found["jwt_svid_ttl"],
        agent_ttl=found["agent_ttl"],
        key_manager=cast("Literal['disk', 'memory']", found["key_manager"]),
        key_passphrase_file=found["key_passphrase_file"],
        metrics=found["metrics"],
        audit_log=found["audit_log"],
        log_format=cast("Literal['text', 'json']", found["log.format"]),
        log_level=cast("Literal['debug', 'info', 'warning', 'error']", found["log.level"]),
        x509pop_ca_bundles=found["x509pop.ca_bundles"],
        x509pop_spiffe_prefix=found["x509pop.spiffe_prefix"],
        x509pop_agent_path=found["x509pop.agent_path"],
        attestation=Rate(found["rate_limits.attestation"], found["rate_limits.attestation_burst"]),
        signing=Rate(found["rate_limits.signing"], found["rate_limits.signing_burst"]),
    )


def validate(config: Config) -> list[str]:
    """Look at what the configuration names without starting anything; return what must be repaired."""
    findings: list[str] = []
    if config.segments is not None:
        try:
            compile_documents(read_files(config.segments), config.trust_domain)
        except ConfigError as error:
            findings.extend(error.findings)
        except PolicyErrors as error:
            findings.extend(map(str, error.findings))
    if config.key_passphrase_file is not None:
        try:
            read_passphrase(config.key_passphrase_file)
        except ConfigError as error:
            findings.extend(error.findings)
    try:
        read_ca_files(config.x509pop_ca_bundles)
    except ConfigError as error:
        findings.extend(error.findings)
    return findings


def read_passphrase(path: Path) -> bytes:
    """Read the passphrase of the keys: the file without the newline at its end. Raise ConfigError."""
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"key_passphrase_file: {path} cannot be read: {error.strerror}") from error
    if not passphrase:
        raise ConfigError(f"key_passphrase_file: {path} is empty")
    return passphrase
