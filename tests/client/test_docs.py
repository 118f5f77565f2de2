# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/client.md run, each as it stands, and print this."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import Sidecar
from tests.sidecar.auth_socket import X
from tests.waiting import PATIENCE

TEXT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
ID = str(X.spiffe_id)
PRINTED = {
    "may this peer": f"{ID} a\nallowed by b-reads-a\n",
    "stay fresh": f"{ID} True True\n['example.org']\n",
    "With asyncio": f"{ID}\n",
    "JWT-SVIDs": f"{ID}\n",
    "gRPC clients": "unix:/run/firedoor/out/models.sock\n",
    "gRPC servers": "serving\n",
}
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


def test_each_example_is_known() -> None:
    assert len(EXAMPLES) == len(PRINTED)


@pytest.mark.parametrize(("code", "printed"), list(zip(EXAMPLES, PRINTED.values(), strict=True)), ids=PRINTED)
def test_it_runs(sidecar: Sidecar, code: str, printed: str) -> None:
    sidecar.trust.rotate_jwt()
    sidecar.entitle(X)
    env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": sidecar.url}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(sidecar: Sidecar) -> None:
    sidecar.trust.rotate_jwt()
    sidecar.entitle(X)
    (block,) = re.findall(r"^```console\n(.*?)^```", TEXT, re.M | re.S)
    found = []
    for command in block.split("$ curl ")[1:]:
        env = {**os.environ, "SOCKET": sidecar.url.removeprefix("unix://")}
        ran = subprocess.run(
            ["sh", "-c", f"curl -sS {command}"], env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        found.append(json.loads(ran.stdout))
    assert found[0]["identities"][0]["spiffe_id"] == found[1]["spiffe_id"] == ID
    assert found[2]["allowed"]
