# SPDX-License-Identifier: Apache-2.0
"""A sidecar's view answers for its own IDs as the whole table does, and holds no more than it must."""

import random

from firedoor import mtls
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import Document, Views, compile_table, load, table_bytes, view
from tests.segments.conftest import flow, policy, segment, sid
from tests.segments.generator import TD, Generator

TABLE = compile_table(
    policy(
        segment("a"),
        segment("b"),
        segment("c", mode="audit"),
        flow("ab"),
        flow("bc", source={"segment": "b"}, to={"segment": "c", "port": 1}),
        flow("ca", source={"segment": "c"}, to={"segment": "a", "port": 1}),
        flow("ids", source={"id": "spiffe://{td}/segment/a/x"}, to={"id": "spiffe://{td}/segment/b/*", "port": 2}),
    )
)


def names(segments: set[str], *ids: str) -> list[str]:
    return [flow.name for flow in view(TABLE, segments, [sid(one) for one in ids]).flows]


def test_flows_with_an_end_in_the_segments() -> None:
    assert names({"a"}) == ["ab", "ca"]
    assert names({"b"}) == ["ab", "bc"]
    assert names({"a", "b"}) == ["ab", "bc", "ca"]
    assert names(set()) == []


def test_flows_that_name_an_id() -> None:
    assert names({"a"}, "/segment/a/x") == ["ab", "ca", "ids"]
    assert names({"a"}, "/segment/a/y") == ["ab", "ca"]
    assert names({"b"}, "/segment/b/y") == ["ab", "bc", "ids"]
    assert names({"b"}, "/segment/b/y/z") == ["ab", "bc"]


def test_every_segment_is_in_every_view() -> None:
    for segments in (set[str](), {"a"}, {"nobody"}):
        assert list(view(TABLE, segments, []).segments) == list(TABLE.segments)


def test_sidecars_with_the_same_flows_share_a_view() -> None:
    views = Views(TABLE)
    assert views.view({"a"}, [sid("/segment/a/y")]) is views.view({"a"}, [sid("/segment/a/z")])
    assert views.view({"a"}, []) is not views.view({"b"}, [])


def test_a_view_answers_for_its_ids_as_the_whole_table_does() -> None:
    pick = random.Random(7)
    for seed in range(20):
        generator = Generator(seed)
        made = load([Document("random.yaml", generator.text)], TrustDomain.parse(TD))
        table = compile_table(made)
        views, whole = Views(table), mtls.Engine(table_bytes(table))
        for question in generator.questions(50):
            spiffe_id = SpiffeId.parse(question[pick.choice(("source", "destination"))])
            own = made.segment_of(spiffe_id)
            part = views.view({own.name} if own else set(), [spiffe_id])
            one, other = mtls.Engine(table_bytes(part)).decide(**question), whole.decide(**question)
            assert (one.allowed, one.flow, one.reason) == (other.allowed, other.flow, other.reason), question
