# SPDX-License-Identifier: Apache-2.0
"""`firedoor broker`: the process that issues identities and publishes policy."""

import argparse
from typing import TYPE_CHECKING

from firedoor.cli import backup, places
from firedoor.cli.admin import admin
from firedoor.cli.daemon import add_options, broker_config, report
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, when
from firedoor.cli.parsing import Group
from firedoor.wire import debug_grpc, debug_pb2, health_grpc, health_pb2

if TYPE_CHECKING:
    pass

RUN_EXAMPLE = """\
$ firedoor broker run --trust-domain example.org --listen 127.0.0.1:8081 \\
    --data-dir /var/lib/firedoor/broker --segments segments/"""
VALIDATE_EXAMPLE = "$ firedoor broker validate --config broker.yaml"
STATUS_EXAMPLE = "$ firedoor broker status"
# What it means that a part is away; the broker's /ready says why too.
AWAY = {
    "database": "it does not answer, and nothing is issued or changed; the log says why",
    "key-manager": "it does not answer, and nothing is signed; the log says why",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: one flag for each key of the configuration."""
    from firedoor.broker import config

    words = Group(parser)
    status = words.leaf("status", "say whether it serves, and what it cannot do meanwhile", STATUS_EXAMPLE, run_status)
    status.add_argument(
        "--admin-socket",
        metavar="PATH",
        default=places.broker_admin_socket(),
        help="the broker's admin socket (%(default)s)",
    )
    run = words.leaf("run", "run the broker in the foreground", RUN_EXAMPLE, run_broker)
    validate = words.leaf("validate", "check the configuration and the policy", VALIDATE_EXAMPLE, run_validate)
    for leaf in (run, validate, *backup.configure(words)):
        add_options(leaf, config.OPTIONS, config.ENVIRONMENT)


def run_broker(options: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    from firedoor import broker

    return int(broker.run(broker_config(options)) or Exit.DONE)


def run_status(options: argparse.Namespace) -> int:
    """Show how the broker is; exit 1 while it is not ready for those who come."""
    serving = health_pb2.HealthCheckResponse.SERVING
    with admin(options.admin_socket, "broker") as broker:
        health = health_grpc.HealthStub(broker.channel)
        found = broker.call(health.List, health_pb2.HealthListRequest()).statuses
        ready = found[""].status == serving
        # Before it is ready it may have no SVID to tell of.
        debug = debug_grpc.DebugStub(broker.channel)
        info = broker.call(debug.GetInfo, debug_pb2.GetInfoRequest()) if ready else None
    away = sorted(name for name, one in found.items() if name and one.status != serving)
    if options.output == "json":
        about = {} if info is None else {"agents": info.agents_count, "entries": info.entries_count}
        show_json({"ready": ready, "degraded": away, **about})
    else:
        lines = [("ready", "yes" if ready else "no: its log and /ready say why")]
        lines += [("degraded", f"{name}: {AWAY.get(name, 'away')}") for name in away]
        if info is not None:
            lines.append(("own SVID", f"until {when(info.svid_chain[0].expires_at)}"))
            lines.append(("known", f"{info.agents_count} agents, {info.entries_count} entries"))
        show("\n".join(f"{name:<14}{value}" for name, value in lines))
    return Exit.DONE if ready else Exit.NO


def run_validate(options: argparse.Namespace) -> int:
    """Load everything that `run` would, and start nothing."""
    from firedoor.broker import config

    return report(config.validate(broker_config(options)), options.output)
