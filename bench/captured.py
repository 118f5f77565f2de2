# SPDX-License-Identifier: Apache-2.0
"""(g) What capture adds: captured connections against named listeners, two sidecars each, taking turns.

Both pairs stand in network namespaces on one wire. The first has named listeners and no rules; in the second the rules
of `firedoor capture apply` stand, the client asks the server's own address, and the directory says whom to expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import namespaces
from bench.datapath import FIGURES, Case, Run, lost_records, median, ratio, rounds
from bench.namespaces import FORGETTING, Place
from bench.nginx import Nginx
from bench.options import Options
from bench.pairs import PORTS, Pair, missing_programs
from bench.processes import until
from bench.progress import say
from bench.table import Table
from bench.world import CLIENT, POLICY, SERVER, Sidecar, World, spiffe_id

# Nobody's.
SIDECAR_UID = 63_990
NAMED_PORTS = {"tcp": 19000, "http": 19001}
EXPECT = spiffe_id("/segment/servers/host/*/svc/server")
SERVICE = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{{{name: server}}}}
spec:
  addresses: [{{address}}]
  ports:
    - {{{{port: {PORTS["tcp"]}, protocol: tcp, expect: ["{EXPECT}"]}}}}
    - {{{{port: {PORTS["http"]}, protocol: http, expect: ["{EXPECT}"]}}}}
"""
CASES = (
    Case("L4, keep-alive", "tcp", "/", 64),
    Case("L4, a connection a request", "tcp", "/", 32, close=True),
    Case("L7, keep-alive", "http", "/", 64),
    Case("L7, a connection a request", "http", "/", 32, close=True),
)


def tables(options: Options, folder: Path) -> Iterator[Table]:
    """Measure and return the table."""
    if lacks := [*namespaces.missing(), *missing_programs()]:
        yield Table("g", "capture", (), (), notes=[f"Skipped. To measure it: {'; '.join(lacks)}"])
        return
    # Users other than root start programs in it.
    folder.chmod(0o755)
    with ExitStack() as stack:
        say("g: five network namespaces, a broker, four sidecars")
        names = ("broker", "client", "server", "captured-client", "captured-server")
        hub, *places = stack.enter_context(namespaces.on_one_wire(names))
        world = World(folder, policy="database", listen=f"{hub.address}:8081", prefix=hub.prefix())
        stack.callback(world.stop)
        world.apply({"policy.yaml": POLICY, "service.yaml": SERVICE.format(address=places[3].address)})
        for at, place in enumerate((places[1], places[3])):
            (home := folder / f"nginx{at}").mkdir()
            stack.callback(Nginx(home, [f"0.0.0.0:{port}" for port in PORTS.values()], place.prefix()).stop)
        named, captured = _named(world, *places[:2]), _captured(world, *places[2:])
        results = {case.name: rounds("g", case, (captured[0], named[0]), options) for case in CASES}
        lost = lost_records([*named[1], *captured[1]])
    yield _table(results, lost)


def _named(world: World, client: Place, server: Place) -> tuple[Pair, list[Sidecar]]:
    def common(kind: str, path: str, listen: str) -> dict[str, Any]:
        own = {"name": kind, "as": spiffe_id(path), "listen": listen, "protocol": kind}
        return {**own, "service_port": PORTS[kind]}

    inbound = [
        {**common(kind, SERVER, f"{server.address}:{NAMED_PORTS[kind]}"), "app": {"address": f"127.0.0.1:{port}"}}
        for kind, port in PORTS.items()
    ]
    outbound = [
        {
            **common(kind, CLIENT, f"127.0.0.1:{NAMED_PORTS[kind]}"),
            "expect": [EXPECT],
            "addresses": [f"{server.address}:{NAMED_PORTS[kind]}"],
        }
        for kind in PORTS
    ]
    sidecars = [
        _sidecar(world, "in", SERVER, server, {"inbound": inbound}),
        _sidecar(world, "out", CLIENT, client, {"outbound": outbound}),
    ]
    listening = {kind: f"127.0.0.1:{port}" for kind, port in NAMED_PORTS.items()}
    return Pair("named", [one.program for one in sidecars], listening, client.prefix()), sidecars


def _captured(world: World, client: Place, server: Place) -> tuple[Pair, list[Sidecar]]:
    ports = [{"port": port, "protocol": kind} for kind, port in PORTS.items()]
    sidecars = []
    for name, path, place in (("captured-in", SERVER, server), ("captured-out", CLIENT, client)):
        capture = {"uid": SIDECAR_UID, "as": spiffe_id(path), "ports": ports}
        sidecars.append(_sidecar(world, name, path, place, {"capture": capture}))
        config = str(world.folder / name / "own.json")
        base = ("--config", config, "--app-uid", str(SIDECAR_UID + 1))
        place.run(*world.command, "capture", "apply", *base)
        place.run("sysctl", "-qw", *FORGETTING)
    listening = {kind: f"{server.address}:{port}" for kind, port in PORTS.items()}
    return Pair("captured", [one.program for one in sidecars], listening, client.prefix()), sidecars


def _sidecar(world: World, name: str, path: str, place: Place, settings: dict[str, Any]) -> Sidecar:
    parent, token = world.join_token()
    world.create_entries(parent, path)
    found = world.sidecar(name, token, uid=SIDECAR_UID, prefix=place.prefix(SIDECAR_UID), **settings)
    until(lambda: not found.status().missing, f"{name} is ready")
    return found


def _table(results: dict[str, dict[str, list[Run]]], lost: int) -> Table:
    rows, data = [], dict[str, Any](records_lost=lost)
    for case, runs in results.items():
        captured, named = ({key: median(one, of) for key, of in FIGURES.items()} for one in runs.values())
        ratios = {key: ratio(runs, of) for key, of in FIGURES.items()}
        data[case] = {"captured": captured, "named": named, "ratios": ratios}
        added = captured["cpu_us"] - named["cpu_us"]
        rows.append(
            [case, f"{captured['cpu_us']:.1f}", f"{named['cpu_us']:.1f}", f"{added:+.1f}", f"{ratios['cpu_us']:.2f}"]
            + [f"{captured['per_second']:.0f}", f"{named['per_second']:.0f}", f"{ratios['per_second']:.2f}"]
            + [f"{captured[key]:.2f} / {named[key]:.2f}" for key in ("p50_ms", "p99_ms")]
        )
    header = ["case", "CPU µs a request", "named", "added", "ratio", "requests/s", "named", "ratio", "p50 ms, named's"]
    return Table(
        "g",
        "what capture adds: captured connections against named listeners, wrk in front, nginx behind",
        [*header, "p99 ms, named's"],
        rows,
        notes=[
            "CPU is that of the two sidecars. A packet's way through the rules counts for whoever sends it: what the "
            "client's and the server's own take longer is in requests/s and in the times alone.",
            *([f"Decision records that were lost: {lost}."] if lost else []),
        ],
        data=data,
    )
