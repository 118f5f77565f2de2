# SPDX-License-Identifier: Apache-2.0
"""The DNS relay as configured, and whom resolv.conf has it ask."""

import os
import socket
from pathlib import Path

import pytest

from firedoor import mtls
from firedoor.sidecar import config, resolv
from firedoor.sidecar.dns import DnsRelay
from firedoor.sidecar.errors import CaptureFailed, ConfigError
from firedoor.sidecar.namespace.run import check_resolvers
from firedoor.sidecar.resolv import ResolvConf, Resolvers
from tests.ports import own_port

MIN = "trust_domain: example.org\nbroker: [b:1]\ncapture:\n  uid: 990\n"
RUN = "run: {name: web, network: 10.201.7.0/30}\n"


@pytest.fixture(autouse=True)
def ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have addresses that do not depend on where the tests run."""
    monkeypatch.setattr(config, "_ipv6_addresses", lambda: f"{1:032x} 01 80 10 80       lo\n")


def load(folder: Path, text: str) -> config.Config:
    path = folder / "sidecar.yaml"
    path.write_text(text)
    return config.load(path, {}, {}, uid=0)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return "\n".join(caught.value.findings)


def test_where_it_listens_and_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(tmp_path, MIN + "  dns_port: 15353\n").dns
    assert found
    assert found.listen == ("127.0.0.1:15353", "[::1]:15353")
    assert (found.names, found.resolvers, found.elsewhere) == (None, (), False)
    monkeypatch.setattr(config, "_ipv6_addresses", lambda: None)
    without = load(tmp_path, MIN).dns
    assert without
    assert without.listen == ("127.0.0.1:14053",)
    assert load(tmp_path, "trust_domain: example.org\nbroker: [b:1]\n").dns is None


def test_names_and_resolvers(tmp_path: Path) -> None:
    section = (
        '  dns: {names: [s3.example.org, "**.cluster.local"], resolvers: [10.0.0.10, "fd00::10", "10.0.0.11:54"]}\n'
    )
    found = load(tmp_path, MIN + section).dns
    assert found
    assert found.names == ("s3.example.org", "**.cluster.local")
    assert found.resolvers == ("10.0.0.10:53", "[fd00::10]:53", "10.0.0.11:54")
    assert found.source()() == Resolvers(found.resolvers)
    nobody = load(tmp_path, MIN + "  dns: {names: []}\n").dns
    assert nobody
    assert nobody.names == (), "an empty list is one: nothing may be asked for"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ('{names: ["a.**"]}', "capture.dns.names[0]: `**` is one label or more and stands first"),
        ('{names: [a, "x*.b"]}', "capture.dns.names[1]: `*` is a whole label"),
        ('{names: ["ä.b"]}', "capture.dns.names[0]: must be a name such as"),
        (f"{{names: [{', '.join(['a'] * 1025)}]}}", "capture.dns.names: has more than 1024 items"),
        ("{resolvers: [dns.example.org]}", "capture.dns.resolvers[0]: must be the address of a resolver"),
        ('{resolvers: ["0.0.0.0"]}', "capture.dns.resolvers[0]: must be the address of a resolver"),
        ('{resolvers: ["10.0.0.1:0"]}', "capture.dns.resolvers[0]: must be the address of a resolver"),
        ('{resolvers: ["[::1]:14053"]}', "capture.dns.resolvers: [::1]:14053: is the relay itself"),
        (f"{{resolvers: [{', '.join(f'10.0.0.{n}' for n in range(9))}]}}", "has more than 8 items"),
        ("{cache: 1}", "capture.dns.cache: no such key"),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, MIN + f"  dns: {section}\n")


def test_what_is_this_machines_alone_is_refused_in_another_network_namespace(tmp_path: Path) -> None:
    section = "  dns: {resolvers: [127.0.0.53]}\n"
    assert load(tmp_path, MIN + section).dns
    assert "127.0.0.53:53: in the network namespace of `firedoor run`" in refused(tmp_path, MIN + section + RUN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Resolvers()),
        ("nameserver 10.0.0.1\nnameserver 10.0.0.1\n", Resolvers(("10.0.0.1:53",))),
        ("nameserver 127.0.0.53\nsearch example.org\n", Resolvers(("127.0.0.53:53",))),
        ("#nameserver 10.0.0.1\n;nameserver 10.0.0.2\n nameserver fd00::1 # ours\n", Resolvers(("[fd00::1]:53",))),
        (
            "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 6)),
            Resolvers(("10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53")),
        ),
        ("nameserver\nnameserver dns.example\nnameserver 0.0.0.0\nnameserver 224.0.0.251\n", Resolvers()),
        ("nameserver fe80::1%lo\n", Resolvers((f"[fe80::1%{socket.if_nametoindex('lo')}]:53",))),
        ("nameserver fe80::1%no-such0\nnameserver ::ffff:10.0.0.1\n", Resolvers(("10.0.0.1:53",))),
        ("options timeout:1 rotate attempts:3\n", Resolvers((), 1, 3)),
        ("options timeout:0 attempts:0\noptions ndots:5\n", Resolvers((), 1, 1)),
        ("options timeout:999999 attempts:999999\n", Resolvers((), 30, 5)),
        ("options timeout:x attempts: timeout\n", Resolvers()),
        ("\0\xff\n\nnameserver 10.0.0.1", Resolvers(("10.0.0.1:53",))),
    ],
    ids=range(13),
)
def test_resolv_conf(text: str, expected: Resolvers) -> None:
    assert resolv.parse(text) == expected


def test_it_is_read_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolv, "PATH", file)
    source = ResolvConf(elsewhere=False)
    assert source.read() == Resolvers()
    file.write_text("nameserver 10.0.0.1\n")
    assert source.read().addresses == ("10.0.0.1:53",)
    assert source.read() is source.read()
    new = tmp_path / "new"
    new.write_text("nameserver 10.0.0.2\n")
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.replace(file)
    assert source.read().addresses == ("10.0.0.2:53",), "another file of the same size and time"
    file.unlink()
    assert source.read() == Resolvers()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 127.0.0.53\noptions timeout:9\n", ("10.9.9.9:53",)),
        ("nameserver 127.0.0.53\nnameserver 10.0.0.1\n", ("10.0.0.1:53",)),
        ("nameserver fe80::1%lo\n", ("10.9.9.9:53",)),
        ("nameserver 169.254.169.254\n", ("169.254.169.254:53",)),
        ("", ()),
    ],
    ids=["stub", "both", "link-local", "cloud", "nobody"],
)
def test_from_another_network_namespace_a_stub_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, ...]
) -> None:
    file, behind = tmp_path / "resolv.conf", tmp_path / "behind"
    file.write_text(text)
    behind.write_text("nameserver 127.0.0.1\nnameserver 10.9.9.9\n")
    monkeypatch.setattr(resolv, "PATH", file)
    monkeypatch.setattr(resolv, "BEHIND_RESOLVED", behind)
    source = ResolvConf(elsewhere=True)
    assert source.read().addresses == expected
    check_resolvers(load(tmp_path, MIN + RUN))
    behind.unlink()
    left = tuple(one for one in expected if one != "10.9.9.9:53")
    assert source.read().addresses == left
    if expected and not left:
        with pytest.raises(CaptureFailed, match="name others in `capture"):
            check_resolvers(load(tmp_path, MIN + RUN))
        check_resolvers(load(tmp_path, MIN + "  dns: {resolvers: [10.0.0.10]}\n" + RUN))
    else:
        check_resolvers(load(tmp_path, MIN + RUN))


def test_a_port_that_is_taken_is_missing_and_tried_again(tmp_path: Path) -> None:
    core = mtls.Core(data_threads=1)
    try:
        port = own_port()
        with socket.create_server(("127.0.0.1", port)):
            section = f"  dns_port: {port}\n  dns: {{resolvers: [10.0.0.10]}}\n"
            one = DnsRelay(core, load(tmp_path, MIN + section).dns)
            one.adjust()
            (sentence,) = one.missing()
            assert sentence.startswith("the DNS relay is not open: DNS relay: cannot listen on 127.0.0.1:")
            assert (closed := one.status())
            assert not closed.listen
        one.adjust()
        assert one.missing() == []
        assert (found := one.status())
        assert found.listen[0] == f"127.0.0.1:{port}"
        assert (list(found.resolvers), found.every_name) == (["10.0.0.10:53"], True)
        one.close()
    finally:
        core.stop()


def test_where_nothing_is_captured_there_is_none() -> None:
    core = mtls.Core(data_threads=1)
    one = DnsRelay(core, None)
    one.adjust()
    assert (one.missing(), one.status()) == ([], None)
    core.stop()


def test_new_resolvers_are_told_to_the_core(tmp_path: Path) -> None:
    core = mtls.Core(data_threads=1)
    port = own_port()
    found = [Resolvers(("10.0.0.1:53",))]
    one = DnsRelay(core, load(tmp_path, MIN + f"  dns_port: {port}\n").dns, lambda: found[0])
    for now in (found[0], Resolvers(("10.0.0.2:53", "[fd00::2]:53"), 2, 3), Resolvers(())):
        found[0] = now
        one.adjust()
        assert (status := one.status())
        assert tuple(status.resolvers) == now.addresses
    core.stop()
