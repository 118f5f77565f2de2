# SPDX-License-Identifier: Apache-2.0
"""Bringing everything up: programs, broker, tokens, entries, sidecars; in the order in which they need each other."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firedoor.certs import SpiffeId
from firedoor.cli import trust_bundles as bundles
from firedoor.cli.admin import Admin, admin, check_status, wire_id
from firedoor.cli.demo.errors import DemoError
from firedoor.cli.demo.files import brief_identity, write_all
from firedoor.cli.demo.processes import Child, Children
from firedoor.cli.demo.records import Tail
from firedoor.cli.demo.world import BRIEF_SECONDS, SERVICES, World, identity, node
from firedoor.cli.errors import CliError
from firedoor.wire import (
    admin_grpc,
    admin_pb2,
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    entry_grpc,
    entry_pb2,
    types,
)

TOKEN_SECONDS = 600
# The state of a listening socket in /proc/net/tcp (TCP_LISTEN of the kernel's tcp_states.h).
_LISTEN = "0A"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """What is up, for the rows to act on."""

    world: World
    apps: dict[str, Child]
    clients: dict[str, Child]
    tails: dict[str, Tail]
    # The key that the object store knows, and its secret.
    keys: list[str]


def set_up(world: World, children: Children, say: Say) -> Stage:
    """Start everything and wait until all sidecars are ready. `say` gets a line of progress."""
    started = time.monotonic()

    def progress(text: str) -> None:
        say(f"{time.monotonic() - started:5.1f} s  {text}")

    write_all(world)
    apps, clients = _programs(world, children)
    broker = children.start(
        "broker", _firedoor("broker", "run", "--config", world.folder / "broker.yaml"), uid=None, home=world.folder
    )
    broker.wait_for(lambda: _broker_answers(world))
    progress(f"broker on {world.at('broker')}, SQLite in {world.folder}/broker/data")
    with admin(str(world.admin_socket), "broker") as connection:
        _register(connection, world)
    progress("a join token and an entry for each segment")
    sidecars = {segment: _sidecar(world, children, segment) for segment in SERVICES}
    for app, port in (("models", "app-models"), ("tools", "app-tools"), ("llm", "app-llm")):
        apps[app].wait_for(lambda port=port: _listens(world.ports[port]))  # type: ignore[misc]
    progress("moto (S3), an MCP server and a gRPC server are up")
    for segment, child in sidecars.items():
        child.wait_for(lambda segment=segment: _sidecar_ready(world, segment))  # type: ignore[misc]
    progress("four sidecars have attested and hold their identities")
    for client in clients.values():
        client.answer()
    filled = clients["registry"].ask({"do": "s3_fill", "at": world.at("app-models")})
    if not filled["ok"]:
        raise DemoError(f"the model could not be stored: {filled['detail']}")
    tails = {segment: Tail(world.records(segment)) for segment in SERVICES}
    return Stage(world, apps, clients, tails, json.loads(filled["detail"]))


def commands(world: World) -> dict[str, tuple[str, Sequence[str | Path]]]:
    """Return the servers that somebody else wrote: name to the segment whose user runs it, and the command."""
    python, programs = (sys.executable, "-I"), world.folder / "programs"
    moto = (*python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(world.ports["app-models"]))
    return {
        "models": ("registry", moto),
        "tools": ("mcp-tools", (*python, programs / "mcp_tools.py", str(world.ports["app-tools"]))),
        "llm": ("inference", (*python, programs / "model_server.py", str(world.ports["app-llm"]))),
    }


def _programs(world: World, children: Children) -> tuple[dict[str, Child], dict[str, Child]]:
    """Start the servers, and a client process for each user."""
    apps = {
        name: children.start(name, command, uid=world.users[segment], home=_home(world, segment))
        for name, (segment, command) in commands(world).items()
    }
    clients = {
        segment: children.start(
            f"client-{segment}",
            [sys.executable, "-I", world.folder / "programs/client.py"],
            uid=world.users[segment],
            home=_home(world, segment),
            env={"AWS_EC2_METADATA_DISABLED": "true"},
            talks=True,
        )
        for segment in SERVICES
    }
    return apps, clients


def _home(world: World, segment: str) -> Path:
    home = world.folder / "homes" / segment
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        if world.separate:
            os.chown(home, world.users[segment], world.users[segment])
    return home


def _firedoor(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "firedoor.cli", *words]


def _listens(port: int) -> bool:
    """Look the listening socket up instead of connecting, so that the program's own count stays at zero."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):  # grpcio listens on a mapped IPv4 address
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == _LISTEN:
                return True
    return False


def _broker_answers(world: World) -> bool:
    """Say whether the broker has a bundle to give; write it to the file that sidecars start with."""
    if not world.admin_socket.exists():
        return False
    try:
        with admin(str(world.admin_socket), "broker") as connection:
            bundle = connection.call(
                bundle_grpc.BundleStub(connection.channel).GetBundle, bundle_pb2.GetBundleRequest()
            )
    except CliError:
        return False
    world.bundle.write_bytes(bundles.read(bundle).to_json())
    return bool(bundle.x509_authorities)


def _register(connection: Admin, world: World) -> None:
    """Make a join token for each sidecar and an entry for each workload."""
    entries = [_entry(world, segment, identity(segment), 0) for segment in SERVICES]
    entries.append(_entry(world, "inference", brief_identity(), BRIEF_SECONDS))
    request = entry_pb2.BatchCreateEntryRequest(entries=entries)
    answer = connection.call(entry_grpc.EntryStub(connection.channel).BatchCreateEntry, request)
    for result in answer.results:
        check_status(result.status)
    stub = agent_grpc.AgentStub(connection.channel)
    for segment in SERVICES:
        wanted = agent_pb2.CreateJoinTokenRequest(ttl=TOKEN_SECONDS, agent_id=wire_id(SpiffeId.parse(node(segment))))
        path = world.folder / f"token-{segment}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(connection.call(stub.CreateJoinToken, wanted).value + "\n")


def _entry(world: World, segment: str, spiffe_id: str, ttl: int) -> types.Entry:
    return types.Entry(
        spiffe_id=wire_id(SpiffeId.parse(spiffe_id)),
        parent_id=wire_id(SpiffeId.parse(node(segment))),
        selectors=[types.Selector(type="unix", value=f"uid:{world.users[segment]}")],
        x509_svid_ttl=ttl,
    )


def _sidecar(world: World, children: Children, segment: str) -> Child:
    command = _firedoor("sidecar", "run", "--config", world.folder / f"sidecar-{segment}.yaml")
    return children.start(f"sidecar-{segment}", command, uid=None, home=world.folder)


def _sidecar_ready(world: World, segment: str) -> bool:
    path = world.sidecar(segment) / "admin.sock"
    if not path.exists():
        return False
    try:
        with admin(str(path), "sidecar") as connection:
            stub = admin_grpc.SidecarAdminStub(connection.channel)
            status = connection.call(stub.GetStatus, admin_pb2.GetStatusRequest())
    except CliError:
        return False
    return not status.missing
