# SPDX-License-Identifier: Apache-2.0
"""The admission policies as they are delivered; tests/kubernetes has a real API server go by them."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.config import load
from firedoor.broker.injector import cel, containers, guards, policy
from tests.broker.injector.test_inject import RULES

ROOT = Path(__file__).parents[3]


def test_the_files_are_up_to_date() -> None:
    files = runpy.run_path(str(ROOT / ".ci/admission.py"))["files"]()
    assert {path: path.read_text() for path in files} == files, "run .venv/bin/python .ci/admission.py"
    objects = [*guards.guards(), *policy.injector(), *guards.warnings()]
    assert [one for text in files.values() for one in yaml.safe_load_all(text)] == objects


def test_the_documented_settings_are_those_of_the_documented_broker(tmp_path: Path) -> None:
    text = (ROOT / "docs/injection.md").read_text()
    (broker,) = re.findall(r"```yaml broker\n(.*?)```", text, re.DOTALL)
    (tmp_path / "broker.yaml").write_text(broker)
    found = load(tmp_path / "broker.yaml", {}, {})
    assert found.injector is not None
    (block,) = (one for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "ConfigMap" in one)
    (settings,) = yaml.safe_load_all(block)
    assert settings["data"] == cel.parameters(found.injector, found.trust_domain.name)
    assert settings["metadata"] == {"name": cel.PARAMETERS, "namespace": cel.NAMESPACE}


def test_policies_read_every_setting_and_no_other() -> None:
    text = "".join(str(one) for one in [*guards.guards(), *policy.injector()])
    read = set(re.findall(r"params\.data\.(\w+)", text))
    assert read == set(cel.parameters(RULES, "example.org"))
    # What is no setting of a sidecar changes nothing.
    other = dataclasses.replace(RULES, listen="127.0.0.1:1", names=("x",), webhook="")
    assert cel.parameters(other, "example.org") == cel.parameters(RULES, "example.org")


def test_everything_fails_closed() -> None:
    for one in [*guards.guards(), *policy.injector()]:
        spec = one["spec"]
        if "Binding" in one["kind"]:
            assert spec.get("validationActions", ["Deny"]) == ["Deny"]
            # Without Segments, or without settings of ours, they are about nothing.
            goes_on = spec["policyName"] in ("firedoor-volumes", "firedoor-tokens")
            assert spec.get("paramRef", {}).get("parameterNotFoundAction", "Deny") == ("Allow" if goes_on else "Deny")
        else:
            assert spec["failurePolicy"] == "Fail"
            assert all(("message" in each) != ("messageExpression" in each) for each in spec.get("validations", ()))


def test_one_description_of_a_sidecar() -> None:
    """What is written in CEL is what the injector adds, but for its settings."""
    for captured in (True, False):
        ours = containers.init_containers(RULES, (), captured=captured)
        for told, made in zip(cel.init_containers(captured=captured), ours, strict=True):
            assert told.keys() == made.keys()
            assert {k: v for k, v in told.items() if k not in ("env", "image", "securityContext")} == {
                k: v for k, v in made.items() if k not in ("env", "image", "securityContext")
            }


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_text_is_one_text(text: str) -> None:
    """As CEL reads it: nothing inside ends it."""
    written = cel.quoted(text)
    inside = re.fullmatch(r"'((?:[^'\\]|\\\\|\\')*)'", written)
    assert inside is not None
    assert re.sub(r"\\(.)", r"\1", inside[1]) == text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "dyn(true)"),
        (990, "dyn(990)"),
        ("it's", r"dyn('it\'s')"),
        ([1, "a"], "dyn([dyn(1), dyn('a')])"),
        ({"a": {}}, "dyn({'a': dyn({})})"),
        (cel.Cel("params.data.image"), "dyn(params.data.image)"),
    ],
)
def test_literals(value: Any, written: str) -> None:
    assert cel.literal(value) == written
