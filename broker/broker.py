# SPDX-License-Identifier: Apache-2.0
"""One broker: its parts, put together and kept going."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc
from sqlalchemy import Connection

from firedoor import mtls
from firedoor.broker import downstream_keys, server, services
from firedoor.broker.agent import JOIN_TOKEN_PATH
from firedoor.broker.attest import Attestor, JoinTokenAttestor
from firedoor.broker.audit import Audit
from firedoor.broker.authority import NEWCOMER_WAITS, Manager
from firedoor.broker.authority_kinds import AuthorityManager, JwtAuthorityManager, WitAuthorityManager
from firedoor.broker.breakglass import BreakGlass
from firedoor.broker.clock import Clock
from firedoor.broker.condition import DATABASE, KEY_MANAGER, Condition
from firedoor.broker.config import Config, read_passphrase
from firedoor.broker.crls import Crls
from firedoor.broker.db import open_database
from firedoor.broker.db.agent_rows import delete_expired_spent_tokens, delete_expired_tokens
from firedoor.broker.db.change_rows import prune_changes
from firedoor.broker.db.crl_rows import prune_crls
from firedoor.broker.db.entry_rows import delete_entry, delete_expired_entries
from firedoor.broker.db.intermediate_rows import prune_intermediates
from firedoor.broker.db.migrate import migrate
from firedoor.broker.db.postgres import is_postgres
from firedoor.broker.db.rows import prune
from firedoor.broker.endpoints import Fetcher
from firedoor.broker.entry import is_node_alias
from firedoor.broker.epoch import Mark, follow
from firedoor.broker.errors import BrokerError, KeysAway, StorageError
from firedoor.broker.federation import Federation
from firedoor.broker.files import FileStore, lock, make_private_folder, own_id, prepare_socket
from firedoor.broker.followers import Fetches, Followers
from firedoor.broker.http_challenge import HttpChallengeAttestor
from firedoor.broker.identity import ServerIdentity
from firedoor.broker.injector.ca_bundle import CaBundle
from firedoor.broker.injector.webhook import Webhook
from firedoor.broker.issuing import Signer
from firedoor.broker.keys.keyring import Keyring
from firedoor.broker.kubernetes.configured import add_configured
from firedoor.broker.kubernetes.controllers import BrokerParts, Controllers
from firedoor.broker.kubernetes.directory import ClusterDirectory
from firedoor.broker.kubernetes.pod_attestors import PodAttestor, PodCluster, PsatAttestor
from firedoor.broker.kubernetes.policy_resources import Resources
from firedoor.broker.kubernetes.policy_status import PolicyStatus
from firedoor.broker.kubernetes.registration import Registration
from firedoor.broker.kubernetes.rights import cluster_api
from firedoor.broker.limits import Limits
from firedoor.broker.metrics import Metrics
from firedoor.broker.policy import PolicyKeeper
from firedoor.broker.policy_origin import Files, Origin
from firedoor.broker.push import Pusher
from firedoor.broker.read_files import ReadFiles
from firedoor.broker.relationship_file import RelationshipFile
from firedoor.broker.rotation import Rotations
from firedoor.broker.rotation_order import settings_of
from firedoor.broker.rpc.agents import AgentService
from firedoor.broker.rpc.gate import Gate
from firedoor.broker.sites import Endpoint, Site, planned
from firedoor.broker.sshpop import SshPopAttestor, ssh_authorities
from firedoor.broker.state import State
from firedoor.broker.upstream import Upstream
from firedoor.broker.upstream.disk import DiskUpstream, UpstreamFiles
from firedoor.broker.upstream.spire import SpireUpstream
from firedoor.broker.upstream.vault import UpstreamVault, VaultUpstream
from firedoor.broker.vouchers import CaFiles, OwnSvids, Vouchers
from firedoor.broker.web import Web
from firedoor.broker.x509pop import X509PopAttestor
from firedoor.certs import (
    HTTP_CHALLENGE,
    K8S_POD,
    K8S_PSAT,
    SSHPOP,
    X509POP,
    CertsError,
    DiskKeyManager,
    KeyManager,
    MemoryKeyManager,
    PrivateKey,
    SpiffeId,
)
from firedoor.certs.authority import Kind
from firedoor.cluster.errors import ClusterError

_log = logging.getLogger("firedoor.broker")

# How often files, authorities and expired entries are looked at.
_TICK: Final = 1.0
# How often the policy's files are looked at: an edit is in force within a second, the push included.
_POLICY_TICK: Final = 0.25
# Seconds by which others' clocks may be behind ours: what is revoked stays revoked until it has expired by theirs too.
CLOCKS_DIFFER: Final = 300
_PRUNE_EVERY: Final = 60.0
# What calls get to finish after SIGTERM.
_GRACE: Final = 3.0


class Broker:
    """A broker's parts. `start`, then `stop` once; `reread` after SIGHUP."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = Clock()
        self.metrics = Metrics()
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[grpc.aio.Server] = []
        # The private addresses of the network and the admin server; whoever reaches one past its front is nobody.
        self.backends: tuple[str, ...] = ()
        self._missing = ["start-up"]
        # What must not keep calls from their end.
        self._ending: list[Callable[[], None]] = []
        self._stack = contextlib.AsyncExitStack()
        self.vouchers: Vouchers | None = None
        self.ssh_authorities: ReadFiles[frozenset[bytes]] | None = None
        self.pod_clusters: dict[str, PodCluster] = {}
        # The policy as a cluster's objects, when it is that.
        self.resources: Resources | None = None
        self.registration: Registration | None = None
        self.webhook: Webhook | None = None
        self.ca_bundle: CaBundle | None = None
        # What keeps a cluster's objects as they should be.
        self.controllers: Controllers | None = None
        self.directory: ClusterDirectory | None = None
        # Set when the broker should be stopped, by a signal or because a part of it failed.
        self.ended = asyncio.Event()
        self.failed = False
        self.listen = ""
        # None while there is no SVID of the broker's own to show.
        self.front: mtls.Front | None = None
        self.metrics_address = ""
        self.sites: dict[Endpoint, Site] = {}

    async def start(self) -> None:
        """Open everything. Raise BrokerError, and leave nothing open."""
        try:
            await self._open_state()
            await self._open_network()
        except BaseException:
            await self.stop()
            raise
        self._missing.clear()

    async def _open_state(self) -> None:
        config = self.config
        make_private_folder(config.data_dir)
        self._stack.callback(os.close, lock(config.data_dir / "lock"))
        self.audit = Audit(config.audit_log, self.clock.now)
        self._stack.callback(self.audit.close)
        broker_id = own_id(config.data_dir / "broker-id") if is_postgres(config.database) else ""
        self.database = open_database(config.database, config.database_password_file, broker_id)
        self._stack.callback(self.database.close)
        await asyncio.to_thread(migrate, self.database.engine)
        await self.database.join()
        self.state = State(config.trust_domain, self.database, self.clock, config.roles)
        controllers = config.kubernetes.controllers
        self.state.has_directory = controllers is not None and controllers.directory
        await self.state.load()
        mark = Mark(config.data_dir / "generation")
        self._stack.callback(mark.close)
        await follow(self.state, mark, self.audit)
        self.keys = keys = Keyring(await asyncio.to_thread(self._key_manager), self.metrics, self.audit)
        self._stack.callback(keys.close)
        upstream = await asyncio.to_thread(self._open_upstream)
        self.authority = AuthorityManager(self.state, keys, config.ca_key_type, config.ca_ttl, self.audit, upstream)
        await self.authority.start()
        self.jwt_authority = JwtAuthorityManager(
            self.state, keys, config.ca_key_type, config.ca_ttl, self.audit, upstream
        )
        await self.jwt_authority.start()
        self.wit_authority = WitAuthorityManager(
            self.state, keys, config.ca_key_type, config.ca_ttl, self.audit, upstream
        )
        await self.wit_authority.start()
        self.managers: dict[Kind, Manager[Any]] = {
            "x509": self.authority,
            "jwt": self.jwt_authority,
            "wit": self.wit_authority,
        }
        keys.active = self._signing_keys
        if not keys.trouble and any(one.fresh for one in self.managers.values()) and await self.database.others():
            _log.info("other brokers are there: what signs here is in the bundle, and signs in %d s", NEWCOMER_WAITS)
            await asyncio.sleep(NEWCOMER_WAITS)
        fetcher = Fetcher(self.state)
        self._stack.callback(fetcher.close)
        declared = config.federation_relationships
        file = RelationshipFile(declared, config.trust_domain) if declared else None
        self.federation = Federation(self.state, fetcher, self.audit, self.metrics, file)
        await self.federation.load()
        self.policy = PolicyKeeper(self.state, await self._policy_origin(), self.audit, self.metrics)
        self._ending.append(self.policy.reissuer.stop)
        await self.policy.start()
        if self.policy.current.policy is None:
            _log.warning("no segments are declared: nothing is issued until there are some")
        ceiling = self.authority.max_svid_ttl
        for name in ("x509_svid_ttl", "jwt_svid_ttl", "agent_ttl"):
            if 0 < ceiling < getattr(config, name):
                _log.warning(
                    "%s is more than a sixth of ca_ttl: SVIDs will often end before it, with their authority", name
                )

    async def _policy_origin(self) -> Origin | None:
        """Return where the policy is kept when it is not the database."""
        if self.config.kubernetes.policy is None:
            return None if self.config.segments is None else Files(self.config.segments)
        rules = self.config.kubernetes.policy
        self._policy_api = cluster_api(rules.cluster, rules.access)
        self._stack.push_async_callback(self._policy_api.close)
        self.resources = Resources(self._policy_api, f"kubernetes: {rules.cluster}")
        self._start(self.resources.run)
        await self.resources.ready()
        return self.resources

    def _start(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what must not end before the broker does."""
        task = asyncio.create_task(loop())
        task.add_done_callback(self._loop_ended)
        self._tasks.append(task)

    def _open_upstream(self) -> Upstream | None:
        """Return the authority above this broker, None when it is a root itself. Raise ConfigError."""
        config = self.config
        if config.upstream is None:
            return None
        if isinstance(config.upstream, UpstreamFiles):
            return DiskUpstream(config.upstream, config.trust_domain)
        if isinstance(config.upstream, UpstreamVault):
            return VaultUpstream(config.upstream, config.trust_domain)
        above = SpireUpstream(config.upstream.server, config.upstream.workload_api, config.trust_domain)
        self._stack.callback(above.close)
        self.state.knows_all_below = False
        return above

    async def _open_vouchers(self) -> Vouchers | None:
        """Return who vouches for nodes' certificates, None when nobody does. Raise ConfigError."""
        config = self.config
        if config.x509pop.spiffe_prefix:
            return OwnSvids(self.state, config.x509pop.spiffe_prefix)
        return await asyncio.to_thread(CaFiles, config.x509pop.ca_bundles) if config.x509pop.ca_bundles else None

    def _key_manager(self) -> KeyManager:
        config = self.config
        if not isinstance(config.key_manager, str):
            return config.key_manager.open(own_id(config.data_dir / "broker-id"))
        if config.key_manager == "memory":
            _log.warning(
                "authority keys are in memory: a restart makes a new authority, and peers must fetch the bundle"
            )
            return MemoryKeyManager()
        passphrase = read_passphrase(config.key_passphrase_file) if config.key_passphrase_file else None
        if passphrase is None:
            _log.warning("authority keys on disk are not encrypted; --key-passphrase-file encrypts them")
        return DiskKeyManager(FileStore(config.data_dir / "keys"), passphrase)

    def _signing_keys(self) -> list[PrivateKey]:
        return [key for one in self.managers.values() if (key := one.signing_key) is not None]

    async def _open_network(self) -> None:
        config, state = self.config, self.state
        self.vouchers = await self._open_vouchers()
        if config.sshpop is not None:
            self.ssh_authorities = await asyncio.to_thread(ssh_authorities, config.sshpop.cert_authorities)
        self.pod_clusters = {one.name: await asyncio.to_thread(one.open) for one in config.kubernetes.pods}
        self.core = mtls.Core()
        self._stack.callback(self.core.stop)
        names = config.injector.names if config.injector else ()
        store = FileStore(config.data_dir / "identity") if self.keys.is_device else None
        self.identity = ServerIdentity(state, self.authority, self.core, names, store)
        await self.identity.start()
        self.crls = Crls(state, self.authority, self.metrics)
        await _survive("revocation lists", self.crls.refresh())
        control = self.core.control_server()
        self.pusher = Pusher(state, self.policy, control, self.metrics)
        self.policy.reissuer.follow(self.pusher.listening)
        self.fetches = Fetches(state)
        followers = Followers(state, self.pusher.listening, self.fetches)
        settings = settings_of(config, state, self.policy, self._refresh_identity)
        self.rotations = Rotations(state, self.managers, followers, self.audit, self.metrics, settings)
        self.pusher.urgent = self.rotations.urgent
        self._ending.append(self.rotations.stop)
        await self.rotations.load()
        asyncio.get_running_loop().add_reader(self.core.event_fd(), self.pusher.take_events)
        self._stack.callback(asyncio.get_running_loop().remove_reader, self.core.event_fd())

        signer = Signer(state, self.authority.issuer, self.metrics, self.keys)
        self.breakglass = BreakGlass(state, self.policy, signer, self.audit, config.breakglass_ttl)
        self.limits = limits = Limits(config.attestation, config.signing)
        agents = AgentService(state, signer, self._attestors(), limits, self.metrics, config.agent_ttl, self._cut)
        common = services.on_both(self, agents, signer, limits)
        network = Gate(local=False, standing=state, audit=self.audit, metrics=self.metrics)
        admin = Gate(local=True, standing=state, audit=self.audit, metrics=self.metrics)
        network_server, network_address = await server.start_server(network, common)
        self._servers.append(network_server)
        admin_server, admin_address = await server.start_server(
            admin, services.on_admin_socket(self, common, self.condition)
        )
        self._servers.append(admin_server)
        self.backends = (network_address, admin_address)
        await asyncio.to_thread(prepare_socket, config.admin_socket)
        front = self.core.unix_front(path=str(config.admin_socket), backend=admin_address, mode=0o600)
        admin.attach(front.caller)

        def open_front() -> None:
            self.front = self.core.tls_front(
                listen=config.listen,
                as_id=str(state.server_id),
                backend=network_address,
                control=control,
                anonymous=config.anonymous_connections,
            )
            network.attach(self.front.caller)
            self.listen = self.front.address

        self._open_front = open_front
        state.watch_gone(self._cut)
        await self._open_web()
        await self._open_fronts()
        loops = (
            self.keys.watch,
            self.pusher.run,
            self.pusher.share,
            self.federation.run,
            self.rotations.run,
            self._tick_loop,
            self._policy_loop,
            self._prune_loop,
            self.breakglass.run,
            self.crls.run,
        )
        for loop in loops:
            self._start(loop)
        if config.kubernetes.controllers is not None:
            self.controllers = Controllers(config.kubernetes.controllers)
            self._stack.push_async_callback(self.controllers.stop)
            self._add_controllers(self.controllers, signer)
            self._start(self.controllers.run)
        if self.resources is not None:
            status = PolicyStatus(self._policy_api, self.resources, self.policy, state, followers.without_news)
            self._start(status.run)

    def _add_controllers(self, controllers: Controllers, signer: Signer) -> None:
        """Add what the configuration names."""
        parts = BrokerParts(
            self.state,
            self.policy,
            signer,
            self.audit,
            self.metrics,
            self.federation,
            lambda: len(self.pusher.listening),
        )
        made = add_configured(controllers, self.config.kubernetes.attesting(controllers.rules.cluster), parts)
        self.registration, self.directory = made.registration, made.directory

    def _attestors(self) -> dict[str, Attestor]:
        """Return what checks nodes' evidence, by the type that agents name."""
        config, trust_domain = self.config, self.config.trust_domain
        found: dict[str, Attestor] = {"join_token": JoinTokenAttestor(trust_domain)}
        if self.vouchers is not None:
            x509pop = X509PopAttestor(trust_domain, self.vouchers, config.x509pop.agent_path)
            self._stack.callback(x509pop.close)
            found[X509POP] = x509pop
        if config.sshpop is not None and self.ssh_authorities is not None:
            rules = config.sshpop
            sshpop = SshPopAttestor(trust_domain, self.ssh_authorities, rules.canonical_domain, rules.agent_path)
            self._stack.callback(sshpop.close)
            found[SSHPOP] = sshpop
        if config.http_challenge is not None:
            http_challenge = HttpChallengeAttestor(trust_domain, config.http_challenge)
            self._stack.callback(http_challenge.close)
            found[HTTP_CHALLENGE] = http_challenge
        if self.pod_clusters:
            pods = PodAttestor(trust_domain, config.kubernetes.pod_audience, self.pod_clusters)
            self._stack.push_async_callback(pods.close)
            found[K8S_POD] = pods
        if config.kubernetes.agents:
            agents = {one.name: one.open() for one in config.kubernetes.agents}
            psat = PsatAttestor(trust_domain, config.kubernetes.psat_audience, agents)
            self._stack.push_async_callback(psat.close)
            found[K8S_PSAT] = psat
        return found

    async def _open_web(self) -> None:
        if self.config.metrics is None:
            return
        web = Web(self._metrics_text, self.condition)
        host, _, port = self.config.metrics.rpartition(":")
        try:
            self.metrics_address = await web.listen(host.strip("[]"), int(port))
        except OSError as error:
            raise StorageError(f"metrics cannot listen on {self.config.metrics}: {error.strerror}") from error
        self._stack.push_async_callback(web.stop)

    async def _open_fronts(self) -> None:
        """Open what is not open yet: where sidecars connect, and the listeners with documents that anybody may have.

        Without an SVID of the broker's own, those alone that have a certificate from a file.
        """
        if self.front is None and self.identity.is_ready:
            self._open_front()
        for endpoint, pages in planned(self.config, self.state).items():
            if endpoint in self.sites or not (endpoint.files or self.identity.is_ready):
                continue
            site = Site(endpoint, pages, self.core, self.state.server_id)
            self._stack.push_async_callback(site.stop)
            await site.open()
            self.sites[endpoint] = site
        if self.webhook is None and self.identity.is_ready:
            await self._open_injector()

    async def _open_injector(self) -> None:
        """Open the admission webhook, and see to it that the cluster knows whom to trust there."""
        rules = self.config.injector
        if rules is None:
            return
        self.webhook = Webhook(rules, self.core, self.state.server_id)
        self._stack.push_async_callback(self.webhook.stop)
        await self.webhook.open()
        cluster = self.pod_clusters.get(rules.cluster)
        if rules.webhook and cluster is not None and cluster.access is not None:
            api = cluster_api(rules.cluster, cluster.access)
            self._stack.push_async_callback(api.close)
            self.ca_bundle = CaBundle(api, rules.webhook)

    def condition(self) -> Condition:
        """Say whether the broker serves those who come, and what it cannot do meanwhile."""
        if self._missing:
            return Condition(tuple(self._missing))
        degraded = {}
        if trouble := self.database.trouble:
            degraded[DATABASE] = f"{trouble}: nothing is issued or changed"
        if trouble := self.keys.trouble:
            degraded[KEY_MANAGER] = f"key manager: {trouble}"
        # The policy and the generation are there since the start; without them a broker does not start.
        connects = self.front is not None and self.identity.svid.not_after > self.clock.now()
        return Condition(() if connects else ("an SVID of the broker's own: no sidecar can connect",), degraded)

    async def reread(self) -> None:
        """Read the files of policy and CAs again, and open the audit log anew (SIGHUP). Nothing before it is ready."""
        if self._missing:
            return
        self.audit.reopen()
        self.keys.forgive()
        if self.vouchers is not None:
            await self.vouchers.reread()
        if self.ssh_authorities is not None:
            await self.ssh_authorities.reread()
        for cluster in self.pod_clusters.values():
            if cluster.keys is not None:
                await cluster.keys.reread()
        await self.federation.reread()
        await self.policy.reread()

    async def stop(self) -> None:
        """End calls, then close everything."""
        self._missing[:] = ["shutting down"]
        for end in self._ending:
            end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.stop(_GRACE) for one in self._servers))
        await self._stack.aclose()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """Ask to be stopped when a loop ends that must not: that is a bug, and a supervisor starts the broker anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a part of the broker ended that must not", exc_info=error)
            self.failed = True
            self.ended.set()

    def _cut(self, agent_id: SpiffeId) -> None:
        """Close what an agent has open: its connections, and its streams."""
        if self.front is not None:
            self.front.close_callers(str(agent_id))
        self.pusher.cut(agent_id)

    def _metrics_text(self) -> bytes:
        self.metrics.entries.set(len(self.state.entries))
        self.metrics.agents.set(len(self.state.agents))
        self.metrics.authority_not_after.set(self.authority.not_after)
        condition = self.condition()
        self.metrics.ready.set(condition.ready)
        self.metrics.database_up.set(DATABASE not in condition.degraded)
        return self.metrics.text()

    # --- what goes on by itself ---------------------------------------------------------------------------------

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            if self.database.usurped:
                _log.critical("another broker has this one's ID: its data directory was copied")
                self.failed = True
                self.ended.set()
            if self.state.went_back:
                await _survive("epoch", self._begin_epoch())
            await _survive("authority", self.authority.tick())
            await _survive("JWT authority", self.jwt_authority.tick())
            await _survive("WIT authority", self.wit_authority.tick())
            await _survive("entries", self._expire_entries())
            await _survive("keys of authorities below", downstream_keys.sweep(self.state, self.audit))
            if self.vouchers is not None:
                await _survive("x509pop", self.vouchers.poll())
            if self.ssh_authorities is not None:
                await _survive("sshpop", self.ssh_authorities.poll())
            for cluster in self.pod_clusters.values():
                if cluster.keys is not None:
                    await _survive("k8s_pod", cluster.keys.poll())
            await _survive("federation", self.federation.poll())
            for site in self.sites.values():
                await _survive("certificate", site.poll())
            if self.ca_bundle is not None:
                roots = [root.der for root in self.state.bundles[self.state.trust_domain].x509_roots]
                await _survive("injector", self.ca_bundle.poll(roots, self.clock.now()))
            await self._refresh_identity()
            if self.front is None:
                await self._open_late()

    async def _open_late(self) -> None:
        try:
            await self._open_fronts()
        except (BrokerError, mtls.MtlsError) as error:
            _log.error("%s", error)

    async def _refresh_identity(self) -> None:
        try:
            await self.identity.refresh()
        except KeysAway:
            # The keyring says so, once.
            pass
        except (BrokerError, CertsError, mtls.MtlsError) as error:
            _log.error("the broker's own SVID could not be renewed: %s", error)

    async def _begin_epoch(self) -> None:
        """Go on from a database that was restored while this broker ran: memory is what the database has."""
        await self.state.new_epoch()
        self.audit.event("new_epoch", generation=str(self.state.generation))

    async def _policy_loop(self) -> None:
        """Look at the policy's files. On its own: an edit may wait for certificates to be replaced."""
        while True:
            await asyncio.sleep(_POLICY_TICK)
            await _survive("policy", self.policy.poll())

    async def _expire_entries(self) -> None:
        now = self.clock.now()
        if not self.database.leads or not any(entry.expired(now) for entry in self.state.entries):
            return

        def apply(gone: list[str]) -> None:
            for entry_id in gone:
                self.state.entries.remove(entry_id)

        gone = await self.state.change(lambda connection: delete_expired_entries(connection, now), apply, bumps=bool)
        self.audit.event("entries_expired", entry_ids=gone)

    async def _prune_loop(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_EVERY)
            if self.database.leads:
                await _survive("pruning", self._prune())

    async def _prune(self) -> None:
        """Delete what has expired: issued rows, revocations, join tokens, and the aliases of tokens nobody used."""
        now = self.clock.now()
        over = now - CLOCKS_DIFFER
        waiting = {
            hashlib.sha256(entry.parent_id.path.removeprefix(JOIN_TOKEN_PATH).encode()).digest(): entry.id
            for entry in self.state.entries
            if is_node_alias(entry)
            and entry.parent_id.path.startswith(JOIN_TOKEN_PATH)
            and entry.parent_id not in self.state.agents
        }

        def run(connection: Connection) -> list[str]:
            prune(connection, over)
            if self.database.broker_id:
                prune_changes(connection)
            prune_intermediates(connection, over)
            delete_expired_spent_tokens(connection, over)
            prune_crls(connection, over)
            gone = [waiting[token] for token in delete_expired_tokens(connection, now) if token in waiting]
            for entry_id in gone:
                delete_entry(connection, entry_id)
            return gone

        def apply(gone: list[str]) -> None:
            for entry_id in gone:
                self.state.entries.remove(entry_id)
            self.state.intermediates = {s: one for s, one in self.state.intermediates.items() if one.not_after > over}
            self.state.crls = {key: one for key, one in self.state.crls.items() if one.next_update > over}
            self.state.revocations = {key: one for key, one in self.state.revocations.items() if one.expires_at > over}

        await self.database.write(run, apply)


async def _survive(what: str, work: Coroutine[Any, Any, None]) -> None:
    """Run one piece of work; a fault of ours is logged, and it is tried again later."""
    try:
        await work
    except KeysAway:
        # The keyring says so, once.
        pass
    except (BrokerError, CertsError, ClusterError) as error:
        _log.error("%s: %s", what, error)
