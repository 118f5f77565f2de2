# SPDX-License-Identifier: Apache-2.0
"""Runs one broker in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Final

from firedoor import mtls
from firedoor.broker import collector, log
from firedoor.broker.broker import Broker
from firedoor.broker.config import Config
from firedoor.broker.errors import BrokerError
from firedoor.certs import CertsError
from firedoor.segments import PolicyErrors

_log = logging.getLogger("firedoor.broker")
# One busy thread costs every gRPC call up to 27 ms with Python's default of 5 ms, and 3 ms with this.
_SWITCH_SECONDS: Final = 0.0005
# As `firedoor --help` has it: a configuration that is wrong or cannot be used, and a fault of ours.
_EXIT_OPERATOR: Final = 2
_EXIT_FAULT: Final = 70


def run(config: Config) -> int:
    """Serve until SIGTERM; print one line when ready. Return the exit code: 0, 2 when it cannot start, 70 for a bug."""
    log.set_up(config.log_format, config.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return asyncio.run(_serve(config))
    except (BrokerError, CertsError, PolicyErrors, mtls.MtlsError) as error:
        _log.critical("the broker cannot start: %s", error)
        return _EXIT_OPERATOR


async def _serve(config: Config) -> int:
    loop, broker = asyncio.get_running_loop(), Broker(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, broker.ended.set)
    rereading: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        task = asyncio.create_task(_reread(broker))
        rereading.add(task)
        task.add_done_callback(rereading.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    collector.settle()
    await broker.start()
    # What is there now stays: the collector need not walk through it again and again, 50 ms each time.
    collector.settle()
    print(ready_line(broker), flush=True)
    await broker.ended.wait()
    _log.info("stopping")
    await broker.stop()
    return _EXIT_FAULT if broker.failed else 0


async def _reread(broker: Broker) -> None:
    try:
        await broker.reread()
    except BrokerError as error:
        _log.error("%s", error)


def ready_line(broker: Broker) -> str:
    """Return what is printed when the broker serves."""
    words = [f"firedoor broker ready: {broker.config.trust_domain} listen={broker.listen or 'later'}"]
    words.append(f"admin={broker.config.admin_socket}")
    words.append(f"metrics={broker.metrics_address or 'off'}")
    for name, served in (("bundle_endpoint", broker.config.bundle_endpoint), ("oidc", broker.config.oidc)):
        if served is not None and served.endpoint in broker.sites:
            words.append(f"{name}={broker.sites[served.endpoint].address}")
    return " ".join(words)
