# SPDX-License-Identifier: Apache-2.0
"""The DNS relay between the rules of capture, a stock resolver (dnsmasq) and stock clients (dig, getent).

The relay's threads are in the workload's namespace and are of the sidecar's user there: what the rules let through is
what they let through of a sidecar.
"""

import ctypes
import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firedoor import mtls
from firedoor.sidecar import capture, config, resolv
from tests import netns
from tests.e2e import namespaces, resolver
from tests.e2e.namespaces import APP_UID, OUTSIDE_V4, OUTSIDE_V6, SIDECAR_UID, Namespace
from tests.e2e.resolver import NAME, V4, V6, Resolver, dnsmasq
from tests.waiting import PATIENCE, until

PORT = 14053
BIG = "big.example.org"
CHUNK, CHUNKS = "x" * 200, 6
NOBODY, STRANGER = "10.77.0.99", "10.77.0.9"

pytestmark = pytest.mark.skipif(bool(why := resolver.missing()), reason=why)

# Sends so many queries at once, of as many names, from one socket.
FLOOD = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], 53))
    for n in range(int(sys.argv[2])):
        label = b"n%d" % n
        sock.send(struct.pack("!6H", n, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\\0\\0\\1\\0\\1")
"""


def as_sidecar(name: str) -> None:
    """Put the calling thread, and those that it starts, into a namespace as the sidecar's user there."""
    netns.enter(f"/run/netns/{name}")
    # Of this thread alone, unlike setuid(3); a socket's owner is who the thread was for the file system.
    ctypes.CDLL(None).setfsuid(SIDECAR_UID)


class Relayed:
    """A captured workload whose sidecar is a relay, and a resolver outside."""

    def __init__(self, inside: Namespace, outside: Namespace, resolver: Resolver, folder: Path) -> None:
        self.inside, self.resolver = inside, resolver
        file = folder / "sidecar.yaml"
        file.write_text(f'trust_domain: example.org\nbroker: ["{OUTSIDE_V4}:8081"]\ncapture: {{uid: {SIDECAR_UID}}}\n')
        found = config.load(file, {"HOME": "/"}, {}, uid=0)
        assert found.capture
        rules = capture.make(found.capture, found.open_ports)
        inside.run("nft", "-j", "-f", "-", given=json.dumps(rules.replacing()))
        self.sidecar = ThreadPoolExecutor(1, initializer=as_sidecar, initargs=(inside.name,))
        self.stranger = ThreadPoolExecutor(1, initializer=netns.enter, initargs=(f"/run/netns/{outside.name}",))
        self.core = self.sidecar.submit(mtls.Core, data_threads=1).result()
        self.relay = self.open()

    def open(self, names: list[str] | None = None) -> mtls.DnsRelay:
        """Open the relay, in place of one of before that is still letting go."""

        def attempt() -> mtls.DnsRelay | None:
            try:
                return self.sidecar.submit(
                    lambda: self.core.dns_relay(listen=[f"127.0.0.1:{PORT}", f"[::1]:{PORT}"], names=names)
                ).result()
            except mtls.ListenError:
                return None

        self.relay = until(attempt, "an open relay")
        self.asks(OUTSIDE_V4)
        return self.relay

    def close_relay(self) -> None:
        """Stop the relay, and wait until nobody listens where it did: it lets go in its own time."""
        self.relay.stop()
        until(lambda: f":{PORT} " not in self.inside.run("ss", "-Hltnu"), "the end of the relay")

    def asks(self, *resolvers: str, seconds: int = 20, attempts: int = 1) -> None:
        self.relay.update([resolv.resolver(one) for one in resolvers], seconds=seconds, attempts=attempts)

    def dig(self, *words: str, uid: int = APP_UID) -> str:
        """Ask as the app, patiently and once."""
        return self.inside.run("dig", "+time=30", "+tries=1", *words, uid=uid)

    def records(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.core.drain_records(100_000).splitlines()]
        return [line for line in lines if line["protocol"] == "dns"]

    def close(self) -> None:
        self.core.stop()
        for one in (self.sidecar, self.stranger):
            one.shutdown()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    with namespaces.wired() as (inside, outside):
        outside.run("ip", "address", "add", f"{STRANGER}/24", "dev", "eth0")
        folder = tmp_path_factory.mktemp("dns")
        texts = (f"--txt-record={BIG},{n}{CHUNK}" for n in range(CHUNKS))
        at = ("--bind-interfaces", f"--listen-address={OUTSIDE_V4},{OUTSIDE_V6}")
        with dnsmasq(outside, folder / "dnsmasq.log", *at, *texts) as one:
            found = Relayed(inside, outside, one, folder)
            try:
                yield found
            finally:
                found.close()


@pytest.fixture
def relayed(world: Relayed) -> Iterator[Relayed]:
    """The same for each test, with what it changes put back."""
    world.records()
    yield world
    world.asks(OUTSIDE_V4)


ADDRESSES = (OUTSIDE_V4, OUTSIDE_V6, "198.51.100.53", "2001:db8::53", "127.0.0.53", "169.254.169.254")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("how", ["+notcp", "+tcp"])
def test_whatever_address_the_app_asks_the_resolver_answers(relayed: Relayed, address: str, how: str) -> None:
    assert relayed.dig("+short", how, f"@{address}", NAME) == f"{V4}\n"
    (record,) = relayed.records()
    assert (record["decision"], record["peer_address"]) == ("allowed", f"{OUTSIDE_V4}:53")
    assert (record["dns"]["name"], record["dns"]["type"], record["dns"]["rcode"]) == (NAME, "A", "NOERROR")
    # The kernel names who opened a connection, and nobody who sent a packet.
    assert record["client"] == ({"uid": APP_UID, "pid": None} if how == "+tcp" else None)


def test_by_ipv6(relayed: Relayed) -> None:
    relayed.asks(OUTSIDE_V6)
    for how in ("+notcp", "+tcp"):
        assert relayed.dig("+short", how, f"@{OUTSIDE_V6}", NAME, "AAAA") == f"{V6}\n"
    assert {one["peer_address"] for one in relayed.records()} == {f"[{OUTSIDE_V6}]:53"}


def test_the_resolver_of_the_system_finds_it(relayed: Relayed) -> None:
    """glibc, which asks whomever the machine's own resolv.conf names."""
    assert V4 in relayed.inside.run("getent", "ahostsv4", f"{NAME}.", uid=APP_UID)
    assert V6 in relayed.inside.run("getent", "ahostsv6", f"{NAME}.", uid=APP_UID)


def test_what_does_not_fit_is_asked_again_by_tcp(relayed: Relayed) -> None:
    cut = relayed.dig("+notcp", "+ignore", "+bufsize=512", f"@{OUTSIDE_V4}", BIG, "TXT")
    assert "flags: qr aa tc rd" in cut
    assert cut.count(CHUNK) < CHUNKS
    whole = relayed.dig("+short", f"@{OUTSIDE_V4}", "+bufsize=512", BIG, "TXT")
    assert whole.count(CHUNK) == CHUNKS
    assert relayed.dig("+short", "+notcp", "+bufsize=4096", f"@{OUTSIDE_V4}", BIG, "TXT").count(CHUNK) == CHUNKS
    transports = [one["dns"]["transport"] for one in relayed.records()]
    assert transports == ["udp", "udp", "tcp", "udp"]


def test_a_name_that_is_none_is_said_to_be_none(relayed: Relayed) -> None:
    assert "status: NXDOMAIN" in relayed.dig(f"@{OUTSIDE_V4}", "none.example.org")
    assert relayed.records()[0]["dns"]["rcode"] == "NXDOMAIN"


def test_without_the_relay_the_app_reaches_no_resolver(relayed: Relayed) -> None:
    before = relayed.resolver.asked(NAME)
    relayed.close_relay()
    try:
        words = ("+time=1", "+tries=1", "+short", NAME)
        for how in ("+notcp", "+tcp"):
            for address in (OUTSIDE_V4, OUTSIDE_V6):
                found = relayed.inside.run("dig", how, f"@{address}", *words, uid=APP_UID, code=9)
                assert V4 not in found
        assert relayed.resolver.asked(NAME) == before
        # Of the sidecar's user it is reached as it is.
        assert relayed.dig("+short", f"@{OUTSIDE_V4}", NAME, uid=SIDECAR_UID) == f"{V4}\n"
    finally:
        relayed.open()
    assert relayed.dig("+short", f"@{OUTSIDE_V4}", NAME) == f"{V4}\n", "it takes over again"
    assert relayed.resolver.asked(NAME) == before + 2, "by its own user, and by the relay"


def test_only_listed_names_are_asked_for(relayed: Relayed) -> None:
    relayed.relay.stop()
    relayed.open([NAME, "**.listed.example.org"])
    before = relayed.resolver.asked("stolen.evil.example")
    try:
        assert relayed.dig("+short", f"@{OUTSIDE_V4}", NAME.upper()) == f"{V4}\n"
        assert "status: NXDOMAIN" in relayed.dig(f"@{OUTSIDE_V4}", "a.b.listed.example.org")
        for how in ("+notcp", "+tcp"):
            assert "status: REFUSED" in relayed.dig(how, f"@{OUTSIDE_V4}", "stolen.evil.example")
    finally:
        relayed.relay.stop()
        relayed.open()
    assert relayed.resolver.asked("stolen.evil.example") == before
    denied = [one for one in relayed.records() if one["decision"] == "denied"]
    assert [(one["reason"], one["dns"]["name"]) for one in denied] == [
        ("dns_name_not_listed", "stolen.evil.example")
    ] * 2


def test_an_answer_of_somebody_else_is_not_taken(relayed: Relayed) -> None:
    """A resolver that says nothing until a stranger, who has seen the query, has lied about it."""

    def bound(host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, 5300))
        return made

    real, stranger = (relayed.stranger.submit(bound, host).result() for host in (OUTSIDE_V4, STRANGER))

    def lie() -> None:
        with real, stranger:
            real.settimeout(PATIENCE)
            query, peer = real.recvfrom(4096)
            answer = bytearray(query)
            answer[2] |= 0x80
            # From another address; then from the right one with another ID, and with another question.
            stranger.sendto(bytes(answer[:3]) + b"\x05" + bytes(answer[4:]), peer)
            real.sendto(bytes([answer[0] ^ 1]) + bytes(answer[1:3]) + b"\x05" + bytes(answer[4:]), peer)
            real.sendto(bytes(answer[:3]) + b"\x05" + bytes(answer[4:]).replace(b"s3", b"s4"), peer)
            real.sendto(bytes(answer[:3]) + b"\x03" + bytes(answer[4:]), peer)

    lying = relayed.stranger.submit(lie)
    relayed.asks(f"{OUTSIDE_V4}:5300", seconds=20)
    before = relayed.core.stats()["dns_unmatched"]
    assert "status: NXDOMAIN" in relayed.dig(f"@{OUTSIDE_V4}", NAME)
    lying.result()
    assert relayed.core.stats()["dns_unmatched"] == before + 2, "the stranger's was not even heard"


def test_a_resolver_that_is_down_is_left_for_the_next(relayed: Relayed) -> None:
    # Nobody has the address; at the port nobody listens.
    relayed.asks(NOBODY, f"{OUTSIDE_V4}:5399", OUTSIDE_V6, seconds=24)
    for how in ("+notcp", "+tcp"):
        assert relayed.dig("+short", how, f"@{OUTSIDE_V4}", NAME) == f"{V4}\n"
    assert {one["peer_address"] for one in relayed.records()} == {f"[{OUTSIDE_V6}]:53"}
    relayed.asks(f"{OUTSIDE_V4}:5399", f"[{OUTSIDE_V6}]:5399")
    for how in ("+notcp", "+tcp"):
        assert "status: SERVFAIL" in relayed.dig(how, f"@{OUTSIDE_V4}", NAME)
    relayed.asks()
    assert "status: SERVFAIL" in relayed.dig(f"@{OUTSIDE_V4}", NAME)


def test_a_flood_is_bounded_and_the_relay_lives(relayed: Relayed) -> None:
    relayed.asks(NOBODY, seconds=2)
    before = relayed.core.stats()
    handles = descriptors()
    relayed.inside.run(sys.executable, "-I", "-c", FLOOD, OUTSIDE_V4, "2000")
    until(lambda: relayed.core.stats()["dns_dropped"] - before["dns_dropped"] > 100, "queries that find no room")
    assert descriptors() - handles <= 64, "one socket has so many at once"
    relayed.asks(OUTSIDE_V4)
    assert relayed.dig("+short", f"@{OUTSIDE_V4}", NAME) == f"{V4}\n"
    until(lambda: descriptors() <= handles, "what nobody answers is given up")
    stats = relayed.core.stats()
    assert stats["decisions"] == stats["records_drained"] + stats["records_waiting"] + stats["records_lost"]


@pytest.mark.parametrize(
    "words", [("version.bind", "CH", "TXT"), ("example.org", "AXFR"), ("example.org", "+opcode=2")]
)
def test_what_is_no_plain_query_is_not_sent_on(relayed: Relayed, words: tuple[str, ...]) -> None:
    before = relayed.resolver.log.read_text()
    found = relayed.dig("+tcp", f"@{OUTSIDE_V4}", *words)
    assert "status: NOTIMP" in found or "Transfer failed" in found
    assert relayed.resolver.log.read_text() == before
