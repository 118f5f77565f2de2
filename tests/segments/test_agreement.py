# SPDX-License-Identifier: Apache-2.0
"""The engine on the compiled table, and a second opinion that reads the YAML, answer 10,000 questions alike."""

from collections import Counter

from firedoor import mtls
from firedoor.certs import SpiffeId, TrustDomain
from firedoor.segments import Document, compile_table, load, table_bytes
from tests.segments.evaluator import Evaluator
from tests.segments.generator import TD, Generator

POLICIES = 100
QUESTIONS = 100


def test_engine_and_second_opinion_agree() -> None:
    answers: Counter[str] = Counter()
    for seed in range(POLICIES):
        generator = Generator(seed)
        policy = load([Document("random.yaml", generator.text)], TrustDomain.parse(TD))
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
    assert sum(answers.values()) == 10_000
    assert answers["allowed"] >= 3_000, answers
    # Every way to be denied is among them.
    rest = {"no_flow", "unknown_source", "unknown_destination", "port_not_named", "action_not_named", "out_of_time"}
    assert rest | {"allowed", "bad_request"} == set(answers), answers
    assert min(answers.values()) >= 50, answers
