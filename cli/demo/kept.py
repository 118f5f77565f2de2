# SPDX-License-Identifier: Apache-2.0
"""The certificates of the rows without a sidecar: real ones, of the users that they belong to, and made-up ones."""

import time

from firedoor.cli.demo import peers
from firedoor.cli.demo.errors import DemoError
from firedoor.cli.demo.files import brief_identity
from firedoor.cli.demo.stage import Stage
from firedoor.cli.demo.world import identity


class Kept:
    """SVIDs for the rows without a sidecar, fetched as the users that they belong to."""

    def __init__(self, stage: Stage) -> None:
        self.inference = self._fetch(stage, "inference", identity("inference"))
        self.training = self._fetch(stage, "training", identity("training"))
        self.forged = peers.forged(identity("inference"))
        self.foreign = peers.foreign("elsewhere.example", "/segment/inference/host/demo/svc/llm")
        self._old: peers.Identity | None = None

    def fresh(self, stage: Stage) -> peers.Identity:
        """Return the present SVID of those that live for seconds. The first one is kept."""
        found = self._fetch(stage, "inference", brief_identity())
        self._old = self._old or found
        return found

    def expired(self, stage: Stage) -> peers.Identity:
        """Return the first one, which has expired by now."""
        return self._old or self.fresh(stage)

    def seconds_to_expiry(self) -> float:
        """Return how long the first one is still good for."""
        return self._old.not_after + 1 - time.time() if self._old else 0.0

    @staticmethod
    def _fetch(stage: Stage, segment: str, spiffe_id: str) -> peers.Identity:
        answer = stage.clients[segment].ask({"do": "svid", "at": str(stage.world.auth_socket(segment))})
        if not answer["ok"]:
            raise DemoError(f"the workload of {segment} got no identity: {answer['detail']}")
        return peers.from_workload_api(answer["detail"], spiffe_id)
