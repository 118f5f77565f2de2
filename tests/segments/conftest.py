# SPDX-License-Identifier: Apache-2.0
"""Policies as text, for the tests of segments."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from firedoor.certs import Selector, SpiffeId, TrustDomain
from firedoor.segments import Document, Finding, PolicyErrors, PolicySet, lint, load

TD = TrustDomain.parse("td")
API = "firedoor.dev/v1alpha1"


def sid(text: str) -> SpiffeId:
    return SpiffeId.parse(text if text.startswith("spiffe://") else f"spiffe://td{text}")


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(Selector.parse(text) for text in texts)


def segment(name: str, **spec: Any) -> dict[str, Any]:
    """A segment that lints clean; a field of None is left out."""
    base = {
        "function": name,
        "trust": "medium",
        "members": [f"spiffe://{{td}}/segment/{name}/**"],
        "admission": {"entry": [f"unix:user:{name}"], "node": []},
    }
    return {"apiVersion": API, "kind": "Segment", "metadata": {"name": name}, "spec": _merged(base, spec)}


def flow(name: str, **spec: Any) -> dict[str, Any]:
    """A flow from `a` to `b` at 9000 that lints clean; write `source` for `from`."""
    if "source" in spec:
        spec["from"] = spec.pop("source")
    base = {
        "owner": "ml-platform",
        "reason": "tests",
        "from": {"segment": "a"},
        "to": {"segment": "b", "port": 9000},
        "allow": [{"tcp": {}}],
    }
    return {"apiVersion": API, "kind": "Flow", "metadata": {"name": name}, "spec": _merged(base, spec)}


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**base, **more}.items() if value is not None}


def text(*documents: dict[str, Any]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)


def policy(*documents: dict[str, Any]) -> PolicySet:
    return load([Document("policy.yaml", text(*documents))], TD)


def findings(*documents: dict[str, Any]) -> list[Finding]:
    return lint(policy(*documents))


def codes(*documents: dict[str, Any]) -> list[str]:
    return [finding.code for finding in findings(*documents)]


def refused(source: str) -> PolicyErrors:
    """Load what must be refused."""
    with pytest.raises(PolicyErrors) as caught:
        load([Document("policy.yaml", source)], TD)
    return caught.value


Refused = Callable[[str], PolicyErrors]
