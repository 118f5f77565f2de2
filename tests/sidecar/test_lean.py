# SPDX-License-Identifier: Apache-2.0
"""What a sidecar does not load before it needs it: a pod has one, and its memory is counted."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["aiohttp", "prometheus_client", "sqlalchemy", "alembic"])
def test_a_sidecar_starts_without(module: str) -> None:
    code = f"import sys, firedoor.sidecar.process; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
