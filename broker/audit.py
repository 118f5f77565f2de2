# SPDX-License-Identifier: Apache-2.0
"""The audit log: one JSON line for every admin call, attestation, issue and refusal.

A line is in the file before the caller has an answer; when it cannot be written, the caller gets none. Secrets do not
come here: tokens and requests stand as a SHA-256, selectors as type and key, and the ID of an agent whose join token
was not used yet with the token hashed.

>>> redact_id("spiffe://td/spire/agent/join_token/s3cret")[:46]
'spiffe://td/spire/agent/join_token/sha256:1ec1'
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firedoor.broker.agent import JOIN_TOKEN_PATH
from firedoor.broker.errors import StorageError

if TYPE_CHECKING:
    from firedoor.broker.rpc.status import RpcStatus
    from firedoor.mtls import Caller

_log = logging.getLogger("firedoor.broker.audit")


def digest(secret: bytes) -> str:
    """Return what stands for a secret in a record: enough to compare, nothing to use."""
    return "sha256:" + hashlib.sha256(secret).hexdigest()[:16]


def redact_id(spiffe_id: str) -> str:
    """Return an ID with a join token in it hashed."""
    before, path, token = spiffe_id.partition(JOIN_TOKEN_PATH)
    return before + path + digest(token.encode()) if path else spiffe_id


class Audit:
    """Appends records to a file. `clock` tells Unix seconds."""

    def __init__(self, path: Path | None, clock: Callable[[], int]) -> None:
        self._path, self._clock = path, clock
        self._descriptor: int | None = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file anew, after it was moved away. Raise StorageError."""
        if self._path is None:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            opened = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise StorageError(f"the audit log {self._path} cannot be opened: {error.strerror}") from error
        self.close()
        self._descriptor = opened

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def call(self, method: str, caller: Caller | None, status: RpcStatus, fields: Mapping[str, Any]) -> None:
        """Write the record of a call, or one for each item of a batch (under `each`). Raise StorageError."""
        common = {"type": "audit", "request_id": str(uuid.uuid4()), "method": method, **_caller(caller)}
        result = {"status": status.code.name, "status_code": status.code.value[0], "status_message": status.message}
        plain = {name: value for name, value in fields.items() if name != "each"}
        items = fields.get("each") or [{}]
        self.write(*({**common, **result, **plain, **item} for item in items))

    def event(self, event: str, **fields: Any) -> None:
        """Write the record of something that no call asked for. Raise StorageError."""
        self.write({"type": "audit", "event": event, **fields})

    def write(self, *records: Mapping[str, Any]) -> None:
        """Append records in one system call, so that lines of several never mix. Raise StorageError."""
        if self._descriptor is None:
            return
        time = datetime.fromtimestamp(self._clock(), UTC).isoformat().replace("+00:00", "Z")
        lines = "".join(json.dumps({"time": time, **record}, ensure_ascii=True) + "\n" for record in records)
        data = lines.encode()
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                # A part of a line fits on a full disk. End it, so that the next record begins on a line of its own.
                os.write(self._descriptor, b"\n")
                raise StorageError("the audit log cannot be written: the disk is full")
        except OSError as error:
            raise StorageError(f"the audit log cannot be written: {error.strerror}") from error


def _caller(caller: Caller | None) -> dict[str, Any]:
    if caller is None:
        return {"caller": "unknown"}
    if caller.transport == "unix":
        return {"caller_uid": caller.uid, "caller_gid": caller.gid, "caller_pid": caller.pid}
    return {"caller_addr": caller.remote, "caller_id": caller.spiffe_id or ""}
