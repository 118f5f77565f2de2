# SPDX-License-Identifier: Apache-2.0
"""The engine on the compiled table, `firedoor explain`, and a second opinion that reads the YAML agree 10,000 times."""

import json
from collections import Counter
from typing import Any

import pytest

from firedoor import mtls
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.cli.commands import explain
from firedoor.cli.main import main
from firedoor.segments import Asked, Document, PolicySet, QuestionError, compile_table, load, parse_action, table_bytes
from tests.segments.evaluator import Evaluator
from tests.segments.generator import TD, Generator

POLICIES = 100
QUESTIONS = 100
REASONS = {"no_flow", "unknown_source", "unknown_destination", "port_not_named", "action_not_named", "out_of_time"}


def random_policy(seed: int) -> tuple[Generator, PolicySet]:
    generator = Generator(seed)
    return generator, load([Document("random.yaml", generator.text)], TrustDomain.parse(TD))


def test_engine_and_second_opinion_agree() -> None:
    answers: Counter[str] = Counter()
    for seed in range(POLICIES):
        generator, policy = random_policy(seed)
        engine, opinion = mtls.Engine(table_bytes(compile_table(policy))), Evaluator(generator.text, TD)
        for question in generator.questions(QUESTIONS):
            decision, flow = engine.decide(**question), opinion.allowing_flow(question)
            shown = f"seed {seed}: {question}\n{decision}\n{generator.text}"
            assert (decision.allowed, decision.flow) == (flow is not None, flow), shown
            for end, found in (("source", decision.source_segment), ("destination", decision.destination_segment)):
                segment = policy.segment_of(SpiffeId.parse(question[end]))
                assert found == opinion.segment_of(question[end]), shown
                assert found == (segment and segment.name), shown
            answers[decision.reason] += 1
    assert sum(answers.values()) == POLICIES * QUESTIONS == 10_000
    assert answers["allowed"] >= 3_000, answers
    # Every way to be denied is among them.
    assert REASONS | {"allowed", "bad_request"} == set(answers), answers
    assert min(answers.values()) >= 50, answers


def typed(question: dict[str, Any]) -> str | None:
    """The action as a person types it; None for what cannot be typed, such as a target in absolute form."""
    fields = ("protocol", "authority", "method", "path", "grpc_service", "grpc_method")
    asked = Asked(**{key: question[key] for key in fields})
    relevant = {"tcp": ("protocol",), "http": fields[:4], "grpc": ("protocol", *fields[4:])}[asked.protocol]
    try:
        parsed = parse_action(str(asked))
    except QuestionError:
        return None
    return str(asked) if all(getattr(parsed, key) == question[key] for key in relevant) else None


def test_explain_and_second_opinion_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = allowed = 0
    for seed in range(POLICIES):
        generator, policy = random_policy(seed)
        opinion = Evaluator(generator.text, TD)
        # Read once a policy, not once a question.
        monkeypatch.setattr(explain, "_local", lambda *_, policy=policy: policy)
        fitting = ((question, typed(question)) for question in generator.questions(QUESTIONS + 40))
        for question, action in [pair for pair in fitting if pair[1] is not None][:QUESTIONS]:
            words = ["explain", "--segments", "-", "--from", question["source"], "--action", str(action)]
            words += ["--to", f"{question['destination']}:{question['port']}", "--at", str(question["time"])]
            code = main([*words, "--output", "json"])
            answer = json.loads(capsys.readouterr().out)
            flow = opinion.allowing_flow(question)
            assert (answer["allowed"], answer["flow"], code) == (flow is not None, flow, int(flow is None)), question
            asked, allowed = asked + 1, allowed + (flow is not None)
    assert asked == POLICIES * QUESTIONS
    assert allowed >= 3_000
