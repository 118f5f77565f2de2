# SPDX-License-Identifier: Apache-2.0
"""`firedoor run`: nothing is reached past the sidecar, and whatever ends or is killed, nothing is left behind."""

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests import netns
from tests.e2e import namespaces, resolver
from tests.e2e.namespaces import BRIEF, Namespace
from tests.e2e.resolver import dnsmasq
from tests.e2e.running import (
    APP_UID,
    CLIENT,
    ID,
    MACHINE,
    NAME,
    PORT,
    SIDECAR_UID,
    WORKLOAD,
    WORKLOAD_V6,
    Machine,
    machine_with_broker,
    of_user,
)
from tests.waiting import PATIENCE, until

MISSING = netns.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SILENT = 8089
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    with machine_with_broker() as found:
        yield found


@pytest.fixture
def machine(shared: Machine) -> Iterator[Machine]:
    shared.restore()
    yield shared
    shared.end_runs()
    shared.nothing_is_left()


def test_a_stock_server_is_reached_through_its_sidecar_alone(machine: Machine) -> None:
    machine.serve()
    # By the machine's addresses and by the workload's own.
    everywhere = ("10.78.0.1", "[fd78::1]", WORKLOAD, f"[{WORKLOAD_V6}]")
    with neighbour(machine) as far:
        for host in (WORKLOAD, WORKLOAD_V6):
            for actor in (far.actor(), machine.machine.actor()):
                assert actor.ask(host, PORT + 1, seconds=BRIEF) == "TimeoutError", "only published ports are reached"
        for host in everywhere:
            said = far.run("sh", "-c", f"openssl s_client -connect {host}:{PORT} </dev/null 2>&1; true")
            assert "BEGIN CERTIFICATE" in said
            assert "No client certificate CA names sent" in said, "it asks for a certificate, of whichever CA"
            assert asked(far, f"https://{host}:{PORT}", "--insecure") == "000", "no certificate"
            assert asked(far, f"http://{host}:{PORT}") == "000", "no TLS"
    assert '"GET' not in machine.log, "nobody has reached the server"
    for name, at in clients_of(machine).items():
        assert asked(machine.machine, f"http://{at}") == "200", name
        assert asked(machine.machine, f"http://{at}", "-X", "PUT") == "403", name
    assert machine.log.count('"GET /policy.yaml HTTP/1.1" 200') == 2
    assert '"PUT' not in machine.log


def asked(where: Namespace, url: str, *words: str) -> str:
    """Return the status that curl gets; 000 when there was no answer."""
    command = f"curl -sg --max-time 20 -o /dev/null -w %{{http_code}} {' '.join(words)} '{url}/policy.yaml'; true"
    return where.run("sh", "-c", command)


@contextlib.contextmanager
def neighbour(machine: Machine) -> Iterator[Namespace]:
    """Another machine, with a wire to the first, which is its way to everywhere."""
    with namespaces.namespace("far") as far:
        machine.machine.run(*f"ip link add far type veth peer name eth0 netns {far.name}".split())
        for one, device, last in ((machine.machine, "far", 1), (far, "eth0", 2)):
            one.run(*f"ip address add 10.78.0.{last}/24 dev {device}".split())
            one.run(*f"ip address add fd78::{last}/64 dev {device} nodad".split())
            one.run("ip", "link", "set", device, "up")
        far.run("ip", "route", "add", "default", "via", "10.78.0.1")
        far.run("ip", "-6", "route", "add", "default", "via", "fd78::1")
        far.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 65535")
        assert far.actor().call("ping", "fd78::1") == "answered"
        yield far


def clients_of(machine: Machine) -> dict[str, str]:
    """Start a sidecar with a listener for each of the server's addresses; return where they are."""
    world, given = machine.world, {"v4": (18000, WORKLOAD), "v6": (18001, f"[{WORKLOAD_V6}]")}
    config = machine.folder / "client.yaml"
    config.write_text(
        "outbound:\n"
        + "".join(
            f'  - {{name: {name}, as: "{CLIENT}", listen: "127.0.0.1:{port}", protocol: http, expect: ["{ID}"],\n'
            f'     service_port: {PORT}, addresses: ["{address}:{PORT}"]}}\n'
            for name, (port, address) in given.items()
        )
    )
    world.address = f"{MACHINE}:8081"
    world.create_entry(world.enrol(), "/segment/inference/host/h1/svc/client", "uid:0")
    world.start_sidecar("--config", str(config), name="c")
    until(lambda: (found := world.status("c")) and not found.missing, "the client's sidecar")
    return {name: f"127.0.0.1:{port}" for name, (port, _) in given.items()}


def test_what_is_published_can_be_named(machine: Machine) -> None:
    machine.write(", publish: []")
    machine.serve()
    actor = machine.machine.actor()
    for host in (WORKLOAD, WORKLOAD_V6):
        assert actor.ask(host, PORT, seconds=BRIEF) == "TimeoutError"


def test_it_takes_no_port_away_from_a_program_of_the_machine(machine: Machine) -> None:
    actor = machine.machine.actor()
    actor.listen("127.0.0.1", PORT)
    assert machine.start("true").wait(PATIENCE) == 0, "loopback stays as it is"
    actor.call("close", "127.0.0.1", PORT)
    actor.listen("0.0.0.0", PORT)
    assert machine.start("true").wait(PATIENCE) == 2
    assert f"this machine has a program at port {PORT}" in machine.log
    actor.end()


def test_two_runs_do_not_publish_one_port(machine: Machine) -> None:
    machine.serve()
    text = machine.config.read_text()
    for old, new in ((f"name: {NAME}", f"name: {NAME}b"), ("10.201.7.0", "10.201.9.0"), ("fd01:7::", "fd01:9::")):
        text = text.replace(old, new)
    machine.config.write_text(text)
    assert machine.start("true").wait(PATIENCE) == 2
    assert f"another `firedoor run` publishes port {PORT}" in machine.log


def test_when_the_sidecar_is_killed_the_command_ends(machine: Machine) -> None:
    process = machine.serve()
    os.kill(machine.sidecar(), signal.SIGKILL)
    assert process.wait(PATIENCE) == 3
    assert "the sidecar ended with 137: the command is ended" in machine.log
    machine.nothing_is_left()


def test_when_the_command_is_killed_all_ends(machine: Machine) -> None:
    process = machine.serve()
    # The first of the two is the one that started the other.
    _, command = sorted(of_user(APP_UID))
    os.kill(command, signal.SIGKILL)
    assert process.wait(PATIENCE) == 137
    machine.nothing_is_left()


def test_when_the_first_process_is_killed_all_ends(machine: Machine) -> None:
    process = machine.serve()
    os.kill(min(of_user(APP_UID)), signal.SIGKILL)
    assert process.wait(PATIENCE) == 137
    machine.nothing_is_left()


def test_when_it_is_killed_itself_the_next_start_cleans_up(machine: Machine) -> None:
    process = machine.serve()
    process.kill()
    process.wait()
    until(lambda: not machine.processes(), "the end of all its processes")
    # The wire goes with the network namespace, when nothing is in it any more.
    until(lambda: f"fd-{NAME}" not in machine.machine.run("ip", "link"), "the end of its network namespace")
    assert machine.left()
    again = machine.start("true")
    assert again.wait(PATIENCE) == 0, machine.log
    assert "the run of that name before this one was killed; removed: rules" in machine.log
    machine.nothing_is_left()


def test_killed_while_starting_too(machine: Machine) -> None:
    with silent_broker(machine):
        process = starting(machine)
        process.kill()
        process.wait()
        until(lambda: not machine.processes(), "the end of the sidecar")
    machine.write()
    assert machine.start("true").wait(PATIENCE) == 0, machine.log
    assert "the run of that name before this one was killed; removed: " in machine.log
    machine.nothing_is_left()


@contextlib.contextmanager
def silent_broker(machine: Machine, more: str = "") -> Iterator[None]:
    """Have a broker that takes connections and says nothing."""
    actor = machine.machine.actor()
    actor.call("hold_next", "0.0.0.0", SILENT)
    # Nobody has attested from there.
    machine.write(more, broker=f"{MACHINE}:{SILENT}", data_dir=f"silent-{next(_NUMBERS)}")
    try:
        yield
    finally:
        actor.end()


def starting(machine: Machine) -> "subprocess.Popen[str]":
    """Start a run, and wait until its sidecar is there."""
    process = machine.start("true")
    until(lambda: of_user(SIDECAR_UID), "the start of the sidecar")
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_ended_while_starting(machine: Machine, number: int, code: int) -> None:
    with silent_broker(machine):
        process = starting(machine)
        process.send_signal(number)
        assert process.wait(PATIENCE) == code, machine.log
    machine.nothing_is_left()


def test_a_broker_that_does_not_answer_is_not_waited_for_for_ever(machine: Machine) -> None:
    with silent_broker(machine, ", ready_within: 2s"):
        process = machine.start("true")
        assert process.wait(PATIENCE) == 3
    assert "the sidecar was not ready within 2 s (run.ready_within)" in machine.log
    machine.nothing_is_left()


def test_a_name_is_taken_once(machine: Machine) -> None:
    machine.serve()
    machine.write(", publish: []")
    other = machine.start("true")
    assert other.wait(PATIENCE) == 2
    assert f"another `firedoor run` has the name {NAME}" in machine.log
    assert len(machine.processes()) >= 3


def test_without_forwarding_it_says_what_to_do(machine: Machine) -> None:
    machine.machine.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    process = machine.start("true")
    assert process.wait(PATIENCE) == 2
    assert "`sysctl -w net.ipv6.conf.all.forwarding=1`, or `run.forwarding: set`" in machine.log
    machine.write(", forwarding: set")
    process = machine.start("true")
    assert process.wait(PATIENCE) == 0, machine.log
    machine.nothing_is_left()


@pytest.mark.skipif(bool(why := resolver.missing()), reason=why)
def test_names_are_asked_of_the_configured_resolver(machine: Machine) -> None:
    """The command asks whomever the machine's resolv.conf names, and whoever that is, this one answers."""
    section = f"capture:\n  dns: {{resolvers: [{MACHINE}]}}\n"
    machine.config.write_text(machine.config.read_text().replace("capture:\n", section))
    with dnsmasq(machine.machine, machine.folder / "dnsmasq.log"):
        process = machine.start("getent", "ahostsv4", f"{resolver.NAME}.")
        assert resolver.V4 in machine.line(process), machine.log
        assert process.wait(PATIENCE) == 0, machine.log
    machine.nothing_is_left()
