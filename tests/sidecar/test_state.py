# SPDX-License-Identifier: Apache-2.0
"""The data directory: private, atomic, versioned, one process's at a time."""

import stat
from pathlib import Path

import pytest

from firedoor.certs import TrustDomain
from firedoor.sidecar import bundles, keys
from firedoor.sidecar.errors import ConfigError, StateError
from firedoor.sidecar.keys import Key, public_key_of
from firedoor.sidecar.state import State, StoredAgent
from firedoor.wire import control_pb2
from tests.simulator import SimulatedTrustDomain

TD = TrustDomain.parse("example.org")


def agent(trust: SimulatedTrustDomain) -> StoredAgent:
    made = trust.svid("/spire/agent/join_token/x")
    return StoredAgent(made.id, tuple(made.chain), key(made), reattestable=False)


def key(made: object) -> Key:
    return Key(made.key_der, public_key_of(made.chain[0]))  # type: ignore[attr-defined]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_round_trip_and_modes(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path / "data")
    one = agent(trust)
    state.store_agent(one)
    assert state.load_agent() == one
    assert mode(state.root) == 0o700
    assert mode(state.root / "agent.key") == 0o600
    assert (state.root / "VERSION").read_text() == "1\n"


def test_directory_that_others_may_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    State.open(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700


@pytest.mark.parametrize(
    ("version", "sentence"),
    [("2", "was written by a newer firedoor"), ("x", "does not hold a number")],
    ids=["newer", "garbage"],
)
def test_other_version_is_refused(tmp_path: Path, version: str, sentence: str) -> None:
    State.open(tmp_path).close()
    (tmp_path / "VERSION").write_text(version)
    with pytest.raises(StateError, match=sentence):
        State.open(tmp_path)


def test_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = State.open(tmp_path)
    with pytest.raises(StateError, match="in use by another sidecar"):
        State.open(tmp_path)
    first.close()
    State.open(tmp_path)


# Killed at any step of a renewal, there is a key for the chain on disk.
def test_killed_while_the_server_signs(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path)
    one = agent(trust)
    state.store_agent(one)
    state.prepare_agent_key(one.key, keys.generate())
    assert state.load_agent() == one


def test_killed_between_new_chain_and_dropping_the_old_key(
    tmp_path: Path, trust: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(tmp_path)
    old, new = agent(trust), agent(trust)
    state.store_agent(old)
    state.prepare_agent_key(old.key, new.key)
    written = state._replace

    def killed(name: str, data: bytes) -> None:
        if name == "agent.key":
            raise KeyboardInterrupt
        written(name, data)

    monkeypatch.setattr(state, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        state.store_agent(new)
    monkeypatch.undo()
    assert state.load_agent() == new


def test_disk_that_fills_between_new_chain_and_dropping_the_old_key(
    tmp_path: Path, trust: SimulatedTrustDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(tmp_path)
    old, new, newer = agent(trust), agent(trust), agent(trust)
    state.store_agent(old)
    state.prepare_agent_key(old.key, new.key)
    written = state._replace

    def full(name: str, data: bytes) -> None:
        if name == "agent.key":
            raise StateError("no space left on device")
        written(name, data)

    monkeypatch.setattr(state, "_replace", full)
    state.store_agent(new)
    assert state.load_agent() == new
    monkeypatch.undo()
    # The next renewal is killed while the server signs.
    state.prepare_agent_key(new.key, newer.key)
    assert state.load_agent() == new


def test_key_of_another_chain_is_refused(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path)
    state.store_agent(agent(trust))
    (tmp_path / "agent.key").write_bytes(keys.to_pem([keys.generate()]))
    with pytest.raises(StateError, match=r"holds no key for agent\.json"):
        state.load_agent()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chain": []}', '{"chain": ["*"], "id": "x"}'])
def test_damaged_agent_is_refused(tmp_path: Path, text: str) -> None:
    state = State.open(tmp_path)
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(StateError, match="delete it and attest again"):
        state.load_agent()


def test_half_written_file_is_never_seen(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path)
    one = agent(trust)
    state.store_agent(one)
    (tmp_path / ".agent.json.new").write_text("{")
    assert state.load_agent() == one
    state.store_agent(one)
    assert not (tmp_path / ".agent.json.new").exists()


def test_generation(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    assert state.load_generation() is None
    update = control_pb2.Update(generation=control_pb2.Generation(epoch=1, number=2), view_hash=b"x")
    state.store_generation(update)
    assert state.load_generation() == update
    (tmp_path / "generation.pb").write_bytes(b"\xff\xff")
    with pytest.raises(StateError, match="delete it, and the server sends it again"):
        state.load_generation()
    state.forget_generation()
    assert state.load_generation() is None


HOSTILE = ("../../escape", "a/b", "x" * 300, ".hidden", "\n")


@pytest.mark.parametrize(
    "entry_id", ["plain-1.x", *HOSTILE], ids=["plain", "dots", "slash", "long", "hidden", "newline"]
)
def test_workload_keys(tmp_path: Path, trust: SimulatedTrustDomain, entry_id: str) -> None:
    state = State.open(tmp_path / "data")
    made = trust.svid("/a/b")
    state.store_workload(entry_id, key(made), made.chain)
    assert state.load_workloads([entry_id, "other"]) == {entry_id: (key(made), tuple(made.chain))}
    (file,) = (tmp_path / "data" / "workload").iterdir()
    assert mode(file) == 0o600
    state.keep_workloads([entry_id])
    assert file.exists()
    state.keep_workloads(["other"])
    assert not file.exists()


def test_damaged_workload_is_left_out(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path)
    made = trust.svid("/a/b")
    state.store_workload("good", key(made), made.chain)
    (tmp_path / "workload" / "bad.pem").write_text("x")
    assert list(state.load_workloads(["good", "bad"])) == ["good"]


def test_ban_deletes_every_key(tmp_path: Path, trust: SimulatedTrustDomain) -> None:
    state = State.open(tmp_path)
    state.store_agent(agent(trust))
    made = trust.svid("/a/b")
    state.store_workload("one", key(made), made.chain)
    state.delete_agent()
    assert state.load_agent() is None
    assert sorted(one.name for one in tmp_path.rglob("*") if one.is_file()) == ["VERSION"]


def test_bundles_keep_what_is_tainted(trust: SimulatedTrustDomain) -> None:
    trust.rotate()
    other = SimulatedTrustDomain("other.org")
    found = trust.bundle.with_tainted(trust.roots[0].authority_id)
    again = bundles.load(bundles.dump([other.bundle, found]))
    assert dict(again) == {TD: found, other.td: other.bundle}


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"trust_domains": {"A": {}}, "tainted": {}}'])
def test_damaged_bundles(text: bytes) -> None:
    with pytest.raises(StateError, match=r"bundle\.json is damaged"):
        bundles.load(text)


def test_bootstrap_bundle(trust: SimulatedTrustDomain) -> None:
    for text in (trust.bundle.to_json(), trust.bundle.to_pem().encode()):
        assert bundles.read_bootstrap(text, TD, "f").x509_roots == trust.bundle.x509_roots
    for bad in (b"", b"{}", b'{"keys": []}', b"x"):
        with pytest.raises(ConfigError, match="f: bootstrap_bundle: "):
            bundles.read_bootstrap(bad, TD, "f")
    with pytest.raises(ConfigError, match="the file is empty; `firedoor bundle show`"):
        bundles.read_bootstrap(b"\n", TD, "f")
