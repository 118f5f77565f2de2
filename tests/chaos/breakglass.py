# SPDX-License-Identifier: Apache-2.0
"""Emergency access that somebody takes, uses, and goes on to use after its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.policy import IDS
from tests.load.programs import Link, close

if TYPE_CHECKING:
    from tests.chaos.world import ChaosWorld

SECONDS = 5
# Between two requests.
PAUSE = 0.2


class NotGiven(Exception):
    """A fault elsewhere kept somebody from it; that is allowed."""


def _breakglass(world: ChaosWorld, who: str, *words: str) -> Any:
    where = ("--server", world.listening["one"], "--identity", str(world.auth_socket("client")))
    command = [*world.prefix, sys.executable, "-m", "firedoor.cli", "breakglass", *words, *where]
    command += ["--as", f"spiffe://{world.trust_domain}{IDS[who]}", "--output", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise NotGiven("no answer") from None
    if ran.returncode:
        raise NotGiven(ran.stderr)
    return json.loads(ran.stdout)


def _take(world: ChaosWorld) -> ssl.SSLContext:
    """Have access requested, approved and taken. Raise NotGiven."""
    grant = _breakglass(world, "ann", "request", "--reason", "chaos", "--ttl", f"{SECONDS}s")["id"]
    _breakglass(world, "bob", "approve", grant)
    folder = Path(tempfile.mkdtemp(dir=world.folder)) / "access"
    _breakglass(world, "ann", "take", grant, "--write", str(folder))
    context = ssl.create_default_context(cafile=str(folder / "bundle.pem"))
    context.check_hostname = False
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(folder / "svid.pem", folder / "svid.key")
    return context


async def _ask(world: ChaosWorld, context: ssl.SSLContext, seconds: float) -> int:
    """Ask again and again past the end, on old connections and new ones; return how many were answered."""
    host, _, port = world.inbound.rpartition(":")
    answered = 0
    link: Link | None = None
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        try:
            if link is None:
                link = Link(*await asyncio.open_connection(host, int(port), ssl=context))
            async with asyncio.timeout(5):
                answered += await link.get("/models/x", 1)
        except (OSError, EOFError, ValueError):
            if link is not None:
                await close(link.writer)
            link = None
        await asyncio.sleep(PAUSE)
    if link is not None:
        await close(link.writer)
    return answered


@contextlib.contextmanager
def access(world: ChaosWorld, _: str) -> Iterator[None]:
    """Have somebody take access and use it for longer than it lasts."""
    try:
        context = _take(world)
    except NotGiven as why:
        world.notes.append(f"no access by break-glass: {str(why).strip()[:200]}")
        yield
        return
    asking = world.traffic.submit(_ask(world, context, SECONDS * 2))
    yield
    world.notes.append(f"break-glass: {asking.result(60)} requests answered")
