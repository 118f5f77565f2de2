# SPDX-License-Identifier: Apache-2.0
"""Every API that a sidecar serves to programs, on what one holder holds; sockets and endpoint bring the callers."""

from collections.abc import Callable

from firedoor.sidecar import tokens, wits
from firedoor.sidecar.answers import Answers
from firedoor.sidecar.attestor import Names, UnixAttestor
from firedoor.sidecar.auth import AuthApi
from firedoor.sidecar.broker_api import BrokerApi
from firedoor.sidecar.callers import Callers
from firedoor.sidecar.config import Config
from firedoor.sidecar.delegated import DelegatedIdentity
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.streams import Streams
from firedoor.sidecar.workload import VerifierRules, WorkloadApi


class Apis:
    """The services, and what they keep between calls."""

    def __init__(
        self,
        config: Config,
        holder: Holder,
        now: Callable[[], float],
        names: Names,
        fetch_token: tokens.Fetch,
        fetch_wit: wits.Fetch,
    ) -> None:
        attestor, most = UnixAttestor(names), config.jwt_svid_cache_max_size
        self.tokens = tokens.Tokens(holder, fetch_token, now, max_held=most)
        self.wits = wits.Wits(holder, fetch_wit, now, max_held=most)
        self.streams = Streams(holder, config.max_streams)
        rules = VerifierRules(config.allow_unauthenticated_verifiers, config.allowed_foreign_jwt_claims)
        self.workload = WorkloadApi(holder, attestor, now, self.tokens, self.wits, self.streams, rules)
        own = self.workload.answers
        self.auth = AuthApi(self.workload.callers, own, config.inbound)
        others = Answers(holder, now, self.tokens, for_others=True)
        # The admin socket has callers of its own.
        callers = Callers(holder, attestor)
        self.delegated = DelegatedIdentity(own, others, callers, self.streams, config.authorized_delegates)
        clients = config.broker_api.clients if config.broker_api else frozenset()
        self.broker = BrokerApi(others, callers, self.streams, clients)
