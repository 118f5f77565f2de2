# SPDX-License-Identifier: Apache-2.0
"""Segments, flows and services as custom resources: the API server takes what the parser takes, and says why not."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from firedoor.broker.kubernetes.identity_resource import identity_definition
from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicyErrors, accept, load
from firedoor.segments.resources import definitions
from tests.kubernetes.api import ApiError
from tests.kubernetes.cluster import Cluster
from tests.waiting import until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TD = TrustDomain.parse("example.org")
GROUP = "/apis/firedoor.dev/v1alpha1"
PLURALS = {"Segment": "segments", "Flow": "flows", "Service": "services"}
Resource = dict[str, Any]


@pytest.fixture(scope="session")
def resources(cluster: Cluster) -> Cluster:
    """A cluster that knows the resources."""
    folder = ROOT / "deploy/kubernetes/crds"
    applied = cluster.kubectl("apply", "--server-side", "--filename", str(folder))
    assert applied.code == 0, applied
    until(lambda: _served(cluster), "the resources are served")
    return cluster


def _served(cluster: Cluster) -> bool:
    for plural in PLURALS.values():
        try:
            cluster.api().get(f"{GROUP}/{plural}")
        except ApiError:
            return False
    return True


def as_resource(document: Resource) -> Resource:
    """Write a document of a file in the narrower form of resources."""
    made = copy.deepcopy(document)
    for end in (made["spec"].get("from"), made["spec"].get("to")):
        if end and isinstance(end.get("id"), str):
            end["id"] = [end["id"]]
    if made["spec"].get("expiry") == "close":
        del made["spec"]["expiry"]
    return made


def offered(cluster: Cluster, resource: Resource) -> Resource:
    """Ask the API server to check a resource and store nothing."""
    # Times as a client sends them.
    body = json.loads(json.dumps(resource, default=lambda time: time.isoformat()))
    return cluster.api().post(f"{GROUP}/{PLURALS[resource['kind']]}?dryRun=All&fieldValidation=Strict", body)


def documented() -> list[Resource]:
    """Every example of the documents and of the starter policy."""
    found = []
    for name in ("policy", "kubernetes"):
        text = (ROOT / f"docs/{name}.md").read_text()
        found += re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found += [path.read_text() for path in sorted((ROOT / "deploy/segments/ai-cluster").glob("*.yaml"))]
    return [one for text in found for one in yaml.load_all(text, Loader=yaml.BaseLoader) if one.get("kind") in PLURALS]


def typed(value: Any) -> Any:
    """Give numbers and truth values the types that JSON has for them; texts stay as they are written."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    return {"true": True, "false": False}.get(value, int(value) if value.isdecimal() else value)


def test_every_documented_example_is_taken(resources: Cluster) -> None:
    examples = [as_resource(typed(one)) for one in documented()]
    assert len(examples) > 20
    for one in examples:
        offered(resources, one)
        load([Document("x.yaml", json.dumps(one))], TD)


SEGMENT: Resource = {
    "apiVersion": "firedoor.dev/v1alpha1",
    "kind": "Segment",
    "metadata": {"name": "inference"},
    "spec": {
        "members": ["spiffe://{td}/segment/inference/**"],
        "admission": {"node": ["k8s_pod:cluster:prod", "k8s_pod:ns:inference"]},
    },
}
FLOW: Resource = {
    "apiVersion": "firedoor.dev/v1alpha1",
    "kind": "Flow",
    "metadata": {"name": "talks"},
    "spec": {
        "owner": "ml-platform",
        "reason": "replicas",
        "from": {"segment": "inference"},
        "to": {"segment": "inference", "port": 9000},
        "allow": [{"tcp": {}}],
    },
}
SERVICE: Resource = {
    "apiVersion": "firedoor.dev/v1alpha1",
    "kind": "Service",
    "metadata": {"name": "models"},
    "spec": {"addresses": ["10.20.0.5"], "ports": [{"port": 9000, "expect": ["spiffe://{td}/segment/inference/**"]}]},
}


def put(base: Resource, path: str, value: Any) -> Resource:
    """Return a resource with one field changed; None removes it."""
    made = copy.deepcopy(base)
    where, steps = made, path.split(".")
    for step in steps[:-1]:
        where = where[int(step)] if step.isdecimal() else where[step]
    if value is None:
        del where[steps[-1]]
    else:
        where[int(steps[-1]) if steps[-1].isdecimal() else steps[-1]] = value
    return made


# What a person gets to read. Lint says the same of files, in its own words.
REFUSED: dict[str, tuple[Resource, str]] = {
    "address": (put(SEGMENT, "spec.members", ["10.0.0.0/8"]), "an address proves nothing and cannot be named"),
    "partial wildcard": (
        put(SEGMENT, "spec.members", ["spiffe://{td}/db-*"]),
        "is one whole path segment, \\*\\* the rest",
    ),
    "rest not last": (put(SEGMENT, "spec.members", ["spiffe://{td}/**/x"]), "\\*\\* the rest"),
    "trust": (put(SEGMENT, "spec.trust", "highest"), 'supported values: "low", "medium", "high"'),
    "vlan": (put(SEGMENT, "spec.vlan", 5000), "should be less than or equal to 4094"),
    "no admission": (put(SEGMENT, "spec.admission", None), "spec.admission: Required value"),
    "admits everybody": (put(SEGMENT, "spec.admission", {}), "everybody would be admitted"),
    "selector": (put(SEGMENT, "spec.admission.node", ["inference"]), "a selector is type:value"),
    "breakglass": (put(SEGMENT, "spec.admission.breakglass", True), "breakglass stands alone"),
    "name": (put(SEGMENT, "metadata.name", "a.b"), "a name has up to 63 of a-z, 0-9 and dashes inside"),
    "unknown field": (put(SEGMENT, "spec.membres", []), 'unknown field "spec.membres"'),
    "fallback": (put(put(SEGMENT, "spec.fallback", True), "spec.trust", "high"), "its trust cannot be high"),
    "duration": (put(SEGMENT, "spec.expiry", {"until-revoked": "12"}), "write a duration like 90s"),
    "nobody": (put(FLOW, "spec.from", {}), "this end names nobody"),
    "nobody asked": (put(FLOW, "spec.to", {"port": 9000}), "this end names nobody"),
    "no port": (put(FLOW, "spec.to", {"segment": "inference"}), "spec.to.port: Required value"),
    "no owner": (put(FLOW, "spec.owner", ""), "spec.owner in body should be at least 1 chars long"),
    "allows nothing": (put(FLOW, "spec.allow", []), "spec.allow in body should have at least 1 items"),
    "two in one": (put(FLOW, "spec.allow", [{"tcp": {}, "http": {}}]), "write one a list item"),
    "method": (put(FLOW, "spec.allow", [{"http": {"methods": ["get"]}}]), "written in upper case, such as GET"),
    "path": (put(FLOW, "spec.allow", [{"http": {"paths": ["models"]}}]), "begins with a slash"),
    "authority": (put(FLOW, "spec.allow", [{"http": {"authorities": ["A.example"]}}]), "host or host:port"),
    "grpc service": (put(FLOW, "spec.allow", [{"grpc": {"service": "a/b"}}]), "full name: package.Service"),
    "grpc method": (put(FLOW, "spec.allow", [{"grpc": {"service": "a.B", "methods": ["a.B"]}}]), "name alone"),
    "never valid": (
        put(FLOW, "spec.valid", {"from": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}),
        "the flow never holds",
    ),
    "no address": (put(SERVICE, "spec.addresses", ["models.internal"]), "write an IP address"),
    "loopback": (put(SERVICE, "spec.addresses", ["127.0.0.1"]), "names no service"),
    "twice": (put(SERVICE, "spec.addresses", ["10.0.0.1", "10.0.0.1"]), "Duplicate value"),
    "hint": (put(SERVICE, "spec.ports.0.connect", ["gpu-1"]), "write host:port"),
    "nobody expected": (put(SERVICE, "spec.ports.0.expect", []), "should have at least 1 items"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(resources: Cluster, case: str) -> None:
    resource, sentence = REFUSED[case]
    with pytest.raises(ApiError) as refused:
        offered(resources, resource)
    assert re.search(sentence, refused.value.message), refused.value.message
    others = [one for one in (SEGMENT, FLOW, SERVICE) if one["kind"] != resource["kind"]]
    with pytest.raises(PolicyErrors):
        accept([Document("x.yaml", "\n---\n".join(json.dumps(one) for one in (resource, *others)))], TD)


@pytest.mark.parametrize("base", [SEGMENT, FLOW, SERVICE], ids=lambda one: one["kind"])
def test_the_twin_is_taken(resources: Cluster, base: Resource) -> None:
    assert offered(resources, base)["spec"] == base["spec"]


def explains(cluster: Cluster, field: str, words: str) -> None:
    """Wait until kubectl explains a field: what describes resources is published some time after they are served."""

    def explained() -> bool:
        return words in cluster.kubectl("explain", field, "--api-version", "firedoor.dev/v1alpha1").out

    until(explained, f"{field} is explained")


def test_explained_and_listed(resources: Cluster) -> None:
    explains(resources, "segments.spec.admission.node", "Selectors that the broker itself attested for the agent")
    api = resources.api()
    flow = put(FLOW, "metadata.name", "listed")
    api.post(f"{GROUP}/flows", flow)
    try:
        conditions = [
            {"type": kind, "status": status, "reason": "T", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            for kind, status in (("Accepted", "True"), ("Enforced", "False"))
        ]
        api.patch(f"{GROUP}/flows/listed/status", {"status": {"conditions": conditions}})
        head, row = resources.kubectl("get", "flows.firedoor.dev", "listed").out.splitlines()
        assert head.split() == ["NAME", "FROM", "TO", "PORT", "OWNER", "ACCEPTED", "ENFORCED", "AGE"]
        assert row.split()[:7] == ["listed", "inference", "inference", "9000", "ml-platform", "True", "False"]
        assert "listed" in resources.kubectl("get", "firedoor", "--output", "name").out
    finally:
        api.delete(f"{GROUP}/flows/listed")


def test_a_status_is_not_part_of_what_people_write(resources: Cluster) -> None:
    """Whoever may write a flow may not say of it that it is enforced."""
    api = resources.api()
    api.post(f"{GROUP}/flows", {**put(FLOW, "metadata.name", "claimed"), "status": {"conditions": []}})
    try:
        assert "status" not in api.get(f"{GROUP}/flows/claimed")
    finally:
        api.delete(f"{GROUP}/flows/claimed")


def test_the_documents_show_what_is_printed(resources: Cluster) -> None:
    (shown,) = re.findall(r"```text\n(.*?)\n```", (ROOT / "docs/kubernetes.md").read_text())
    with pytest.raises(ApiError) as refused:
        offered(resources, REFUSED["address"][0])
    assert shown in refused.value.message


def test_all_definitions_are_in_the_folder() -> None:
    written = {path.stem for path in (ROOT / "deploy/kubernetes/crds").glob("*.yaml")}
    assert written == {one["spec"]["names"]["plural"] for one in (*definitions(), identity_definition())}
