# SPDX-License-Identifier: Apache-2.0
"""`firedoor segment export`: flows as packet filters of a cluster, and what these cannot say."""

import argparse
import sys
import time
from typing import Any

import yaml

from firedoor.cli.errors import UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import Group
from firedoor.cli.policy_files import add_policy, read_policy, unusable
from firedoor.segments import Finding, PolicyErrors
from firedoor.segments.exports import ExportError, Options, export

_WORDS = (
    ("kubernetes", "write the flows as NetworkPolicies; needs no broker"),
    ("cilium", "write the flows as CiliumNetworkPolicies; needs no broker"),
    ("cluster-network-policy", "write the flows as ClusterNetworkPolicies, which owners of namespaces cannot undo"),
)
_DEFAULT = Options()


class _Plain(yaml.SafeDumper):
    """Writes every value out: an anchor would surprise a reader."""

    def ignore_aliases(self, data: Any) -> bool:
        """Say that nothing is written as an alias."""
        return True


def configure(words: Group) -> None:
    """Declare the forms of export and their arguments."""
    group = words.group("export", "write the flows as packet filters of Kubernetes")
    for form, summary in _WORDS:
        example = f"$ firedoor segment export {form} segments/ --trust-domain example.org | kubectl apply -f -"
        leaf = group.leaf(form, summary, example, run)
        leaf.set_defaults(form=form)
        add_policy(leaf)
        add_options(leaf)
        leaf.add_argument("--strict", action="store_true", help="exit 1 when something cannot be said")


def add_options(leaf: argparse.ArgumentParser) -> None:
    """Declare what an export is made with; whoever compares with one has to be told the same."""
    leaf.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NS",
        help="a namespace with pods of segments, beside those that the policy names; may stand several times",
    )
    leaf.add_argument(
        "--broker-namespace",
        default=_DEFAULT.broker_namespace,
        metavar="NS",
        help="where the broker's pods are (%(default)s)",
    )
    leaf.add_argument("--ambient", action="store_true", help="Istio's ambient mesh is there: export opens its tunnels")


def chosen(options: argparse.Namespace) -> Options:
    """Return what `add_options` declares."""
    return Options(tuple(options.namespace), options.broker_namespace, ambient=options.ambient)


def run(options: argparse.Namespace) -> int:
    """Print the objects; what they do not say goes to stderr, or into the JSON."""
    policy = read_policy(options)
    try:
        made = export(policy, options.form, chosen(options), int(time.time()))
    except PolicyErrors as errors:
        raise unusable(errors.findings) from None
    except ExportError as error:
        raise UsageError(str(error)) from None
    if options.output == "json":
        show_json({"objects": list(made.objects), "report": [as_json(found) for found in made.report]})
    else:
        if made.objects:
            show(yaml.dump_all(made.objects, Dumper=_Plain, sort_keys=False))
        for found in made.report:
            sys.stderr.write(f"{found}\n")
    return Exit.NO if options.strict and made.report else Exit.DONE


def as_json(found: Finding) -> dict[str, Any]:
    """Return a finding as scripts read it."""
    return {
        "severity": found.severity,
        "code": found.code,
        "file": found.at.file,
        "line": found.at.line,
        "message": found.message,
        "fix": found.fix,
    }
