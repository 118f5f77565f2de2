# SPDX-License-Identifier: Apache-2.0
"""How a row asks: as a segment's user through a sidecar or at its auth socket, or straight to an inbound listener."""

import ssl
import time
from collections.abc import Callable

from firedoor.cli.demo import peers
from firedoor.cli.demo.files import outbound_address
from firedoor.cli.demo.rows import Answer
from firedoor.cli.demo.stage import Stage
from firedoor.cli.demo.world import identity

Ask = Callable[[Stage], Answer]
# Which certificate a client without a sidecar presents.
Who = Callable[[Stage], peers.Identity | None]


def by(user: str, action: str, listener: str, *, owner: str | None = None, signed: bool = False, **more: str) -> Ask:
    """Let a segment's client act through an outbound listener, its own or another `owner`'s."""

    def ask(stage: Stage) -> Answer:
        at = outbound_address(stage.world, owner or user, listener)
        keys = {"keys": stage.keys} if signed else {}
        return told(stage.clients[user].ask({"do": action, "at": at, **keys, **more}))

    return ask


def at_auth_socket(user: str, owner: str) -> Ask:
    """Let a segment's user ask for an identity at an auth socket."""

    def ask(stage: Stage) -> Answer:
        answer = told(stage.clients[user].ask({"do": "svid", "at": str(stage.world.auth_socket(owner))}))
        return Answer(answer.ok, answer.saw, identity(owner) if answer.ok else answer.detail, answer.ms)

    return ask


def told(answer: dict[str, object]) -> Answer:
    """Read what a client program says."""
    return Answer(bool(answer["ok"]), str(answer["saw"]), str(answer["detail"]), float(str(answer["ms"])))


def straight(who: Who | None, method: str = "GET", target: str = peers.MODEL) -> Ask:
    """Come to the registry's inbound listener without a sidecar; `who` None: without TLS."""

    def ask(stage: Stage) -> Answer:
        address, started = ("127.0.0.1", stage.world.ports["in-models"]), time.perf_counter()
        request = peers.request(method, target, stage.keys)
        detail = ""
        try:
            if who is None:
                saw = peers.ask_in_plaintext(address, request)
            else:
                saw = peers.ask_over_tls(address, who(stage), request)
        except ssl.SSLError as error:
            saw, detail = "TLS alert", str(error)
        except OSError as error:
            saw, detail = "no answer", str(error)
        return Answer(saw == "200", saw, detail, (time.perf_counter() - started) * 1000)

    return ask
