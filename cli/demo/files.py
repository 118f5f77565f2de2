# SPDX-License-Identifier: Apache-2.0
"""The files that a run needs and `--dir` keeps: policy, configuration, programs, and the commands to go on with."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from firedoor.cli.demo.policy import write_policy
from firedoor.cli.demo.world import (
    BRIEF,
    LLM_PORT,
    MIRROR_PORT,
    MODELS_PORT,
    SERVICES,
    TOOLS_PORT,
    TRUST_DOMAIN,
    UPLOAD_PORT,
    World,
    identity,
    node,
)

# What each listener carries.
_PROTOCOLS = {
    "models": "http",
    "upload": "http",
    "mirror": "tcp",
    "tools": "http",
    "llm": "grpc",
    "astray": "http",
}
PROGRAMS = ("client.py", "mcp_tools.py", "model_server.py")


def write_all(world: World) -> None:
    """Write everything but what the broker must give first: the bundle and the tokens."""
    write_policy(world)
    (world.folder / "broker.yaml").write_text(_broker(world))
    for segment in SERVICES:
        world.sidecar(segment).mkdir(exist_ok=True, mode=0o755)
        (world.folder / f"sidecar-{segment}.yaml").write_text(_sidecar(world, segment))
    _copy_programs(world.folder / "programs")


def _broker(world: World) -> str:
    return f"""\
trust_domain: {TRUST_DOMAIN}
listen: {world.at("broker")}
data_dir: {world.folder}/broker/data
admin_socket: {world.admin_socket}
segments: {world.policy}
metrics: "off"
"""


def _sidecar(world: World, segment: str) -> str:
    folder = world.sidecar(segment)
    head = f"""\
trust_domain: {TRUST_DOMAIN}
broker: ["{world.at("broker")}"]
bootstrap_bundle: {world.bundle}
join_token_file: {world.folder}/token-{segment}
auth_socket: {world.auth_socket(segment)}
admin_socket: {folder}/admin.sock
data_dir: {folder}/data
records: {{path: {world.records(segment)}}}
metrics: "off"
"""
    inbound = [_inbound(world, segment, *row) for row in _INBOUND.get(segment, ())]
    outbound = [_outbound(world, segment, *row) for row in _OUTBOUND[segment]]
    lists = (("inbound", inbound), ("outbound", outbound))
    return head + "".join(f"{key}:\n" + "".join(rows) for key, rows in lists if rows)


# Listener name, service port, its own port, the app's port.
_INBOUND = {
    "registry": (
        ("models", MODELS_PORT, "in-models", "app-models"),
        ("upload", UPLOAD_PORT, "in-upload", "app-models"),
        ("mirror", MIRROR_PORT, "in-mirror", "app-models"),
    ),
    "mcp-tools": (("tools", TOOLS_PORT, "in-tools", "app-tools"),),
    "inference": (("llm", LLM_PORT, "in-llm", "app-llm"),),
}

# Listener name, expected segment, service port, where the peer is said to be. `astray` is sent to the wrong place.
_OUTBOUND = {
    "inference": (
        ("models", "registry", MODELS_PORT, "in-models"),
        ("upload", "registry", UPLOAD_PORT, "in-upload"),
        ("mirror", "registry", MIRROR_PORT, "in-mirror"),
        ("tools", "mcp-tools", TOOLS_PORT, "in-tools"),
        ("astray", "registry", MODELS_PORT, "in-tools"),
    ),
    "mcp-tools": (("models", "registry", MODELS_PORT, "in-models"), ("llm", "inference", LLM_PORT, "in-llm")),
    "training": (
        ("models", "registry", MODELS_PORT, "in-models"),
        ("upload", "registry", UPLOAD_PORT, "in-upload"),
        ("mirror", "registry", MIRROR_PORT, "in-mirror"),
        ("tools", "mcp-tools", TOOLS_PORT, "in-tools"),
    ),
    "registry": (),
}


def _inbound(world: World, segment: str, name: str, service_port: int, listen: str, app: str) -> str:
    uid = f", uid: {world.users[segment]}" if world.separate else ""
    return f"""\
  - name: {name}
    as: {identity(segment)}
    listen: {world.at(listen)}
    service_port: {service_port}
    protocol: {_PROTOCOLS[name]}
    app: {{address: "{world.at(app)}"{uid}}}
"""


def _outbound(world: World, segment: str, name: str, expect: str, service_port: int, address: str) -> str:
    listen = outbound_address(world, segment, name)
    # Who may use it is decided by the entry of `as`; the file's mode only lets programs come and ask.
    mode = '    mode: "0666"\n' if listen.startswith("unix:") else ""
    return f"""\
  - name: {name}
    as: {identity(segment)}
    listen: {listen}
{mode}    service_port: {service_port}
    protocol: {_PROTOCOLS[name]}
    expect: ["{identity(expect)}"]
    addresses: ["{world.at(address)}"]
"""


def outbound_address(world: World, segment: str, name: str) -> str:
    """Return where a program finds an outbound listener: gRPC's is a Unix socket, the others are loopback ports."""
    if name == "llm":
        return f"unix:{world.sidecar(segment)}/llm.sock"
    return world.at(f"{segment}-{name}")


def _copy_programs(folder: Path) -> None:
    folder.mkdir(exist_ok=True, mode=0o755)
    for name in PROGRAMS:
        text = resources.files("firedoor.cli.demo.programs").joinpath(name).read_text()
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)


def write_commands(world: World, programs: Mapping[str, tuple[str, Sequence[str | Path]]]) -> Path:
    """Write what was run, and what is worth trying, as a shell script to read, to copy from, and to run again.

    `programs`: name to the segment whose user runs it and its command.
    """
    firedoor = f"{shlex.quote(sys.executable)} -m firedoor.cli"
    lines = [
        "#!/bin/sh",
        "# SPDX-License-Identifier: Apache-2.0",
        "# What the demo did, by hand. Run as it is, it brings all of it up again, until Ctrl-C.",
        "set -u",
        "trap 'trap - EXIT; kill 0' EXIT INT TERM",
        f'firedoor() {{ {firedoor} "$@"; }}',
        _sh("export", f"FIREDOOR_BROKER_ADMIN_SOCKET={world.admin_socket}"),
        "",
        "# the programs, each as the user of its segment",
        *(_as_user(world, segment, command) + " &" for segment, command in programs.values()),
        "",
        "# the broker",
        _sh("firedoor", "broker", "run", "--config", world.folder / "broker.yaml") + " &",
        "broker=$!",
        f"until firedoor bundle show > {shlex.quote(str(world.bundle))} 2>/dev/null; do",
        "  kill -0 $broker || exit 1",
        "  sleep 0.2",
        "done",
    ]
    for segment in SERVICES:
        lines += ["", f"# {segment}", *_segment_commands(world, segment)]
    lines += [
        "",
        "# worth trying while this runs:",
        *(f"#   {firedoor} {words}" for words in worth_trying(world)),
        "wait",
        "",
    ]
    path = world.folder / "commands.sh"
    path.write_text("\n".join(lines))
    path.chmod(0o755)
    return path


def _segment_commands(world: World, segment: str) -> list[str]:
    """Return how a segment's sidecar gets a token, its workload an entry, and both start."""
    token = world.folder / f"token-{segment}"
    return [
        f"(umask 077; {_sh('firedoor', 'token', 'create', '--spiffe-id', node(segment))} > {shlex.quote(str(token))})",
        "# an entry that is there already is refused, and stays",
        _sh("firedoor", "entry", "create", "--spiffe-id", identity(segment), "--parent-id", node(segment))
        + f" --selector unix:uid:{world.users[segment]}",
        _sh("firedoor", "sidecar", "run", "--config", world.folder / f"sidecar-{segment}.yaml") + " &",
    ]


def _as_user(world: World, segment: str, command: Sequence[str | Path]) -> str:
    if not world.separate:
        return _sh(*command)
    uid = world.users[segment]
    return _sh("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command)


def _sh(*words: str | Path) -> str:
    return shlex.join(str(word) for word in words)


def worth_trying(world: World) -> list[str]:
    """Return arguments of `firedoor` that show something while the demo is up."""
    admin, put = ("--admin-socket", world.admin_socket), ("--action", "PUT /models/llm/weights.bin")
    return [
        _sh("segment", "list", *admin),
        _sh("entry", "list", *admin),
        _sh("explain", "--from", identity("inference"), "--to", f"registry:{MODELS_PORT}", *put, *admin),
        _sh("sidecar", "status", "--admin-socket", world.sidecar("inference") / "admin.sock"),
        _sh("svid", "fetch", "x509", "--auth-socket", world.auth_socket("inference")),
    ]


def brief_identity() -> str:
    """Return the identity whose SVIDs live for seconds."""
    return identity("inference", BRIEF)
