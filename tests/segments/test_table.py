# SPDX-License-Identifier: Apache-2.0
"""The compiled table: golden files, determinism, and what the engine makes of it."""

import json
import random
from pathlib import Path

import pytest
from google.protobuf import json_format

from firedoor import mtls
from firedoor.segments import Document, TableError, compile_table, load, read_table, table_bytes, table_hash
from firedoor.wire import policy_pb2
from tests.segments.conftest import TD, flow, policy, segment, text
from tests.vectors import make_compiled

GOLDEN = sorted(make_compiled.FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("source", GOLDEN, ids=lambda source: source.stem)
def test_golden(source: Path) -> None:
    """Changed on purpose? Run `python tests/vectors/generate.py compiled` and read the difference."""
    expected = json.loads(source.with_suffix(".json").read_text())
    assert make_compiled.compiled(source) == expected
    table = json_format.ParseDict(expected["table"], policy_pb2.Table())
    assert table_bytes(table).hex() == expected["bytes"]


@pytest.mark.parametrize("source", GOLDEN, ids=lambda source: source.stem)
def test_the_engine_takes_golden_tables(source: Path) -> None:
    data = bytes.fromhex(json.loads(source.with_suffix(".json").read_text())["bytes"])
    mtls.Engine(data)
    assert table_bytes(read_table(data)) == data


def test_cutting_into_files_and_order_change_nothing() -> None:
    parts = [segment("a", members=[f"spiffe://{{td}}/{x}" for x in "cab"]), segment("b"), flow("g"), flow("f")]
    expected = table_hash(compile_table(policy(*parts)))
    shuffle = random.Random(1)
    for _ in range(10):
        shuffle.shuffle(parts)
        shuffle.shuffle(next(part for part in parts if part["metadata"]["name"] == "a")["spec"]["members"])
        files = [Document(f"{number}.yaml", text(part)) for number, part in enumerate(parts)]
        assert table_hash(compile_table(load(files, TD))) == expected


def test_the_hash_tells_policies_apart() -> None:
    one = table_hash(compile_table(policy(segment("a"), flow("f"))))
    assert one != table_hash(compile_table(policy(segment("a"), flow("f", reason="another"))))
    assert one == table_hash(compile_table(policy(segment("a", admission={"node": ["x:y"]}), flow("f"))))


def test_actions_that_are_the_same_but_for_order_stand_once() -> None:
    http = [{"http": {"methods": ["GET", "PUT"]}}, {"http": {"methods": ["PUT", "GET"]}}]
    assert len(compile_table(policy(flow("f", allow=http))).flows[0].allow) == 1


def test_damaged_tables_are_refused() -> None:
    with pytest.raises(TableError, match="damaged"):
        read_table(b"\xff\xff\xff")
    with pytest.raises(TableError, match="version 2"):
        read_table(policy_pb2.Table(version=2).SerializeToString())
    assert not read_table(b"").flows
