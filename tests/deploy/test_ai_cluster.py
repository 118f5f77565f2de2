# SPDX-License-Identifier: Apache-2.0
"""The starter policy lints clean, and the engine that the sidecars run answers as the table beside this file says."""

from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.certs import Selector, SpiffeId, TrustDomain
from firedoor.mtls import Decision, Engine
from firedoor.segments import (
    Admission,
    AdmissionRefused,
    Document,
    PolicySet,
    check_admission,
    compile_table,
    lint,
    load,
    parse_action,
    table_bytes,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/segments/ai-cluster"
TABLE: dict[str, Any] = next(iter(yaml.safe_load_all((Path(__file__).parent / "ai_cluster.yaml").read_text())))
SERVICES: dict[str, str] = TABLE["services"]
ROWS: list[tuple[str, str, str, str]] = [tuple(row) for row in TABLE["rows"]]
NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
REASONS = {"no_flow", "port_not_named", "action_not_named", "out_of_time", "unknown_source", "bad_request"}
WRITES = ("PUT", "POST", "PATCH", "DELETE", "MKCOL", "COPY", "MOVE")


def policy(domain: str = "example.org") -> PolicySet:
    documents = [Document(path.name, path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))]
    return load(documents, TrustDomain.parse(domain))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(table_bytes(compile_table(policy())))


def ask(engine: Engine, source: str, to: str, action: str, at: int = NOW) -> Decision:
    destination, _, port = to.partition(":")
    asked = parse_action(action)
    return engine.decide(
        source=SERVICES[source],
        destination=SERVICES[destination],
        port=int(port),
        protocol=asked.protocol,
        authority=asked.authority,
        method=asked.method,
        path=asked.path,
        grpc_service=asked.grpc_service,
        grpc_method=asked.grpc_method,
        time=at,
    )


@pytest.mark.parametrize("domain", ["example.org", "corp.test"])
def test_it_lints_clean(domain: str) -> None:
    assert lint(policy(domain)) == []


@pytest.mark.parametrize(("source", "to", "action", "answer"), ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_the_engine_answers_as_the_table_says(engine: Engine, source: str, to: str, action: str, answer: str) -> None:
    decision = ask(engine, source, to, action)
    assert (decision.flow or decision.reason) == answer
    assert decision.allowed == (answer not in REASONS)


def test_the_table_uses_every_flow_that_is_open() -> None:
    flows = {flow.name for flow in policy().flows}
    assert flows == {row[3] for row in ROWS} - REASONS


def test_no_other_cell_of_the_matrix_is_open(engine: Engine) -> None:
    """Every service to every other at every port that the table names, with every action that it names."""
    ports = {row[1].partition(":")[2] for row in ROWS}
    actions = {row[2] for row in ROWS} | {f"{verb} /models/x" for verb in WRITES}
    open_cells = {
        (source, to)
        for source, to, port in product(SERVICES, SERVICES, ports)
        if any(ask(engine, source, f"{to}:{port}", action).allowed for action in actions)
    }
    named = {(row[0], row[1].partition(":")[0]) for row in ROWS if row[3] not in REASONS}
    # The rows of jobs, readiness and repairs hold for all of management, which three services of the table stand for.
    management = {"orchestrator", "promotion", "collector"}
    named |= {(source, one) for source in ("training", "emergency") for one in management}
    named |= {(one, "inference") for one in management}
    assert open_cells == named
    assert not any(to == "training" for _, to in open_cells)


@pytest.mark.parametrize("verb", WRITES)
@pytest.mark.parametrize("to", ["registry:9000", "registry:9001", "storage:9000"])
def test_inference_never_writes(engine: Engine, verb: str, to: str) -> None:
    for path in ("/models/a/b", "/documents/a", "/datasets/a", "/checkpoints/a", "/"):
        assert not ask(engine, "inference", to, f"{verb} {path}").allowed


def test_nobody_gets_into_emergency_alone() -> None:
    segment = policy().segment("emergency")
    assert segment is not None
    assert segment.admission == Admission(breakglass=True)


def test_vlan_numbers_are_those_of_the_plan() -> None:
    assert {s.name: s.vlan for s in policy().segments if s.vlan} == {
        "training": 100,
        "inference": 200,
        "storage": 300,
        "management": 400,
        "emergency": 500,
    }


@pytest.mark.parametrize("name", [s.name for s in policy().segments if not s.admission.breakglass])
def test_a_node_of_another_segment_is_not_admitted(name: str) -> None:
    spiffe_id = SpiffeId.parse(f"spiffe://example.org/segment/{name}/host/h/svc/s")
    entry = frozenset({Selector.parse(f"unix:user:{name}")})

    def node(alias: str) -> frozenset[Selector]:
        return frozenset({Selector.parse(f"spire_agent:alias:spiffe://example.org/node/{alias}")})

    assert check_admission(policy(), spiffe_id, entry=entry, node=node(name)).segment.name == name
    with pytest.raises(AdmissionRefused):
        check_admission(policy(), spiffe_id, entry=entry, node=node("other"))
