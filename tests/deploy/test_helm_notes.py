# SPDX-License-Identifier: Apache-2.0
"""What `helm install` says at its end: commands that there are, for objects that it made, and pages that exist."""

from __future__ import annotations

import re
import shlex

import pytest

from firedoor.cli.main import parser_of
from tests.deploy.test_helm import ALL, CHART, CLUSTER, POLICIES, TD, Helm, documents, helm
from tests.deploy.test_helm_nodes import NODES

__all__ = ["helm"]

WORDS = {"least": TD, "all": ALL, "cluster": CLUSTER, "policies": POLICIES, "nodes": NODES}


def parsed(command: str) -> bool:
    """Say whether our command line takes it."""
    _, name, *rest = shlex.split(command)
    try:
        parser_of(name).parse_args(rest)
    except SystemExit as end:
        return end.code == 0
    return True


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("release", ["firedoor", "other"])
def test_what_is_said_can_be_done(helm: Helm, name: str, release: str) -> None:
    words = (release, str(CHART), "--namespace", "elsewhere", *WORDS[name])
    ran = helm("install", *words, "--dry-run=client")
    assert ran.returncode == 0, ran.stderr
    notes = ran.stdout.partition("\nNOTES:\n")[2]
    rendered = documents(helm("template", *words).stdout)
    made = {(one["kind"].lower(), one["metadata"]["name"]) for one in rendered}
    commands = re.findall(r"^  (.+)$", notes, re.M)
    assert len(commands) > 2
    for command in commands:
        assert command.startswith("kubectl "), command
        for space in re.findall(r" -n (\S+)", command):
            assert space == "elsewhere" or ("namespace", space) in made, command
        for kind, of in re.findall(r" (statefulset)/(\S+)", command):
            assert (kind, of) in made, command
        for pod, ours in re.findall(r" exec (?:-i )?(\S+) -- ([^<>]+)", command):
            assert ("statefulset", pod.removesuffix("-0")) in made, command
            assert parsed(ours), command
    for page in re.findall(r"\bdocs/[\w-]+\.md", notes):
        assert (CHART.parents[2] / page).exists(), page


def test_what_nobody_takes_is_noticed() -> None:
    assert parsed("firedoor bundle show --format spiffe")
    assert not parsed("firedoor bundle show --format nonsense")
