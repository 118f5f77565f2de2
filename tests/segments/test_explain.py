# SPDX-License-Identifier: Apache-2.0
"""Explanations: true to the engine's decision, and naming the fact that differs."""

import pytest

from firedoor import mtls
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import (
    Asked,
    Document,
    Explanation,
    Question,
    QuestionError,
    compile_table,
    examples,
    explain,
    load,
    nearest_answer,
    parse_action,
    parse_destination,
    table_bytes,
)
from tests.segments.conftest import flow, policy, segment, sid
from tests.segments.generator import TD, Generator

POLICY = policy(
    segment("a"),
    segment("b", mode="audit"),
    segment("c", members=["spiffe://{td}/segment/c/main/**", "spiffe://{td}/shared/x"]),
    segment("d", members=["spiffe://{td}/shared/*"]),
    flow("web", allow=[{"http": {"methods": ["GET", "HEAD"], "paths": ["/m/**"], "authorities": ["b.example"]}}]),
    flow("calls", allow=[{"grpc": {"service": "x.Y", "methods": ["Z"]}}], to={"segment": "b", "port": 50051}),
    flow("soon", to={"segment": "b", "port": 7}, valid={"from": "2030-01-01T00:00:00Z"}),
    flow("past", to={"segment": "b", "port": 8}, valid={"until": "2020-01-01T00:00:00Z"}),
)
ENGINE = mtls.Engine(table_bytes(compile_table(POLICY)))
NOW = 1_767_225_600


def ask(action: str, port: int = 9000, source: str = "/segment/a/x", destination: str = "/segment/b/y") -> Explanation:
    asked = parse_action(action)
    question = Question(sid(source), sid(destination), port, asked, NOW)
    return explain(question, decide(ENGINE, question), POLICY)


def decide(engine: mtls.Engine, question: Question) -> mtls.Decision:
    asked = question.asked
    return engine.decide(
        source=str(question.source),
        destination=str(question.destination),
        port=question.port,
        protocol=asked.protocol,
        authority=asked.authority,
        method=asked.method,
        path=asked.path,
        grpc_service=asked.grpc_service,
        grpc_method=asked.grpc_method,
        time=question.time,
    )


SAID = {
    # name: (explanation, part of it)
    "allowed": (ask("GET b.example/m/x"), "allowed by flow web, owned by ml-platform: tests"),
    "the method differs": (ask("PUT b.example/m/x"), "flow web allows the methods GET, HEAD, not PUT"),
    "the path differs": (ask("GET b.example/x"), "flow web allows the paths /m/**, not /x"),
    "the authority differs": (ask("GET c.example/m/x"), "flow web allows the authorities b.example, not c.example"),
    "no authority": (ask("GET /m/x"), "flow web allows the authorities b.example, not none"),
    "the protocol differs": (ask("tcp"), "flow web allows http there, not tcp"),
    "the service differs": (ask("grpc x.X/Z", 50051), "flow calls allows the service x.Y, not x.X"),
    "the grpc method differs": (ask("grpc x.Y/A", 50051), "flow calls allows the methods Z of x.Y, not A"),
    "the port differs": (ask("tcp", 9), "flow calls leads to port 50051"),
    "too early": (ask("tcp", 7), "flow soon holds from 2030-01-01T00:00:00Z"),
    "too late": (ask("tcp", 8), "flow past holds until 2020-01-01T00:00:00Z"),
    "at this time": (ask("tcp", 8), "but not at 2026-01-01T00:00:00Z"),
    "the other direction": (
        ask("tcp", source="/segment/b/y", destination="/segment/a/x"),
        "denied: no flow leads from segment b to segment a",
    ),
    "where the source may go": (
        ask("tcp", destination="/segment/c/main/x"),
        "flow web leads from this source to segment b",
    ),
    "from where the destination is reached": (
        ask("tcp", source="/segment/c/main/x"),
        "flow web leads to this destination from segment a",
    ),
    "ambiguous": (ask("GET b.example/m/../x"), "could be read in two ways"),
    "an undeclared segment": (
        ask("tcp", source="/segment/z/x"),
        "IDs below /segment/z/ are reserved for segment z, which is not declared",
    ),
    "not a member of its own": (ask("tcp", source="/segment/c/x"), "whose members do not include it"),
    "claimed by two": (ask("tcp", destination="/shared/x"), "segments c, d claim it"),
    "outside": (ask("tcp", destination="/spire/agent/x"), "outside all segments"),
    "matched by nothing": (ask("tcp", destination="/x"), "no segment's members match it"),
    "audit": (ask("tcp"), "the destination's segment b is in audit mode"),
}


@pytest.mark.parametrize("case", SAID)
def test_sentences(case: str) -> None:
    explanation, said = SAID[case]
    assert said in str(explanation)
    assert explanation.allowed == (case == "allowed")
    assert explanation.sentences[0].startswith("allowed by" if case == "allowed" else "denied: ")


def test_audit_is_not_said_of_what_audit_does_not_relax() -> None:
    assert "audit" not in str(ask("tcp", source="/segment/z/x"))
    assert "audit" not in str(ask("GET /m/../x"))


def test_explanations_follow_the_engine() -> None:
    for seed in range(20):
        generator = Generator(seed)
        made = load([Document("random.yaml", generator.text)], TrustDomain.parse(TD))
        engine = mtls.Engine(table_bytes(compile_table(made)))
        for raw in generator.questions(50):
            fields = {
                key: raw[key] for key in ("protocol", "authority", "method", "path", "grpc_service", "grpc_method")
            }
            ends = SpiffeId.parse(raw["source"]), SpiffeId.parse(raw["destination"])
            question = Question(*ends, raw["port"], Asked(**fields), raw["time"])
            decision = decide(engine, question)
            explanation = explain(question, decision, made)
            assert (explanation.allowed, explanation.flow) == (decision.allowed, decision.flow)
            assert all(explanation.sentences)


def test_examples_stand_for_a_segment() -> None:
    made = policy(
        segment("a", members=["spiffe://{td}/segment/a/**", "spiffe://{td}/ns/*/sa/a"]),
        segment("old", members=[], fallback=True, admission={}),
        flow("f", to={"segment": "a", "id": "spiffe://{td}/segment/a/host/*/svc/models", "port": 9000}),
    )
    shown = [str(one).removeprefix("spiffe://td") for one in examples(made, made.segments[0], 9000)]
    assert shown == ["/ns/example/sa/a", "/segment/a/example", "/segment/a/host/example/svc/models"]
    assert len(examples(made, made.segments[0], 9001)) == 2
    assert [one.path for one in examples(made, made.segments[1], 1)] == ["/example"]


def test_the_nearest_answer_is_shown() -> None:
    questions = [
        Question(sid("/segment/a/x"), sid(path), 9000, parse_action("tcp"), NOW) for path in ("/x", "/segment/b/y")
    ]
    answers = [(question, decide(ENGINE, question)) for question in questions]
    assert nearest_answer(answers)[1].reason == "action_not_named"
    assert nearest_answer(reversed(answers))[1].reason == "action_not_named"


ACTIONS = {
    "tcp": Asked("tcp"),
    "GET /x?y=1": Asked("http", method="GET", path="/x?y=1"),
    "PUT registry:9000/x": Asked("http", authority="registry:9000", method="PUT", path="/x"),
    "GET https://registry/x": Asked("http", authority="registry", method="GET", path="/x"),
    "GET //x": Asked("http", method="GET", path="//x"),
    "grpc a.B/C": Asked("grpc", grpc_service="a.B", grpc_method="C"),
    "grpc /a.B/C": Asked("grpc", grpc_service="a.B", grpc_method="C"),
}


@pytest.mark.parametrize("text", ACTIONS)
def test_actions(text: str) -> None:
    assert parse_action(text) == ACTIONS[text]


@pytest.mark.parametrize("text", ["", "GET", "GET x", "udp", "grpc a.B", "grpc /x", "GET /a b"])
def test_what_is_no_action(text: str) -> None:
    with pytest.raises(QuestionError, match="an action is written"):
        parse_action(text)


def test_destinations() -> None:
    assert parse_destination("registry:9000") == ("registry", 9000)
    assert parse_destination("spiffe://td/x:1") == (sid("/x"), 1)


@pytest.mark.parametrize(
    "text", ["", "registry", "registry:", "registry:0", "registry:65536", "Registry:1", "spiffe://td//x:1", ":1"]
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(QuestionError):
        parse_destination(text)
