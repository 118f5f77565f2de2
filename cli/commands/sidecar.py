# SPDX-License-Identifier: Apache-2.0
"""`firedoor sidecar`: the process beside a workload that proves, checks and carries."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firedoor.cli.admin import add_sidecar_socket, admin, generation_text
from firedoor.cli.daemon import add_options, load_config, report, usage_error
from firedoor.cli.errors import Refused
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table, when
from firedoor.cli.parsing import Group
from firedoor.wire import admin_grpc, admin_pb2

if TYPE_CHECKING:
    from firedoor.sidecar.config import Config

RUN_EXAMPLE = """\
$ firedoor sidecar run --trust-domain example.org --broker broker.internal:8081 \\
    --bootstrap-bundle bundle.json --join-token-file token --config sidecar.yaml"""
VALIDATE_EXAMPLE = "$ firedoor sidecar validate --config sidecar.yaml"
STATUS_EXAMPLE = "$ firedoor sidecar status"
TRUST_EXAMPLE = """\
$ firedoor bundle show > bundle.json            # at the broker, brought here by a way that you trust
$ firedoor sidecar trust bundle.json --config sidecar.yaml"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: one flag for each key of the configuration."""
    words = Group(parser)
    status = words.leaf("status", "show identities, listeners and what is missing", STATUS_EXAMPLE, run_status)
    add_sidecar_socket(status)
    run = words.leaf("run", "run the sidecar in the foreground", RUN_EXAMPLE, run_sidecar)
    validate = words.leaf("validate", "check the configuration", VALIDATE_EXAMPLE, run_validate)
    summary = "replace the trust bundle of a sidecar that does not run: for one that was away too long"
    trust = words.leaf("trust", summary, TRUST_EXAMPLE, run_trust)
    trust.add_argument("file", metavar="FILE", help="the bundle, in SPIFFE's format or PEM")
    from firedoor.sidecar import config

    for leaf in (run, validate, trust):
        add_options(leaf, config.OPTIONS, config.ENVIRONMENT)


def run_sidecar(options: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    from firedoor import sidecar

    return int(sidecar.run(_load(options)) or Exit.DONE)


def run_validate(options: argparse.Namespace) -> int:
    """Load everything that `run` would, and start nothing."""
    from firedoor.sidecar import config

    return report(config.validate(_load(options)), options.output)


def run_trust(options: argparse.Namespace) -> int:
    """Replace the bundle, and say what is trusted from now on."""
    from firedoor.sidecar.errors import ConfigError, StateError
    from firedoor.sidecar.trust import trust

    config = _load(options)
    try:
        done = trust(config, Path(options.file), time.time())
    except ConfigError as error:
        raise usage_error(error.findings) from None
    except StateError as error:
        raise Refused(str(error)) from None
    if options.output == "json":
        show_json(
            {
                "trust_domain": config.trust_domain.name,
                "trusted": [
                    {"authority_id": one.id, "not_after": when(one.not_after), "new": one.id in done.added}
                    for one in done.trusted
                ],
                "dropped": [one.id for one in done.dropped],
            }
        )
        return Exit.DONE
    lines = [f"{config.data_dir} trusts for {config.trust_domain}:"]
    new = dict.fromkeys(done.added, ", new")
    lines += [f"  {one.id}  until {when(one.not_after)}{new.get(one.id, '')}" for one in done.trusted]
    lines += [f"and no longer {one.id}, until {when(one.not_after)}" for one in done.dropped]
    show("\n".join([*lines, "hold these IDs against `firedoor authority list` at the broker, then start the sidecar"]))
    return Exit.DONE


def _load(options: argparse.Namespace) -> "Config":
    from firedoor.sidecar import config
    from firedoor.sidecar.errors import ConfigError

    try:
        return load_config(config.load, config.OPTIONS, options, config.ENVIRONMENT)
    except ConfigError as error:
        raise usage_error(error.findings) from None


def run_status(options: argparse.Namespace) -> int:
    """Show the status; exit 1 while something keeps the sidecar from being ready."""
    with admin(options.admin_socket, "sidecar") as sidecar:
        stub = admin_grpc.SidecarAdminStub(sidecar.channel)
        status = sidecar.call(stub.GetStatus, admin_pb2.GetStatusRequest())
    if options.output == "json":
        show_json(as_json(status))
    else:
        _show(status)
    return Exit.NO if status.missing else Exit.DONE


def _show(status: admin_pb2.GetStatusResponse) -> None:
    lines = [
        ("trust domain", status.trust_domain),
        ("agent", status.agent_id or "not attested yet"),
        ("server", f"{status.server} ({'connected' if status.connected else 'not connected'})"),
        ("generation", f"{generation_text(status.generation)}, revision {status.revision}"),
        ("ready", "yes" if not status.missing else "no"),
        *(("missing", sentence) for sentence in status.missing),
    ]
    lines += [("admission", f"not enforced for {name}") for name in status.not_admitted]
    lines += [("not enforcing", status.not_enforcing)] if status.not_enforcing else []
    lines += [("captured", f"but for {sentence}") for sentence in status.capture_exclusions]
    if status.HasField("dns"):
        lines.append(("DNS", _dns(status.dns)))
    lines += [("held", _held(status)), *_others(status)]
    show("\n".join(f"{name:<14}{value}" for name, value in lines))
    show("")
    svids = [(s.spiffe_id, s.segment or "-", when(s.not_after)) for s in status.svids]
    show(table(("IDENTITY", "SEGMENT", "EXPIRES"), svids))
    show("")
    rows = [(x.name, x.direction, x.listen, "open" if x.open else f"closed: {x.reason}") for x in status.listeners]
    show(table(("LISTENER", "DIRECTION", "AT", "STATE"), rows))


def _held(status: admin_pb2.GetStatusResponse) -> str:
    many = status.counters
    return (
        f"{many['svids']} X.509-SVIDs for {many['entries']} entries, {many['jwt_svids']} JWT-SVIDs, "
        f"{many['wit_svids']} WIT-SVIDs, {many['api_streams']} open streams"
    )


def _dns(dns: admin_pb2.DnsStatus) -> str:
    asked = f"asks {', '.join(dns.resolvers)}" if dns.resolvers else "asks nobody: no resolver is named"
    names = "" if dns.every_name else f", for {len(dns.names)} names"
    return f"{asked}{names}, at {', '.join(dns.listen)}" if dns.listen else "not open"


def _others(status: admin_pb2.GetStatusResponse) -> list[tuple[str, str]]:
    """Say who may ask for identities of other programs."""
    lines = [("delegate", one) for one in status.authorized_delegates]
    if status.broker_api_clients:
        lines.append(("Broker API", status.broker_api or "not open"))
    return lines + [("client", one) for one in status.broker_api_clients]


def as_json(status: admin_pb2.GetStatusResponse) -> dict[str, Any]:
    """Return the status as scripts read it."""
    return {
        "trust_domain": status.trust_domain,
        "agent_id": status.agent_id,
        "server": status.server,
        "connected": status.connected,
        "generation": generation_text(status.generation),
        "revision": status.revision,
        "ready": not status.missing,
        "missing": list(status.missing),
        "svids": [
            {
                "spiffe_id": s.spiffe_id,
                "entry_id": s.entry_id,
                "segment": s.segment,
                "not_before": s.not_before,
                "not_after": s.not_after,
                "authority_id": s.authority_id,
            }
            for s in status.svids
        ],
        "listeners": [
            {
                "name": x.name,
                "direction": x.direction,
                "listen": x.listen,
                "as": getattr(x, "as"),
                "open": x.open,
                "reason": x.reason,
            }
            for x in status.listeners
        ],
        "counters": dict(status.counters),
        "broker_api": status.broker_api,
        "broker_api_clients": list(status.broker_api_clients),
        "authorized_delegates": list(status.authorized_delegates),
        "not_admitted": list(status.not_admitted),
        "capture_exclusions": list(status.capture_exclusions),
        "not_enforcing": status.not_enforcing,
        "dns": _dns_json(status.dns) if status.HasField("dns") else None,
    }


def _dns_json(dns: admin_pb2.DnsStatus) -> dict[str, Any]:
    names = None if dns.every_name else list(dns.names)
    return {"listen": list(dns.listen), "resolvers": list(dns.resolvers), "names": names}
