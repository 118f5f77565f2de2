# SPDX-License-Identifier: Apache-2.0
"""The broker: attests nodes, keeps entries and policy, issues SVIDs, and tells every sidecar what it must know.

It speaks SPIRE's server APIs and our control stream on one TCP port, and the admin APIs on a Unix socket. `run` serves
in the foreground::

    from firedoor import broker
    broker.run(broker.config.load(Path("broker.yaml"), os.environ, {}))
"""

from firedoor.broker import polling  # noqa: F401, I001 - before anything that imports grpcio
from firedoor.broker import config
from firedoor.broker.config import Config, validate
from firedoor.broker.errors import BrokerError, ConfigError
from firedoor.broker.run import run

__all__ = ["BrokerError", "Config", "ConfigError", "config", "run", "validate"]
