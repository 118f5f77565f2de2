# SPDX-License-Identifier: Apache-2.0
"""The keys of labels and annotations in files that cannot import: those of `segments/well_known.py`, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.broker.injector.demands import ENABLED, PATHS, REQUIRED, Demands
from firedoor.broker.kubernetes.certificates_api import SIGNER
from firedoor.segments import well_known
from firedoor.segments.model import API_VERSION

ROOT = Path(__file__).parents[2]
# Of the chart alone: what restarts a broker whose configuration changed, and which Service metrics are scraped by.
CHART = {f"{well_known.PREFIX}{name}" for name in ("config", "service")}
KEYS = {value for value in vars(well_known).values() if isinstance(value, str) and value.startswith(well_known.PREFIX)}
# Not a path, as of a socket, nor a part of another name.
NAMED = re.compile(rf"(?<![\w/.-]){re.escape(well_known.PREFIX)}[a-z0-9]+(?:[.-][a-z0-9]+)*")
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, kinds in (("deploy", (".yaml", ".tpl", ".txt", ".md")), ("docs", (".md",)))
    for path in (ROOT / folder).rglob("*")
    if path.suffix in kinds
)


def named(path: str) -> set[str]:
    return set(NAMED.findall((ROOT / path).read_text()))


@pytest.mark.parametrize("path", FILES)
def test_no_file_names_a_key_that_there_is_not(path: str) -> None:
    chart = CHART if path.startswith(("deploy/helm/", "deploy/kubernetes/")) else set()
    assert named(path) <= KEYS | chart | {API_VERSION, SIGNER}


def test_each_key_is_documented() -> None:
    """But for the prefix, and for what stands at exported objects for whoever reads those."""
    documents = {key for path in FILES if path.startswith("docs/") for key in named(path)}
    assert KEYS - {well_known.PREFIX, well_known.FLOWS} <= documents


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Read the two operators that the webhooks have; a label that is not there is in no list."""
    terms = selector["matchExpressions"]
    assert {term["operator"] for term in terms} <= {"In", "NotIn"}
    return all((labels.get(term["key"]) in term["values"]) == (term["operator"] == "In") for term in terms)


@pytest.mark.parametrize("word", [*well_known.LEFT, "another", ""])
@pytest.mark.parametrize("inject", ["enabled", well_known.REQUIRED])
def test_webhooks_are_asked_as_namespaces_demand(inject: str, word: str) -> None:
    file = ROOT / "deploy/kubernetes/injector.yaml"
    (hooks,) = (one["webhooks"] for one in yaml.safe_load_all(file.read_text()) if one and "webhooks" in one)
    labels = {well_known.INJECT: inject} | ({well_known.CAPTURE: word} if word else {})
    paths = [hook["clientConfig"]["service"]["path"] for hook in hooks if selects(hook["namespaceSelector"], labels)]
    left = well_known.LEFT.get(word, frozenset())
    wanted = Demands(required=True, may_exclude=well_known.EXCLUDE in left, may_leave=well_known.CAPTURE in left)
    assert [PATHS[path] for path in paths] == [ENABLED if inject == "enabled" else wanted]
    assert left or wanted == REQUIRED
