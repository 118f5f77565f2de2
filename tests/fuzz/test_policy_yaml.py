# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a policy file: a policy comes out or PolicyErrors, and what lint passes the engine takes.

What fails is kept as tests/fuzz/corpus/policy_yaml/found.yaml; give it a name of its own when it is repaired.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.certs import TrustDomain
from firedoor.segments import Document, Finding, PolicyErrors, accept, compile_table, diff, load, table_bytes

CORPUS = Path(__file__).parent / "corpus" / "policy_yaml"
COMPILED = Path(__file__).parents[1] / "vectors" / "policy" / "compiled"
SEEDS = [source.read_text() for source in sorted((*CORPUS.glob("*.yaml"), *COMPILED.glob("*.yaml")))]
TD = TrustDomain.parse("td")
# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(200, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 100)

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def check(text: str) -> None:
    try:
        _check([Document("fuzz.yaml", text)])
    except BaseException:
        CORPUS.mkdir(parents=True, exist_ok=True)
        (CORPUS / "found.yaml").write_text(text, errors="surrogatepass")
        raise


def _check(documents: list[Document]) -> None:
    findings: tuple[Finding, ...] = ()
    try:
        diff([], documents)
        load(documents, TD)
        policy, _ = accept(documents, TD)
    except PolicyErrors as errors:
        findings = errors.findings
    if not findings:
        mtls.Engine(table_bytes(compile_table(policy)))
    assert all(finding.code and finding.message and finding.fix for finding in findings)
    assert all("\n" not in str(finding) for finding in findings)


@pytest.mark.parametrize("seed", SEEDS)
def test_corpus(seed: str) -> None:
    check(seed)


@fuzz
@given(st.text(st.characters(exclude_categories=())))
def test_any_text(text: str) -> None:
    check(text)


@fuzz
@given(st.sampled_from(SEEDS), st.data())
def test_a_policy_with_pieces_cut_and_pasted(seed: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        at, end, source = (data.draw(st.integers(0, len(seed))) for _ in range(3))
        snippet = data.draw(
            st.one_of(st.just(seed[source : source + 12]), st.text(max_size=4), st.sampled_from(PIECES))
        )
        seed = seed[:at] + snippet + seed[max(at, min(end, at + 6)) :]
    check(seed)


PIECES = ("{td}", "*", "**", "&a ", "*a", "<<: ", "!!str ", "? ", "- ", "---\n", "|\n", '"', "'", "\t", "%", "~", "0x1")
VOCABULARY = """
apiVersion firedoor.dev/v1alpha1 kind Segment Flow metadata name spec function trust high vlan mode audit members
admission entry node mint fallback audit_loss deny expiry close until-revoked 12h owner reason from to segment id port
volumes read-only allow tcp http grpc methods paths authorities service valid until GET a b /x /** a.B spiffe://{td}/segment/a/**
spiffe://{td}/segment/b/x spiffe://td/** unix:user:a 2026-01-01T00:00:00Z ::1
"""
WORDS = tuple(VOCABULARY.split())
leaves = st.one_of(st.sampled_from(WORDS), st.none(), st.booleans(), st.integers(-1, 70000), st.text(max_size=3))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
)


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


@fuzz
@given(st.sampled_from(SEEDS), st.data())
def test_a_policy_with_a_part_replaced(seed: str, data: st.DataObject) -> None:
    documents = json.loads(json.dumps(list(yaml.safe_load_all(seed)), default=str))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_places(documents)))
        if path:
            holder: Any = documents
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = data.draw(trees)
    check(yaml.safe_dump_all(documents, allow_unicode=data.draw(st.booleans())))
