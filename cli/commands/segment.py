# SPDX-License-Identifier: Apache-2.0
"""`firedoor segment`: the segments and flows in force, and new ones."""

import argparse
import re
from ipaddress import ip_address
from typing import Any

from firedoor.certs import TrustDomain
from firedoor.cli import export, inventory, services
from firedoor.cli.admin import add_broker_socket, broker, generation_text
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table
from firedoor.cli.parsing import Group
from firedoor.cli.policy_files import add_policy, read_documents, trust_domain
from firedoor.cli.progress import waiting
from firedoor.segments import Document, Finding, PolicyErrors, lint, load
from firedoor.wire import admin_grpc, admin_pb2, control_pb2, policy_pb2

LIST_EXAMPLE = "$ firedoor segment list"
LINT_EXAMPLE = "$ firedoor segment lint segments/ --trust-domain example.org"
APPLY_EXAMPLE = """\
$ firedoor segment apply segments/ --dry-run
$ firedoor segment apply segments/ --if-generation 1.42"""

# The broker waits up to a minute for holders of certificates that end with the edit, and behind another edit as long.
APPLY_SECONDS = 150.0
_GENERATION = re.compile(r"(\d+)\.(\d+)")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    listing = words.leaf("list", "show the segments and flows in force", LIST_EXAMPLE, run_list)
    linting = words.leaf("lint", "check policy files; needs no broker", LINT_EXAMPLE, run_lint)
    add_policy(linting)
    linting.add_argument("--strict", action="store_true", help="warnings count as errors")
    applying = words.leaf("apply", "replace the whole policy, or change nothing", APPLY_EXAMPLE, run_apply)
    add_policy(applying, domain=False)
    applying.add_argument("--dry-run", action="store_true", help="show the difference and change nothing")
    applying.add_argument("--if-generation", type=generation, metavar="E.N", help="only if this generation is in force")
    applying.add_argument(
        "--now", action="store_true", help="do not wait, for up to a minute, until holders of old SVIDs have new ones"
    )
    for leaf in (listing, applying):
        add_broker_socket(leaf)
    services.configure(words)
    export.configure(words)
    inventory.configure(words)


def generation(text: str) -> control_pb2.Generation:
    """Read EPOCH.NUMBER, as `segment list` and `segment apply` print it."""
    found = _GENERATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not EPOCH.NUMBER, such as 1.42")
    return control_pb2.Generation(epoch=int(found[1]), number=int(found[2]))


def run_list(options: argparse.Namespace) -> int:
    """Show what is in force."""
    with broker(options) as connection:
        stub = admin_grpc.PolicyAdminStub(connection.channel)
        policy = connection.call(stub.GetPolicy, admin_pb2.GetPolicyRequest())
    if options.output == "json":
        show_json(as_json(policy))
        return Exit.DONE
    show(f"generation {generation_text(policy.generation)}, from {policy.source}")
    show("")
    rows = [
        (s.name, _word(policy_pb2.Trust.Name(s.trust)), _word(policy_pb2.Mode.Name(s.mode)), " ".join(s.members))
        for s in policy.table.segments
    ]
    show(table(("SEGMENT", "TRUST", "MODE", "MEMBERS"), rows))
    show("")
    flows = [
        (f.name, _end(getattr(f, "from")), f"{_end(f.to)}:{f.port}", ", ".join(map(_action, f.allow)), f.owner)
        for f in policy.table.flows
    ]
    show(table(("FLOW", "FROM", "TO", "ALLOWS", "OWNER"), flows))
    declared = [
        (s.name, str(len(s.addresses)), _ports(s), " ".join(dict.fromkeys(e for p in s.ports for e in p.expect)))
        for s in policy.table.services
    ]
    if declared:
        show("")
        show(table(("SERVICE", "ADDRESSES", "PORTS", "EXPECTED"), declared))
    return Exit.DONE


def as_json(policy: admin_pb2.GetPolicyResponse) -> dict[str, Any]:
    """Return the policy as scripts read it."""
    return {
        "generation": generation_text(policy.generation),
        "source": policy.source,
        "segments": [
            {
                "name": s.name,
                "trust": _word(policy_pb2.Trust.Name(s.trust)),
                "mode": _word(policy_pb2.Mode.Name(s.mode)),
                "members": list(s.members),
                "fallback": s.fallback,
            }
            for s in policy.table.segments
        ],
        "flows": [
            {
                "name": f.name,
                "owner": f.owner,
                "reason": f.reason,
                "from": _end(getattr(f, "from")),
                "to": _end(f.to),
                "port": f.port,
                "allow": [_action(a) for a in f.allow],
            }
            for f in policy.table.flows
        ],
        "services": [
            {
                "name": s.name,
                "addresses": [str(ip_address(one)) for one in s.addresses],
                "ports": [
                    {
                        "port": p.port,
                        "protocol": _word(policy_pb2.Protocol.Name(p.protocol)),
                        "expect": list(p.expect),
                        "service_port": p.service_port,
                        "connect": list(p.connect),
                    }
                    for p in s.ports
                ],
            }
            for s in policy.table.services
        ],
    }


def _ports(service: policy_pb2.Service) -> str:
    return " ".join(f"{p.port}/{_word(policy_pb2.Protocol.Name(p.protocol))}" for p in service.ports)


def run_lint(options: argparse.Namespace) -> int:
    """Print every finding; errors (and with --strict warnings) make it exit 1."""
    findings = find(read_documents(options.path), trust_domain(options.trust_domain or "example.org"))
    bad = [f for f in findings if f.severity == "error" or options.strict]
    if options.output == "json":
        show_json([export.as_json(f) for f in findings])
    else:
        show("\n".join(str(f) for f in findings) or "nothing to repair")
    return Exit.NO if bad else Exit.DONE


def find(documents: list[Document], domain: TrustDomain) -> list[Finding]:
    """Return what the parser or the linter says."""
    try:
        return list(lint(load(documents, domain)))
    except PolicyErrors as errors:
        return list(errors.findings)


def run_apply(options: argparse.Namespace) -> int:
    """Send the documents and print what changes."""
    documents = read_documents(options.path)
    request = admin_pb2.ApplyPolicyRequest(
        documents=[admin_pb2.Document(name=d.name, text=d.text) for d in documents],
        dry_run=options.dry_run,
        now=options.now,
    )
    if options.if_generation:
        request.if_generation.CopyFrom(options.if_generation)
    with broker(options) as connection:
        stub = admin_grpc.PolicyAdminStub(connection.channel)
        with waiting("waiting until nobody entitled needs a certificate that this edit ends; --now does not wait"):
            answer = connection.call(stub.ApplyPolicy, request, seconds=APPLY_SECONDS)
    if options.output == "json":
        changes = [{"kind": _kind(c), "object": c.object, "name": c.name, "diff": c.diff} for c in answer.changes]
        number = generation_text(answer.generation)
        show_json(
            {"dry_run": options.dry_run, "generation": number, "changes": changes, "warnings": list(answer.warnings)}
        )
        return Exit.DONE
    for change in answer.changes:
        show(f"{_kind(change)} {change.object} {change.name}")
        show("\n".join(f"  {line}" for line in change.diff.splitlines()))
    for warning in answer.warnings:
        show(f"warning: {warning}")
    if options.dry_run:
        show(f"nothing was changed; generation {generation_text(answer.generation)} is in force")
    else:
        show(f"generation {generation_text(answer.generation)}" if answer.changes else "nothing to change")
    return Exit.DONE


def _word(name: str) -> str:
    """Turn TRUST_HIGH into high; what is not set is read as the first."""
    word = name.partition("_")[2].lower()
    return {"TRUST_UNSPECIFIED": "low", "MODE_UNSPECIFIED": "enforce"}.get(name, word)


def _kind(change: admin_pb2.Change) -> str:
    return admin_pb2.Change.Kind.Name(change.kind).removeprefix("KIND_").lower()


def _end(subject: policy_pb2.Subject) -> str:
    return " ".join(([subject.segment] if subject.segment else []) + list(subject.ids))


def _action(action: policy_pb2.Action) -> str:
    kind = action.WhichOneof("kind")
    if kind == "http":
        parts = [",".join(action.http.methods), " ".join(action.http.paths), " ".join(action.http.authorities)]
        return " ".join(["http", *(part for part in parts if part)])
    if kind == "grpc":
        return f"grpc {action.grpc.service}/{','.join(action.grpc.methods) or '*'}"
    return kind or "unknown"
