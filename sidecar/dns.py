# SPDX-License-Identifier: Apache-2.0
"""The DNS relay of a captured network namespace.

It answers as long as the sidecar runs, and needs no identity and no policy: programs ask for names before anybody is
attested, and what a name leads to proves nothing. Sockets and messages are the core's; here it is told whom to ask.
"""

import logging
from collections.abc import Callable

from firedoor.mtls import Core, ListenError, MtlsError
from firedoor.mtls import DnsRelay as Bound
from firedoor.sidecar.dns_config import Dns
from firedoor.sidecar.resolv import Resolvers
from firedoor.wire import admin_pb2

log = logging.getLogger(__name__)


class DnsRelay:
    """Opens the relay and tells it whom to ask; nothing of it exists where nothing is captured."""

    def __init__(self, core: Core, config: Dns | None, source: Callable[[], Resolvers] | None = None) -> None:
        self._core, self._config = core, config
        self._source = source or (config.source() if config else Resolvers)
        self._bound: Bound | None = None
        # What resolv.conf, or the configuration, said last; and whom the relay asks.
        self._found: Resolvers | None = None
        self._asked = Resolvers()
        self._reason = "not yet"

    def adjust(self) -> None:
        """Open it if it is not open, and follow resolv.conf."""
        if self._config is None:
            return
        if self._bound is None:
            self._open(self._config)
        if self._bound is not None:
            self._follow(self._bound, self._source())

    def _open(self, config: Dns) -> None:
        names = None if config.names is None else list(config.names)
        try:
            self._bound = self._core.dns_relay(listen=list(config.listen), names=names)
        except ListenError as error:
            if str(error) != self._reason:
                log.error("DNS is not relayed", extra={"reason": str(error)})
            self._reason = str(error)
            return
        log.info("DNS is relayed", extra={"at": self._bound.addresses})

    def _follow(self, bound: Bound, found: Resolvers) -> None:
        if found == self._found:
            return
        self._found = found
        try:
            bound.update(found.addresses, seconds=found.seconds, attempts=found.attempts)
        except MtlsError as error:
            log.error("the resolvers are not taken", extra={"reason": str(error)})
            return
        self._asked = found
        level = logging.INFO if found.addresses else logging.WARNING
        log.log(level, "DNS resolvers" if found.addresses else "no DNS resolver", extra={"addresses": found.addresses})

    def missing(self) -> list[str]:
        """Say why it is not open, although it should be."""
        return [f"the DNS relay is not open: {self._reason}"] if self._config and self._bound is None else []

    def status(self) -> admin_pb2.DnsStatus | None:
        """Return where it listens and whom it asks; None where nothing is captured."""
        if self._config is None:
            return None
        return admin_pb2.DnsStatus(
            listen=self._bound.addresses if self._bound else (),
            resolvers=self._asked.addresses,
            every_name=self._config.names is None,
            names=self._config.names or (),
        )

    def close(self) -> None:
        """Close it."""
        if self._bound is not None:
            self._bound.stop()
            self._bound = None
