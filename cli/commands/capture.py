# SPDX-License-Identifier: Apache-2.0
"""`firedoor capture`: the rules by which a network namespace deals with others through its sidecar alone."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from firedoor.cli.daemon import capture_errors
from firedoor.cli.errors import Refused, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import Group

if TYPE_CHECKING:
    from firedoor.sidecar.capture.nft import Nft
    from firedoor.sidecar.capture.rules import Ruleset
    from firedoor.sidecar.capture.settings import Capture
    from firedoor.sidecar.config import Config

APPLY_EXAMPLE = "$ firedoor capture apply --config sidecar.yaml --app-uid 1001"
REMOVE_EXAMPLE = "$ firedoor capture remove"
SHOW_EXAMPLE = "$ firedoor capture show --config sidecar.yaml"
CHECK_EXAMPLE = "$ firedoor capture check --config sidecar.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    words = Group(parser)
    apply = words.leaf("apply", "write the rules of this network namespace, all or none", APPLY_EXAMPLE, run_apply)
    apply.add_argument("--app-uid", metavar="UID", action="append", help="refuse a user that could go round the rules")
    apply.add_argument("--app-pid", metavar="PID", action="append", help="refuse a process that could go round them")
    apply.add_argument(
        "--whole-machine", action="store_true", help="capture a machine's own network too: logins by SSH end with it"
    )
    words.leaf("remove", "take the rules away, all or none", REMOVE_EXAMPLE, run_remove)
    rules = words.leaf("show", "explain each rule", SHOW_EXAMPLE, run_show)
    check = words.leaf("check", "say whether the rules stand as they were written", CHECK_EXAMPLE, run_check)
    for leaf in (apply, rules, check):
        leaf.add_argument("--config", metavar="FILE", help="the sidecar's configuration, with a section `capture`")


def run_apply(options: argparse.Namespace) -> int:
    """Look at everything that could be wrong, then write."""
    from firedoor.sidecar.capture import nft, privileges

    config, capture, rules = _configured(options)
    with capture_errors():
        for warning in _look_at_apps(options, capture):
            sys.stderr.write(f"firedoor: warning: {warning}\n")
        if not privileges.may_administer_network(privileges.read("self")):
            raise UsageError("CAP_NET_ADMIN in this network namespace is needed: run as root, or as an init step")
        if not options.whole_machine and _is_the_machines_own():
            raise UsageError(
                "this is the machine's own network, and its logins by SSH and whatever it forwards would end: run this "
                "in the network namespace of the workload, or say --whole-machine"
            )
        table = nft.Nft()
        table.present()  # Reading needs what writing needs.
        table.write(rules)
        changed = _differences(rules, table)
    if changed:
        raise Refused(f"the rules are written, and the kernel lists others: {'; '.join(changed)}")
    excluded = capture.exclusions()
    if options.output == "json":
        show_json({"rules": len(rules.rules), "exclusions": excluded, "open_ports": list(config.open_ports)})
    else:
        show("\n".join([f"{len(rules.rules)} rules are written, for IPv4 and IPv6", *excluded]))
    return Exit.DONE


def run_remove(options: argparse.Namespace) -> int:
    """Take the rules away."""
    from firedoor.sidecar.capture import nft

    with capture_errors():
        removed = nft.Nft().remove()
    if options.output == "json":
        show_json({"removed": removed})
    else:
        show("the rules are removed" if removed else "there were no rules")
    return Exit.DONE


def run_show(options: argparse.Namespace) -> int:
    """Explain the rules that `apply` writes; the kernel is not asked."""
    _, capture, rules = _configured(options)
    excluded = capture.exclusions()
    if options.output == "json":
        explained = [
            {"chain": one.chain, "sentence": one.sentence, "expr": list(one.statements)} for one in rules.rules
        ]
        show_json({"rules": explained, "exclusions": excluded})
    else:
        show("\n".join([*_explained(rules), *(["", *excluded] if excluded else [])]))
    return Exit.DONE


def run_check(options: argparse.Namespace) -> int:
    """Compare the kernel's rules with those that `apply` writes; exit 1 when they differ."""
    from firedoor.sidecar.capture import nft

    _, _, rules = _configured(options)
    with capture_errors():
        changed = _differences(rules, nft.Nft())
    if options.output == "json":
        show_json({"stands": not changed, "differences": changed})
    else:
        show("\n".join(changed) or "the rules stand as they were written")
    return Exit.NO if changed else Exit.DONE


def _configured(options: argparse.Namespace) -> "tuple[Config, Capture, Ruleset]":
    from firedoor.cli.daemon import load_config, usage_error
    from firedoor.sidecar import capture, config
    from firedoor.sidecar.errors import ConfigError

    try:
        found = load_config(config.load, (), options, config.ENVIRONMENT)
    except ConfigError as error:
        raise usage_error(error.findings) from None
    if found.capture is None:
        raise UsageError("the configuration has no section `capture`: it says which user the sidecar is (capture.uid)")
    return found, found.capture, capture.make(found.capture, found.open_ports)


def _look_at_apps(options: argparse.Namespace, capture: "Capture") -> list[str]:
    """Refuse the programs that are named and could go round the rules; return what could be better."""
    from firedoor.segments.setting_values import integer
    from firedoor.sidecar.capture import privileges
    from firedoor.sidecar.listeners import HIGHEST_UID

    warnings = []
    for uid in _numbers("--app-uid", options.app_uid, integer(0, HIGHEST_UID)):
        privileges.check(f"uid {uid}", privileges.uid_refusals(uid, capture.uid))
    for pid in _numbers("--app-pid", options.app_pid, integer(1, 2**22)):
        found = privileges.read(pid)
        privileges.check(f"process {pid}", privileges.refusals(found, capture.uid))
        warnings += [f"process {pid}: {one}" for one in privileges.warnings(found)]
    return warnings


def _numbers(flag: str, given: list[str] | None, parser: Callable[[str], int]) -> Iterator[int]:
    for text in given or ():
        try:
            yield parser(text)
        except ValueError as error:
            raise UsageError(f"{flag} {text!r} {error}") from None


def _is_the_machines_own() -> bool:
    """Say whether this network namespace is the one that the machine started with, as it is with `hostNetwork` too."""
    # This setting is of the whole machine and shown in its first network namespace alone (net/core/sysctl_net_core.c).
    return Path("/proc/sys/net/core/netdev_max_backlog").exists()


def _differences(rules: "Ruleset", table: "Nft") -> list[str]:
    from firedoor.sidecar.capture import differences

    return differences(rules, table.listed())


def _explained(rules: "Ruleset") -> Iterator[str]:
    """Yield each chain with its rules; a sentence that stands for IPv4 and IPv6 is said once."""
    for chain in rules.chains:
        yield f"{chain.name}: {chain.hook}, else {chain.policy}"
        yield from dict.fromkeys(f"  {one.sentence}" for one in rules.rules if one.chain == chain.name)
