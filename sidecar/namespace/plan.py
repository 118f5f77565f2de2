# SPDX-License-Identifier: Apache-2.0
"""What `firedoor run` does to the machine, as words and rules: pure.

Outside, one table decides what reaches the wire: connections to the published ports, by the machine's addresses or the
workload's own, and answers. What the sidecar sends leaves with the machine's addresses.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any, Final

from firedoor.sidecar.namespace.settings import Run

INSIDE: Final = "eth0"
FAMILY: Final = "inet"
FORWARDING: Final = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def table(run: Run) -> str:
    """Return the name of the machine's table."""
    return f"firedoor_run_{run.name.replace('-', '_')}"


def machine_address(network: Network) -> str:
    """Return our end's address."""
    return str(network.network_address + 1)


def workload_address(network: Network) -> str:
    """Return the namespace's address."""
    return str(network.network_address + 2)


def wire(run: Run, namespace: str) -> Iterator[list[str]]:
    """Yield `ip` commands of the machine; `namespace` is a path."""
    yield ["link", "add", run.interface, "type", "veth", "peer", "name", INSIDE, "netns", namespace]
    yield from _addresses(run, run.interface, machine_address)
    yield ["link", "set", run.interface, "up"]


def inside(run: Run) -> Iterator[list[str]]:
    """Yield `ip` commands of the namespace."""
    yield ["link", "set", "lo", "up"]
    yield from _addresses(run, INSIDE, workload_address)
    yield ["link", "set", INSIDE, "up"]
    for network in run.networks:
        yield [f"-{network.version}", "route", "add", "default", "via", machine_address(network)]


def _addresses(run: Run, interface: str, address: Any) -> Iterator[list[str]]:
    for network in run.networks:
        # Nobody else is on the wire who could have the address.
        nodad = ["nodad"] if network.version == 6 else []
        yield ["address", "add", f"{address(network)}/{network.prefixlen}", "dev", interface, *nodad]


def removing(run: Run) -> dict[str, Any]:
    """Return the transaction after which the machine's table is not there."""
    one = {"family": FAMILY, "name": table(run)}
    return {"nftables": [{"add": {"table": one}}, {"delete": {"table": one}}]}


def outside(run: Run, ports: Sequence[int]) -> dict[str, Any]:
    """Return the transaction that writes the machine's table."""
    commands: list[dict[str, Any]] = [
        *removing(run)["nftables"],
        {"add": {"table": {"family": FAMILY, "name": table(run)}}},
        _chain(run, "publish", "nat", "prerouting", -100),
        _chain(run, "leaving", "nat", "postrouting", 100),
        _chain(run, "forwarded", "filter", "forward", -10),
        _chain(run, "own", "filter", "output", -10),
    ]
    if ports:
        commands += [_rule(run, "publish", *_published(run, network, ports)) for network in run.networks]
    commands += [_rule(run, "leaving", *_leaving(run, network)) for network in run.networks]
    to_it = _match({"meta": {"key": "oifname"}}, run.interface)
    for chain in ("forwarded", "own"):
        known = _match({"ct": {"key": "state"}}, {"set": ["established", "related"]})
        commands.append(_rule(run, chain, to_it, known, {"accept": None}))
        if ports:
            commands.append(_rule(run, chain, to_it, _ports(ports), {"accept": None}))
        discovery = _match({"payload": {"protocol": "icmpv6", "field": "type"}}, {"set": list(_DISCOVERY)})
        commands.append(_rule(run, chain, to_it, discovery, {"accept": None}))
        commands.append(_rule(run, chain, to_it, {"drop": None}))
    return {"nftables": commands}


_DISCOVERY: Final = ("nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert")


def _published(run: Run, network: Network, ports: Sequence[int]) -> Iterator[dict[str, Any]]:
    yield _match({"meta": {"key": "nfproto"}}, f"ipv{network.version}")
    yield _match({"meta": {"key": "iifname"}}, run.interface, "!=")
    yield _match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    yield _ports(ports)
    yield {"dnat": {"family": _protocol(network), "addr": workload_address(network)}}


def _leaving(run: Run, network: Network) -> Iterator[dict[str, Any]]:
    source = {"payload": {"protocol": _protocol(network), "field": "saddr"}}
    yield _match(source, workload_address(network))
    yield _match({"meta": {"key": "oifname"}}, run.interface, "!=")
    yield {"masquerade": None}


def _protocol(network: Network) -> str:
    return "ip" if network.version == 4 else "ip6"


def _ports(ports: Sequence[int]) -> dict[str, Any]:
    return _match({"payload": {"protocol": "tcp", "field": "dport"}}, {"set": list(ports)})


def _chain(run: Run, name: str, kind: str, hook: str, priority: int) -> dict[str, Any]:
    own = {"family": FAMILY, "table": table(run), "name": name}
    return {"add": {"chain": {**own, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}}}


def _rule(run: Run, chain: str, *statements: dict[str, Any]) -> dict[str, Any]:
    return {"add": {"rule": {"family": FAMILY, "table": table(run), "chain": chain, "expr": list(statements)}}}


def _match(left: dict[str, Any], right: object, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}
