# SPDX-License-Identifier: Apache-2.0
"""`firedoor capture apply` where a machine's own network is: it writes nothing there.

The command runs as root of a user namespace of its own. It has every capability by its own lights, and none over the
network namespace in which it is: whatever it tried, the kernel would let it read and write no rule there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import netns

UNSHARE = ["unshare", "--user", "--map-root-user"]
NFT = ("nft", "list", "tables")
# Shown in the first network namespace alone.
OURS = Path("/proc/sys/net/core/netdev_max_backlog")
CONFIG = 'trust_domain: example.org\nbroker: ["b:8081"]\ncapture: {uid: 990}\n'


def missing() -> str:
    """Say in a sentence why these tests cannot run here; nothing when they can."""
    if shutil.which("unshare", path=netns.PATH) is None:
        return "unshare is not installed: apt-get install util-linux"
    made = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no user namespace can be made here: {made.stderr.strip()}"
    # What this test is safe by is looked at, not believed.
    able = subprocess.run([*UNSHARE, *NFT], capture_output=True, text=True, check=False)
    if able.returncode == 0:
        return "a user namespace may read this machine's rules here"
    return "" if OURS.exists() else "this is no machine's own network namespace"


MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def apply(config: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    config.write_text(CONFIG)
    words = [sys.executable, "-m", "firedoor.cli", "capture", "apply", "--config", str(config)]
    return subprocess.run(
        [*UNSHARE, *prefix, *words], capture_output=True, text=True, check=False, env={**os.environ, "PATH": netns.PATH}
    )


def test_in_a_machines_own_network_namespace_it_refuses(tmp_path: Path) -> None:
    done = apply(tmp_path / "sidecar.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("firedoor: this is the machine's own network, and its logins by SSH")
    assert done.stdout == ""


@pytest.mark.skipif(bool(why := netns.missing()), reason=why)
def test_in_one_of_its_own_the_same_process_writes(tmp_path: Path) -> None:
    """What is refused above is refused for where it is, and for nothing else."""
    done = apply(tmp_path / "sidecar.yaml", "unshare", "--net")
    assert done.returncode == 0, done.stderr
    assert "rules are written" in done.stdout
