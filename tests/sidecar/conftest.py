# SPDX-License-Identifier: Apache-2.0
"""A sidecar without a server: its holder is filled by the tests, its auth socket is real."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from firedoor.certs import Selector, TrustDomain, parse_x509_svid
from firedoor.mtls import Core
from firedoor.sidecar import config, updates
from firedoor.sidecar.answers import Answers
from firedoor.sidecar.attestor import Names, UnixAttestor, rule_of
from firedoor.sidecar.auth import AuthApi
from firedoor.sidecar.broker_api import BrokerApi, Clients
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.config import BrokerApiConfig, Config
from firedoor.sidecar.delegated import DelegatedIdentity
from firedoor.sidecar.errors import ServerUnavailable
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import Identity
from firedoor.sidecar.keys import Key, public_key_of
from firedoor.sidecar.listeners import Inbound
from firedoor.sidecar.pod_source import PodSource
from firedoor.sidecar.streams import Streams
from firedoor.sidecar.tokens import Tokens
from firedoor.sidecar.view import Entry, View
from firedoor.sidecar.wits import Wits
from firedoor.sidecar.workload import VerifierRules, WorkloadApi
from tests.cgroups import Tree, tree
from tests.sidecar.harness import Running, Start, write_files
from tests.sidecar.harness import entry as wire_entry
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain

TD = TrustDomain.parse("example.org")


def entry(path: str, *selectors: str, **fields: object) -> Entry:
    """Return an entry; its ID is the path's last word unless given."""
    given = {
        "id": path.rpartition("/")[2],
        "federates_with": (),
        "hint": "",
        "created_at": 0,
        "expires_at": 0,
        "revision": (0,),
        "store_svid": False,
        **fields,
    }
    found = frozenset(Selector.parse(one) for one in selectors)
    return Entry(spiffe_id=TD.with_path(path), selectors=found, **given)  # type: ignore[arg-type]


def identity(trust: SimulatedTrustDomain, one: Entry, **fields: object) -> Identity:
    """Issue an SVID for an entry."""
    made = trust.svid(one.spiffe_id.path, **fields)
    svid = parse_x509_svid(made.chain)
    key = Key(made.key_der, public_key_of(made.chain[0]))
    return Identity(one, svid, key, (svid.authority_id,), renew_at=float(svid.not_after))


@dataclass
class Bench:
    """A trust domain, and a holder that publishes to a real core."""

    trust: SimulatedTrustDomain
    holder: Holder
    core: Core
    # Entry IDs of the tokens that were signed.
    fetched: list[str] = field(default_factory=list)
    # How long WIT-SVIDs live, and whether none can be had.
    wit_ttl: int = 3600
    away: bool = False

    def entitle(self, *entries: Entry, issue: bool = True, others: tuple[SimulatedTrustDomain, ...] = ()) -> None:
        """Make these the entries, with SVIDs for those that have none."""
        view = View(TD, synced=True, generation=(1, 1)).with_entries(entries)
        self.holder.set(view=view.with_bundles(self.trust.bundles(*others).values()))
        if issue:
            held = [self.holder.identities.get(one.id) or identity(self.trust, one) for one in entries]
            self.holder.set(identities=held)

    async def fetch(self, entry_id: str, audience: tuple[str, ...]) -> str:
        """Sign a token as the server would."""
        if not self.trust.jwt_issuers:
            raise ServerUnavailable("the server is away")
        self.fetched.append(entry_id)
        return self.trust.token(self.holder.view.entries[entry_id].spiffe_id.path, *audience)

    async def fetch_wit(self, entry_id: str, public_key: bytes, algorithm: str) -> str:
        """Sign a WIT-SVID as the server would."""
        if not self.trust.wit_issuers or self.away:
            raise ServerUnavailable("the server is away")
        self.fetched.append(entry_id)
        path = self.holder.view.entries[entry_id].spiffe_id.path
        return self.trust.wit(path, public_key, algorithm, ttl=self.wit_ttl)

    def wits(self, max_held: int = 100) -> Wits:
        """Return where the Workload API gets its WIT-SVIDs."""
        return Wits(self.holder, self.fetch_wit, lambda: float(self.trust.at), max_held=max_held)

    def tokens(self) -> Tokens:
        """Return where the Workload API gets its tokens."""
        return Tokens(self.holder, self.fetch, lambda: float(self.trust.at))

    def apis(
        self, inbound: Sequence[Inbound] = (), streams: Streams | None = None, rules: VerifierRules | None = None
    ) -> tuple[WorkloadApi, AuthApi]:
        """Return what the auth socket serves, by the trust domain's clock."""
        api = WorkloadApi(
            self.holder, UnixAttestor(), lambda: float(self.trust.at), self.tokens(), self.wits(), streams, rules
        )
        return api, AuthApi(api.callers, api.answers, inbound)

    def delegated(self, *delegates: Entry, streams: Streams | None = None) -> DelegatedIdentity:
        """Return what the admin socket serves delegates with these entries."""
        now, tokens = lambda: float(self.trust.at), self.tokens()
        own, others = Answers(self.holder, now, tokens), Answers(self.holder, now, tokens, for_others=True)
        callers = Callers(self.holder, UnixAttestor())
        allowed = {one.spiffe_id for one in delegates}
        return DelegatedIdentity(own, others, callers, Streams(self.holder) if streams is None else streams, allowed)

    def broker_api(
        self, config: BrokerApiConfig, streams: Streams | None = None, pods: PodSource | None = None
    ) -> BrokerApi:
        """Return the SPIFFE Broker API for these clients."""
        answers = Answers(self.holder, lambda: float(self.trust.at), self.tokens(), for_others=True)
        callers = Callers(self.holder, UnixAttestor())
        clients = Clients(config.clients, config.kubernetes_clients)
        return BrokerApi(answers, callers, Streams(self.holder) if streams is None else streams, clients, pods)

    def rotate(self, one: Entry) -> Identity:
        """Issue a new SVID for an entry."""
        fresh = identity(self.trust, one)
        self.holder.set(identities=[*{**self.holder.identities, one.id: fresh}.values()])
        return fresh


@pytest.fixture
def trust() -> SimulatedTrustDomain:
    return SimulatedTrustDomain("example.org", at=int(time.time()))


@pytest.fixture
def core() -> Iterator[Core]:
    found = Core(data_threads=1)
    yield found
    found.stop()


@pytest.fixture
def bench(trust: SimulatedTrustDomain, core: Core) -> Bench:
    names = Names()
    first = View(TD, bundles=trust.bundles())
    return Bench(trust, Holder(core, first, time.time, lambda selectors: rule_of(selectors, names)), core)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    """A configuration with everything below a temporary folder."""
    flags = {
        "trust_domain": "example.org",
        "broker": "127.0.0.1:1",
        "auth_socket": str(tmp_path / "auth.sock"),
        "admin_socket": str(tmp_path / "admin.sock"),
        "data_dir": str(tmp_path / "data"),
        "metrics": "off",
    }
    found = config.load(None, {}, flags)
    found.data_dir.mkdir(mode=0o700)
    found.run_dir.mkdir(mode=0o700)
    return found


@pytest.fixture
async def running() -> AsyncIterator[Start]:
    """Starts sidecars on this event loop, and stops them."""
    started: list[Running] = []

    def start(one: Config) -> Running:
        started.append(Running(one))
        return started[-1]

    yield start
    for one in started:
        await one.stop()


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.entries["x"] = wire_entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    address = await found.start(tmp_path / "server")
    write_files(tmp_path, found, address)
    yield found
    await found.stop()


@pytest.fixture
def cgroups() -> Iterator[Tree]:
    """A tree of cgroups of the test's own."""
    with tree() as found:
        yield found
