# SPDX-License-Identifier: Apache-2.0
"""`firedoor svid watch`: files that stay fresh through renewals and restarts, for programs that know no SPIFFE."""

import os
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.e2e.conftest import Program, World
from tests.e2e.test_identity import ID, PATH, issued
from tests.waiting import until

pytestmark = pytest.mark.peer


def start(world: World, ttl: int = 3600) -> None:
    world.start_broker()
    path = world.enrol()
    world.start_sidecar().ready()
    world.create_entry(path, PATH, x509_svid_ttl=ttl)
    until(lambda: issued(world), "an SVID")


def words(world: World, *more: str) -> list[str]:
    return ["svid", "watch", "--dir", str(world.folder / "tls"), "--auth-socket", str(world.auth_socket()), *more]


def once(world: World, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "firedoor.cli", *words(world, "--once", *more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def watching(world: World, *more: str) -> Program:
    program = Program(world.folder / "watch.log", *words(world, *more))
    world.programs.append(program)
    return program


def read_set(folder: Path) -> tuple[int, bool]:
    """Read one set as a careful program does; return the serial, and whether the key is the certificate's."""
    there = os.open(folder / "..data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = [Path(f"/proc/self/fd/{there}", name).read_bytes() for name in ("svid.pem", "svid.key")]
    finally:
        os.close(there)
    leaf = x509.load_pem_x509_certificates(found[0])[0]
    key = load_pem_private_key(found[1], None)
    return leaf.serial_number, key.public_key() == leaf.public_key()


def replaced(folder: Path, before: tuple[int, bool]) -> bool:
    """Say whether there is another set; while one takes the other's place there may be none to read."""
    try:
        return read_set(folder) != before
    except FileNotFoundError:
        return False


def runs(world: World) -> int:
    log = world.folder / "ran"
    return len(log.read_text().splitlines()) if log.exists() else 0


def recorder(world: World) -> str:
    """A command that leaves a line each time it runs."""
    script = world.folder / "reload"
    script.write_text(f'#!/bin/sh\necho "$FIREDOOR_SVID_DIR" >> {world.folder / "ran"}\n')
    script.chmod(0o700)
    return str(script)


def test_once_writes_what_stdlib_ssl_loads(world: World) -> None:
    start(world)
    ran = once(world, "--exec", recorder(world))
    folder = world.folder / "tls"
    assert (ran.returncode, ID in ran.stdout) == (0, True), ran.stderr
    context = ssl.create_default_context(cafile=str(folder / "bundle.pem"))
    context.load_cert_chain(folder / "svid.pem", folder / "svid.key")
    assert stat.S_IMODE((folder / "svid.key").stat().st_mode) == 0o600
    assert (world.folder / "ran").read_text() == f"{folder}\n"
    assert read_set(folder)[1]
    # Nothing changed: nothing is written, nothing is run.
    before = (folder / "..data").readlink()
    assert once(world, "--exec", recorder(world)).returncode == 0
    assert ((folder / "..data").readlink(), runs(world)) == (before, 1)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["..data", str(before), "svid.pem", "svid.key", "bundle.pem"]
    )


def test_renewals_replace_the_set_and_run_the_command(world: World) -> None:
    start(world, ttl=20)
    program = watching(world, "--exec", recorder(world))
    folder = world.folder / "tls"
    until(lambda: runs(world) >= 1, "the first set")
    seen = set()

    def renewed() -> bool:
        try:
            serial, fits = read_set(folder)
        except FileNotFoundError:  # the set was removed between opening and reading; the next try has the new one
            return False
        assert fits
        seen.add(serial)
        return len(seen) >= 3 and runs(world) >= 3

    until(renewed, "two renewals")
    assert program.process.poll() is None
    until(lambda: len(list(folder.glob("..*"))) == 2, "that the sets of before are removed")


def test_it_goes_on_when_the_sidecar_is_killed_and_comes_back(world: World) -> None:
    start(world)
    sidecar = world.programs[-1]
    program = watching(world)
    folder = world.folder / "tls"
    until(lambda: (folder / "svid.pem").exists(), "the first set")
    before = read_set(folder)
    sidecar.kill()
    until(lambda: "the files stay as they are" in program.text, "a sentence")
    assert read_set(folder) == before
    world.start_sidecar().ready()
    # It keeps no keys on disk: what it hands out is another one.
    until(lambda: replaced(folder, before), "a new set")
    assert program.process.poll() is None


def test_a_signal_goes_to_whom_the_file_names(world: World) -> None:
    start(world)
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        (world.folder / "pid").write_text(f"{os.getpid()}\n")
        ran = once(world, "--signal", "usr1", "--pid-file", str(world.folder / "pid"))
        assert ran.returncode == 0, ran.stderr
        until(lambda: got, "the signal")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [signal.SIGUSR1]


@pytest.mark.parametrize("text", ["", "0", "1", "-1", "x", "99999999999999999999999"])
def test_a_pid_file_that_names_nobody_is_refused(world: World, text: str) -> None:
    from firedoor.cli.errors import Refused
    from firedoor.cli.watch import After

    (world.folder / "pid").write_text(text)
    with pytest.raises(Refused, match="pid"):
        After.parse(None, "HUP", str(world.folder / "pid")).do(world.folder)


def test_what_goes_wrong_is_said(world: World) -> None:
    start(world)
    folder = world.folder / "tls"
    failed = once(world, "--exec", "false")
    assert (failed.returncode, failed.stderr) == (4, "firedoor: false ended with 1\n")
    assert once(world, "--signal", "HUP").returncode == 2
    assert once(world, "--signal", "NONE", "--pid-file", "x").returncode == 2
    assert once(world, "--as", ID + "x").returncode == 5
    (folder / "svid.key").unlink()
    (folder / "svid.key").write_text("somebody's own")
    foreign = once(world)
    assert (foreign.returncode, "not ours" in foreign.stderr) == (2, True)
    assert (folder / "svid.key").read_text() == "somebody's own"
