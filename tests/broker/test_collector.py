# SPDX-License-Identifier: Apache-2.0
"""While a policy is compiled nobody waits for the garbage collector, and nothing is kept that is not needed."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from firedoor.broker.collector import Collector
from firedoor.broker.policy import Compiled, compile_documents
from firedoor.broker.views import Shared, Viewer
from firedoor.certs import TrustDomain
from firedoor.segments import Document, Loader, PolicyErrors
from tests.broker.harness import POLICY, TD, RunningBroker
from tests.waiting import async_until

# In a process of its own: how often everything is walked through goes by how much there is.
COUNTS = """
import contextlib, gc, sys
from firedoor.broker import collector, policy
from firedoor.certs import TrustDomain
from firedoor.segments import Document, Loader

head = '''apiVersion: firedoor.dev/v1alpha1
kind: %s
metadata: {name: %s}
'''
segment = head + '''spec: {function: f, trust: low, mode: enforce, members: ["spiffe://{td}/segment/%s/**"],
  admission: {entry: ["unix:uid:1"]}}
---
'''
flow = head + '''spec: {owner: o, reason: r, from: {segment: a}, to: {segment: b, port: 1},
  allow: [{http: {methods: [GET], paths: ["/%s/**"]}}]}
---
'''
text = "".join(segment % ("Segment", name, name) for name in "ab")
text += "".join(flow % ("Flow", f"f{number}", number) for number in range(1500))
full, asked, collect = [], [], gc.collect

def collect_as_asked():
    asked.append(0)
    found = collect()
    asked.pop()
    return found

gc.collect = collect_as_asked
gc.callbacks.append(lambda phase, info: full.append(0) if info["generation"] == 2 and not asked else None)
collector.settle()
if sys.argv[1] == "unguarded":
    policy.collector.quiet = contextlib.nullcontext
full.clear()
compiled = policy.compile_documents((Document("a.yaml", text),), Loader(TrustDomain.parse("example.org")))
print(len(full), len(compiled.table.flows))
"""


def counted(how: str) -> list[int]:
    """Return whether full collections began by themselves while flows were compiled, and how many flows there were."""
    done = subprocess.run([sys.executable, "-c", COUNTS, how], check=True, capture_output=True, text=True, timeout=300)
    return [int(word) for word in done.stdout.split()]


def test_no_full_collection_begins_while_a_policy_is_compiled() -> None:
    assert counted("guarded") == [0, 1500]


def test_without_it_they_do() -> None:
    """The twin: a collector that has changed, or a policy that needs no objects, would make the first one worthless."""
    full, flows = counted("unguarded")
    assert full > 0
    assert flows == 1500


def test_what_was_set_before_comes_back_with_the_last_of_several_threads() -> None:
    collector, before = Collector(), gc.get_threshold()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collector.quiet():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with collector.quiet():
        thread.start()
        assert entered.wait(60)
        assert gc.get_threshold() == (*before[:2], 1_000_000_000)
    assert gc.get_threshold() != before
    leave.set()
    thread.join(60)
    assert gc.get_threshold() == before


def test_a_policy_with_errors_leaves_nothing_behind() -> None:
    before = gc.get_threshold()
    with pytest.raises(PolicyErrors):
        compiled("kind: Nothing\n")
    assert gc.get_threshold() == before


def compiled(text: str) -> Compiled:
    return compile_documents((Document("a.yaml", text),), Loader(TrustDomain.parse(TD)))


def test_a_policy_is_freed_with_the_last_reference() -> None:
    """The collector does not look at it again: a cycle in it would be kept for as long as the broker runs."""
    found = compiled(POLICY)
    viewer = Viewer(TrustDomain.parse(TD), Shared.of({}, found, (), None, {}))
    gone = [weakref.ref(one) for one in (found, found.policy, found.views, found.directory, viewer)]
    gc.collect()
    gc.disable()
    try:
        del found, viewer
        assert [one() for one in gone] == [None] * len(gone)
    finally:
        gc.enable()


async def test_a_policy_that_is_replaced_is_freed(broker: RunningBroker) -> None:
    policy = broker.broker.policy
    before = weakref.ref(policy.current)
    gc.collect()
    gc.disable()
    try:
        written = broker.folder / "policy" / "new"
        written.write_text(POLICY.replace("/models/**", "/other/**"))
        written.rename(broker.folder / "policy" / "segments.yaml")
        await async_until(lambda: before() is None)
    finally:
        gc.enable()
