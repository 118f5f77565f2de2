# SPDX-License-Identifier: Apache-2.0
"""Configuration: three sources, strict form, and findings that name file, line and key."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.sidecar import config, listeners
from firedoor.sidecar.errors import ConfigError
from firedoor.sidecar.validation import check_listeners
from firedoor.wire import policy_pb2

GOOD = """\
trust_domain: example.org
broker: ["broker.internal:8081", "[::1]:8081"]
bootstrap_bundle: /etc/firedoor/bundle.json
data_dir: /data
inbound:
  - {name: models, as: "spiffe://example.org/segment/registry/host/h1/svc/models", listen: "0.0.0.0:19000",
     service_port: 9000, protocol: tcp, app: {address: "127.0.0.1:9000", uid: 1001}}
outbound:
  - {name: models, as: "spiffe://example.org/segment/inference/host/h2/svc/vllm", listen: "unix:/run/out/models.sock",
     protocol: tcp, expect: ["spiffe://{td}/segment/registry/host/*/svc/models"], service_port: 9000,
     addresses: ["registry.internal:19000"], mode: "0660", idle_timeout_ms: 5000}
"""


def load(tmp_path: Path, text: str = GOOD, env: dict[str, str] | None = None, **flags: str | None) -> config.Config:
    file = tmp_path / "sidecar.yaml"
    file.write_text(text)
    return config.load(file, env or {}, flags, uid=0)


def findings(tmp_path: Path, text: str, env: dict[str, str] | None = None, **flags: str | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, env, **flags)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.findings]


def test_reads_everything(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.broker == ("broker.internal:8081", "[::1]:8081")
    assert str(found.server_id) == "spiffe://example.org/spire/server"
    assert found.inbound[0].spec() == (
        '{"direction": "inbound", "name": "models", "as": "spiffe://example.org/segment/registry/host/h1/svc/models", '
        '"listen": "0.0.0.0:19000", "protocol": "tcp", "service_port": 9000, '
        '"app": {"address": "127.0.0.1:9000", "uid": 1001}}'
    )
    assert found.outbound[0].spec() == (
        '{"direction": "outbound", "name": "models", "as": "spiffe://example.org/segment/inference/host/h2/svc/vllm", '
        '"listen": "unix:/run/out/models.sock", "protocol": "tcp", "service_port": 9000, "idle_timeout_ms": 5000, '
        '"expect": ["spiffe://example.org/segment/registry/host/*/svc/models"], '
        '"addresses": ["registry.internal:19000"], "mode": "0660"}'
    )


def test_defaults_as_root_and_not(tmp_path: Path) -> None:
    text = "trust_domain: example.org\nbroker: [b:1]\n"
    file = tmp_path / "s.yaml"
    file.write_text(text)
    root = config.load(file, {}, {}, uid=0)
    assert str(root.data_dir) == "/var/lib/firedoor/sidecar"
    assert str(root.auth_socket) == "/run/firedoor/sidecar/auth.sock"
    assert (root.metrics, root.keep_workload_keys, root.log.format) == ("127.0.0.1:9091", False, "text")
    env = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "HOME": "/h"}
    user = config.load(file, env, {}, uid=7)
    assert str(user.data_dir) == "/s/firedoor/sidecar"
    assert str(user.admin_socket) == "/r/firedoor/sidecar/admin.sock"


def test_who_may_ask_for_others(tmp_path: Path) -> None:
    nobody = load(tmp_path, MIN)
    assert (nobody.authorized_delegates, nobody.broker_api) == (frozenset(), None)
    text = MIN + "broker_api: {clients: [spiffe://example.org/x]}\nauthorized_delegates: [spiffe://example.org/d]\n"
    found = load(tmp_path, text, env={"FIREDOOR_SIDECAR_BROKER_API_LISTEN": "[::1]:5"})
    assert found.broker_api
    assert (found.broker_api.listen, *map(str, found.broker_api.clients)) == ("[::1]:5", "spiffe://example.org/x")
    assert [*map(str, found.authorized_delegates)] == ["spiffe://example.org/d"]


def test_flag_wins_over_environment_over_file(tmp_path: Path) -> None:
    env = {"FIREDOOR_SIDECAR_DATA_DIR": "/env", "FIREDOOR_SIDECAR_LOG_LEVEL": "debug", "FIREDOOR_SIDECAR_BROKER": "e:1"}
    found = load(tmp_path, env=env, data_dir="/flag", log_format="json", metrics=None)
    assert str(found.data_dir) == "/flag"
    assert (found.log.format, found.log.level) == ("json", "debug")
    assert found.broker == ("e:1",)


@pytest.mark.parametrize("option", config.OPTIONS, ids=lambda one: one.key)
def test_every_key_is_known_everywhere(tmp_path: Path, option: config.Option) -> None:
    sample = {"several": "[]", "one": "true"}["several" if option.several else "one"]
    for way in ({"env": {option.variable: sample}}, {option.name: sample}):
        seen: tuple[str, ...] = ()
        try:
            load(tmp_path, **way)
        except ConfigError as error:
            seen = error.findings
        assert all("no such" not in line for line in seen)


def test_every_limit_reaches_the_data_path(tmp_path: Path) -> None:
    limits = {
        "handshake_timeout_ms": 1, "idle_timeout_ms": 2, "max_connections": 3, "max_connections_per_identity": 4,
        "max_lifetime_ms": 5000, "header_timeout_ms": 6, "max_header_bytes": 7000, "max_resets_per_second": 8,
        "max_streams": 9,
    }  # fmt: skip
    written = "".join(f"    {name}: {value}\n" for name, value in limits.items())
    spec = load(tmp_path, MIN + LISTENER.replace("tcp", "http") + written).outbound[0].spec()
    assert limits.items() <= json.loads(spec).items()
    core = mtls.Core()
    core.listen(spec).stop()
    core.stop()


def test_listeners_by_environment(tmp_path: Path) -> None:
    value = '[{name: a, as: "spiffe://example.org/x", listen: "127.0.0.1:0", service_port: 1, protocol: tcp, app: {}}]'
    env = {"FIREDOOR_SIDECAR_INBOUND": value}
    assert findings(tmp_path, GOOD, env) == ["FIREDOOR_SIDECAR_INBOUND:1: inbound[0].app.address: is missing"]


MIN = "trust_domain: example.org\nbroker: [b:1]\n"
LISTENER = """\
outbound:
  - name: a
    as: spiffe://example.org/x
    listen: 127.0.0.1:0
    protocol: tcp
    expect: ["spiffe://example.org/y"]
    service_port: 9000
    addresses: ["h:1"]
"""
BAD = {
    "foreign_delegate": (
        MIN + "authorized_delegates: [spiffe://other.org/x]\n",
        "sidecar.yaml:3: authorized_delegates[0]: must be an ID of our own trust domain, example.org",
    ),
    "a_trust_domain_as_delegate": (
        MIN + "authorized_delegates: [spiffe://example.org]\n",
        "sidecar.yaml:3: authorized_delegates[0]: must be a workload's ID, with a path",
    ),
    "broker_api_for_nobody": (
        MIN + "broker_api: {listen: 127.0.0.1:1}\n",
        "sidecar.yaml:3: broker_api.clients: is missing or empty: the SPIFFE ID of a program that may ask",
    ),
    "broker_api_nowhere": (
        MIN + "broker_api: {clients: [spiffe://example.org/x]}\n",
        "sidecar.yaml:3: broker_api.listen: is missing",
    ),
    "broker_api_by_name": (
        MIN + "broker_api: {listen: localhost:1, clients: [spiffe://example.org/x]}\n",
        "sidecar.yaml:3: broker_api.listen: must be an IP address and a port",
    ),
    "foreign_client": (
        MIN + "broker_api: {listen: 127.0.0.1:1, clients: [spiffe://other.org/x]}\n",
        "sidecar.yaml:3: broker_api.clients[0]: must be an ID of our own trust domain, example.org",
    ),
    "no_room": (
        MIN + "x509_svid_cache_max_size: 0\n",
        "sidecar.yaml:3: x509_svid_cache_max_size: must be a whole number from 1 to 10000000",
    ),
    "http_limit_of_tcp": (
        MIN + LISTENER + "    max_streams: 5\n",
        "sidecar.yaml:11: outbound[0].max_streams: has a meaning for http and grpc only",
    ),
    "too_small_a_head": (
        MIN + LISTENER.replace("tcp", "http") + "    max_header_bytes: 5\n",
        "sidecar.yaml:11: outbound[0].max_header_bytes: must be a whole number from 1024 to 65536",
    ),
    "unknown_key": (MIN + "brokr: x\n", "sidecar.yaml:3: brokr: no such key; did you mean `broker`?"),
    "missing_trust_domain": ("broker: [b:1]\n", "sidecar.yaml:1: trust_domain: is missing"),
    "missing_broker": (
        "trust_domain: example.org\n",
        "sidecar.yaml:1: broker: is missing or empty: the address of a broker, as host:port",
    ),
    "bad_trust_domain": (
        "trust_domain: Example\nbroker: [b:1]\n",
        "sidecar.yaml:1: trust_domain: a trust domain name holds only a-z, 0-9, dot, dash and underscore",
    ),
    "broker_without_port": (
        "trust_domain: example.org\nbroker: [b]\n",
        "sidecar.yaml:2: broker[0]: must be host:port, with an IPv6 address in brackets",
    ),
    "broker_not_a_list": (
        "trust_domain: example.org\nbroker: {a: b}\n",
        "sidecar.yaml:2: broker: must be a list",
    ),
    "port_too_large": (
        "trust_domain: example.org\nbroker: [b:65536]\n",
        "sidecar.yaml:2: broker[0]: the port must be a whole number from 0 to 65535",
    ),
    "metrics_not_loopback": (
        MIN + "metrics: 0.0.0.0:9091\n",
        "sidecar.yaml:3: metrics: must be an address on loopback: it answers anybody who asks",
    ),
    "keep_keys": (
        MIN + "keep_workload_keys: yes please\n",
        "sidecar.yaml:3: keep_workload_keys: must be one of memory, disk",
    ),
    "records_not_a_mapping": (MIN + "records: x\n", "sidecar.yaml:3: records: must be a mapping of keys to values"),
    "rotate_too_small": (
        MIN + "records: {rotate_bytes: 1}\n",
        "sidecar.yaml:3: records.rotate_bytes: must be a whole number from 4096 to 1099511627776",
    ),
    "log_level": (
        MIN + "log: {level: loud}\n",
        "sidecar.yaml:3: log.level: must be one of debug, info, warning, error",
    ),
    "foreign_as": (
        MIN + LISTENER.replace("as: spiffe://example.org/x", "as: spiffe://other.org/x"),
        "sidecar.yaml:5: outbound[0].as: must be an ID of our own trust domain, example.org",
    ),
    "as_without_path": (
        MIN + LISTENER.replace("as: spiffe://example.org/x", "as: spiffe://example.org"),
        "sidecar.yaml:5: outbound[0].as: must be a workload's ID, with a path",
    ),
    "outbound_not_local": (
        MIN + LISTENER.replace("127.0.0.1:0", "0.0.0.0:1"),
        "sidecar.yaml:6: outbound[0].listen: must be a loopback address: the local client is known there alone",
    ),
    "outbound_without_expect": (
        MIN + LISTENER.replace('expect: ["spiffe://example.org/y"]', "expect: []"),
        "sidecar.yaml:4: outbound[0].expect: is missing or empty: the IDs that the peer may have",
    ),
    "bad_expect": (
        MIN + LISTENER.replace("example.org/y", "example.org/y*"),
        "sidecar.yaml:8: outbound[0].expect[0]: ",
    ),
    "mode_on_tcp": (
        MIN + LISTENER + '    mode: "0600"\n',
        "sidecar.yaml:11: outbound[0].mode: a file mode has a meaning for a Unix socket only",
    ),
    "protocol": (
        MIN + LISTENER.replace("protocol: tcp", "protocol: udp"),
        "sidecar.yaml:7: outbound[0].protocol: must be one of tcp, http, grpc",
    ),
    "port_zero": (
        MIN + LISTENER.replace("service_port: 9000", "service_port: 0"),
        "sidecar.yaml:9: outbound[0].service_port: must be a whole number from 1 to 65535",
    ),
    "same_name": (
        MIN + LISTENER + LISTENER.removeprefix("outbound:\n"),
        "sidecar.yaml:11: outbound[1].name: the name `a` is taken by sidecar.yaml:4",
    ),
    "duplicate_key": (
        MIN + "broker: [b:2]\n",
        "sidecar.yaml:3: the key `broker` stands here and in line 2; keep one of them",
    ),
    "not_yaml": (MIN + "x: [\n", "sidecar.yaml:"),
    "a_list": ("- a\n", "sidecar.yaml:1: a configuration is one mapping of keys to values"),
}


@pytest.mark.parametrize("case", BAD)
def test_findings_name_place_and_key(tmp_path: Path, case: str) -> None:
    text, expected = BAD[case]
    found = findings(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_the_base_of_the_bad_cases_is_good(tmp_path: Path) -> None:
    assert load(tmp_path, MIN + LISTENER).outbound[0].told_by_uid


def test_all_findings_at_once(tmp_path: Path) -> None:
    assert len(findings(tmp_path, "metrics: x\nlog: {level: loud}\nfoo: 1\n")) == 5


def test_unknown_environment_variable(tmp_path: Path) -> None:
    found = findings(tmp_path, MIN, {"FIREDOOR_SIDECAR_DATADIR": "/x"})
    assert found == [
        "environment: FIREDOOR_SIDECAR_DATADIR: no such setting; did you mean `FIREDOOR_SIDECAR_DATA_DIR`?"
    ]


def test_variables_of_a_service_that_is_called_so(tmp_path: Path) -> None:
    """A kubelet tells each container of the Services of its namespace: none stops the sidecars there."""
    links = {
        f"{name}_{key}": value
        for name in ("FIREDOOR_SIDECAR", "FIREDOOR_SIDECAR_METRICS", "FIREDOOR_SIDECAR_SERVICE_PORT")
        for key, value in {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "80",
            "SERVICE_PORT_WEB": "80",
            "PORT": "tcp://10.0.0.1:80",
            "PORT_80_TCP": "tcp://10.0.0.1:80",
            "PORT_80_TCP_PROTO": "tcp",
            "PORT_80_TCP_PORT": "80",
            "PORT_80_TCP_ADDR": "10.0.0.1",
        }.items()
    }
    assert load(tmp_path, MIN, links) == load(tmp_path, MIN)
    for other in ("FIREDOOR_SIDECAR_PORTS", "FIREDOOR_SIDECAR_METRICS_PORT_X", "FIREDOOR_SIDECAR_OTHER_PORT"):
        (found,) = findings(tmp_path, MIN, {**links, other: "1"})
        assert found.startswith(f"environment: {other}: no such setting")
    (found,) = findings(tmp_path, MIN, {"FIREDOOR_SIDECAR_PORT": "1"})
    assert found.startswith("environment: FIREDOOR_SIDECAR_PORT: no such setting")


@pytest.mark.parametrize("key", ["auth_socket", "admin_socket", "data_dir"])
@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)], ids=["fits", "one_byte_too_long"])
def test_socket_path_length(tmp_path: Path, key: str, extra: int, fits: bool) -> None:
    inside = len("/run/server-boot.sock") if key == "data_dir" else 0
    path = "/" + "x" * (106 - inside + extra)
    if fits:
        assert load(tmp_path, MIN, **{key: path})
    else:
        assert "takes 107 at most; choose a shorter folder" in findings(tmp_path, MIN, **{key: path})[0]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read"):
        config.load(tmp_path / "none.yaml", {}, {})


def table(*actions: policy_pb2.Action) -> policy_pb2.Table:
    segment = policy_pb2.Segment(name="registry", members=["spiffe://example.org/segment/registry/**"])
    end = policy_pb2.Subject(segment="registry")
    flow = policy_pb2.Flow(name="pull", to=end, port=9000, allow=actions)
    flow.__getattribute__("from").CopyFrom(policy_pb2.Subject(segment="inference"))
    return policy_pb2.Table(version=1, trust_domain="example.org", segments=[segment], flows=[flow])


def test_opaque_listener_whose_port_only_http_flows_name(tmp_path: Path) -> None:
    found = check_listeners(load(tmp_path), table(policy_pb2.Action(http=policy_pb2.Http(methods=["GET"]))))
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/sidecar.yaml:6: inbound listener models: the listener is tcp, but")


def test_opaque_listener_whose_port_a_tcp_flow_names(tmp_path: Path) -> None:
    assert check_listeners(load(tmp_path), table(policy_pb2.Action(tcp=policy_pb2.Tcp()))) == []


def test_validate_names_missing_files(tmp_path: Path) -> None:
    text = MIN + f"data_dir: {tmp_path}/d\nbootstrap_bundle: {tmp_path}/none.json\n"
    found = config.validate(load(tmp_path, text))
    assert found == [
        f"{tmp_path}/none.json: bootstrap_bundle: the file cannot be read: No such file or directory",
        "join_token_file: is missing, and so are x509pop, sshpop, http_challenge, k8s_pod and k8s_psat, and no agent "
        "SVID is stored: this node could not attest",
    ]


def test_the_documented_listeners_are_taken_and_every_limit_is_documented(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/listeners.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    found = load(tmp_path, MIN + example)
    assert (found.inbound[0].protocol, found.outbound[0].mode) == ("http", "0660")
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert documented == {*listeners.LIMITS, *listeners.HTTP_LIMITS}


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    for option in config.OPTIONS:
        with suppress(ConfigError):
            config.load(None, {}, {"trust_domain": "a", "broker": "b:1", option.name: text})
