# SPDX-License-Identifier: Apache-2.0
"""A whole sidecar on the test's own event loop."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from firedoor.sidecar import config
from firedoor.sidecar.config import Config
from firedoor.sidecar.process import Process
from firedoor.wire import types
from tests.sidecar.spire_like import SpireLike
from tests.waiting import async_until

UID = types.Selector(type="unix", value=f"uid:{os.geteuid()}")


def entry(name: str, **fields: object) -> types.Entry:
    spiffe_id = types.SPIFFEID(trust_domain="example.org", path=f"/segment/a/{name}")
    return types.Entry(id=name, spiffe_id=spiffe_id, **{"selectors": [UID], **fields})  # type: ignore[arg-type]


def settings(tmp_path: Path, **flags: str | None) -> Config:
    given: dict[str, str | None] = {
        "trust_domain": "example.org",
        "broker": (tmp_path / "address").read_text(),
        "bootstrap_bundle": str(tmp_path / "bundle.pem"),
        "join_token_file": str(tmp_path / "token"),
        "auth_socket": str(tmp_path / "auth.sock"),
        "admin_socket": str(tmp_path / "admin.sock"),
        "data_dir": str(tmp_path / "data"),
        "metrics": "127.0.0.1:0",
        **flags,
    }
    return config.load(None, {}, given)


class Running:
    """A sidecar on this event loop."""

    def __init__(self, one: Config) -> None:
        self.process = Process(one)
        self.task = asyncio.ensure_future(self.process.run())

    async def until(self, condition: Callable[[Process], object], what: str) -> None:
        def look() -> object:
            found = condition(self.process)
            assert found or not self.task.done(), self.task.exception()
            return found

        await async_until(look, what, state=lambda: f"missing {self.process.report.missing()}")

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


Start = Callable[[Config], Running]


def ids(one: Process) -> set[str]:
    return set(one.holder.identities)


def write_files(tmp_path: Path, server: SpireLike, address: str) -> None:
    """Write what a sidecar needs to find and trust a server."""
    (tmp_path / "bundle.pem").write_text(server.trust.bundle.to_pem())
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "address").write_text(address)
