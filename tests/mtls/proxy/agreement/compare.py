# SPDX-License-Identifier: Apache-2.0
"""Asking questions over links and comparing all that is seen of them with what the policy's text says."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.mtls.proxy.agreement.asking import CLOSED, ENDED, Answer, over_http1, over_http2
from tests.mtls.proxy.agreement.questions import Asked, Asker, Link, Verdict, as_sent
from tests.mtls.proxy.agreement.stage import UNREAD, Stage
from tests.mtls.proxy.datapath import asks

# How gRPC says what HTTP says by a status.
GRPC_STATUS = {200: 0, 400: 3, 403: 7}
# What `firedoor explain` says of a question that can be typed: the flow or None, and the reason.
Explain = Callable[[Asked], tuple[str | None, str] | None]
Record = tuple[str, ...]


class Policy:
    """One policy in force, what has been asked under it and what must have come of it."""

    def __init__(self, asker: Asker, stage: Stage, explain: Explain, seen: Counter[str]) -> None:
        self.asker, self.stage, self.explain, self.seen = asker, stage, explain, seen
        self.sure: Counter[Record] = Counter()
        self.perhaps: Counter[Record] = Counter()
        self.links: dict[str, Link] = {}
        self.reached: Counter[tuple[str, ...]] = Counter()

    def ask(self, link: Link, questions: Sequence[Asked]) -> None:
        """Ask over a new pair of listeners; compare each answer, and remember what else must be seen."""
        with self.stage.listeners(link) as (name, address):
            self.links[name] = link
            answers = self._answers(link, address, questions)
        assert len(answers) == len(questions)
        for asked, answer in zip(questions, answers, strict=True):
            self._compare(link, name, asked, answer)
        kind = f"http/{1 + link.http2}" if link.protocol == "http" else link.protocol
        self.seen.update({kind: len(questions), "straight" if link.straight else "both": len(questions)})

    def _answers(self, link: Link, address: str, questions: Sequence[Asked]) -> list[Answer]:
        connect = functools.partial(self.stage.connect, link, address)
        if link.protocol != "tcp":
            return (over_http2 if link.http2 else over_http1)(connect, questions)
        answers = []
        for _ in questions:
            answer = CLOSED
            with contextlib.suppress(*ENDED), contextlib.closing(connect()) as opened:
                answer = Answer(200) if asks(opened) == b"ping" else CLOSED
            answers.append(answer)
        return answers

    def _compare(self, link: Link, name: str, asked: Asked, answer: Answer) -> None:
        ends = ["inbound"] if link.straight else ["outbound", "inbound"]
        verdicts: list[Verdict] = []
        for end in ends:
            verdicts.append(self._explained(link, asked, end))
            if not verdicts[-1].passes:
                break
        last = verdicts[-1]
        shown = f"{link}\n{asked}\nexpected {verdicts}\nanswered {answer}\n{self.asker.text}"
        assert _told(link, asked, answer, last), shown
        self.seen.update(("questions", last.decision if last.passes else str(last.status)))
        if link.http2 and not asked.plain and answer == CLOSED:
            # The parser has ended the stream, as RFC 9113 section 8.1.1 wants it; there was no request.
            self.seen["unread"] += 1
            return
        for end, verdict in zip(ends, verdicts, strict=False):
            self.sure[record(name, end, verdict, asked)] += 1
        if link.protocol != "tcp" and last.passes:
            sent = as_sent(asked)
            self.reached[link.protocol, *sent] += 1
            assert answer.target == sent[1], shown
        elif link.protocol == "tcp" and len(verdicts) < len(ends) and not self.asker.foreseen(link):
            # The outbound end has connected to know who the peer is; the inbound one has decided too, if it got so far.
            verdict = self._explained(link, asked, "inbound")
            self.perhaps[record(name, "inbound", verdict, asked)] += 1
            self.perhaps[name, "inbound", "denied", "handshake_closed", ""] += 1

    def _explained(self, link: Link, asked: Asked, end: str) -> Verdict:
        """Hold the second opinion against `explain`, which knows the reason too."""
        verdict = self.asker.verdict(link, asked, end)
        told = self.explain(asked) if verdict.status != 400 and not asked.trap else None
        if told is None:
            return verdict
        flow, reason = told
        assert (flow or "") == verdict.flow, f"{asked}\n{verdict}\n{told}\n{self.asker.text}"
        if end == "outbound" and verdict.decision == "denied" and reason != "unknown_source":
            reason = self.asker.foreseen(link) or reason
        return replace(verdict, reason=reason)

    def finish(self) -> None:
        """Compare the records of both ends, and what the apps have seen."""
        records = self.stage.records()
        more, less = records - self.sure, self.sure - records
        assert not less, f"not recorded: {less}\nbut: {more}\n{self.links}\n{self.asker.text}"
        assert more <= self.perhaps, f"recorded besides: {more - self.perhaps}\n{self.asker.text}"
        reached = Counter((kind, *asked) for kind, app in self.stage.reached.items() for asked in app.take())
        assert reached == self.reached, f"{reached - self.reached} more, {self.reached - reached} less"


def record(listener: str, end: str, verdict: Verdict, asked: Asked) -> Record:
    """Write what is counted of a record."""
    found = (listener, end, verdict.decision, verdict.reason, verdict.flow)
    if verdict.reason in UNREAD:
        return found
    method, target, _ = as_sent(asked) if asked.question["protocol"] != "tcp" else ("", "", "")
    return (*found, method, target.partition("?")[0])


def _told(link: Link, asked: Asked, answer: Answer, verdict: Verdict) -> bool:
    """Say whether the client was told what the last end that was asked must say."""
    if link.protocol == "tcp":
        return answer.status == (200 if verdict.passes else 0)
    if link.protocol == "grpc":
        return (answer.status, answer.grpc) == (200, GRPC_STATUS[verdict.status])
    unreadable = link.http2 and not asked.plain
    return answer.status == verdict.status or (unreadable and answer == CLOSED)
