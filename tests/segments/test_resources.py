# SPDX-License-Identifier: Apache-2.0
"""The custom resources have the fields that documents have, and the files say so."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from firedoor.segments import parse, schema
from firedoor.segments.resources import SPECS, definitions

ROOT = Path(__file__).parents[2]
SEGMENT, FLOW, SERVICE = SPECS["Segment"], SPECS["Flow"], SPECS["Service"]
ACTION = FLOW["properties"]["allow"]["items"]
TO = (*parse._SUBJECT_FIELDS, schema.Field("port", lambda *_: None))
PAIRS: dict[str, tuple[dict[str, Any], tuple[schema.Field, ...]]] = {
    "Segment": (SEGMENT, parse._SEGMENT.fields),
    "admission": (SEGMENT["properties"]["admission"], parse._ADMISSION.fields),
    "expiry": (SEGMENT["properties"]["expiry"], parse._UNTIL_REVOKED.fields),
    "Flow": (FLOW, parse._FLOW.fields),
    "from": (FLOW["properties"]["from"], parse._SUBJECT_FIELDS),
    "to": (FLOW["properties"]["to"], TO),
    "valid": (FLOW["properties"]["valid"], parse._VALIDITY.fields),
    "tcp": (ACTION["properties"]["tcp"], parse._TCP.fields),
    "http": (ACTION["properties"]["http"], parse._HTTP.fields),
    "grpc": (ACTION["properties"]["grpc"], parse._GRPC.fields),
    "Service": (SERVICE, parse._SERVICE.fields),
    "port": (SERVICE["properties"]["ports"]["items"], parse._SERVICE_PORT.fields),
}
# Lint asks for these, the parser does not.
ASKED_BY_LINT = {"owner", "reason"}


@pytest.mark.parametrize("case", PAIRS)
def test_it_has_the_fields_of_documents(case: str) -> None:
    resource, fields = PAIRS[case]
    assert set(resource["properties"]) == {row.name for row in fields}
    needed = {row.name for row in fields if row.default is schema._MISSING}
    assert set(resource.get("required", ())) - ASKED_BY_LINT == needed


def test_actions_and_words_are_the_same() -> None:
    assert set(ACTION["properties"]) == set(parse._ACTIONS)
    segment, port = SEGMENT["properties"], SERVICE["properties"]["ports"]["items"]["properties"]
    words = (
        (segment["trust"], parse._TRUST),
        (segment["mode"], parse._MODE),
        (segment["volumes"], parse._VOLUMES),
    )
    for field, known in (*words, (segment["audit_loss"], parse._AUDIT_LOSS), (port["protocol"], parse._SPEAKS)):
        assert set(field["enum"]) == set(known)
    assert set(SPECS) == set(parse._KINDS)


def test_everything_is_explained() -> None:
    """`kubectl explain` shows these."""
    for definition in definitions():
        (version,) = definition["spec"]["versions"]
        whole = version["schema"]["openAPIV3Schema"]
        assert whole["description"]
        for name in ("spec", "status"):
            assert list(_unexplained(whole["properties"][name], name)) == []


def _unexplained(part: dict[str, Any], path: str) -> Any:
    if not part.get("description", "").endswith("."):
        yield path
    for name, field in part.get("properties", {}).items():
        yield from _unexplained(field, f"{path}.{name}")
    if "items" in part:
        yield from _unexplained(part["items"], f"{path}[]")


def test_the_files_are_current() -> None:
    files = runpy.run_path(str(ROOT / ".ci/crds.py"))["files"]()
    assert {path: path.read_text() for path in files} == files, "run .venv/bin/python .ci/crds.py"
