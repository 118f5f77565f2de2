# SPDX-License-Identifier: Apache-2.0
"""`firedoor segment inventory`: what runs in a cluster and is not as the policy would have it."""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from firedoor.cli.errors import Unreachable, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.export import add_options, chosen
from firedoor.cli.output import show, show_json, table
from firedoor.cli.parsing import Group
from firedoor.cli.policy_files import add_policy, read_policy, unusable
from firedoor.cli.progress import waiting
from firedoor.segments import PolicyErrors
from firedoor.segments.cluster_pods import Cluster, read_cluster
from firedoor.segments.errors import ExportError, InventoryError
from firedoor.segments.exports import FORMS
from firedoor.segments.inventory import inventory

EXAMPLE = """\
$ firedoor segment inventory segments/ --trust-domain example.org
$ kubectl get namespaces,pods,networkpolicies --all-namespaces --output json | \\
    firedoor segment inventory segments/ --trust-domain example.org --from -"""
_RESOURCES: Final = {
    "kubernetes": "networkpolicies.networking.k8s.io",
    "cilium": "ciliumnetworkpolicies.cilium.io",
    "cluster-network-policy": "clusternetworkpolicies.policy.networking.k8s.io",
    "none": "",
}
_SECONDS: Final = 300
# A pod is some kilobytes; this many are of a cluster that nobody has.
_MAX_BYTES: Final = 1 << 30


def configure(words: Group) -> None:
    """Declare the arguments."""
    leaf = words.leaf("inventory", "list what runs in a cluster and is not as the policy would have it", EXAMPLE, run)
    add_policy(leaf)
    leaf.add_argument(
        "--from", dest="given", metavar="FILE", help="what kubectl printed (- for stdin); runs no kubectl"
    )
    leaf.add_argument("--kubeconfig", metavar="FILE", help="for kubectl; it finds its own unless given")
    leaf.add_argument("--context", metavar="NAME", help="for kubectl: which cluster of its configuration")
    leaf.add_argument(
        "--only", action="append", default=[], metavar="NS", help="look at this namespace; may stand several times"
    )
    leaf.add_argument(
        "--exported",
        choices=[*FORMS, "none"],
        default="kubernetes",
        help="what the flows are exported as, and compared with (%(default)s)",
    )
    add_options(leaf)
    leaf.add_argument("--strict", action="store_true", help="warnings make it exit 1 too")


def run(options: argparse.Namespace) -> int:
    """Print what is to be seen to; errors (and with --strict warnings) make it exit 1."""
    form = "" if options.exported == "none" else options.exported
    policy = read_policy(options)
    try:
        cluster = _cluster(options)
        rows = inventory(policy, cluster, form, chosen(options), int(time.time()), options.only)
    except PolicyErrors as errors:
        raise unusable(errors.findings) from None
    except (ExportError, InventoryError) as error:
        raise UsageError(str(error)) from None
    if cluster.unread:
        sys.stderr.write(f"{cluster.unread} objects of the list could not be read, and were left out\n")
    if options.output == "json":
        show_json([dataclasses.asdict(row) for row in rows])
    elif rows:
        cells = [
            (
                row.namespace or "-",
                row.object,
                str(row.pods or "-"),
                f"{row.severity}[{row.code}]",
                row.message,
                row.fix,
            )
            for row in rows
        ]
        show(table(("NAMESPACE", "OBJECT", "PODS", "WHAT", "WHY", "WHAT TO DO"), cells))
    else:
        show(f"nothing to see to; {len(cluster.pods)} pods run")
    bad = any(row.severity == "error" or options.strict for row in rows)
    return Exit.NO if bad else Exit.DONE


def _cluster(options: argparse.Namespace) -> Cluster:
    if options.given is None:
        return read_cluster(_asked(options))
    try:
        if options.given == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(options.given).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{options.given} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{options.given} is longer than 1 GiB")
    return read_cluster(data)


def _asked(options: argparse.Namespace) -> bytes:
    """Ask the cluster, as whom kubectl is configured: it knows all the ways in which clusters want that proved."""
    program = shutil.which("kubectl")
    if program is None:
        raise UsageError("kubectl is not installed; give a file that it printed with --from")
    kinds = ["namespaces", "pods", *filter(None, [_RESOURCES[options.exported]])]
    command = [program, "get", ",".join(kinds), "--all-namespaces", "--output", "json"]
    for word in ("kubeconfig", "context"):
        if value := getattr(options, word):
            command += [f"--{word}", value]
    try:
        with waiting("asking the cluster"):
            answer = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603 - kubectl
    except subprocess.TimeoutExpired:
        raise Unreachable(f"kubectl did not answer within {_SECONDS} s") from None
    if answer.returncode:
        said = answer.stderr.decode(errors="replace").strip()[-2000:]
        raise Unreachable(f"kubectl cannot list {', '.join(kinds)}: {said}")
    return answer.stdout
