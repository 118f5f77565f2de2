# SPDX-License-Identifier: Apache-2.0
"""A broker is backed up while it serves, and restored on another machine: sidecars follow, and no request is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.brokers import Brokers
from tests.e2e.conftest import World
from tests.e2e.test_datapath import CLIENT, SERVER, App, app, ask, inbound, listening, outbound
from tests.e2e.test_identity import PATH
from tests.postgres import Server, binaries
from tests.slow_network import SlowNetwork
from tests.waiting import PATIENCE, until

__all__ = ["app"]


def firedoor(*words: str, code: int = 0) -> str:
    """Run a command and return what it says on both streams."""
    command = [sys.executable, "-m", "firedoor.cli", *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_text("correct horse\n")
    return str(file)


def words(world: World, passphrase: str) -> list[str]:
    """Return the flags that both commands take."""
    data_dir = str(world.folder / "broker")
    return ["--trust-domain", "example.org", "--data-dir", data_dir, "--backup-passphrase-file", passphrase]


@contextmanager
def asking(path: Path) -> Iterator[list[bytes]]:
    """Ask without an end, and collect what was answered."""
    answers: list[bytes] = []
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            answers.append(ask(path))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(PATIENCE)


def svids(world: World, name: str) -> int:
    status = world.status(name)
    return len(status.svids) if status else 0


def epoch(world: World, name: str) -> int:
    status = world.status(name)
    return status.generation.epoch if status and status.connected else 0


@pytest.mark.timeout(240)
def test_restored_elsewhere_under_load(world: World, app: App, passphrase: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    world.start_broker()
    here = world.address
    with SlowNetwork(here, 0) as there:
        world.address = f"{here},{there.address}"
        parent = world.enrol()
        world.create_entry(parent, SERVER)
        world.start_sidecar("--inbound", inbound(app), name="r").ready()
        parent = world.enrol()
        world.create_entry(parent, CLIENT)
        sidecar = world.start_sidecar("--outbound", outbound(tmp_path, listening(world, "r")), name="i")
        sidecar.ready()
        world.address = here
        with asking(tmp_path / "out.sock") as answers:
            said = firedoor("broker", "backup", str(tmp_path / "b.firedoor"), *words(world, passphrase))
            assert "3 keys" in said
            # What comes after the backup is lost with the machine.
            world.create_entry(parent, PATH)
            until(lambda: svids(world, "i") == 2, "an SVID that the backup knows nothing of")
            before = epoch(world, "i")
            world.programs[0].kill()
            said = firedoor("broker", "restore", str(tmp_path / "b.firedoor"), *words(other, passphrase))
            assert "the broker begins a new epoch" in said
            try:
                restored = other.start_broker()
                there.turn(other.address)
                for name in ("r", "i"):
                    until(lambda name=name: epoch(world, name) > before, "the new epoch")  # type: ignore[misc]
                until(lambda: svids(world, "i") == 1, "the entries of the backup")
                told_by_restored(world, other, sidecar.log, lambda: restored.stop(), there)
            finally:
                other.close()
    assert len(answers) > 20
    assert set(answers) == {b"hello you"}


def told_by_restored(world: World, other: World, log: Path, stop: object, there: SlowNetwork) -> None:
    """The old broker comes back beside the restored one, and then instead of it: nobody believes it."""
    reached = epoch(world, "i")
    old = world.start_broker()
    assert callable(stop)
    stop()
    until(lambda: "generation_went_back" in old.text, "the refusal in the old broker's log")
    until(lambda: "an update was refused" in log.read_text(), "the refusal in the sidecar's log")
    status = world.status("i")
    assert status is not None
    assert (status.generation.epoch, len(status.svids)) == (reached, 1)
    other.start_broker()
    there.turn(other.address)
    parent = status.agent_id.removeprefix("spiffe://example.org")
    other.create_entry(parent, f"{PATH}-2")
    until(lambda: svids(world, "i") == 2, "an entry of the restored broker")


def test_commands_say_what_is_wrong(world: World, passphrase: str, tmp_path: Path) -> None:
    file = str(tmp_path / "b.firedoor")
    given = words(world, passphrase)
    assert "there is no broker in" in firedoor("broker", "backup", file, *given, code=4)
    world.start_broker()
    unsaid = given[:4]
    assert "nobody is there to be asked" in firedoor("broker", "backup", file, *unsaid, code=2)
    assert "two answers" in firedoor("broker", "backup", file, *given, "--unencrypted", code=2)
    assert not Path(file).exists()
    Path(passphrase).chmod(0o644)
    assert "open to others" in firedoor("broker", "backup", file, *given, code=2)
    Path(passphrase).chmod(0o600)
    assert '"keys": 3' in firedoor("broker", "backup", file, *given, "--output", "json")
    assert "is not empty" in firedoor("broker", "restore", file, *given, code=4)
    assert "another broker runs" in firedoor("broker", "restore", file, *given, "--replace", code=4)
    assert "nobody is there to be asked" in firedoor("broker", "restore", file, *unsaid, "--replace", code=2)
    assert world.programs[0].stop() == 0
    said = firedoor("broker", "restore", file, *given, "--replace")
    assert "what was there is in" in said
    firedoor("broker", "backup", file, *unsaid, "--unencrypted")
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert "PRIVATE KEY" in Path(file).read_bytes().decode(errors="replace")


@pytest.fixture
def brokers(tmp_path: Path, own_postgres: Server) -> Iterator[Brokers]:
    found = Brokers(tmp_path)
    found.share(own_postgres)
    yield found
    found.close()


def test_postgresql_by_its_own_tools(brokers: Brokers, own_postgres: Server, passphrase: str, tmp_path: Path) -> None:
    """Dump and keys go to another server and another machine; the sidecar follows."""
    programs = binaries()
    assert programs is not None
    first = brokers.start_one("one")
    parent = brokers.at("one").enrol()
    brokers.create_entry(parent, PATH)
    brokers.start_sidecar_of("one").ready()
    until(lambda: svids(brokers, "s") == 1, "an SVID")
    url, password_file = brokers._words[1], brokers._words[3]
    name = url.partition("@/")[2].partition("?")[0]
    at = [str(programs / "pg_dump"), "-h", str(own_postgres.folder), "-U", "postgres", "-d", name]
    dump = subprocess.run(at, capture_output=True, check=True, timeout=60).stdout
    flags = ["--trust-domain", "example.org", "--backup-passphrase-file", passphrase]
    kept = ["--database", url, "--database-password-file", password_file]
    said = firedoor("broker", "backup", str(tmp_path / "keys"), *flags, *kept, "--data-dir", str(tmp_path / "one"))
    assert "pg_dump" in said
    brokers.create_entry(parent, f"{PATH}-2")
    until(lambda: svids(brokers, "s") == 2, "an SVID that the dump knows nothing of")
    before = epoch(brokers, "s")
    assert first.stop() == 0
    # The machine is gone, and its database with it.
    shutil.rmtree(tmp_path / "one")
    fresh, _ = own_postgres.database()
    name = fresh.partition("@/")[2].partition("?")[0]
    into = [str(programs / "psql"), "-h", str(own_postgres.folder), "-U", "postgres", "-d", name, "-q"]
    subprocess.run([*into, "-v", "ON_ERROR_STOP=1"], input=dump, stdout=subprocess.DEVNULL, check=True, timeout=60)
    kept[1] = fresh
    firedoor("broker", "restore", str(tmp_path / "keys"), *flags, *kept, "--data-dir", str(tmp_path / "one"))
    brokers._words = ("--database", fresh, "--database-password-file", password_file)
    brokers.start_one("one")
    until(lambda: epoch(brokers, "s") > before and svids(brokers, "s") == 1, "the new epoch")
