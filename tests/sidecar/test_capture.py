# SPDX-License-Identifier: Apache-2.0
"""Capture as configured, the rules made of it, and what is compared: all without a kernel."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor.sidecar import capture, config
from firedoor.sidecar.capture import nft, privileges, rules
from firedoor.sidecar.errors import AppRefused, CaptureFailed, ConfigError, ToolMissing

BASE = {"trust_domain": "example.org", "broker": ["b:8081"]}


def load(tmp_path: Path, section: Any, **more: Any) -> config.Config:
    file = tmp_path / "sidecar.yaml"
    file.write_text(json.dumps({**BASE, "capture": section, **more}))
    return config.load(file, {"HOME": str(tmp_path)}, {}, uid=0)


def captured(tmp_path: Path, section: Any, **more: Any) -> capture.Capture:
    found = load(tmp_path, section, **more).capture
    assert found
    return found


def findings(tmp_path: Path, section: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, section, **more)
    return "\n".join(caught.value.findings)


def excluded(tmp_path: Path, **item: Any) -> str:
    return findings(tmp_path, {"uid": 990, "exclude": [{"direction": "outbound", "reason": "r", "ports": [1], **item}]})


def test_defaults(tmp_path: Path) -> None:
    found = captured(tmp_path, {"uid": 990})
    assert (found.inbound_port, found.outbound_port, found.probe_port, found.dns_port) == (14006, 14032, 14020, 14053)
    assert (found.udp_passes, found.exclude) == (False, ())
    file = tmp_path / "without.yaml"
    file.write_text(json.dumps(BASE))
    assert config.load(file, {"HOME": "/"}, {}, uid=0).capture is None


def test_every_key_is_a_variable_too(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(json.dumps(BASE))
    env = {
        "HOME": "/",
        "FIREDOOR_SIDECAR_CAPTURE_UID": "990",
        "FIREDOOR_SIDECAR_CAPTURE_UDP": "pass",
        "FIREDOOR_SIDECAR_CAPTURE_EXCLUDE": "[{direction: inbound, ports: [9100], reason: metrics}]",
    }
    found = config.load(file, env, {}, uid=0).capture
    assert found
    assert found.udp_passes
    assert str(found.exclude[0]) == "inbound tcp to port 9100"


@pytest.mark.parametrize("uid", [0, -1, 2**32 - 1, "990 accept", "root", "", "0x3de", "99\n0"])
def test_a_uid_that_is_none(tmp_path: Path, uid: Any) -> None:
    assert "capture.uid: must be a whole number from 1 to" in findings(tmp_path, {"uid": uid})


def test_the_uid_is_needed(tmp_path: Path) -> None:
    assert "capture.uid: is missing" in findings(tmp_path, {"udp": "drop"})


@pytest.mark.parametrize("port", [0, 1023, 65536, "14006 }", "http", "14006-14010"])
def test_a_port_that_is_none(tmp_path: Path, port: Any) -> None:
    assert "capture.inbound_port: must be a whole number from 1024" in findings(
        tmp_path, {"uid": 990, "inbound_port": port}
    )


def test_ports_are_apart(tmp_path: Path) -> None:
    assert "capture.dns_port: is the same port as inbound_port" in findings(tmp_path, {"uid": 990, "dns_port": 14006})
    last = captured(tmp_path, {"uid": 990}).outbound_ports[-1]
    assert "capture.dns_port: is the same port as outbound_port" in findings(tmp_path, {"uid": 990, "dns_port": last})
    assert "capture.outbound_port: is the same port as" in findings(tmp_path, {"uid": 990, "outbound_port": 14000})
    assert captured(tmp_path, {"uid": 990, "dns_port": last + 1}).dns_port == last + 1


def test_all_outbound_ports_are_ports(tmp_path: Path) -> None:
    assert captured(tmp_path, {"uid": 990, "outbound_port": 65520}).outbound_ports[-1] == 65535
    assert "must be a whole number" in findings(tmp_path, {"uid": 990, "outbound_port": 65521})


def test_metadata_addresses_are_those_that_the_core_refuses() -> None:
    vectors = json.loads((Path(__file__).parents[1] / "vectors/metadata_addresses.json").read_text())
    assert sorted((*rules.METADATA_V4, *rules.METADATA_V6)) == sorted(vectors["metadata"])


INJECTIONS = (
    '10.0.0.0/8 accept comment "x',
    "10.0.0.0/8; flush ruleset",
    "10.0.0.0/8\nflush ruleset",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10.0.0.0/255.0.0.0 ",
    "fe80::1%eth0",
    "@set",
    "!10.0.0.0/8",
    "internal.example",
    "",
)


@pytest.mark.parametrize("address", INJECTIONS)
def test_an_address_that_is_none_gets_into_no_rule(tmp_path: Path, address: str) -> None:
    assert "exclude[0].addresses[0]: must" in excluded(tmp_path, addresses=[address])


@pytest.mark.parametrize("port", ["80 accept", "80-90", "{ 80, 90 }", "ssh", 0, 65536, "80\n"])
def test_an_excluded_port_that_is_none(tmp_path: Path, port: Any) -> None:
    assert "exclude[0].ports[0]: must be a whole number" in excluded(tmp_path, ports=[port])


@pytest.mark.parametrize("uid", ["root", "1001 accept", -1, 2**32 - 1])
def test_an_excluded_uid_that_is_none(tmp_path: Path, uid: Any) -> None:
    assert "exclude[0].uids[0]: must be a whole number" in excluded(tmp_path, uids=[uid])


def test_what_else_is_wrong_with_an_exclusion(tmp_path: Path) -> None:
    assert "everything would pass" in excluded(tmp_path, ports=[])
    assert "exclude[0].reason: must be one line" in excluded(tmp_path, reason="a\nb")
    assert "exclude[0].reason: must be one line" in excluded(tmp_path, reason="x" * 201)
    assert "exclude[0].reason: is missing: why" in excluded(tmp_path, reason=None)
    assert "has a meaning for outbound only" in excluded(tmp_path, direction="inbound", uids=[7])
    assert "exclude[0].direction: must be one of" in excluded(tmp_path, direction="both")
    assert "exclude[0].protocol: must be one of" in excluded(tmp_path, protocol="icmp")
    many = [{"direction": "inbound", "ports": [n + 1], "reason": "r"} for n in range(101)]
    assert "has more than 100 items" in findings(tmp_path, {"uid": 990, "exclude": many})


def inbound(listen: str) -> dict[str, Any]:
    own = {"name": "m", "as": "spiffe://example.org/segment/registry/m", "service_port": 9000, "protocol": "tcp"}
    return {"inbound": [{**own, "listen": listen, "app": {"address": "127.0.0.1:9000"}}]}


def test_ports_of_own_listeners_are_known(tmp_path: Path) -> None:
    section = {"uid": 990}
    assert load(tmp_path, section, **inbound("0.0.0.0:19000")).open_ports == (19000,)
    assert load(tmp_path, section, **inbound("[::]:19000")).open_ports == (19000,)
    assert load(tmp_path, section, **inbound("127.0.0.1:19000")).open_ports == ()
    api = {"broker_api": {"listen": "0.0.0.0:18000", "clients": ["spiffe://example.org/c"]}}
    assert load(tmp_path, section, **api, **inbound("0.0.0.0:19000")).open_ports == (18000, 19000)
    assert "inbound[0].listen: 0.0.0.0:0: needs a port" in findings(tmp_path, section, **inbound("0.0.0.0:0"))
    assert "0.0.0.0:14006: is a port of capture" in findings(tmp_path, section, **inbound("0.0.0.0:14006"))


def everything(tmp_path: Path) -> rules.Ruleset:
    exclude = [
        {"direction": "inbound", "ports": [9100, 9101], "addresses": ["10.0.0.0/8", "fd00::1", "::/0"], "reason": "r"},
        {"direction": "outbound", "protocol": "udp", "ports": [123], "uids": [38, 39], "reason": "r"},
        {"direction": "outbound", "addresses": ["0.0.0.0/0"], "reason": "r"},
    ]
    found = captured(tmp_path, {"uid": 990, "udp": "pass", "exclude": exclude})
    return capture.make(found, (19000,))


def test_every_rule_has_a_sentence_that_the_kernel_keeps(tmp_path: Path) -> None:
    for rule in everything(tmp_path).rules:
        assert re.fullmatch(r"[a-z A-Z0-9',;:6]+", rule.sentence)
        assert len(rule.sentence) <= rules.LONGEST_COMMENT


def test_one_transaction_replaces_what_is_there(tmp_path: Path) -> None:
    commands = everything(tmp_path).replacing()["nftables"]
    assert [next(iter(one)) for one in commands[:3]] == ["add", "delete", "add"]
    assert all(next(iter(one)) == "add" for one in commands[3:])
    assert {one["add"]["chain"]["policy"] for one in commands if "chain" in one.get("add", {})} == {"accept", "drop"}


def listed(ruleset: rules.Ruleset) -> dict[str, Any]:
    """What a kernel would list: handles, counters that have counted, sets in an order of its own."""
    found: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"family": "inet", "name": "firedoor", "handle": 7}}]
    found += [{"chain": {**one.as_json(), "handle": 1}} for one in ruleset.chains]
    for rule in ruleset.rules:
        value = copy.deepcopy(rule.as_json())
        for statement in value["expr"]:
            if "counter" in statement:
                statement["counter"] = {"packets": 3, "bytes": 200}
            right = statement.get("match", {}).get("right")
            if isinstance(right, dict) and "set" in right:
                right["set"].reverse()
        found.append({"rule": {**value, "handle": 9}})
    return {"nftables": found}


def test_what_the_kernel_adds_makes_no_difference(tmp_path: Path) -> None:
    ruleset = everything(tmp_path)
    assert capture.differences(ruleset, listed(ruleset)) == []


@pytest.mark.parametrize("form", [18, {"|": ["syn", "ack"]}, ["ack", "syn"]])
def test_flags_are_listed_in_several_ways(tmp_path: Path, form: Any) -> None:
    ruleset = everything(tmp_path)
    text = json.dumps(listed(ruleset)).replace('"right": 18', f'"right": {json.dumps(form)}')
    assert capture.differences(ruleset, json.loads(text)) == []


def test_any_rule_that_is_missing_doubled_or_elsewhere_is_seen(tmp_path: Path) -> None:
    ruleset = everything(tmp_path)
    for number in range(len(ruleset.rules)):
        found = listed(ruleset)
        place = next(n for n, one in enumerate(found["nftables"]) if "rule" in one) + number
        taken = found["nftables"].pop(place)
        assert capture.differences(ruleset, found), "one is missing"
        found["nftables"].insert(place, taken)
        found["nftables"].append(copy.deepcopy(taken))
        assert capture.differences(ruleset, found), "one stands twice"


@given(st.data())
def test_any_change_of_a_rule_is_seen(data: st.DataObject) -> None:
    ruleset = capture.make(
        capture.Capture(
            uid=990, inbound_port=1, outbound_port=2, probe_port=3, dns_port=4, udp_passes=False, exclude=()
        ),
        (19000,),
    )
    found = listed(ruleset)
    one = data.draw(st.sampled_from([item["rule"] for item in found["nftables"] if "rule" in item]))
    statement = data.draw(st.sampled_from(one["expr"]))
    (kind,) = statement
    if kind == "match":
        statement["match"]["op"] = "!=" if statement["match"]["op"] != "!=" else "=="
    elif kind == "counter":
        one["expr"].remove(statement)
    elif kind in ("mangle", "redirect", "reject"):
        statement[kind] = {"other": 1}
    else:
        one["expr"][-1] = {"return": None}
    assert capture.differences(ruleset, found)


STATUS = """\
Name:\tapp
Uid:\t{uids}
CapInh:\t0000000000000000
CapPrm:\t{caps}
CapEff:\t0000000000000000
CapBnd:\t{bounding}
CapAmb:\t0000000000000000
NoNewPrivs:\t{nnp}
"""


def status(uids: str = "7\t7\t7\t7", caps: int = 0, bounding: int = 0, nnp: int = 1) -> privileges.Privileges:
    return privileges.parse(STATUS.format(uids=uids, caps=f"{caps:016x}", bounding=f"{bounding:016x}", nnp=nnp))


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (status("0\t7\t7\t7"), "it is root"),
        (status("7\t7\t990\t7"), "the sidecar's uid 990"),
        (status(caps=1 << 7), "CAP_SETUID"),
        (status(caps=1 << 12), "CAP_NET_ADMIN"),
        (status(caps=1 << 13), "CAP_NET_RAW"),
        (status(caps=1 << 21), "CAP_SYS_ADMIN"),
    ],
)
def test_who_could_go_round(one: privileges.Privileges, reason: str) -> None:
    with pytest.raises(AppRefused, match=reason):
        privileges.check("process 1", privileges.refusals(one, 990))


def test_who_could_not(tmp_path: Path) -> None:
    # CAP_NET_BIND_SERVICE opens ports below 1024, and no way round.
    privileges.check("process 1", privileges.refusals(status(caps=1 << 10), 990))
    assert privileges.warnings(status(bounding=1 << 7, nnp=1)) == []
    assert "set no_new_privs" in privileges.warnings(status(bounding=1 << 7, nnp=0))[0]


@pytest.mark.parametrize("text", ["", "Uid:\t7\n", STATUS.format(uids="", caps="zz", bounding="0", nnp="0")])
def test_a_status_that_cannot_be_read(text: str) -> None:
    with pytest.raises(CaptureFailed):
        privileges.parse(text)


def test_a_process_that_is_gone() -> None:
    with pytest.raises(CaptureFailed, match="cannot be read"):
        privileges.read(2**22)


def test_without_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "PATH", "/nonexistent")
    with pytest.raises(ToolMissing, match="nft is not installed: install nftables"):
        nft.Nft()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Error: Could not process rule: Operation not permitted", "CAP_NET_ADMIN"),
        ("Error: Could not process rule: Operation not supported", "this kernel has no nftables"),
        ("netlink: Error: cache initialization failed: Protocol not supported", "CONFIG_NF_TABLES"),
        ("Error: Could not process rule: No such file or directory", "this kernel lacks"),
        ("JSON support not compiled-in", "built without JSON"),
        ("something else", "nft refused the rules (something else)"),
    ],
)
def test_what_nft_says_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str) -> None:
    program = tmp_path / "nft"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(nft, "PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CaptureFailed) as caught:
        nft.Nft().run(rules.removing())
    assert sentence in str(caught.value)
