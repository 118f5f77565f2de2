# SPDX-License-Identifier: Apache-2.0
"""A broker below another broker: its CA comes from there, its keys for tokens of both kinds go there."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import UID, World
from tests.e2e.test_downstream import BELOW
from tests.waiting import until


@pytest.fixture
def above(tmp_path: Path) -> World:
    (tmp_path / "u").mkdir()
    return World(tmp_path / "u")


def keys(world: World, use: str) -> set[str]:
    return {key["kid"] for key in json.loads(world.run("bundle", "show"))["keys"] if key["use"] == use}


def test_keys_of_both_kinds_are_published_and_followed(world: World, above: World) -> None:
    try:
        above.start_broker()
        words = ("--spiffe-id", f"spiffe://example.org{BELOW}", "--parent-id", f"spiffe://example.org{above.enrol()}")
        below = ("--downstream", "--segment", "inference")
        above.run("entry", "create", *words, "--selector", f"unix:{UID}", *below)
        above.start_sidecar(name="d").ready()
        own = {use: keys(above, use) for use in ("jwt-svid", "wit-svid")}
        assert all(own.values())
        world.start_broker("--upstream-server", above.address, "--upstream-workload-api", str(above.auth_socket("d")))
        for use, before in own.items():
            # One of the broker below, in the bundle above; and all of those in the bundle below.
            assert len(keys(above, use) - before) == 1
            until(lambda use=use: keys(world, use) == keys(above, use), "the bundle above is followed")  # type: ignore[misc]
        (ca,) = json.loads(above.run("authority", "downstream", "list", "--output", "json"))
        assert ca["segments"] == ["inference"]
    finally:
        above.close()
