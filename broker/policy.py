# SPDX-License-Identifier: Apache-2.0
"""The segments and flows in force: from a folder that is read again when it changes, or from the database.

A set with lint errors changes nothing. The last good set is kept in the database in both cases, so that a broker which
starts over a broken edit goes on with what was in force.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from firedoor.broker.db.rows import Generation, Revoked, load_documents, put_revocations, replace_documents
from firedoor.broker.errors import ConfigError, Conflict, InvalidRequest
from firedoor.broker.issuing import authorize_workload
from firedoor.broker.reissue import Old, Reissuer
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import Change, Document, PolicyErrors, PolicySet, Views, accept, compile_table, diff, promoted
from firedoor.wire import policy_pb2

if TYPE_CHECKING:
    from firedoor.broker.audit import Audit
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.state import State

_log = logging.getLogger("firedoor.broker.policy")
_SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 4096
MAX_NAME: Final = 1024
MAX_TOTAL_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Compiled:
    """One set of documents, checked and compiled. `policy` is None when there are no documents."""

    documents: tuple[Document, ...]
    policy: PolicySet | None
    # The same, also when it declares no segment.
    declared: PolicySet
    table: policy_pb2.Table
    views: Views
    warnings: tuple[str, ...]


def compile_documents(documents: Sequence[Document], trust_domain: TrustDomain) -> Compiled:
    """Check and compile a set. Raise PolicyErrors with every finding that is an error."""
    policy, findings = accept(documents, trust_domain)
    table = compile_table(policy)
    # No segments: nothing can be issued, and the sentence that says so is worth more than "belongs to no segment".
    present = policy if policy.segments else None
    return Compiled(tuple(documents), present, policy, table, Views(table), tuple(str(f) for f in findings))


def read_files(path: Path) -> tuple[Document, ...]:
    """Read a policy file, or all of a folder's (not of its sub-folders), by name. Raise ConfigError."""
    try:
        files = _files(path)
        if sum(file.stat().st_size for file in files) > MAX_TOTAL_BYTES:
            raise ConfigError(f"the policy in {path} is larger than {MAX_TOTAL_BYTES // 2**20} MiB")
        return tuple(Document(str(file), file.read_text(encoding="utf-8")) for file in files)
    except OSError as error:
        raise ConfigError(f"the policy in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the policy in {path} is not UTF-8 text") from error


def _files(path: Path) -> list[Path]:
    if not stat.S_ISDIR(path.stat().st_mode):
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in _SUFFIXES and not f.name.startswith(".") and f.is_file())
    if len(files) > MAX_FILES:
        raise ConfigError(f"the policy in {path} has more than {MAX_FILES} files")
    return files


def _fingerprint(path: Path) -> tuple[object, ...]:
    """Return what differs when a file was edited, replaced, added or removed; cheap to ask for every second."""
    try:
        found = [(str(file), file.stat()) for file in _files(path)]
    except (OSError, ConfigError) as error:
        return (type(error).__name__, str(error))
    return tuple((name, s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for name, s in found)


class PolicyKeeper:
    """Keeps the policy in force. `path` None: the database is the source."""

    def __init__(self, state: State, path: Path | None, audit: Audit, metrics: Metrics) -> None:
        self._state, self._path, self._audit, self._metrics = state, path, audit, metrics
        self._seen: tuple[object, ...] = ()
        self._lock = asyncio.Lock()
        self.current = compile_documents((), state.trust_domain)
        # What comes into force once the holders of certificates that it would promote have others.
        self._coming: Compiled | None = None
        self.reissuer = Reissuer(state)

    @property
    def source(self) -> str:
        """Say where the policy comes from, as a person reads it."""
        return "database" if self._path is None else f"files: {self._path}"

    @property
    def asked(self) -> tuple[PolicySet | None, ...]:
        """Return the policies that must each admit what is signed."""
        coming = (self._coming.policy,) if self._coming else ()
        return (self.current.policy, *coming)

    async def start(self) -> None:
        """Put a policy in force. Raise ConfigError or PolicyErrors when there is none that can be."""
        stored = await self._state.database.read(load_documents)
        if stored:
            self.current = await asyncio.to_thread(compile_documents, stored, self._state.trust_domain)
        if self._path is not None:
            self._seen = _fingerprint(self._path)
            try:
                await self._take_files(starting=True)
            except (ConfigError, PolicyErrors) as error:
                if not stored:
                    raise
                self._refuse(error)
        self._metrics.policy_ok.set(1)

    async def poll(self) -> None:
        """Read the files again if they changed. A set with errors is logged and changes nothing."""
        if self._path is None:
            return
        seen = await asyncio.to_thread(_fingerprint, self._path)
        if seen == self._seen:
            return
        self._seen = seen
        await self.reread()

    async def reread(self) -> None:
        """Read the files now (SIGHUP)."""
        if self._path is None:
            return
        try:
            await self._take_files()
        except (ConfigError, PolicyErrors) as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self._metrics.policy_ok.set(0)
        _log.error("the policy in %s is refused, the one before stays in force:\n%s", self._path, error)

    async def _take_files(self, *, starting: bool = False) -> None:
        assert self._path is not None  # noqa: S101
        async with self._lock:
            documents = await asyncio.to_thread(read_files, self._path)
            if documents == self.current.documents:
                self._metrics.policy_ok.set(1)
                return
            compiled = await asyncio.to_thread(compile_documents, documents, self._state.trust_domain)
            old = await self._promoted(compiled)
            if starting and old is not None:
                # Holders can be re-issued only once the broker serves; `poll` comes back to it.
                self._seen = ()
                return
            await self._put_in_force(compiled, old)
        self._metrics.policy_ok.set(1)
        _log.info("the policy in %s is in force as generation %s", self._path, self._state.generation)
        self._audit.event("policy_changed", source=self.source, generation=str(self._state.generation))
        for warning in compiled.warnings:
            _log.warning("%s", warning)

    async def apply(
        self, documents: Sequence[Document], *, dry_run: bool, if_generation: Generation | None, now: bool = False
    ) -> tuple[list[Change], tuple[str, ...]]:
        """Replace the whole set, or only say what would change. Raise Conflict, InvalidRequest or PolicyErrors.

        Without `now` it waits, for a minute at most, until nobody entitled uses a certificate that the edit ends.
        """
        if self._path is not None:
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
            if if_generation is not None and if_generation != self._state.generation:
                raise Conflict(
                    f"the generation in force is {self._state.generation}; look at the difference and try again"
                )
            compiled = await asyncio.to_thread(compile_documents, documents, self._state.trust_domain)
            changes = await asyncio.to_thread(diff, self.current.documents, documents)
            if not dry_run and changes:
                await self._put_in_force(compiled, await self._promoted(compiled), if_generation, wait=wait)
        return changes, compiled.warnings

    async def _promoted(self, compiled: Compiled) -> Old | None:
        """Return the certificates that an edit would promote."""
        patterns = await asyncio.to_thread(promoted, self.current.declared, compiled.declared)
        return await self.reissuer.old(patterns)

    async def _put_in_force(
        self, compiled: Compiled, old: Old | None, if_generation: Generation | None = None, *, wait: bool = True
    ) -> None:
        """Commit a set, with the revocation of what it would promote."""
        self._coming = compiled
        try:
            if old is not None:
                # Looked at anew: what was signed while it was looked at was admitted by the set in force alone.
                old = await self._promoted(compiled) or old
                await self.reissuer.replaced(old, self._admitted, wait=wait)
                # The wait itself makes generations; edits of the policy are kept out by the lock.
                if_generation = None
            made = old.revocations if old else ()

            def run(connection: Connection) -> list[Revoked]:
                replace_documents(connection, compiled.documents, if_generation)
                return put_revocations(connection, made)

            def apply(revoked: list[Revoked]) -> None:
                self.current = compiled
                self._state.revoked(revoked)

            await self._state.change(run, apply)
        finally:
            self._coming = None

    def _admitted(self, agent_id: SpiffeId, entry_id: str) -> object:
        return authorize_workload(self._state, self, agent_id, entry_id, 1)
