# SPDX-License-Identifier: Apache-2.0
"""`firedoor svid watch`: an X.509-SVID as files, for programs that know no SPIFFE, kept fresh for as long as it runs.

    DIR/svid.pem   -> ..data/svid.pem      leaf and intermediates
    DIR/svid.key   -> ..data/svid.key      0600, PKCS#8
    DIR/bundle.pem -> ..data/bundle.pem    the roots of the own trust domain
    DIR/..data     -> ..1f0c9a7e            the set of one SVID

A set is written whole beside the present one, then `..data` is replaced in one step: never is a key beside another's
certificate. A program that reads files one by one may still meet two sets; it reads again after the command or signal.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firedoor.cli import workload
from firedoor.cli.admin import CALL_SECONDS
from firedoor.cli.errors import CliError, Refused, Unreachable, UsageError
from firedoor.cli.remote import choose
from firedoor.wire import workload_pb2

DATA = "..data"
NAMES = ("svid.pem", "svid.key", "bundle.pem")
KEY_MODE, CERTIFICATE_MODE, FOLDER_MODE = 0o600, 0o644, 0o755
# How long the command may take; the next SVID comes hours later, but a revocation may come at once.
COMMAND_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0

# What is shown and run when there is a new set.
Changed = Callable[[workload_pb2.X509SVID], None]


@dataclass(frozen=True, slots=True)
class After:
    """What is done when a set was replaced: a command, a signal, both or nothing."""

    command: tuple[str, ...] = ()
    number: signal.Signals | None = None
    pid_file: Path | None = None

    @classmethod
    def parse(cls, command: str | None, name: str | None, pid_file: str | None) -> "After":
        """Read the arguments. Raise UsageError."""
        if (name is None) != (pid_file is None):
            raise UsageError("--signal and --pid-file go together: which signal, and to whom")
        try:
            words = tuple(shlex.split(command)) if command else ()
        except ValueError as error:
            raise UsageError(f"--exec: {error}") from None
        return cls(words, _signal(name) if name else None, Path(pid_file) if pid_file else None)

    def do(self, folder: Path) -> None:
        """Do it. Raise Refused with what went wrong."""
        if self.command:
            _run(self.command, folder)
        if self.number is not None and self.pid_file is not None:
            _send(self.number, self.pid_file)


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UsageError(f"--signal {name!r} is no signal; write HUP, USR1 or the like") from None


def _run(command: tuple[str, ...], folder: Path) -> None:
    try:
        # No shell: the words are the operator's own, and nothing of the SVID is among them.
        ran = subprocess.run(  # noqa: S603
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=COMMAND_SECONDS,
            env={**os.environ, "FIREDOOR_SVID_DIR": str(folder)},
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} was ended after {COMMAND_SECONDS:.0f} s") from None
    except OSError as error:
        raise Refused(f"{command[0]} cannot be run: {error.strerror}") from None
    if ran.returncode:
        raise Refused(f"{command[0]} ended with {ran.returncode}")


def _send(which: signal.Signals, pid_file: Path) -> None:
    try:
        text = pid_file.read_text(encoding="ascii").strip()
        if not text.isdecimal() or int(text) <= 1:
            raise Refused(f"{pid_file} holds no process ID")
        os.kill(int(text), which)
    except (OSError, UnicodeDecodeError, OverflowError) as error:
        raise Refused(f"{pid_file}: {which.name} cannot be sent: {getattr(error, 'strerror', None) or error}") from None


class Folder:
    """The files. One process writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, svid: workload_pb2.X509SVID) -> bool:
        """Replace the set; say whether it is another one than before. Raise UsageError when it cannot be written."""
        try:
            files = {
                "svid.pem": workload.certificates_pem(svid.x509_svid),
                "svid.key": workload.key_pem(svid),
                "bundle.pem": workload.certificates_pem(svid.bundle),
            }
            self.path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            if self._present() == files:
                return False
            self._replace(files)
        except OSError as error:
            raise UsageError(f"--dir {self.path}: {error.strerror}: {error.filename}") from None
        return True

    def _present(self) -> dict[str, bytes] | None:
        try:
            found = {name: (self.path / name).read_bytes() for name in NAMES}
        except FileNotFoundError:
            return None
        return found if all((self.path / name).is_symlink() for name in NAMES) else None

    def _replace(self, files: dict[str, bytes]) -> None:
        fresh = self.path / f"..{secrets.token_hex(4)}"
        fresh.mkdir(mode=FOLDER_MODE)
        for name, data in files.items():
            mode = KEY_MODE if name == "svid.key" else CERTIFICATE_MODE
            handle = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        self._link(DATA, fresh.name)
        for name in NAMES:
            self._link(name, f"{DATA}/{name}")
        self._forget(fresh.name)

    def _link(self, name: str, target: str) -> None:
        path = self.path / name
        if path.is_symlink() and str(path.readlink()) == target:
            return
        if path.exists() and not path.is_symlink():
            raise UsageError(f"--dir {self.path}: {name} is there and not ours; use a folder of its own")
        fresh = self.path / f"..link-{secrets.token_hex(4)}"
        fresh.symlink_to(target)
        fresh.replace(path)

    def _forget(self, keep: str) -> None:
        """Remove older sets, and what a process left that was killed while it wrote."""
        for old in self.path.glob("..*"):
            if old.name in (DATA, keep):
                continue
            if old.is_symlink():
                old.unlink()
            else:
                shutil.rmtree(old)


def watch(auth_socket: str, as_id: str | None, folder: Folder, after: After, changed: Changed, *, once: bool) -> None:
    """Keep the files fresh; with `once` write them and return. Then only raise CliError.

    While the sidecar is away, or gives no identity, the files stay as they are, and it is asked again.
    """
    pause, said = FIRST_PAUSE, ""
    while True:
        try:
            with workload.stream(auth_socket, "--auth-socket", CALL_SECONDS if once else None) as answers:
                for answer in answers:
                    _take(choose(list(answer.svids), as_id), folder, after, changed, once=once)
                    pause, said = FIRST_PAUSE, ""
                    if once:
                        return
            raise Unreachable("the auth socket ended the stream")
        except UsageError:
            raise
        except CliError as error:
            if once:
                raise
            if str(error) != said:
                _say(f"{error}; the files stay as they are, and it is asked again")
                said = str(error)
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _take(svid: workload_pb2.X509SVID, folder: Folder, after: After, changed: Changed, *, once: bool) -> None:
    if not folder.write(svid):
        return
    changed(svid)
    try:
        after.do(folder.path)
    except Refused as error:
        if once:
            raise
        _say(str(error))


def _say(sentence: str) -> None:
    sys.stderr.write(f"firedoor: {sentence}\n")
    sys.stderr.flush()
