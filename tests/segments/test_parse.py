# SPDX-License-Identifier: Apache-2.0
"""What each field takes, what it refuses, and how the refusal reads."""

from typing import Any

import pytest
import yaml

from firedoor.segments import (
    Admission,
    AuditLoss,
    Document,
    Expiry,
    GrpcAction,
    HttpAction,
    Mode,
    PolicyErrors,
    TcpAction,
    Trust,
    Validity,
    load,
    parse,
)
from tests.segments.conftest import TD, flow, policy, refused, segment, selectors, text

REGISTRY = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {name: registry}
spec: {function: registry, trust: high, vlan: 310, mode: enforce, members: ["spiffe://{td}/segment/registry/**"],
       admission: {entry: ["unix:user:registry"], node: []}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {name: inference-pulls-models}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {segment: inference}
  to: {segment: registry, port: 9000}
  allow: [{http: {methods: [GET, HEAD], paths: ["/models/**"]}}]
"""


def test_a_policy() -> None:
    loaded = load([Document("registry.yaml", REGISTRY)], TD)
    (registry,), (pulls,) = loaded.segments, loaded.flows
    assert (registry.name, registry.function, registry.trust, registry.vlan) == (
        "registry",
        "registry",
        Trust.HIGH,
        310,
    )
    assert registry.mode is Mode.ENFORCE
    assert [str(member) for member in registry.members] == ["spiffe://td/segment/registry/**"]
    assert registry.admission == Admission(entry=tuple(selectors("unix:user:registry")))
    assert (pulls.owner, pulls.reason, pulls.port) == ("ml-platform", "model weights at start-up", 9000)
    assert (pulls.source.segment, pulls.destination.segment) == ("inference", "registry")
    (action,) = pulls.allow
    assert isinstance(action, HttpAction)
    assert (action.methods, [str(path) for path in action.paths]) == (("GET", "HEAD"), ["/models/**"])
    assert str(pulls.at("spec", "to", "port")) == "registry.yaml:14"
    assert str(registry.at("spec", "expiry")) == "registry.yaml:4"


def test_defaults() -> None:
    (made,) = policy(segment("a", function=None, trust=None, members=None, admission={})).segments
    assert (made.function, made.trust, made.vlan, made.mode) == ("a", Trust.LOW, None, Mode.ENFORCE)
    assert (made.members, made.admission, made.fallback) == ((), Admission(), False)
    assert (made.audit_loss, made.expiry, made.read_only) == (AuditLoss.COUNT, Expiry(0), False)
    (made_flow,) = policy(flow("f")).flows
    assert (made_flow.allow, made_flow.valid) == ((TcpAction(),), None)


GOOD = {
    # name: (document, path into the made object, value)
    "audit mode": (segment("a", mode="audit"), "mode", Mode.AUDIT),
    "audit loss": (segment("a", audit_loss="deny"), "audit_loss", AuditLoss.DENY),
    "volumes": (segment("a", volumes="read-only"), "read_only", True),
    "expiry close": (segment("a", expiry="close"), "expiry", Expiry(0)),
    "expiry kept": (segment("a", expiry={"until-revoked": "12h"}), "expiry", Expiry(43200)),
    "expiry in days": (segment("a", expiry={"until-revoked": "7d"}), "expiry", Expiry(7 * 86400)),
    "fallback": (segment("a", fallback=True), "fallback", True),
    "no vlan": (segment("a"), "vlan", None),
    "least vlan": (segment("a", vlan=1), "vlan", 1),
    "highest vlan": (segment("a", vlan=4094), "vlan", 4094),
    "reason in lines": (flow("f", reason="two\n  lines"), "reason", "two lines"),
    "highest port": (flow("f", to={"segment": "b", "port": 65535}), "port", 65535),
    "every http request": (flow("f", allow=[{"http": {}}]), "allow", (HttpAction(),)),
    "a grpc service": (flow("f", allow=[{"grpc": {"service": "a.B"}}]), "allow", (GrpcAction("a.B"),)),
    "grpc methods": (
        flow("f", allow=[{"grpc": {"service": "a.B", "methods": ["C"]}}]),
        "allow",
        (GrpcAction("a.B", ("C",)),),
    ),
    "authorities": (
        flow("f", allow=[{"http": {"authorities": ["a.example:80", "b"]}}]),
        "allow",
        (HttpAction(authorities=("a.example:80", "b")),),
    ),
    "from a time": (flow("f", valid={"from": "2026-01-01T00:00:00Z"}), "valid", Validity(1767225600, None)),
    "until a time": (flow("f", valid={"until": "2026-01-01T01:00:00+01:00"}), "valid", Validity(None, 1767225600)),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_values(case: str) -> None:
    document, name, value = GOOD[case]
    loaded = policy(document)
    (made,) = (*loaded.segments, *loaded.flows)
    assert getattr(made, name) == value


def test_a_time_needs_no_quotes() -> None:
    source = text(flow("f")) + "  valid: {from: 2026-01-01T00:00:00Z}\n"
    assert load([Document("x.yaml", source)], TD).flows[0].valid == Validity(1767225600, None)


def _path(pattern: str) -> dict[str, Any]:
    return flow("f", allow=[{"http": {"paths": [pattern]}}])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (document, code, part of the sentence or fix)
    "unknown segment field": (segment("a", membres=["x"]), "unknown_field", "did you mean `members`?"),
    "unknown flow field": (flow("f", Reason="x"), "unknown_field", "did you mean `reason`?"),
    "unknown admission field": (segment("a", admission={"nodes": []}), "unknown_field", "did you mean `node`?"),
    "unknown action": (flow("f", allow=[{"htpp": {}}]), "unknown_field", "did you mean `http`?"),
    "unknown http field": (flow("f", allow=[{"http": {"method": ["GET"]}}]), "unknown_field", "`methods`"),
    "a field in tcp": (flow("f", allow=[{"tcp": {"port": 1}}]), "unknown_field", "no field `port`"),
    "two actions in one": (flow("f", allow=[{"tcp": {}, "http": {}}]), "wrong_type", "one a list item"),
    "no admission": (segment("a", admission=None), "missing_field", "add `admission:`"),
    "no from": (flow("f", source=None), "missing_field", "add `from:`"),
    "no to": (flow("f", to=None), "missing_field", "add `to:`"),
    "no port": (flow("f", to={"segment": "b"}), "missing_field", "add `port:`"),
    "no allow": (flow("f", allow=None), "missing_field", "add `allow:`"),
    "no grpc service": (flow("f", allow=[{"grpc": {}}]), "missing_field", "add `service:`"),
    "an end that names nobody": (flow("f", source={}), "empty_subject", "add `segment:` or `id:`"),
    "a list of no IDs": (flow("f", source={"id": []}), "empty_list", "remove the field"),
    "a list of no paths": (flow("f", allow=[{"http": {"paths": []}}]), "empty_list", "remove the field"),
    "any segment": (flow("f", source={"segment": "*"}), "wildcard_subject", "name each segment"),
    "a bad name": (segment("Registry"), "bad_name", "a-z"),
    "a name too long": (segment("a" * 64, function="x"), "bad_name", "63"),
    "a bad trust": (segment("a", trust="hihg"), "unknown_word", "did you mean `high`?"),
    "a bad mode": (segment("a", mode="enforced"), "unknown_word", "did you mean `enforce`?"),
    "vlan 0": (segment("a", vlan=0), "out_of_range", "1 to 4094"),
    "vlan 4095": (segment("a", vlan=4095), "out_of_range", "1 to 4094"),
    "port 0": (flow("f", to={"segment": "b", "port": 0}), "out_of_range", "1 to 65535"),
    "port 65536": (flow("f", to={"segment": "b", "port": 65536}), "out_of_range", "1 to 65535"),
    "a port as text": (flow("f", to={"segment": "b", "port": "9000"}), "wrong_type", "a number"),
    "a number as owner": (flow("f", owner=7), "quote_it", 'write "7" in quotes'),
    "a reason too long": (flow("f", reason="x" * 1025), "too_long", "1024"),
    "mint as text": (segment("a", admission={"mint": "true"}), "wrong_type", "true or false"),
    "a bad selector": (segment("a", admission={"entry": ["unix"]}), "bad_selector", "type:value"),
    "a selector twice": (segment("a", admission={"entry": ["a:b", "a:b"]}), "duplicate_item", "twice"),
    "a member twice": (segment("a", members=["spiffe://{td}/x", "spiffe://td/x"]), "duplicate_item", "twice"),
    "a member that is no ID": (segment("a", members=["registry"]), "pattern_wrong_scheme", "spiffe://{td}/segment"),
    "a partial wildcard": (segment("a", members=["spiffe://{td}/x*"]), "pattern_partial_wildcard", "whole path"),
    "** inside": (segment("a", members=["spiffe://{td}/**/x"]), "pattern_double_star_not_last", "end"),
    "the trust domain itself": (segment("a", members=["spiffe://{td}"]), "pattern_missing_path", "trust domain"),
    "below /spire": (segment("a", members=["spiffe://{td}/spire/**"]), "pattern_reserved_path", "reserved"),
    "{td} in a path": (segment("a", members=["spiffe://td/{td}"]), "pattern_bad_path_char", "letters"),
    "a wildcard trust domain": (segment("a", members=["spiffe://*/x"]), "pattern_bad_trust_domain_char", "a-z"),
    "an ID in a flow that is none": (flow("f", source={"id": "spiffe://{td}/a//b"}), "pattern_empty_segment", "empty"),
    "a lower-case method": (flow("f", allow=[{"http": {"methods": ["get"]}}]), "bad_method", "write GET"),
    "any method": (flow("f", allow=[{"http": {"methods": ["*"]}}]), "bad_method", "leave `methods` out"),
    "an authority in upper case": (flow("f", allow=[{"http": {"authorities": ["A"]}}]), "bad_authority", "lower case"),
    "a URL as authority": (flow("f", allow=[{"http": {"authorities": ["http://a"]}}]), "bad_authority", "host:port"),
    "a wildcard service": (flow("f", allow=[{"grpc": {"service": "*"}}]), "bad_service", "package.Service"),
    "a method with its service": (
        flow("f", allow=[{"grpc": {"service": "a.B", "methods": ["a.B/C"]}}]),
        "bad_grpc_method",
        "alone",
    ),
    "a path without slash": (_path("models"), "path_not_absolute", "slash"),
    "a path with ** inside": (_path("/**/x"), "path_rest_not_last", "end"),
    "a path with a partial wildcard": (_path("/x*"), "path_partial_wildcard", "whole"),
    "a path with dots": (_path("/a/../b"), "path_dot_segment", "meant"),
    "a path with //": (_path("/a//b"), "path_empty_segment", "one slash"),
    "an encoded path": (_path("/a%20b"), "path_escape", "decoded"),
    "a path with a query": (_path("/a?b"), "path_bad_character", "query"),
    "a duration without unit": (segment("a", expiry={"until-revoked": "12"}), "bad_duration", "12h"),
    "a duration of 31 days": (segment("a", expiry={"until-revoked": "31d"}), "bad_duration", "30 days"),
    "an expiry that is no word": (segment("a", expiry="never"), "unknown_word", "until-revoked"),
    "a time without offset": (flow("f", valid={"from": "2026-01-01T00:00:00"}), "bad_time", "08:00:00Z"),
    "a date": (flow("f", valid={"from": "2026-01-01"}), "bad_time", "08:00:00Z"),
    "February 30": (flow("f", valid={"from": "2026-02-30T00:00:00Z"}), "bad_time", "08:00:00Z"),
    "before 1970": (flow("f", valid={"from": "1969-01-01T00:00:00Z"}), "bad_time", "08:00:00Z"),
    "an unknown version": ({**flow("f"), "apiVersion": "firedoor.dev/v2"}, "unknown_word", "firedoor.dev/v1alpha1"),
    "an unknown kind": ({**flow("f"), "kind": "Flows"}, "unknown_word", "did you mean `Flow`?"),
    "no metadata": ({k: v for k, v in flow("f").items() if k != "metadata"}, "missing_field", "add `metadata:`"),
    "no spec": ({k: v for k, v in flow("f").items() if k != "spec"}, "missing_field", "add `spec:`"),
    "a spec that is a list": ({**flow("f"), "spec": []}, "wrong_type", "mapping"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case: str) -> None:
    document, code, said = BAD[case]
    (finding,) = refused(text(document)).findings
    assert finding.code == code
    assert said in f"{finding.message}; {finding.fix}"
    assert finding.at.line > 0


ADDRESSES = (
    "10.0.0.1",
    "10.0.0.0/8",
    "10.0.0.*",
    "10.0.0.1-10.0.0.9",
    "::1",
    "fd00::/8",
    "[::1]:9000",
    "10.0.0.1:9000",
)


@pytest.mark.parametrize("address", [*ADDRESSES, "spiffe://10.0.0.1/x", "https://10.0.0.1/"])
@pytest.mark.parametrize("place", ["from id", "from segment", "to id", "members", "authorities"])
def test_an_address_is_refused_everywhere_with_the_reason(address: str, place: str) -> None:
    document = {
        "from id": flow("f", source={"id": address}),
        "from segment": flow("f", source={"segment": address}),
        "to id": flow("f", to={"id": [address], "port": 1}),
        "members": segment("a", members=[address]),
        "authorities": flow("f", allow=[{"http": {"authorities": [address]}}]),
    }[place]
    (finding,) = refused(text(document)).findings
    assert finding.code == "ip_subject"
    assert "an address proves nothing" in finding.message
    assert "SPIFFE ID" in finding.fix


@pytest.mark.parametrize("name", ["ip", "cidr", "ipBlock", "address", "host"])
def test_there_is_no_field_for_addresses(name: str) -> None:
    (finding,) = refused(text(flow("f", source={"segment": "a", name: "x"}))).findings
    assert finding.code == "ip_subject"
    assert f"there is no field `{name}`" in finding.message


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "010", "0x1F", "1_000", "null", "~"])
def test_words_that_yaml_reads_in_its_own_way_must_be_quoted(word: str) -> None:
    assert refused(REGISTRY.replace("owner: ml-platform", f"owner: {word}")).findings[0].code in (
        "quote_it",
        "wrong_type",
    )
    quoted = REGISTRY.replace("owner: ml-platform", f'owner: "{word}"')
    assert load([Document("x.yaml", quoted)], TD).flows[0].owner == word


@pytest.mark.parametrize("number", ["0310", "0x136", "3_1_0", "5:10", "310.0", '"310"'])
def test_numbers_are_decimal(number: str) -> None:
    assert refused(REGISTRY.replace("vlan: 310", f"vlan: {number}")).findings[0].code in ("out_of_range", "wrong_type")


@pytest.mark.parametrize("word", ["yes", "on", "True", "TRUE", '"true"', "1"])
def test_true_is_written_true(word: str) -> None:
    source = REGISTRY.replace("mode: enforce", f"fallback: {word}")
    assert refused(source).findings[0].code == "wrong_type"
    assert load([Document("x.yaml", source.replace(f"fallback: {word}", "fallback: true"))], TD).segments[0].fallback


def test_everything_wrong_is_said_at_once_in_order() -> None:
    source = (
        REGISTRY.replace("trust: high", "trust: hi").replace("owner", "ownr").replace("9000", "0").replace("GET", "get")
    )
    found = [(finding.at.line, finding.code) for finding in refused(source).findings]
    assert found == [(4, "unknown_word"), (11, "unknown_field"), (14, "out_of_range"), (15, "bad_method")]


def test_a_line_for_each_error() -> None:
    lines = str(refused(REGISTRY.replace("owner", "ownr"))).splitlines()
    assert lines == [
        "policy.yaml:11: error[unknown_field]: the spec of a Flow has no field `ownr`; did you mean `owner`?"
    ]


def test_names_stand_once_over_all_files() -> None:
    files = [Document("one.yaml", text(segment("a"))), Document("two.yaml", text(flow("a"), segment("a")))]
    with pytest.raises(Exception, match=r"two.yaml:\d+: error\[duplicate_name\]: Segment a .* one.yaml:\d+"):
        load(files, TD)


def test_order_and_files_do_not_matter() -> None:
    parts = [segment("a"), segment("b"), flow("f"), flow("g", to={"segment": "b", "port": 1})]
    files = [Document(f"{number}.yaml", text(part)) for number, part in enumerate(reversed(parts))]
    assert load(files, TD) == policy(*parts)


def test_nothing_is_a_policy() -> None:
    empty = load([], TD)
    assert (empty.segments, empty.flows) == ((), ())


def test_a_long_list_is_refused() -> None:
    members = [f"spiffe://{{td}}/segment/a/{number}" for number in range(1001)]
    assert refused(text(segment("a", members=members))).findings[0].code == "too_many_items"
    assert len(policy(segment("a", members=members[:1000])).segments[0].members) == 1000


def test_what_is_no_document() -> None:
    assert [(found.at.line, found.code) for found in refused("- a\n---\nb: 1\n").findings] == [
        (1, "wrong_type"),
        (3, "missing_field"),
    ]


def test_a_file_that_is_not_yaml_does_not_hide_the_others() -> None:
    with pytest.raises(PolicyErrors) as caught:
        load([Document("a.yaml", "a: ["), Document("b.yaml", text(flow("f", ownr="x")))], TD)
    assert [(found.at.file, found.code) for found in caught.value.findings] == [
        ("a.yaml", "bad_yaml"),
        ("b.yaml", "unknown_field"),
    ]


def test_too_many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "MAX_OBJECTS", 2)
    assert policy(segment("a"), flow("a"))
    assert refused(text(segment("a"), flow("a"), flow("b"))).findings[0].code == "too_many_objects"


def test_findings_are_capped() -> None:
    assert len(refused(yaml.safe_dump_all([{"kind": "x"}] * 1000)).findings) == 200
