# SPDX-License-Identifier: Apache-2.0
"""The `run` section, and what is planned from it: without a kernel."""

import json
from pathlib import Path
from typing import Any

import pytest

from firedoor.sidecar import config
from firedoor.sidecar.errors import AppRefused, CaptureFailed, ConfigError
from firedoor.sidecar.namespace import plan, run
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
    assert settings(tmp_path, {"name": "web", "network": "10.201.7.0/24"}).network6 is None


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
