# SPDX-License-Identifier: Apache-2.0
"""Which flows reach a listener, and the sentence when none does."""

import pytest

from firedoor.segments import Protocol, compile_table, flows_for_listener
from tests.segments.conftest import flow, policy, segment, sid

POLICY = policy(
    segment("a"),
    segment("b"),
    flow("any", allow=[{"tcp": {}}, {"grpc": {"service": "x.Y"}}]),
    flow("web", allow=[{"http": {}}]),
    flow("one", to={"segment": "b", "id": "spiffe://{td}/segment/b/one", "port": 9001}, allow=[{"http": {}}]),
    flow("other", to={"id": "spiffe://{td}/segment/a/*", "port": 9002}, allow=[{"http": {}}]),
)
CASES: dict[str, tuple[str, int, Protocol, tuple[str, ...], str | None]] = {
    "a flow with its protocol": ("/segment/b/x", 9000, "tcp", ("any",), None),
    "another protocol of the same flow": ("/segment/b/x", 9000, "grpc", ("any",), None),
    "another flow": ("/segment/b/x", 9000, "http", ("web",), None),
    "only http flows": ("/segment/b/one", 9001, "tcp", (), "listener is tcp, but the flows"),
    "another ID of the segment": ("/segment/b/two", 9001, "http", (), "no flow leads to"),
    "the ID that is named": ("/segment/b/one", 9001, "http", ("one",), None),
    "named by a pattern alone": ("/segment/a/x", 9002, "http", ("other",), None),
    "another port": ("/segment/b/x", 9003, "http", (), "no flow leads to"),
    "no segment": ("/x", 9000, "http", (), "no flow leads to"),
}


@pytest.mark.parametrize("case", CASES)
def test_flows_for_listener(case: str) -> None:
    path, port, protocol, usable, said = CASES[case]
    found = flows_for_listener(POLICY, sid(path), port, protocol)
    assert found == flows_for_listener(compile_table(POLICY), sid(path), port, protocol)
    assert found.usable == usable
    problem = found.problem(sid(path), port, protocol)
    assert (problem is None) == (said is None)
    assert said is None or said in (problem or "")


def test_the_sentence_names_what_the_flows_allow() -> None:
    found = flows_for_listener(POLICY, sid("/segment/b/one"), 9001, "tcp")
    assert "one (http)" in (found.problem(sid("/segment/b/one"), 9001, "tcp") or "")
