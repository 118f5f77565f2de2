# SPDX-License-Identifier: Apache-2.0
"""The configuration: where a value comes from, and how each problem is named with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.certs import KeyType
from tests.broker.harness import POLICY

GOOD = """\
trust_domain: example.org
listen: 127.0.0.1:9000
data_dir: /tmp/fd/data
admin_socket: /tmp/fd/admin.sock
ca_ttl: 48h
log: {format: json}
rate_limits:
  attestation: 2.5
  attestation_burst: 7
"""


def load(tmp_path: Path, text: str, env: dict[str, str] | None = None, **flags: str | None) -> config.Config:
    file = tmp_path / "broker.yaml"
    file.write_text(text)
    return config.load(file, env or {}, flags)


def findings(tmp_path: Path, text: str, env: dict[str, str] | None = None, **flags: str | None) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        load(tmp_path, text, env, **flags)
    return [f.removeprefix(f"{tmp_path}/") for f in wrong.value.findings]


def test_a_file_is_read(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert (found.trust_domain.name, found.listen, found.ca_ttl) == ("example.org", "127.0.0.1:9000", 48 * 3600)
    assert (found.log_format, found.log_level) == ("json", "info")
    assert (found.attestation.per_second, found.attestation.burst) == (2.5, 7)
    assert found.database == "sqlite:////tmp/fd/data/broker.db"
    assert found.audit_log == Path("/tmp/fd/data/audit.jsonl")
    assert (found.x509_svid_ttl, found.agent_ttl, found.ca_key_type) == (3600, 3600, KeyType.EC_P256)


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    env = {
        "FIREDOOR_BROKER_LISTEN": "127.0.0.1:9001",
        "FIREDOOR_BROKER_CA_TTL": "1h",
        "FIREDOOR_BROKER_LOG_LEVEL": "debug",
    }
    found = load(tmp_path, GOOD, env, ca_ttl="2h", log_format=None)
    assert (found.listen, found.ca_ttl, found.log_level, found.log_format) == ("127.0.0.1:9001", 7200, "debug", "json")


def test_every_key_can_be_set_in_each_way() -> None:
    names = [option.name for option in config.OPTIONS]
    assert len(set(names)) == len(names)
    for option in config.OPTIONS:
        assert option.flag.startswith("--")
        assert option.variable == f"FIREDOOR_BROKER_{option.name.upper()}"
        assert option.help


CASES = {
    "unknown key": ("trust_domain: a\nlisten_adress: x\n", "broker.yaml:2: listen_adress: no such key"),
    "near key": ("trust_domain: a\nlisen: x\n", "did you mean `listen`?"),
    "unknown in a group": (
        "trust_domain: a\nlog: {formt: json}\n",
        "broker.yaml:2: log.formt: no such key; did you mean",
    ),
    "list": ("trust_domain: [a]\n", "broker.yaml:1: trust_domain: must be a single value"),
    "group as value": ("trust_domain: a\nlog: json\n", "broker.yaml:2: log: must be a mapping of keys to values"),
    "trust domain": ("trust_domain: Example.org\n", "broker.yaml:1: trust_domain: a trust domain name holds only"),
    "missing": (
        "listen: 127.0.0.1:1\n",
        "broker.yaml:1: trust_domain: is missing; set it there, as FIREDOOR_BROKER_TRUST_DOMAIN or with",
    ),
    "address": ("trust_domain: a\nlisten: '8081'\n", "broker.yaml:2: listen: must be host:port"),
    "port": (
        "trust_domain: a\nlisten: 'x:99999'\n",
        "broker.yaml:2: listen: the port must be a whole number",
    ),
    "bare IPv6": ("trust_domain: a\nlisten: '::1:8081'\n", "must be host:port, with an IPv6 address in brackets"),
    "duration": ("trust_domain: a\nca_ttl: 24\n", "broker.yaml:2: ca_ttl: must be a length of time"),
    "short CA": ("trust_domain: a\nca_ttl: 10s\n", "broker.yaml:2: ca_ttl: must be between 60s"),
    "key type": ("trust_domain: a\nca_key_type: dsa\n", "broker.yaml:2: ca_key_type:"),
    "word": ("trust_domain: a\nlog: {level: loud}\n", "broker.yaml:2: log.level: must be one of debug, info"),
    "metrics for all": (
        "trust_domain: a\nmetrics: 0.0.0.0:9090\n",
        "broker.yaml:2: metrics: must be an address on loopback",
    ),
    "number": (
        "trust_domain: a\nrate_limits: {signing: fast}\n",
        "broker.yaml:2: rate_limits.signing: must be a number",
    ),
    "not a number": ("trust_domain: a\nrate_limits: {signing: nan}\n", "rate_limits.signing: must be a number"),
    "twice": ("trust_domain: a\ntrust_domain: b\n", "broker.yaml:2: the key `trust_domain` stands here and in line 1"),
    "not YAML": ("trust_domain: [\n", "this is not YAML"),
    "not a mapping": ("- a\n", "a configuration is one mapping"),
    "alias": ("trust_domain: &a x\n", "anchors (&) and aliases (*) are not read"),
    "encrypt memory": (
        "trust_domain: a\nkey_manager: memory\nkey_passphrase_file: /x\n",
        "broker.yaml:3: key_passphrase_file: there is nothing to encrypt",
    ),
}


def test_metrics_are_for_all_when_it_is_written_out(tmp_path: Path) -> None:
    found = load(tmp_path, "trust_domain: a\nmetrics: 0.0.0.0:9090\nmetrics_for_all: true\n")
    assert found.metrics == "0.0.0.0:9090"


@pytest.mark.parametrize("name", CASES)
def test_each_problem_is_named(tmp_path: Path, name: str) -> None:
    text, words = CASES[name]
    found = findings(tmp_path, text)
    assert any(words in finding for finding in found), found


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    found = findings(tmp_path, "trust_domain: A\nlisten: x\nnonsense: 1\n")
    assert len(found) == 3


def test_a_bad_flag_and_a_bad_variable_are_named_by_their_names(tmp_path: Path) -> None:
    found = findings(tmp_path, GOOD, {"FIREDOOR_BROKER_CA_TTL": "soon"}, listen="here")
    assert sorted(f.partition(": ")[0] for f in found) == ["--listen", "FIREDOOR_BROKER_CA_TTL"]


def test_an_unknown_variable_is_named(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, GOOD, {"FIREDOOR_BROKER_LISEN": "x", "FIREDOOR_BROKER_CONFIG": "x"})
    assert finding == "environment: FIREDOOR_BROKER_LISEN: no such setting; did you mean `FIREDOOR_BROKER_LISTEN`?"


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False)])
def test_a_socket_path_that_does_not_fit_is_refused(tmp_path: Path, length: int, fits: bool) -> None:
    path = "/" + "x" * (length - 1)
    if fits:
        assert load(tmp_path, GOOD, admin_socket=path)
    else:
        (finding,) = findings(tmp_path, GOOD, admin_socket=path)
        assert finding.startswith("--admin-socket: admin_socket: ")
        assert "the system allows 107" in finding


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.yaml", {}, {})


def test_validate_looks_at_what_is_named(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(POLICY)
    good = load(tmp_path, GOOD, segments=str(policy))
    assert config.validate(good) == []
    policy.write_text(POLICY.replace("port: 9000", "port: 99000"))
    (finding,) = config.validate(good)
    assert finding.startswith(f"{policy}:")
    assert "99000" in finding
    policy.unlink()
    assert "cannot be read" in config.validate(good)[0]
    secret = load(tmp_path, GOOD, key_passphrase_file=str(tmp_path / "none"))
    assert "key_passphrase_file" in config.validate(secret)[0]


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    for option in config.OPTIONS:
        try:
            config.load(None, {"FIREDOOR_BROKER_TRUST_DOMAIN": "a"}, {option.name: text})
        except ConfigError:
            continue


def test_a_policy_has_one_origin(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD + "kubernetes_policy: {cluster: prod}\n").kubernetes.policy
    assert found is not None
    assert found.cluster == "prod"
    (both,) = findings(tmp_path, GOOD + "segments: /tmp/fd/policy\nkubernetes_policy: {cluster: prod}\n")
    assert both.endswith("kubernetes_policy: the policy is in `segments` already; remove one")
    (nameless,) = findings(tmp_path, GOOD + "kubernetes_policy: {}\n")
    assert nameless.endswith("kubernetes_policy.cluster: is missing, the cluster's name")
    elsewhere = findings(tmp_path, GOOD + 'kubernetes_policy: {cluster: prod, server: "https://10.0.0.1:6443"}\n')
    assert [one.rpartition(": ")[0].rpartition(": ")[2] for one in elsewhere] == [
        "kubernetes_policy.ca",
        "kubernetes_policy.token",
    ]
