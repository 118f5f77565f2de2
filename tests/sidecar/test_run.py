# SPDX-License-Identifier: Apache-2.0
"""The `run` section, and what is planned from it: without a kernel."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from firedoor.sidecar import config
from firedoor.sidecar.errors import AppRefused, CaptureFailed, ConfigError
from firedoor.sidecar.namespace import machine, plan, run
from firedoor.sidecar.namespace.settings import Run

BASE = {"trust_domain": "example.org", "broker": ["b:8081"], "capture": {"uid": 990}}
GOOD = {"name": "web", "network": "10.201.7.0/30", "network6": "fd01:7::/126", "publish": [8080, 80, 80]}


def load(tmp_path: Path, section: Any, **more: Any) -> config.Config:
    file = tmp_path / "sidecar.yaml"
    file.write_text(json.dumps({**BASE, "run": section, **more}))
    return config.load(file, {"HOME": str(tmp_path)}, {}, uid=0)


def settings(tmp_path: Path, section: Any) -> Run:
    found = load(tmp_path, section).run
    assert found
    return found


def test_what_is_read(tmp_path: Path) -> None:
    found = settings(tmp_path, GOOD)
    assert (found.interface, found.publish, found.set_forwarding) == ("fd-web", (80, 8080), False)
    assert [plan.workload_address(one) for one in found.networks] == ["10.201.7.2", "fd01:7::2"]
    least = settings(tmp_path, {"name": "web", "network": "10.201.7.0/24"})
    assert (least.network6, least.publish, least.ready_within) == (None, None, 60)


@pytest.mark.parametrize(
    ("publish", "expected"), [(None, (80, 9000, 19000)), ([], (19000,)), ([22, 80], (22, 80, 19000))]
)
def test_what_is_reached_from_outside(tmp_path: Path, publish: list[int] | None, expected: tuple[int, ...]) -> None:
    identity = "spiffe://example.org/segment/registry/host/h1/svc/web"
    ports = [{"port": 9000, "protocol": "http"}, {"port": 80, "protocol": "tcp"}]
    own = {"name": "x", "as": identity, "listen": "0.0.0.0:19000", "service_port": 1, "protocol": "tcp"}
    found = load(
        tmp_path,
        {**GOOD, "publish": publish},
        capture={"uid": 990, "as": identity, "ports": ports},
        inbound=[{**own, "app": {"address": "127.0.0.1:9000"}}],
    )
    assert found.run
    assert run.published(found, found.run) == expected


def test_who_listens_where_others_reach_it() -> None:
    assert sys.byteorder == "little", "the tables below are such a machine's"
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    four = (
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   2: 0200000A:01BB 0300000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    )
    six = (
        "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1\n"
        "   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1\n"
        "   2: 00000000000000000000000000000000:0052 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1\n"
    )
    assert list(machine.listening(head + four)) == [22]
    assert list(machine.listening(head + six)) == [82]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "web; reboot"),
        ("name", "-web"),
        ("name", "../web"),
        ("name", "twelve-chars"),
        ("name", "Web"),
        ("network", "10.201.7.1/30"),
        ("network", "10.201.7.0/31"),
        ("network", "fd01:7::/126"),
        ("network", "10.201.7.0/30 dev eth0"),
        ("network6", "fd01:7::/127"),
        ("network6", "10.201.7.0/30"),
        ("publish", ["80 accept"]),
        ("publish", [0]),
        ("forwarding", "on"),
        ("ready_within", "0s"),
        ("ready_within", "soon"),
    ],
)
def test_what_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"run.{key}"):
        load(tmp_path, {**GOOD, key: value})


def test_it_needs_capture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run: needs a section `capture`"):
        load(tmp_path, GOOD, capture=None)


def test_what_is_planned_for_the_machine(tmp_path: Path) -> None:
    found = settings(tmp_path, GOOD)
    commands = plan.outside(found, (80, 8080))["nftables"]
    assert [next(iter(one)) for one in commands[:3]] == ["add", "delete", "add"]
    rules = [one["add"]["rule"] for one in commands if "rule" in one.get("add", {})]
    assert {one["table"] for one in rules} == {"firedoor_run_web"}
    for chain in ("forwarded", "own"):
        assert [one for one in rules if one["chain"] == chain][-1]["expr"][-1] == {"drop": None}
    assert not [one for one in plan.outside(found, ())["nftables"] if "dnat" in json.dumps(one)]


def order(uid: int) -> run.Order:
    return run.Order(file="sidecar.yaml", uid=uid, command=("true",))


@pytest.mark.parametrize("uid", [0, 990])
def test_a_user_that_could_go_round(tmp_path: Path, uid: int) -> None:
    found = load(tmp_path, GOOD)
    with pytest.raises(AppRefused, match="could go round"):
        run.run(found, order(uid), config.defaults(found, {}))


def test_what_else_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for more, sentence in (({"run": None}, "no section `run`"), ({"records": {"path": "stdout"}}, "a file is needed")):
        file = tmp_path / "sidecar.yaml"
        file.write_text(json.dumps({**BASE, "run": GOOD, **more}))
        found = config.load(file, {"HOME": str(tmp_path)}, {}, uid=0)
        with pytest.raises(CaptureFailed, match=sentence):
            run.run(found, order(1001), config.defaults(found, {}))
