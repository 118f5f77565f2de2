# SPDX-License-Identifier: Apache-2.0
"""The rules of capture: one table for IPv4 and IPv6, as nftables' JSON (libnftables-json(5)).

A packet passes three chains on its way in and three on its way out:

| chain | hook | what it does |
|---|---|---|
| `arriving_first` | prerouting, before redirection | nobody reaches a private port by naming it |
| `arriving_redirect` | prerouting | TCP goes to the inbound port |
| `arriving` | input | what is not named here is dropped |
| `forwarded` | forward | everything is dropped: a workload is no router |
| `leaving_first` | output, before redirection | private ports and the metadata address are refused |
| `leaving_redirect` | output | TCP goes to the outbound ports, DNS to the relay |
| `leaving` | postrouting | what is not named here is dropped |

The last chain is in postrouting because in output a redirected packet still shows the interface of before.

Whose a packet is, is the uid of its socket, and packets of the kernel's own have none (a reset, what a closed socket
still has to send): they pass if the sidecar has sent something on that connection before, which its mark says. So a
program that takes the sidecar's port while the sidecar is down gets nothing out, not even the answer to a SYN.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from firedoor.sidecar.capture.settings import Capture, Exclusion, Network

FAMILY: Final = "inet"
TABLE: Final = "firedoor"
# What a connection is marked with: "fd" and a number. In a namespace of its own nobody else marks.
MARK_SIDECAR: Final = 0x66640001
MARK_EXCLUDED: Final = 0x66640002
# NFTNL_UDATA_COMMENT_MAXLEN less its NUL (libnftnl udata.h).
LONGEST_COMMENT: Final = 127
DNS: Final = 53
# Where clouds hand credentials to whoever asks: AWS, GCP, Azure, Oracle and OpenStack; AWS ECS and EKS; Azure's wire
# server; Alibaba. Of IPv6: AWS, EKS, GCP, Oracle.
METADATA_V4: Final = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200")
METADATA_V6: Final = ("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe")
# RFC 4861; a router drops what others send, for its hop limit is not 255.
NEIGHBOUR_DISCOVERY: Final = ("nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert")
FLAGS_SYN_ACK: Final = 0x12

Statement = dict[str, Any]

ACCEPT: Final[Statement] = {"accept": None}
_RESET: Final[Statement] = {"reject": {"type": "tcp reset"}}
# Counted, so that an operator sees that something is refused.
DROP: Final[tuple[Statement, ...]] = ({"counter": None}, {"drop": None})


@dataclass(frozen=True, slots=True)
class Chain:
    """Where rules hang; what no rule of it decides is `policy`."""

    name: str
    type: str
    hook: str
    priority: int
    policy: str

    def as_json(self) -> dict[str, Any]:
        """Return what nft takes and lists."""
        return {
            "family": FAMILY,
            "table": TABLE,
            "name": self.name,
            "type": self.type,
            "hook": self.hook,
            "prio": self.priority,
            "policy": self.policy,
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to some packets, and the sentence that says so."""

    chain: str
    sentence: str
    statements: tuple[Statement, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what nft takes and lists; the sentence is the rule's comment."""
        return {
            "family": FAMILY,
            "table": TABLE,
            "chain": self.chain,
            "comment": self.sentence[:LONGEST_COMMENT],
            "expr": list(self.statements),
        }


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole table."""

    chains: tuple[Chain, ...]
    rules: tuple[Rule, ...]

    def replacing(self) -> dict[str, Any]:
        """Return the one transaction after which exactly this table is there, whatever was there before."""
        commands: list[dict[str, Any]] = [*_gone(), {"add": {"table": _TABLE}}]
        commands += [{"add": {"chain": chain.as_json()}} for chain in self.chains]
        commands += [{"add": {"rule": rule.as_json()}} for rule in self.rules]
        return {"nftables": commands}


_TABLE: Final = {"family": FAMILY, "name": TABLE}


def _gone() -> Iterator[dict[str, Any]]:
    # Deleting what is not there is an error; adding what is there is none.
    yield {"add": {"table": _TABLE}}
    yield {"delete": {"table": _TABLE}}


def removing() -> dict[str, Any]:
    """Return the one transaction after which the table is not there."""
    return {"nftables": list(_gone())}


# Priorities (nft(8)): conntrack -200, mangle -150, redirection -100, filter 0.
CHAINS: Final = (
    Chain("arriving_first", "filter", "prerouting", -150, "accept"),
    Chain("arriving_redirect", "nat", "prerouting", -100, "accept"),
    Chain("arriving", "filter", "input", 0, "drop"),
    Chain("forwarded", "filter", "forward", 0, "drop"),
    Chain("leaving_first", "filter", "output", -150, "accept"),
    Chain("leaving_redirect", "nat", "output", -100, "accept"),
    Chain("leaving", "filter", "postrouting", 0, "drop"),
)


def make(capture: Capture, listeners: Sequence[int]) -> Ruleset:
    """Make the rules; `listeners` are the ports of the sidecar's own listeners that others reach."""
    known = tuple(sorted({*listeners, capture.probe_port}))
    rules = (
        *_arriving_first(capture),
        *_arriving_redirect(capture, known),
        *_arriving(capture, known),
        Rule("forwarded", "nothing is forwarded: a workload is no router", DROP),
        *_leaving_first(capture),
        *_leaving_redirect(capture),
        *_leaving(capture, known),
    )
    return Ruleset(CHAINS, rules)


def _arriving_first(capture: Capture) -> Iterator[Rule]:
    private = (*_tcp_or_udp(), _match(_payload("th", "dport"), _set(capture.private_ports)))
    yield Rule(
        "arriving_first",
        "the sidecar's private ports are reached by redirection alone",
        (_match(_meta("iifname"), "lo", "!="), *private, *DROP),
    )


def _arriving_redirect(capture: Capture, known: Sequence[int]) -> Iterator[Rule]:
    chain = "arriving_redirect"
    yield Rule(chain, "what stays inside is not redirected", (_match(_meta("iifname"), "lo"), ACCEPT))
    ports = _match(_payload("tcp", "dport"), _set(known))
    yield Rule(chain, "the sidecar's own listeners and the probe port are reached as they are", (ports, ACCEPT))
    for sentence, matches in _exclusions(capture.exclude, inbound=True):
        yield Rule(chain, sentence, (*matches, ACCEPT))
    yield Rule(
        chain,
        "TCP to any other port goes to the inbound port",
        (
            _match(_meta("l4proto"), "tcp"),
            # What is sent to another address is not ours to answer.
            _match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"),
            {"redirect": {"port": capture.inbound_port}},
        ),
    )


def _arriving(capture: Capture, known: Sequence[int]) -> Iterator[Rule]:
    chain = "arriving"
    inside = _match(_meta("iifname"), "lo")
    # By another source port it could be taken for a connection of whoever has that one.
    moved = (
        _match(_payload("tcp", "dport"), _set((*capture.outbound_ports, capture.dns_port))),
        _match({"ct": {"key": "status"}}, "snat", "in"),
    )
    yield Rule(
        chain,
        "a redirected connection that could not keep its source port is refused: nobody knows whose it is",
        (inside, *moved, {"counter": None}, _RESET),
    )
    yield Rule(chain, "programs inside reach each other", (inside, ACCEPT))
    yield _neighbours(chain)
    yield from _tracked(chain, (MARK_SIDECAR, MARK_EXCLUDED), "the sidecar's, or excluded")
    redirected = (
        _match(_payload("tcp", "dport"), capture.inbound_port),
        _match({"ct": {"key": "status"}}, "dnat", "in"),
    )
    yield Rule(chain, "what was redirected reaches the inbound port", (*redirected, ACCEPT))
    ports = _match(_payload("tcp", "dport"), _set(known))
    yield Rule(chain, "the sidecar's own listeners and the probe port are reached", (ports, ACCEPT))
    for sentence, matches in _exclusions(capture.exclude, inbound=True):
        yield Rule(chain, sentence, (*_original(matches), ACCEPT))
    if capture.udp_passes:
        yield _udp(chain)
    yield Rule(chain, "anything else that arrives is dropped", DROP)


def _leaving_first(capture: Capture) -> Iterator[Rule]:
    chain = "leaving_first"
    yield Rule(chain, "the sidecar itself may go on", (_of(capture), ACCEPT))
    private = _match(_payload("th", "dport"), _set((*capture.private_ports, capture.probe_port)))
    to_them = (*_tcp_or_udp(), _match(_meta("oifname"), "lo"), private)
    yield from _refused(chain, "programs do not connect to the sidecar's private ports", to_them)
    for family, addresses in (("ip", METADATA_V4), ("ip6", METADATA_V6)):
        metadata = _match(_payload(family, "daddr"), {"set": list(addresses)})
        dns = _match(_payload("th", "dport"), DNS)
        # Google's and Oracle's resolver has the same address; the relay asks it.
        yield Rule(
            chain, "DNS to a metadata address goes on to the redirection", (metadata, *_tcp_or_udp(), dns, ACCEPT)
        )
        yield from _refused(
            chain, "the cloud's metadata addresses are refused to every program but the sidecar", (metadata,)
        )


def _leaving_redirect(capture: Capture) -> Iterator[Rule]:
    chain = "leaving_redirect"
    yield Rule(chain, "what the sidecar sends is not redirected", (_of(capture), ACCEPT))
    for sentence, matches in _exclusions(capture.exclude, inbound=False):
        yield Rule(chain, sentence, (*matches, ACCEPT))
    dns = (*_tcp_or_udp(), _match(_payload("th", "dport"), DNS))
    yield Rule(chain, "DNS to any address goes to the relay", (*dns, {"redirect": {"port": capture.dns_port}}))
    yield Rule(chain, "programs inside reach each other", (_match(_meta("oifname"), "lo"), ACCEPT))
    # The kernel takes the first by which the source port can stay.
    ports = capture.outbound_ports
    outbound = {"redirect": {"port": {"range": [ports[0], ports[-1]]}}}
    yield Rule(chain, "TCP to anywhere else goes to the outbound ports", (_match(_meta("l4proto"), "tcp"), outbound))


def _leaving(capture: Capture, known: Sequence[int]) -> Iterator[Rule]:
    chain = "leaving"
    yield Rule(chain, "programs inside reach each other", (_match(_meta("oifname"), "lo"), ACCEPT))
    yield Rule(
        chain, "what the sidecar sends leaves; its connection is marked", (_of(capture), _mark(MARK_SIDECAR), ACCEPT)
    )
    yield _neighbours(chain)
    yield from _tracked(chain, (MARK_EXCLUDED,), "excluded")
    for sentence, matches in _exclusions(capture.exclude, inbound=False):
        yield Rule(chain, sentence, (*_original(matches), ACCEPT))
    if capture.udp_passes:
        yield _udp(chain)
    yield Rule(
        chain,
        "what any program but the sidecar sends by another way is dropped",
        (_match(_meta("skuid"), capture.uid, "!="), *DROP),
    )
    # From here on, packets of the kernel's own.
    yield from _tracked(chain, (MARK_SIDECAR,), "the sidecar's")
    flags = _payload("tcp", "flags")
    yield Rule(chain, "the kernel refuses connections that nobody takes", (_match(flags, "rst", "in"), ACCEPT))
    # A cookie has no socket, and without it a flood keeps everybody out. No program gets more out by it than this SYN.
    cookie = (_match(_payload("tcp", "sport"), _set((capture.inbound_port, *known))), _match(flags, FLAGS_SYN_ACK))
    yield Rule(chain, "the kernel answers with SYN cookies for the sidecar's ports", (*cookie, ACCEPT))
    yield Rule(chain, "anything else that leaves is dropped", DROP)


def _refused(chain: str, sentence: str, matches: Sequence[Statement]) -> Iterator[Rule]:
    """Refuse at once: a reset for TCP; for the rest a drop, which in these hooks fails the program's call."""
    tcp = _match(_meta("l4proto"), "tcp")
    yield Rule(chain, sentence, (*matches, tcp, {"counter": None}, _RESET))
    yield Rule(chain, sentence, (*matches, *DROP))


def _neighbours(chain: str) -> Rule:
    kinds = _match(_payload("icmpv6", "type"), {"set": list(NEIGHBOUR_DISCOVERY)})
    return Rule(chain, "IPv6 neighbour discovery passes", (kinds, _match(_payload("ip6", "hoplimit"), 255), ACCEPT))


def _tracked(chain: str, marks: Sequence[int], whose: str) -> Iterator[Rule]:
    marked = _match({"ct": {"key": "mark"}}, _set(marks))
    state = {"ct": {"key": "state"}}
    yield Rule(chain, f"known connections go on: {whose}", (marked, _match(state, "established", "in"), ACCEPT))
    # Related alone would also take what a helper of conntrack expects.
    errors = _match(_meta("l4proto"), {"set": ["icmp", "ipv6-icmp"]})
    yield Rule(chain, f"so do errors of them: {whose}", (marked, _match(state, "related", "in"), errors, ACCEPT))


def _udp(chain: str) -> Rule:
    protocols = {"set": ["icmp", "udp", "ipv6-icmp"]}
    return Rule(chain, "UDP and ICMP pass, as the configuration says", (_match(_meta("l4proto"), protocols), ACCEPT))


def _exclusions(exclude: Iterable[Exclusion], *, inbound: bool) -> Iterator[tuple[str, tuple[Statement, ...]]]:
    for number, one in enumerate(exclude):
        if one.inbound == inbound:
            for network in one.addresses or (None,):
                yield f"exclusion {number} passes by the sidecar", tuple(_matches(one, network))


def _matches(one: Exclusion, network: Network | None) -> Iterator[Statement]:
    """Match one network at a time: the kernel merges those of a set that touch, and lists something else."""
    if one.uids:
        yield _match(_meta("skuid"), _set(one.uids))
    if network is not None:
        yield _address(network, "saddr" if one.inbound else "daddr")
    if one.ports:
        yield _match(_payload(one.protocol, "dport"), _set(one.ports))
    else:
        yield _match(_meta("l4proto"), one.protocol)


def _address(network: Network, field: str) -> Statement:
    if network.prefixlen == 0:
        return _match(_meta("nfproto"), f"ipv{network.version}")
    left = _payload("ip" if network.version == 4 else "ip6", field)
    address = str(network.network_address)
    if network.prefixlen == network.max_prefixlen:
        return _match(left, address)
    return _match(left, {"prefix": {"addr": address, "len": network.prefixlen}})


def _original(matches: Sequence[Statement]) -> tuple[Statement, ...]:
    """Match the way of the first packet, and mark the connection so that the answers pass."""
    return (_match({"ct": {"key": "direction"}}, "original"), *matches, _mark(MARK_EXCLUDED))


def _of(capture: Capture) -> Statement:
    return _match(_meta("skuid"), capture.uid)


def _tcp_or_udp() -> tuple[Statement, ...]:
    return (_match(_meta("l4proto"), {"set": ["tcp", "udp"]}),)


def _match(left: Statement, right: object, operator: str = "==") -> Statement:
    return {"match": {"op": operator, "left": left, "right": right}}


def _meta(key: str) -> Statement:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> Statement:
    return {"payload": {"protocol": protocol, "field": field}}


def _set(values: Iterable[int]) -> object:
    """Return a set; one value stands for itself, as the kernel lists it."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else {"set": found}


def _mark(mark: int) -> Statement:
    return {"mangle": {"key": {"ct": {"key": "mark"}}, "value": mark}}
