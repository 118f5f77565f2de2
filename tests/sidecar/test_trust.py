# SPDX-License-Identifier: Apache-2.0
"""`sidecar trust`: the bundle of the sidecar's own trust domain is another one, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from firedoor.certs import TrustBundle
from firedoor.sidecar import bundles, config
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import ConfigError, StateError
from firedoor.sidecar.state import State
from firedoor.sidecar.trust import MAX_BUNDLE, trust
from firedoor.sidecar.view import read_update
from tests.sidecar.test_view import OTHER, TD, TRUST, update
from tests.simulator import NOW, SimulatedTrustDomain

FRESH = SimulatedTrustDomain("example.org")
FRESH.rotate_jwt()
FRESH.rotate_wit()


@pytest.fixture
def here(tmp_path: Path) -> Config:
    flags = {"trust_domain": "example.org", "broker": "127.0.0.1:1", "data_dir": str(tmp_path / "s")}
    return config.load(None, {}, flags)


def stored(here: Config) -> None:
    state = State.open(here.data_dir)
    state.store_generation(update())
    state.store_bundles(bundles.dump([TRUST.bundle, OTHER.bundle]))
    state.close()


def file(tmp_path: Path, bundle: TrustBundle, *, pem: bool = False) -> Path:
    path = tmp_path / "fresh"
    path.write_bytes(bundle.to_pem().encode() if pem else bundle.to_json())
    return path


@pytest.mark.parametrize("pem", [False, True], ids=["spiffe", "pem"])
def test_only_the_own_bundle_is_another_one(here: Config, tmp_path: Path, pem: bool) -> None:
    stored(here)
    done = trust(here, file(tmp_path, FRESH.bundle, pem=pem), NOW)
    assert [one.id for one in done.trusted] == [one.authority_id for one in FRESH.bundle.x509_roots]
    assert done.added == {one.id for one in done.trusted}
    assert [one.id for one in done.dropped] == [one.authority_id for one in TRUST.bundle.x509_roots]
    state = State.open(here.data_dir)
    text, kept = state.load_bundles(), state.load_generation()
    state.close()
    assert text is not None
    assert kept is not None
    found = bundles.load(text)
    assert (found[TD].x509_roots, found[OTHER.td]) == (FRESH.bundle.x509_roots, OTHER.bundle)
    # What is stored of the server's state is as whole as it was, and as old.
    before, view = read_update(update(), TD, None), read_update(kept, TD, None)
    assert view.bundles[TD].x509_roots == FRESH.bundle.x509_roots
    assert view.bundles[OTHER.td] == before.bundles[OTHER.td]
    assert (view.generation, view.entries, view.table) == (before.generation, before.entries, before.table)
    if not pem:
        assert view.bundles[TD].jwt_keys == FRESH.bundle.jwt_keys
        assert view.bundles[TD].wit_keys == FRESH.bundle.wit_keys


def test_once_more_changes_nothing(here: Config, tmp_path: Path) -> None:
    stored(here)
    path = file(tmp_path, FRESH.bundle)
    trust(here, path, NOW)
    before = {one.name: one.read_bytes() for one in here.data_dir.iterdir() if one.is_file()}
    again = trust(here, path, NOW)
    assert (again.added, again.dropped) == (frozenset(), [])
    assert {one.name: one.read_bytes() for one in here.data_dir.iterdir() if one.is_file()} == before


def test_a_sidecar_that_never_ran(here: Config, tmp_path: Path) -> None:
    trust(here, file(tmp_path, FRESH.bundle), NOW)
    assert bundles.load((here.data_dir / "bundle.json").read_bytes())[TD].x509_roots == FRESH.bundle.x509_roots


def test_what_is_not_taken(here: Config, tmp_path: Path) -> None:
    stored(here)
    before = (here.data_dir / "bundle.json").read_bytes()
    path = file(tmp_path, FRESH.bundle)
    with pytest.raises(ConfigError, match="have expired"):
        trust(here, path, NOW + 10**10)
    running = State.open(here.data_dir)
    with pytest.raises(StateError, match="in use by another sidecar"):
        trust(here, path, NOW)
    running.close()
    path.write_bytes(b" " * (MAX_BUNDLE + 1))
    with pytest.raises(ConfigError, match="longer than"):
        trust(here, path, NOW)
    path.write_bytes(TrustBundle.of(TD, []).to_json())
    with pytest.raises(ConfigError, match=r"no X\.509 authority|bootstrap_bundle"):
        trust(here, path, NOW)
    assert (here.data_dir / "bundle.json").read_bytes() == before
