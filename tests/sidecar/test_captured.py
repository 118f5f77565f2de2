# SPDX-License-Identifier: Apache-2.0
"""The capture listeners of the configuration, and what the core is told of them."""

import json
from pathlib import Path

import pytest

from firedoor.sidecar import config
from firedoor.sidecar.captured import CaptureInbound, CaptureOutbound
from firedoor.sidecar.errors import ConfigError
from firedoor.sidecar.validation import check_listeners
from firedoor.wire import policy_pb2

V6 = f"{1:032x} 01 80 10 80       lo\n"
MIN = "trust_domain: example.org\nbroker: [b:1]\nmetrics: 127.0.0.1:9100\ncapture:\n  uid: 990\n"
AS = '  as: "spiffe://example.org/segment/registry/host/h1/svc/models"\n'


@pytest.fixture(autouse=True)
def ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have addresses that do not depend on where the tests run."""
    monkeypatch.setattr(config, "_ipv6_addresses", lambda: V6)


def load(folder: Path, text: str) -> config.Config:
    path = folder / "sidecar.yaml"
    path.write_text(text)
    return config.load(path, {}, {}, uid=0)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return "\n".join(caught.value.findings)


def test_without_an_identity_nothing_is_served(tmp_path: Path) -> None:
    assert load(tmp_path, MIN).listeners == ()
    assert "capture.ports: has no meaning without capture.as" in refused(tmp_path, MIN + "  ports: []\n")


def test_the_listeners(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        MIN
        + AS
        + "  ports: [{port: 9000, protocol: http, plaintext: audit}, {port: 80, protocol: grpc}]\n"
        + "  app: {address: loopback, uid: 1001}\n  clients: network-namespace\n  limits: {max_connections: 7}\n",
    )
    inbound, by_v4, by_v6 = found.listeners
    assert isinstance(inbound, CaptureInbound)
    assert isinstance(by_v4, CaptureOutbound)
    assert json.loads(inbound.spec()) == {
        "direction": "capture_inbound",
        "name": "capture",
        "as": "spiffe://example.org/segment/registry/host/h1/svc/models",
        "listen": "[::]:14006",
        "limits": {"max_connections": 7},
        "ports": [{"port": 80, "protocol": "grpc"}, {"port": 9000, "protocol": "http", "plaintext": "audit"}],
        "app": {"address": "loopback", "uid": 1001},
        "reserved": [9100, 14020, 14053],
    }
    assert json.loads(by_v4.spec()) == {
        "direction": "capture_outbound",
        "name": "capture",
        "as": "spiffe://example.org/segment/registry/host/h1/svc/models",
        "listen": "127.0.0.1:14032",
        "limits": {"max_connections": 7},
        "ports": 16,
        "clients": "network-namespace",
    }
    assert (by_v6.name, by_v6.listen) == ("capture-6", "[::1]:14032")
    assert [one.told_by_uid for one in found.listeners] == [False, False, False]


def test_what_is_left_out(tmp_path: Path) -> None:
    inbound, by_v4, by_v6 = load(tmp_path, MIN + AS).listeners
    assert json.loads(inbound.spec())["app"] == {"address": "own"}
    assert json.loads(by_v4.spec())["clients"] == "entry"
    assert [one.told_by_uid for one in (inbound, by_v4, by_v6)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  clients: everybody\n", "capture.clients: must be one of entry, network-namespace"),
        ("  app: {address: 127.0.0.1}\n", "capture.app.address: must be one of own, loopback"),
        ("  app: {port: 1}\n", "capture.app.port: no such key"),
        ("  limits: {max_streams: 0}\n", "capture.limits.max_streams: "),
        ("  limits: {streams: 1}\n", "capture.limits.streams: no such key"),
        ("  ports: [{port: 0, protocol: tcp}]\n", "capture.ports[0].port: "),
        ("  ports: [{port: 1, protocol: udp}]\n", "capture.ports[0].protocol: must be one of tcp, http, grpc"),
        ("  ports: [{port: 1, protocol: tcp, plaintext: on}]\n", "capture.ports[0].plaintext: must be one of audit"),
        ("  ports: [{port: 1}]\n", "capture.ports[0].protocol: is missing"),
        (
            "  ports: [{port: 1, protocol: tcp}, {port: 1, protocol: http}]\n",
            "capture.ports[1].port: stands in the list twice",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, MIN + AS + text)


def test_an_identity_of_another_trust_domain(tmp_path: Path) -> None:
    assert "capture.as: " in refused(tmp_path, MIN + '  as: "spiffe://elsewhere/x"\n')


def test_names_that_named_listeners_have(tmp_path: Path) -> None:
    named = """
outbound:
- {name: capture, as: "spiffe://example.org/x", listen: "unix:/run/x.sock", protocol: tcp, service_port: 1,
   expect: ["spiffe://example.org/y"], addresses: ["h:1"]}
"""
    assert "outbound: the name `capture` is that of a listener of capture" in refused(tmp_path, MIN + AS + named)


@pytest.mark.parametrize(("addresses", "inbound"), [(None, "0.0.0.0:14006"), ("", "[::]:14006")])
def test_without_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: str | None, inbound: str) -> None:
    monkeypatch.setattr(config, "_ipv6_addresses", lambda: addresses)
    assert [one.listen for one in load(tmp_path, MIN + AS).listeners] == [inbound, "127.0.0.1:14032"]


def test_a_port_that_would_deny_everything_is_found(tmp_path: Path) -> None:
    table = policy_pb2.Table(version=1, trust_domain="example.org")
    table.segments.add(name="registry", members=["spiffe://example.org/segment/registry/**"])
    flow = table.flows.add(name="f", port=9000, to=policy_pb2.Subject(segment="registry"))
    getattr(flow, "from").segment = "registry"
    flow.allow.add(tcp=policy_pb2.Tcp())
    found = load(tmp_path, MIN + AS + "  ports: [{port: 9000, protocol: http}, {port: 9001, protocol: http}]\n")
    [said] = check_listeners(found, table)
    assert "inbound listener capture: the listener is http, but the flows to" in said
    assert check_listeners(load(tmp_path, MIN + AS + "  ports: [{port: 9000, protocol: tcp}]\n"), table) == []
