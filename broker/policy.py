# SPDX-License-Identifier: Apache-2.0
"""The segments and flows in force: from an origin that is read again when it changes, or from the database.

A set with lint errors changes nothing. The last good set is kept in the database in both cases, so that a broker which
starts over a broken edit goes on with what was in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker import collector
from firedoor.broker.db import Basis
from firedoor.broker.db.rows import Generation, Revoked, load_documents, put_revocations, replace_documents
from firedoor.broker.errors import ConfigError, Conflict, InvalidRequest, PolicyUnavailable
from firedoor.broker.issuing import authorize_workload
from firedoor.broker.policy_origin import MAX_FILES, MAX_TOTAL_BYTES, Origin
from firedoor.broker.reissue import Old, Reissuer
from firedoor.certs import SpiffeId
from firedoor.segments import (
    Change,
    Document,
    Loader,
    PolicyErrors,
    PolicySet,
    Views,
    compile_table,
    diff,
    promoted,
    usable,
)
from firedoor.segments.directory import Derived, Directory
from firedoor.wire import policy_pb2

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.policy")
# What the database calls the rows of policies.
_KIND: Final = "policy_documents"
_NO_SERVICES: Final[Mapping[str, Derived]] = MappingProxyType({})
MAX_NAME: Final = 1024


@dataclass(frozen=True)
class Compiled:
    """One set of documents, checked and compiled. `policy` is None when there are no documents."""

    documents: tuple[Document, ...]
    policy: PolicySet | None
    # The same, also when it declares no segment.
    declared: PolicySet
    table: policy_pb2.Table
    views: Views
    warnings: tuple[str, ...]
    # Services beside it, as far as they were known when it was compiled: made where it is, as both take their time.
    directory: Directory

    @cached_property
    def members(self) -> frozenset[Document]:
        """The documents, to ask for one."""
        return frozenset(self.documents)


def compile_documents(
    documents: Sequence[Document], loader: Loader, derived: Mapping[str, Derived] = _NO_SERVICES
) -> Compiled:
    """Check and compile a set. Raise PolicyErrors with every finding that is an error.

    It takes seconds for thousands of flows: never on the event loop.
    """
    with collector.quiet():
        policy = loader.load(documents)
        findings = usable(policy)
        table = compile_table(policy)
        # No segments: nothing can be issued, and the sentence that says so is worth more than "belongs to no segment".
        present = policy if policy.segments else None
        views = Views(table)
        warnings = tuple(str(found) for found in findings)
        return Compiled(tuple(documents), present, policy, table, views, warnings, Directory(views, derived))


class PolicyKeeper:
    """Keeps the policy in force. `origin` None: the database is the source."""

    def __init__(self, state: State, origin: Origin | None, audit: Audit, metrics: Metrics) -> None:
        self._state, self._origin, self._audit, self._metrics = state, origin, audit, metrics
        # Why the origin's present set is not in force, None when it is.
        self.refused: ConfigError | PolicyErrors | None = None
        self._seen: tuple[object, ...] = ()
        self._lock = asyncio.Lock()
        self._loader = Loader(state.trust_domain)
        # Of the database's thread.
        self._following = Loader(state.trust_domain)
        self.current = compile_documents((), self._loader)
        # What comes into force once the holders of certificates that it would promote have others.
        self._coming: Compiled | None = None
        self.reissuer = Reissuer(state)
        state.database.watch(_KIND, lambda connection, _: self._follow(connection))

    @property
    def source(self) -> str:
        """Say where the policy comes from, as a person reads it."""
        return "database" if self._origin is None else self._origin.source

    @property
    def documents(self) -> frozenset[Document]:
        """Return the documents in force."""
        return self.current.members

    @property
    def asked(self) -> tuple[PolicySet | None, ...]:
        """Return the policies that must each admit what is signed."""
        coming = (self._coming.policy,) if self._coming else ()
        return (self.current.policy, *coming)

    def _follow(self, connection: Connection) -> Callable[[], None]:
        """Put in force what another broker has: compiled before memory comes to its generation."""
        documents = load_documents(connection)
        try:
            compiled = compile_documents(documents, self._following, self._state.directory)
        except PolicyErrors as error:
            raise PolicyUnavailable(f"the policy that another broker put in force is refused here: {error}") from None

        def apply() -> None:
            if documents != self.current.documents:
                self.current = compiled
                _log.info("the policy that another broker put in force is in force here")

        return apply

    async def start(self) -> None:
        """Put a policy in force. Raise ConfigError or PolicyErrors when there is none that can be."""
        stored = await self._state.database.write(load_documents)
        if stored:
            self.current = await asyncio.to_thread(compile_documents, stored, self._loader, self._state.directory)
        if self._origin is not None:
            self._seen = self._origin.fingerprint()
            try:
                await self._take(starting=True)
            except (ConfigError, PolicyErrors) as error:
                if not stored:
                    raise
                self._refuse(error)
        self._metrics.policy_ok.set(1)

    async def poll(self) -> None:
        """Read the origin again if it changed. A set with errors is logged and changes nothing."""
        if self._origin is None:
            return
        seen = await asyncio.to_thread(self._origin.fingerprint)
        # Without its database the broker could put nothing in force, and says so elsewhere.
        if seen == self._seen or self._state.database.trouble:
            return
        self._seen = seen
        try:
            await self.reread()
        except Exception:
            # Not in force and not refused: another broker put a set in force meanwhile, or the database is away. What
            # this one would change is looked at anew.
            self._seen = ()
            raise

    async def reread(self) -> None:
        """Read the origin now (SIGHUP)."""
        if self._origin is None:
            return
        try:
            await self._take()
        except (ConfigError, PolicyErrors) as error:
            self._refuse(error)

    def _refuse(self, error: ConfigError | PolicyErrors) -> None:
        self.refused = error
        self._metrics.policy_ok.set(0)
        _log.error("the policy from %s is refused, the one before stays in force:\n%s", self.source, error)

    def _accept(self) -> None:
        self.refused = None
        self._metrics.policy_ok.set(1)

    async def _take(self, *, starting: bool = False) -> None:
        assert self._origin is not None  # noqa: S101
        async with self._lock:
            basis = self._state.database.basis(_KIND)
            documents = await asyncio.to_thread(self._origin.read)
            if documents == self.current.documents:
                self._accept()
                return
            compiled = await asyncio.to_thread(compile_documents, documents, self._loader, self._state.directory)
            old = await self._promoted(compiled)
            if starting and old is not None:
                # Holders can be re-issued only once the broker serves; `poll` comes back to it.
                self._seen = ()
                return
            await self._put_in_force(compiled, old, basis)
        self._accept()
        _log.info("the policy from %s is in force as generation %s", self.source, self._state.generation)
        self._audit.event("policy_changed", source=self.source, generation=str(self._state.generation))
        for warning in compiled.warnings:
            _log.warning("%s", warning)

    async def apply(
        self, documents: Sequence[Document], *, dry_run: bool, if_generation: Generation | None, now: bool = False
    ) -> tuple[list[Change], tuple[str, ...]]:
        """Replace the whole set, or only say what would change. Raise Conflict, InvalidRequest or PolicyErrors.

        Without `now` it waits, for a minute at most, until nobody entitled uses a certificate that the edit ends.
        """
        if self._origin is not None:
            raise Conflict(f"the policy comes from {self.source}; edit it there, the broker reads it by itself")
        if sum(len(document.text) for document in documents) > MAX_TOTAL_BYTES:
            raise InvalidRequest(f"the policy is larger than {MAX_TOTAL_BYTES // 2**20} MiB")
        if len(documents) > MAX_FILES or any(len(document.name) > MAX_NAME for document in documents):
            raise InvalidRequest(f"a policy has at most {MAX_FILES} documents with names of at most {MAX_NAME}")
        self.reissuer.urgent += now
        try:
            return await self._apply(documents, dry_run=dry_run, if_generation=if_generation, wait=not now)
        finally:
            self.reissuer.urgent -= now

    async def _apply(
        self, documents: Sequence[Document], *, dry_run: bool, if_generation: Generation | None, wait: bool
    ) -> tuple[list[Change], tuple[str, ...]]:
        async with self._lock:
            basis = self._state.database.basis(_KIND)
            if if_generation is not None and if_generation != self._state.generation:
                raise Conflict(
                    f"the generation in force is {self._state.generation}; look at the difference and try again"
                )
            compiled = await asyncio.to_thread(compile_documents, documents, self._loader, self._state.directory)
            changes = await asyncio.to_thread(diff, self.current.documents, documents)
            if not dry_run and changes:
                old = await self._promoted(compiled)
                await self._put_in_force(compiled, old, basis, if_generation, wait=wait)
        return changes, compiled.warnings

    async def _promoted(self, compiled: Compiled) -> Old | None:
        """Return the certificates that an edit would promote."""
        patterns = await asyncio.to_thread(promoted, self.current.declared, compiled.declared)
        return await self.reissuer.old(patterns)

    async def _put_in_force(
        self,
        compiled: Compiled,
        old: Old | None,
        basis: Basis,
        if_generation: Generation | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """Commit a set, with the revocation of what it would promote. Raise Stale when another one came in between."""
        admitted: frozenset[tuple[str, str]] = frozenset()
        self._coming = compiled
        try:
            if old is not None:
                # Looked at anew: what was signed while it was looked at was admitted by the set in force alone.
                old = await self._promoted(compiled) or old
                await self.reissuer.replaced(old, self._admitted, wait=wait)
                # The wait itself makes generations; edits of the policy are kept out by the lock.
                if_generation = None
                admitted = await self.reissuer.admitted(old, self._admitted)
            made = old.revocations if old else ()

            def run(connection: Connection) -> list[Revoked]:
                replace_documents(connection, compiled.documents, if_generation)
                unasked = self.reissuer.unasked(connection, old, admitted) if old else ()
                return put_revocations(connection, [*made, *unasked])

            def apply(revoked: list[Revoked]) -> None:
                self.current = compiled
                self._state.revoked(revoked)

            await self._state.change(run, apply, basis=basis)
        finally:
            self._coming = None

    def _admitted(self, agent_id: SpiffeId, entry_id: str) -> object:
        return authorize_workload(self._state, self, agent_id, entry_id, 1)
