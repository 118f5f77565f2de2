# SPDX-License-Identifier: Apache-2.0
"""`firedoor run`: a network namespace with its rules, a sidecar in it, then the command; and the end of all of them.

Whichever ends first ends the others. Should this process be killed, the kernel ends its children (PR_SET_PDEATHSIG),
with them the command's PID namespace, and with its last process the network namespace. What then stays of the machine's
side, the next run of that name removes.
"""

import os
import pwd
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from firedoor.sidecar import capture, resolv
from firedoor.sidecar.capture import nft, privileges
from firedoor.sidecar.capture.nft import Nft
from firedoor.sidecar.captured import CaptureInbound
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import AppRefused, CaptureFailed
from firedoor.sidecar.namespace import child, first, linux, machine
from firedoor.sidecar.namespace.child import Who
from firedoor.sidecar.namespace.settings import Run
from firedoor.sidecar.resolv import ResolvConf

# What the command gets to end after SIGTERM, and the sidecar, which drains for 10 s.
COMMAND_SECONDS = 10.0
SIDECAR_SECONDS = 15.0
# Until the sidecar has said that it is ready.
TICK_SECONDS = 0.05
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
EXIT_SIDECAR_GONE = 3
DATA = Path("/var/lib/firedoor/run")


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be run."""

    file: str
    uid: int
    command: tuple[str, ...]


def run(config: Config, order: Order, default: Config) -> int:
    """Run to the end and return the exit code. Raise CaptureError before anything is started.

    `default` has the places of root's own sidecar: where the configuration names no others, ours has others.
    """
    settings, rules = _checked(config, order)
    place = machine.Place(settings)
    try:
        left = place.leftovers()
        if left:
            _say(f"the run of that name before this one was killed; removed: {', '.join(left)}")
        place.take(published(config, settings))
        signal.pthread_sigmask(signal.SIG_BLOCK, first.SIGNALS)
        return _Running(config, order, settings, rules, place, default).run()
    finally:
        place.remove()


def published(config: Config, settings: Run) -> tuple[int, ...]:
    """Return the ports that are reached from outside: of the sidecar's own listeners, and captured ones."""
    captured = settings.publish
    if captured is None:
        captured = tuple(p.port for one in config.captured if isinstance(one, CaptureInbound) for p in one.ports)
    return tuple(sorted({*config.open_ports, *captured}))


def _checked(config: Config, order: Order) -> tuple[Run, capture.Ruleset]:
    """Refuse what cannot work. Raise CaptureError."""
    if config.run is None or config.capture is None:
        raise CaptureFailed("the configuration has no section `run`: its name, and network: the addresses of the wire")
    privileges.check(f"uid {order.uid}", privileges.uid_refusals(order.uid, config.capture.uid))
    if _group(order.uid) == 0:
        raise AppRefused(f"uid {order.uid} is of group 0, which could read what is root's")
    if config.records.path is None:
        raise CaptureFailed("records.path: a file is needed: stdout is the command's")
    if os.geteuid() != 0:
        raise CaptureFailed("a network namespace is made by root: run this as root; the command will not be it")
    nft.tool("ip", "iproute2")
    machine.check_forwarding(config.run)
    machine.check_free(published(config, config.run))
    check_resolvers(config)
    return config.run, capture.make(config.capture, config.open_ports)


def check_resolvers(config: Config) -> None:
    """Raise CaptureFailed when no resolver would be reached, although this machine has some."""
    if config.dns is None or config.dns.source()().addresses or not ResolvConf(elsewhere=False).read().addresses:
        return
    raise CaptureFailed(
        f"{resolv.PATH} names resolvers on this machine's loopback alone, which the network namespace does not reach, "
        "and systemd-resolved does not say who is behind them: name others in `capture.dns.resolvers`"
    )


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _say(text: str) -> None:
    sys.stderr.write(f"firedoor run: {text}\n")
    sys.stderr.flush()


class _Running:
    """The processes of one run."""

    def __init__(
        self,
        config: Config,
        order: Order,
        settings: Run,
        rules: capture.Ruleset,
        place: machine.Place,
        default: Config,
    ) -> None:
        self._config, self._order, self._settings, self._rules, self._place = config, order, settings, rules, place
        self._sidecar_uid = config.capture.uid if config.capture else 0
        own = config.data_dir == default.data_dir
        self._data_dir = DATA / settings.name if own else config.data_dir
        self._auth_socket = _either(config.auth_socket, default.auth_socket, place.sockets / "auth.sock")
        self._admin_socket = _either(config.admin_socket, default.admin_socket, place.sockets / "admin.sock")
        self._parent, self._held = os.pipe()
        self._sidecar = self._first = 0
        self._ended: dict[int, int] = {}

    def run(self) -> int:
        try:
            network = linux.new_network()
        except OSError as error:
            raise CaptureFailed(f"no network namespace can be made: {error.strerror}") from error
        try:
            # Whatever is made from here on, the next run of that name finds out about.
            self._place.write(())
            # The rules stand before anything is connected.
            Nft(lambda: linux.enter(network, linux.CLONE_NEWNET)).write(self._rules)
            machine.connect(self._settings, network)
            machine.publish(self._settings, published(self._config, self._settings))
            return self._run(network)
        finally:
            self._end_all()
            os.close(network)

    def _run(self, network: int) -> int:
        self._make_folders()
        code = self._start_sidecar(network)
        if code is not None:
            return code
        order = self._order
        who = Who(order.uid, _group(order.uid), network, self._parent)
        self._first = first.start(order.command, who, self._environment())
        self._place.write((self._sidecar, self._first))
        return self._until_one_ends()

    def _make_folders(self) -> None:
        """Make what the sidecar writes to its own. Raise CaptureFailed; what is somebody else's stays theirs."""
        for folder, mode in ((self._data_dir, 0o700), (self._place.sockets, 0o755)):
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=mode)
                os.chown(folder, self._sidecar_uid, _group(self._sidecar_uid))
                folder.chmod(mode)
            except FileExistsError:
                if folder.lstat().st_uid != self._sidecar_uid:
                    raise CaptureFailed(f"{folder}: must be the folder of uid {self._sidecar_uid}") from None
            except OSError as error:
                raise CaptureFailed(f"{folder}: {error.strerror}") from error

    def _start_sidecar(self, network: int) -> int | None:
        """Start it and wait until it is ready; return an exit code when it, or we, end before."""
        words = [sys.executable, "-P", "-m", "firedoor.cli", "sidecar", "run", "--config", self._order.file]
        words += ["--data-dir", str(self._data_dir)]
        words += ["--auth-socket", str(self._auth_socket), "--admin-socket", str(self._admin_socket)]
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        own = {name: value for name, value in os.environ.items() if name.startswith("FIREDOOR_SIDECAR_")}
        environment = {**own, "PATH": nft.PATH, "LANG": "C.UTF-8", "HOME": str(self._data_dir)}
        who = Who(self._sidecar_uid, _group(self._sidecar_uid), network, self._parent)
        try:
            self._sidecar = child.start(words, who, environment, writing)
            self._place.write((self._sidecar,))
            os.close(writing)
            return self._until_ready(reading)
        finally:
            os.close(reading)

    def _until_ready(self, reading: int) -> int | None:
        said = b""
        deadline = time.monotonic() + self._settings.ready_within
        while b"ready" not in said:
            if time.monotonic() > deadline:
                _say(f"the sidecar was not ready within {self._settings.ready_within} s (run.ready_within)")
                return EXIT_SIDECAR_GONE
            found = signal.sigtimedwait(first.SIGNALS, TICK_SECONDS)
            if found is not None and found.si_signo in ENDING:
                return first.BY_SIGNAL + found.si_signo
            self._ended |= first.reap()
            if self._sidecar in self._ended:
                code = first.exit_code(self._ended[self._sidecar])
                _say(f"the sidecar ended with {code} before it was ready")
                return code or EXIT_SIDECAR_GONE
            try:
                said += os.read(reading, 4096)
            except BlockingIOError:
                continue
        _say(said.decode(errors="replace").strip())
        return None

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FIREDOOR_")}
        found = {**kept, "SPIFFE_ENDPOINT_SOCKET": f"unix:{self._auth_socket}"}
        try:
            user = pwd.getpwuid(self._order.uid)
        except KeyError:
            return found
        return {**found, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}

    def _until_one_ends(self) -> int:
        """Hand signals on; return the command's exit code, or that of a sidecar that is gone."""
        deadline: float | None = None
        while True:
            self._ended |= first.reap()
            if self._first in self._ended:
                return first.exit_code(self._ended[self._first])
            if self._sidecar in self._ended:
                code = first.exit_code(self._ended[self._sidecar])
                _say(f"the sidecar ended with {code}: the command is ended")
                return EXIT_SIDECAR_GONE
            if deadline is not None and time.monotonic() > deadline:
                _say(f"the command has not ended within {COMMAND_SECONDS:.0f} s of SIGTERM: it is killed")
                os.kill(self._first, signal.SIGKILL)
                deadline = None
            found = signal.sigtimedwait(first.SIGNALS, first.LOOK_AGAIN_SECONDS)
            if found is None or not first.is_to_hand_on(found):
                continue
            os.kill(self._first, found.si_signo)
            if found.si_signo == signal.SIGTERM and deadline is None:
                deadline = time.monotonic() + COMMAND_SECONDS

    def _end_all(self) -> None:
        self._end(self._first, COMMAND_SECONDS)
        self._end(self._sidecar, SIDECAR_SECONDS)
        for handle in (self._parent, self._held):
            os.close(handle)

    def _end(self, pid: int, seconds: float) -> None:
        """Ask a child to end, and kill it when it does not."""
        deadline = time.monotonic() + seconds
        number = signal.SIGTERM
        while pid and pid not in self._ended:
            os.kill(pid, number)
            while pid not in self._ended and (number == signal.SIGKILL or time.monotonic() < deadline):
                signal.sigtimedwait({signal.SIGCHLD}, TICK_SECONDS)
                self._ended |= first.reap()
            number = signal.SIGKILL


def _either(given: Path, default: Path, own: Path) -> Path:
    return own if given == default else given
