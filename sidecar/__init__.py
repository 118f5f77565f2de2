# SPDX-License-Identifier: Apache-2.0
"""The process beside a workload: attests, keeps SVIDs fresh, answers programs, drives the data path.

config = sidecar.config.load(Path("sidecar.yaml"), os.environ, {})
raise SystemExit(sidecar.run(config))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firedoor.sidecar.config import Config

__all__ = ["run"]


def run(config: "Config") -> int:
    """Run a sidecar until SIGTERM and return its exit code: 0 done, 2 the operator must act, 4 the server refused."""
    # Reading a configuration must not load grpcio and the core.
    from firedoor.sidecar.process import run as start

    return start(config)
