# SPDX-License-Identifier: Apache-2.0
"""A real auth socket in a thread of its own, so that blocking clients can be tried from the test's thread.

The client's tests meet the sidecar's service, its front and its attestation of this very process.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from firedoor.certs import parse_x509_svid
from firedoor.mtls import Core
from firedoor.sidecar import config
from firedoor.sidecar.config import Config
from firedoor.sidecar.holder import Holder
from firedoor.sidecar.identities import Identity
from firedoor.sidecar.keys import Key, public_key_of
from firedoor.sidecar.view import Entry, View
from tests.sidecar.auth_socket import AuthSocket, X, inbound, opened
from tests.sidecar.conftest import TD, Bench
from tests.simulator import SimulatedTrustDomain
from tests.waiting import PATIENCE

T = TypeVar("T")


class Sidecar:
    """The auth service of a sidecar; all of it lives on its own loop."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self.core = Core(data_threads=1)
        self.trust = SimulatedTrustDomain("example.org", at=int(time.time()))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        view = View(TD, bundles=self.trust.bundles())
        self.bench = Bench(self.trust, Holder(self.core, view, time.time, lambda _: None), self.core)
        self._stack = contextlib.AsyncExitStack()
        self.auth: AuthSocket | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._settings.auth_socket}"

    def do(self, job: Coroutine[Any, Any, T]) -> T:
        found: Future[T] = asyncio.run_coroutine_threadsafe(job, self._loop)
        return found.result(PATIENCE)

    def start(self) -> None:
        self.do(self._start())

    async def _start(self) -> None:
        self.auth = await self._stack.enter_async_context(opened(self.bench, self._settings, inbound(X)))

    def stop(self) -> None:
        self.do(self._stack.aclose())

    def entitle(self, *entries: Entry, others: tuple[SimulatedTrustDomain, ...] = ()) -> None:
        async def change() -> None:
            assert self.auth
            self.auth.entitle(*entries, others=others)

        self.do(change())

    def hold(self, entry: Entry, **fields: Any) -> Identity:
        """Issue an SVID with fields of the simulator, in place of the one that is held; return it."""
        self.trust.at = int(time.time())
        made = self.trust.svid(entry.spiffe_id.path, **fields)
        svid = parse_x509_svid(made.chain)
        key = Key(made.key_der, public_key_of(made.chain[0]))
        # The path's authorities, the root's last.
        path = tuple(dict.fromkeys((svid.authority_id, self.trust.authority.authority_id)))
        fresh = Identity(entry, svid, key, path, float(svid.not_after))

        async def change() -> None:
            holder = self.bench.holder
            holder.set(identities=[*{**holder.identities, entry.id: fresh}.values()])

        self.do(change())
        return fresh

    def trust_also(self, *others: SimulatedTrustDomain) -> None:
        """Publish the bundles anew."""

        async def change() -> None:
            holder = self.bench.holder
            holder.set(view=replace(holder.view, bundles=self.trust.bundles(*others)))

        self.do(change())

    def end(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        self.core.stop()


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    flags = {"trust_domain": "example.org", "broker": "127.0.0.1:1", "metrics": "off"}
    flags |= {name: str(tmp_path / name) for name in ("auth_socket", "admin_socket", "data_dir")}
    found = Sidecar(config.load(None, {}, flags))
    found.start()
    yield found
    found.end()
