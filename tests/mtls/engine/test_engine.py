# SPDX-License-Identifier: Apache-2.0
"""The decision engine through its binding: the vectors that its Rust tests read too, and what only Python passes in."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.wire import policy_pb2

VECTORS = Path(__file__).parents[2] / "vectors" / "policy"
Case = dict[str, Any]


def vectors(name: str, key: str) -> list[Case]:
    cases: list[Case] = json.loads((VECTORS / f"{name}.json").read_text())[key]
    return cases


def by_name(case: Case) -> str:
    return str(case.get("name", case.get("pattern")))


@pytest.mark.parametrize("case", vectors("paths", "cases"), ids=by_name)
def test_path(case: Case) -> None:
    if "error" not in case:
        assert mtls.canonical_path(case["target"]) == case["segments"]
        return
    with pytest.raises(mtls.MtlsError) as caught:
        mtls.canonical_path(case["target"])
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("case", vectors("path_patterns", "patterns"), ids=by_name)
def test_path_pattern(case: Case) -> None:
    if "error" not in case:
        mtls.check_path_pattern(case["pattern"])
        return
    with pytest.raises(mtls.MtlsError) as caught:
        mtls.check_path_pattern(case["pattern"])
    assert caught.value.code == case["error"]


@pytest.mark.parametrize("table", vectors("tables", "tables"), ids=by_name)
def test_table_answers(table: Case) -> None:
    engine = mtls.Engine(bytes.fromhex(table["bytes"]))
    for case in table["questions"]:
        decision = engine.decide(**case["question"])
        seen = {field: getattr(decision, field) for field in case["expect"]}
        assert seen == case["expect"], case["name"]
        if decision.reason != "bad_id":
            assert decision.source_segment == engine.segment_of(case["question"]["source"])
        assert decision.allowed == (decision.flow is not None) == (decision.reason == "allowed")


@pytest.mark.parametrize("case", vectors("tables", "refused"), ids=by_name)
def test_table_is_refused(case: Case) -> None:
    with pytest.raises(mtls.TableError) as caught:
        mtls.Engine(bytes.fromhex(case["bytes"]))
    assert caught.value.code == case["error"]


def test_vectors_are_deterministic_bytes() -> None:
    for case in [*vectors("tables", "tables"), *vectors("tables", "refused")]:
        if "table" in case:
            table = json_format.ParseDict(case["table"], policy_pb2.Table())
            assert table.SerializeToString(deterministic=True).hex() == case["bytes"]


def test_nothing_is_the_table_that_denies_everything() -> None:
    decision = mtls.Engine(b"").decide(
        source="spiffe://td/a", destination="spiffe://td/b", port=1, protocol="tcp", time=0
    )
    assert (decision.allowed, decision.reason, decision.near) == (False, "unknown_source", [])


def test_a_protocol_is_one_of_three() -> None:
    with pytest.raises(mtls.MtlsError) as caught:
        mtls.Engine(b"").decide(source="", destination="", port=1, protocol="udp", time=0)  # type: ignore[arg-type]
    assert caught.value.code == "bad_protocol"


@given(st.text(max_size=64))
def test_any_text_is_a_path_or_an_error(target: str) -> None:
    target = target.encode("utf-8", "ignore").decode()
    try:
        segments = mtls.canonical_path("/" + target)
    except mtls.MtlsError:
        return
    assert not {".", ".."} & set(segments)
    assert "" not in segments[:-1]


@given(st.binary(max_size=256))
def test_any_bytes_are_a_table_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(mtls.TableError):
        mtls.Engine(b"\x08\x01\x12\x02td" + raw)
