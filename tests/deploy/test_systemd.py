# SPDX-License-Identifier: Apache-2.0
"""The units are ones that systemd takes, they are hardened, and what they start accepts the example configuration."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firedoor.broker import config as broker_config
from firedoor.sidecar import config as sidecar_config

FOLDER = Path(__file__).resolve().parents[2] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/firedoor/bin/firedoor"
# systemd's own scale: 0 is all shut, 10 all open; "OK" ends at 4.9.
MOST_EXPOSED = 2.0
MUST = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "CapabilityBoundingSet=",
    "UMask=0077",
    "StateDirectoryMode=0700",
)

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (package systemd)"
)


def lines(unit: Path) -> list[str]:
    return unit.read_text().splitlines()


def installed(unit: Path, folder: Path) -> Path:
    """Copy a unit as it is on a host where the program is installed."""
    program = folder / "firedoor"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = folder / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, str(program)))
    return copy


def analyze(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)


def test_there_are_two() -> None:
    assert [unit.stem for unit in UNITS] == ["firedoor-broker", "firedoor-sidecar"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_it(unit: Path, tmp_path: Path) -> None:
    ran = analyze("verify", "--man=no", str(installed(unit, tmp_path)))
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@needs_systemd
def test_systemd_refuses_a_broken_one(tmp_path: Path) -> None:
    copy = installed(UNITS[0], tmp_path)
    copy.write_text(copy.read_text().replace("ProtectSystem=strict", "ProtectSytem=strict"))
    ran = analyze("verify", "--man=no", str(copy))
    assert "ProtectSytem" in ran.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_is_hardened_by_systemds_own_measure(unit: Path, tmp_path: Path) -> None:
    ran = analyze("security", "--offline=true", str(installed(unit, tmp_path)))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    print(f"{unit.stem}: exposure {found[1]}")
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_runs_as_a_user_of_its_own_without_capabilities(unit: Path) -> None:
    text = lines(unit)
    assert not [line for line in MUST if line not in text]
    assert f"User={unit.stem}" in text
    assert f"u {unit.stem} " in (FOLDER / "firedoor.sysusers.conf").read_text()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_example_configuration_is_accepted(unit: Path) -> None:
    (start,) = [line for line in lines(unit) if line.startswith("ExecStart=")]
    kind = unit.stem.removeprefix("firedoor-")
    assert start == f"ExecStart={PROGRAM} {kind} run --config /etc/firedoor/{kind}.yaml"
    environment = dict(line.removeprefix("Environment=").split("=", 1) for line in lines(unit) if "=FIREDOOR_" in line)
    example = FOLDER / f"{kind}.yaml"
    if kind == "broker":
        broker = broker_config.load(example, environment, {})
        places = [broker.data_dir, broker.admin_socket.parent]
    else:
        sidecar = sidecar_config.load(example, environment, {}, uid=999)
        places = [sidecar.data_dir, sidecar.auth_socket.parent, sidecar.admin_socket.parent]
        places += [Path(one.listen.removeprefix("unix:")).parent for one in sidecar.outbound]
    assert set(map(str, places)) == writable(unit)


def writable(unit: Path) -> set[str]:
    """Return the folders that systemd makes for a unit; under ProtectSystem=strict all else is read-only."""
    words = {"StateDirectory": "/var/lib", "RuntimeDirectory": "/run"}
    settings = (line.split("=", 1) for line in lines(unit) if "=" in line and not line.startswith("#"))
    return {f"{words[key]}/{one}" for key, value in settings if key in words for one in value.split()}
