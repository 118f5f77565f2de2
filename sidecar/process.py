# SPDX-License-Identifier: Apache-2.0
"""A running sidecar: what is started, in which order, and how it stops.

state → core → stored generation → sockets → agent SVID (stored, or attested now)
→ control stream, SVIDs, listeners, Broker API → "ready"
"""

import asyncio
import contextlib
import logging
import signal
import sys

from firedoor import segments
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.mtls import Core, MtlsError
from firedoor.sidecar import bundles, logs
from firedoor.sidecar.agent import Agent
from firedoor.sidecar.apis import Apis
from firedoor.sidecar.attestor import Names, rule_of
from firedoor.sidecar.broker_endpoint import BrokerEndpoint
from firedoor.sidecar.clock import Clock, Leaps
from firedoor.sidecar.config import Config
from firedoor.sidecar.datapath import DataPath
from firedoor.sidecar.demand import Demand
from firedoor.sidecar.dns import DnsRelay
from firedoor.sidecar.errors import ConfigError, OperatorError, SidecarError, StateError, UpdateRefused
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.metrics import MetricsServer, Snapshot
from firedoor.sidecar.policy_files import read_policy
from firedoor.sidecar.probes import ProbeServer
from firedoor.sidecar.records import Sink, output_for
from firedoor.sidecar.report import Parts, Report
from firedoor.sidecar.sockets import Sockets
from firedoor.sidecar.state import PRIVATE_DIR, State
from firedoor.sidecar.tasks import until_first
from firedoor.sidecar.view import View, read_update

log = logging.getLogger(__name__)

# One busy Python thread delays every call by this much (CPython's default is 5 ms).
SWITCH_SECONDS = 0.0005
DRAIN_SECONDS = 10.0
# What records that wait get to be written, after the last connection.
RECORD_SECONDS = 5.0
# Listeners that could not be opened are tried again this often.
UPKEEP_SECONDS = 2.0

EXIT_DONE = 0
EXIT_OPERATOR = 2
EXIT_REFUSED = 4


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT, or until the server refuses this agent for good; return an exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    logs.set_up(config.log)
    try:
        asyncio.run(Process(config).run())
    except OperatorError as error:
        print(f"firedoor sidecar: {error}", file=sys.stderr)
        return EXIT_OPERATOR
    except SidecarError as error:
        print(f"firedoor sidecar: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except MtlsError as error:
        print(f"firedoor sidecar: {error}", file=sys.stderr)
        return EXIT_OPERATOR
    return EXIT_DONE


class Process:
    """Everything that one sidecar process holds."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.state = State.open(config.data_dir)
        self._make_run_dir()
        table = self._local_table()
        self.clock = Clock(stepped_back=lambda by: log.error("the clock went back", extra={"seconds": round(by)}))
        view = View(config.trust_domain, bundles=self._first_bundles())
        records = config.records
        self.core = Core(record_capacity=records.queue)
        self.sink = Sink(self.core, output_for(records.path, records.rotate_bytes, records.keep))
        names = Names()
        demand = Demand(config.x509_svid_cache_max_size, {one.identity for one in config.listeners})
        self.holder = Holder(self.core, view, self.clock.now, lambda selectors: rule_of(selectors, names), demand)
        self.agent = Agent(self.core, config, self.state, self.holder, self.clock.now, table)
        self.datapath = DataPath(self.core, self.holder, config.listeners)
        self.apis = Apis(config, self.holder, self.clock.now, names, self._fetch_token, self._fetch_wit)
        self.broker_endpoint = BrokerEndpoint(self.core, self.holder, config.broker_api, self.apis.broker)
        self.dns = DnsRelay(self.core, config.dns)
        self.report = Report(
            Parts(
                config=config,
                holder=self.holder,
                datapath=self.datapath,
                agent=self.agent,
                core=self.core,
                sink=self.sink,
                apis=self.apis,
                broker_endpoint=self.broker_endpoint,
                dns=self.dns,
                now=self.clock.now,
            )
        )
        self.sockets = Sockets(self.core, config)
        self.probes = ProbeServer(config.probes)
        self.metrics = MetricsServer(Snapshot(self.report.values, self.report.expiries), self.report.missing)

    async def _fetch_token(self, entry_id: str, audience: tuple[str, ...]) -> str:
        """Have the server that we are connected to now sign a token."""
        return await self.agent.link.server.jwt_svid(entry_id, audience)

    async def _fetch_wit(self, entry_id: str, public_key: bytes, algorithm: str) -> str:
        """Have the same server sign a WIT-SVID."""
        return await self.agent.link.server.wit_svid(entry_id, public_key, algorithm)

    def _make_run_dir(self) -> None:
        folder = self.config.run_dir
        try:
            folder.mkdir(mode=PRIVATE_DIR, exist_ok=True)
            folder.chmod(PRIVATE_DIR)
            for socket in folder.glob("*.sock"):
                socket.unlink()
        except OSError as error:
            raise StateError(f"{folder}: {error.strerror}") from error

    def _local_table(self) -> bytes | None:
        """Return the local policy's table, if there is one and the server has never pushed any."""
        config = self.config
        if config.reset_policy:
            self.state.forget_generation()
        if config.segments is None:
            return None
        if self.state.load_generation() is not None:
            raise StateError(
                "the server of this sidecar pushes its policy, and `segments` would replace it; remove `segments`, or "
                "set reset_policy once the server pushes none any more"
            )
        return segments.table_bytes(segments.compile_table(read_policy(config.segments, config.trust_domain)))

    def _first_bundles(self) -> dict[TrustDomain, TrustBundle]:
        """Return what verifies the server at first: the stored bundles, else the bootstrap bundle."""
        stored = self.state.load_bundles()
        if stored is not None:
            found = dict(bundles.load(stored))
            if self.config.trust_domain in found:
                return found
        file = self.config.bootstrap_bundle
        if file is None:
            raise ConfigError(["bootstrap_bundle: is missing: the server cannot be verified at the first connection"])
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError([f"{file}: bootstrap_bundle: the file cannot be read: {error.strerror}"]) from error
        bundle = bundles.read_bootstrap(text, self.config.trust_domain, str(file))
        return {bundle.trust_domain: bundle}

    async def run(self) -> None:
        """Run until told to stop. Raise SidecarError when the agent cannot go on."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            self.sink.start()
            self._begin()
            await self._open_sockets()
            # It stays readable while more waits.
            loop.add_reader(self.core.event_fd(), self.agent.drain_events)
            await until_first(stop.wait(), self.agent.run(), self._watch(), self._upkeep())
        finally:
            loop.remove_reader(self.core.event_fd())
            await self._end()

    def _begin(self) -> None:
        """Publish what is known already: the stored generation, or the bundles alone."""
        self.holder.set(view=self.holder.view)
        update = self.state.load_generation()
        if update is None:
            return
        try:
            self.holder.set(view=read_update(update, self.config.trust_domain, None))
        except (UpdateRefused, MtlsError) as error:
            log.warning("the stored generation is not used", extra={"reason": str(error)})
            return
        self.agent.restore(update)

    async def _open_sockets(self) -> None:
        await self.sockets.open_auth(self.apis.workload, self.apis.auth, self.report.ready)
        await self.sockets.open_admin(self.report, self.report.ready, self.apis.delegated)
        await self.broker_endpoint.start()
        self.apis.look_for_pods()
        await self._open_probes()
        self.dns.adjust()
        if self.config.metrics is not None:
            try:
                await self.metrics.start(self.config.metrics)
            except OSError as error:
                raise ConfigError([f"metrics: {self.config.metrics} cannot be bound: {error.strerror}"]) from error
            log.info("metrics", extra={"address": self.metrics.address})

    async def _open_probes(self) -> None:
        if self.config.capture is None:
            return
        try:
            await self.probes.start(self.config.capture.probe_port)
        except OSError as error:
            port = self.config.capture.probe_port
            raise ConfigError([f"capture.probe_port: {port} cannot be bound: {error.strerror}"]) from error

    async def _watch(self) -> None:
        """Open and close listeners as identities come and go, and say once when everything is there."""
        said = False
        async for _ in self.holder.changes():
            self.datapath.adjust(self.clock.now())
            self.broker_endpoint.adjust()
            if not said and self.report.ready():
                said = True
                # Whoever started us may not listen any more.
                with contextlib.suppress(BrokenPipeError):
                    print(self.report.ready_line(), flush=True)

    async def _upkeep(self) -> None:
        told: list[str] = []
        leaps = Leaps()
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            if (leap := leaps.since()) > 0:
                log.warning("the machine was suspended, or its clock set ahead", extra={"seconds": round(leap)})
                self.agent.look_again()
            self.dns.adjust()
            self.apis.look_for_pods()
            missing = self.report.missing()
            if missing:
                self.holder.notify()
            if missing != told and missing:
                log.warning("not ready", extra={"missing": missing})
            told = missing

    async def _end(self) -> None:
        log.info("stopping")
        await self.broker_endpoint.close()
        await self.sockets.close()
        await self.apis.close()
        await self.metrics.stop()
        await self.probes.stop()
        await self.agent.close()
        self.dns.close()
        drained = await asyncio.to_thread(self.core.drain, DRAIN_SECONDS)
        if not drained:
            log.warning("connections were cut", extra={"after_seconds": DRAIN_SECONDS})
        await asyncio.to_thread(self.sink.stop, RECORD_SECONDS)
        await asyncio.to_thread(self.core.stop)
        self.state.close()
