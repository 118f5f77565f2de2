# SPDX-License-Identifier: Apache-2.0
"""10,000 questions through real sockets and parsers: what comes of each is what `explain` and the YAML say.

FIREDOOR_QUESTIONS says how many (10000), FIREDOOR_SEED with which policies; the seed that was used is printed.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from firedoor.cli.commands import explain
from firedoor.cli.main import main
from tests.mtls.proxy.agreement.compare import Policy
from tests.mtls.proxy.agreement.questions import Asked, Asker
from tests.mtls.proxy.agreement.stage import Stage
from tests.segments.test_agreement import typed

QUESTIONS = int(os.environ.get("FIREDOOR_QUESTIONS", "10000"))
SEED = int(os.environ.get("FIREDOOR_SEED") or random.SystemRandom().randrange(1 << 32))
# Of each policy; a question about opaque TCP takes a connection of its own.
LINKS, OVER_TCP, OVER_OTHERS = 12, 3, 12
# Of everything that can be asked and come of it there is some.
KINDS = ("tcp", "http/1", "http/2", "grpc", "straight", "both", "allowed", "audit", "400", "403")


@pytest.fixture
def stage(sockets: Path) -> Iterator[Stage]:
    made = Stage(sockets)
    yield made
    made.close()


@pytest.mark.timeout(600)
def test_real_listeners_explain_and_second_opinion_agree(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{QUESTIONS} questions with FIREDOOR_SEED={SEED}")

    def explained(asked: Asked) -> tuple[str | None, str] | None:
        q = asked.question
        action = typed(q)
        if action is None:
            return None
        words = ["explain", "--segments", "-", "--from", q["source"], "--action", action, "--output", "json"]
        main([*words, "--to", f"{q['destination']}:{q['port']}", "--at", str(q["time"])])
        answer = json.loads(capsys.readouterr().out)
        return answer["flow"], answer["reason"]

    seeds, seen = random.Random(SEED), Counter[str]()
    while seen["questions"] < QUESTIONS:
        asker = Asker(seeds.randrange(1 << 32), stage.at)
        links = list(asker.links(LINKS))
        policy = stage.publish(asker.text, [link for link, _ in links])
        # Read once a policy, not once a question.
        monkeypatch.setattr(explain, "_local", lambda *_, policy=policy: policy)
        under = Policy(asker, stage, explained, seen)
        try:
            for link, flow in links:
                under.ask(link, list(asker.asked_over(link, flow, OVER_TCP if link.protocol == "tcp" else OVER_OTHERS)))
            under.finish()
        except AssertionError as error:
            # Where tests run in several processes, what they print is not seen.
            error.add_note(f"FIREDOOR_SEED={SEED}")
            raise
    with capsys.disabled():
        print(dict(seen))
    for kind in KINDS:
        assert seen[kind] >= QUESTIONS // 100, seen
