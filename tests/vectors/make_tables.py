# SPDX-License-Identifier: Apache-2.0
"""The cases of tests/vectors/policy/tables.json; written by generate.py.

The expectations are stated here, never taken from the code under test. A table is written as protobuf JSON and, for
readers without that, as the hexadecimal of its deterministic bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf import json_format

from firedoor.wire import policy_pb2

Json = dict[str, Any]


def tables() -> Json:
    """Tables with questions and answers, and tables that are refused."""
    answered = [{**_encoded(_TABLE), "name": "ai", "questions": _questions()}]
    answered += [{**_encoded(table), "name": name, "questions": questions} for name, table, questions in _small()]
    refused = [{**_encoded(table), "name": name, "error": code} for name, code, table in _refused()]
    refused += [{"name": name, "error": code, "bytes": raw.hex()} for name, code, raw in _malformed()]
    return {"tables": answered, "refused": refused}


def _encoded(table: Json) -> Json:
    raw = json_format.ParseDict(table, policy_pb2.Table()).SerializeToString(deterministic=True)
    return {"table": table, "bytes": raw.hex(), "sha256": hashlib.sha256(raw).hexdigest()}


def _segment(name: str, *members: str, **rest: Any) -> Json:
    return {"name": name, "members": list(members or [f"spiffe://td/segment/{name}/**"]), **rest}


def _flow(name: str, source: str | Json, destination: str | Json, port: int, *allow: Json, **rest: Any) -> Json:
    ends = {
        key: {"segment": end} if isinstance(end, str) else end for key, end in (("from", source), ("to", destination))
    }
    return {"name": name, "owner": "o", "reason": "r", **ends, "port": port, "allow": list(allow), **rest}


def _service(**change: Any) -> Json:
    return {"name": "s", "addresses": ["CgAAAQ=="], "ports": [_service_port()], **change}


def _service_port(**change: Any) -> Json:
    return {"port": 1, "expect": ["spiffe://td/segment/a/x"], "servicePort": 1, **change}


TCP: Json = {"tcp": {}}
_GET = {"http": {"methods": ["GET", "HEAD"], "paths": ["/models/**"]}}

_TABLE: Json = {
    "version": 1,
    "trustDomain": "td",
    "segments": [
        _segment("inference", trust="TRUST_MEDIUM", mode="MODE_ENFORCE"),
        _segment("legacy", "spiffe://td/none", fallback=True),
        _segment("mcp-tools", mode="MODE_AUDIT", auditLoss="AUDIT_LOSS_DENY"),
        _segment("partner", "spiffe://partner.example/**"),
        _segment("registry", "spiffe://td/segment/registry/**", "spiffe://td/ns/*/sa/registry", trust="TRUST_HIGH"),
        _segment("shared-a", "spiffe://td/shared/*"),
        _segment("shared-b", "spiffe://td/shared/b"),
        _segment("training", expiry={"untilRevokedSeconds": "43200"}),
    ],
    "flows": [
        _flow("a-first", "inference", "registry", 9001, TCP),
        _flow("b-second", "inference", "registry", 9001, TCP),
        _flow("by-id", {"ids": ["spiffe://td/segment/training/host/h1/**"]}, "registry", 9002, TCP),
        _flow("calls-models", "training", "inference", 8001, {"grpc": {"service": "v2.Infer", "methods": ["Ready"]}}),
        _flow("calls-tools", "inference", "mcp-tools", 8080, {"http": {"methods": ["POST"], "paths": ["/mcp"]}}),
        _flow("calls-tools-all", "inference", "mcp-tools", 8081, {"grpc": {"service": "v2.Infer"}}, {"http": {}}),
        _flow("for-a-day", "training", "registry", 9004, TCP, conditions=[{"time": {"from": "1000", "until": "2000"}}]),
        _flow("from-then-on", "training", "registry", 9005, TCP, conditions=[{"time": {"from": "1000"}}]),
        _flow(
            "in-both-windows",
            "training",
            "registry",
            9006,
            TCP,
            conditions=[{"time": {"from": "1000"}}, {"time": {"until": "1500"}}],
        ),
        _flow("named-host", "training", "registry", 9443, {"http": {"authorities": ["Registry.internal:9443"]}}),
        _flow("pulls-models", "inference", "registry", 9000, _GET),
        _flow(
            "service-only",
            "training",
            {"segment": "registry", "ids": ["spiffe://td/segment/registry/host/*/svc/models"]},
            9007,
            TCP,
        ),
        _flow("unknown-action", "training", "registry", 9008, {}),
        _flow("unknown-condition", "training", "registry", 9009, TCP, conditions=[{}]),
    ],
}

INFERENCE = "spiffe://td/segment/inference/host/h2/svc/vllm"
REGISTRY = "spiffe://td/segment/registry/host/h1/svc/models"
TRAINING = "spiffe://td/segment/training/host/h1/svc/loader"
TOOLS = "spiffe://td/segment/mcp-tools/host/h3/svc/search"


def _ask(name: str, source: str, destination: str, port: int, protocol: str, expect: Json, **rest: Any) -> Json:
    question = {"source": source, "destination": destination, "port": port, "protocol": protocol, "time": 1500, **rest}
    return {"name": name, "question": question, "expect": {"allowed": "flow" in expect, **expect}}


def _yes(flow: str) -> Json:
    return {"reason": "allowed", "flow": flow}


def _no(reason: str, **rest: Any) -> Json:
    return {"reason": reason, **rest}


def _questions() -> list[Json]:
    return [*_tcp_questions(), *_http_questions(), *_grpc_questions(), *_time_questions()]


def _tcp_questions() -> list[Json]:
    other_host = "spiffe://td/segment/training/host/h2/svc/loader"
    return [
        _ask("the first flow by name is named", INFERENCE, REGISTRY, 9001, "tcp", _yes("a-first")),
        _ask("the other direction", REGISTRY, INFERENCE, 9001, "tcp", _no("no_flow")),
        _ask("another source", TRAINING, REGISTRY, 9001, "tcp", _no("port_not_named")),
        _ask("another destination", INFERENCE, TRAINING, 9001, "tcp", _no("no_flow")),
        _ask("another port", INFERENCE, REGISTRY, 9010, "tcp", _no("port_not_named")),
        _ask("no port", INFERENCE, REGISTRY, 0, "tcp", _no("port_not_named")),
        _ask("no such port", INFERENCE, REGISTRY, 65536 + 9001, "tcp", _no("port_not_named")),
        _ask(
            "http on a tcp flow",
            INFERENCE,
            REGISTRY,
            9001,
            "http",
            _no("action_not_named", near=["a-first", "b-second"]),
            method="GET",
            path="/",
        ),
        _ask(
            "grpc on a tcp flow",
            INFERENCE,
            REGISTRY,
            9001,
            "grpc",
            _no("action_not_named"),
            grpc_service="s",
            grpc_method="m",
        ),
        _ask("tcp on an http flow", INFERENCE, REGISTRY, 9000, "tcp", _no("action_not_named", near=["pulls-models"])),
        _ask("a source by pattern", TRAINING, REGISTRY, 9002, "tcp", _yes("by-id")),
        _ask("a source that the pattern misses", other_host, REGISTRY, 9002, "tcp", _no("port_not_named")),
        _ask("both parts of a subject hold", TRAINING, REGISTRY, 9007, "tcp", _yes("service-only")),
        _ask("only the segment holds", TRAINING, REGISTRY + "x", 9007, "tcp", _no("port_not_named")),
        _ask(
            "only the pattern holds, of a service account",
            TRAINING,
            "spiffe://td/ns/a/sa/registry",
            9007,
            "tcp",
            _no("port_not_named"),
        ),
        _ask(
            "an action of an unknown kind",
            TRAINING,
            REGISTRY,
            9008,
            "tcp",
            _no("action_not_named", near=["unknown-action"]),
        ),
        _ask("a condition of an unknown kind", TRAINING, REGISTRY, 9009, "tcp", _no("port_not_named")),
        _ask("the source is no ID", "td/x", REGISTRY, 9001, "tcp", _no("bad_id")),
        _ask("the destination is no ID", INFERENCE, "spiffe://td/a//b", 9001, "tcp", _no("bad_id")),
    ]


def _http_questions() -> list[Json]:
    def ask(name: str, path: str, expect: Json, method: str = "GET", **rest: Any) -> Json:
        return _ask(name, INFERENCE, REGISTRY, 9000, "http", expect, method=method, path=path, **rest)

    def host(name: str, authority: str, expect: Json) -> Json:
        return _ask(name, TRAINING, REGISTRY, 9443, "http", expect, method="PUT", path="/x", authority=authority)

    refused = _no("action_not_named", near=["pulls-models"])
    return [
        ask("method and path are named", "/models/llama", _yes("pulls-models")),
        ask("the other method", "/models/llama", _yes("pulls-models"), method="HEAD"),
        ask("another method", "/models/llama", refused, method="PUT"),
        ask("the method in lower case", "/models/llama", refused, method="get"),
        ask("another path", "/admin", refused),
        ask("the folder itself", "/models/", refused),
        ask("an encoded letter", "/%6dodels/llama", _yes("pulls-models")),
        ask("the query does not matter", "/models/llama?x=/admin", _yes("pulls-models")),
        ask("a path that climbs", "/models/../admin", _no("bad_request")),
        ask("an encoded path that climbs", "/models/%2e%2e/admin", _no("bad_request")),
        ask("an encoded slash is no separator", "/models%2Fllama", refused),
        ask("no path", "", _no("bad_request")),
        ask("no method", "/models/llama", _no("bad_request"), method=""),
        ask("a method that is no token", "/models/llama", _no("bad_request"), method="GET "),
        ask("the authority is not restricted", "/models/a", _yes("pulls-models"), authority="anything"),
        host("the host in another case", "registry.INTERNAL:9443", _yes("named-host")),
        host("the host without port", "registry.internal", _no("action_not_named", near=["named-host"])),
        host("another host", "registry.internal.evil:9443", _no("action_not_named")),
        host("no host", "", _no("action_not_named")),
        _ask("an exact path", INFERENCE, TOOLS, 8080, "http", _yes("calls-tools"), method="POST", path="/mcp"),
        _ask(
            "grpc on an http flow",
            INFERENCE,
            TOOLS,
            8080,
            "grpc",
            _no("action_not_named"),
            grpc_service="mcp",
            grpc_method="m",
        ),
        _ask(
            "http without restrictions", INFERENCE, TOOLS, 8081, "http", _yes("calls-tools-all"), method="X", path="/y"
        ),
    ]


def _grpc_questions() -> list[Json]:
    def ask(name: str, service: str, method: str, expect: Json, port: int = 8001) -> Json:
        ends = (TRAINING, INFERENCE) if port == 8001 else (INFERENCE, TOOLS)
        return _ask(name, *ends, port, "grpc", expect, grpc_service=service, grpc_method=method)

    refused = _no("action_not_named", near=["calls-models"])
    return [
        ask("service and method are named", "v2.Infer", "Ready", _yes("calls-models")),
        ask("another grpc method", "v2.Infer", "Load", refused),
        ask("another service", "v2.Admin", "Ready", refused),
        ask("the service in another case", "v2.infer", "Ready", refused),
        ask("every method of a service", "v2.Infer", "Load", _yes("calls-tools-all"), port=8081),
        ask("no method", "v2.Infer", "", _no("bad_request")),
        ask("no service", "", "Ready", _no("bad_request")),
        ask("a slash in the method", "v2.Infer", "Ready/x", _no("bad_request")),
        _ask("http on a grpc flow", TRAINING, INFERENCE, 8001, "http", refused, method="POST", path="/v2.Infer/Ready"),
        _ask("tcp on a grpc flow", TRAINING, INFERENCE, 8001, "tcp", refused),
    ]


def _member_questions() -> list[Json]:
    account = "spiffe://td/ns/models/sa/registry"
    named = {"source_segment": "partner", "destination_segment": "registry"}
    return [
        _ask(
            "members by a second pattern",
            INFERENCE,
            account,
            9001,
            "tcp",
            {**_yes("a-first"), "destination_segment": "registry"},
        ),
        _ask("a foreign member", "spiffe://partner.example/a", account, 9003, "tcp", {**_yes("by-ids-alone"), **named}),
        _ask("a foreign ID that no pattern names", "spiffe://other/a", account, 9003, "tcp", _no("unknown_source")),
        _ask(
            "in no segment, though a flow names the ID",
            "spiffe://other/a",
            REGISTRY,
            7000,
            "tcp",
            _no("unknown_source"),
        ),
        _ask("the same flow with a member", TRAINING, REGISTRY, 7000, "tcp", _yes("anyone")),
        _ask("the trust domain itself", "spiffe://td", REGISTRY, 7000, "tcp", _no("unknown_source")),
        _ask("what agents stand below", "spiffe://td/spire", REGISTRY, 7000, "tcp", _no("unknown_source")),
        _ask(
            "an agent",
            "spiffe://td/spire/agent/join_token/x",
            REGISTRY,
            7000,
            "tcp",
            _no("unknown_source", source_segment=None),
        ),
        _ask(
            "the server",
            TRAINING,
            "spiffe://td/spire/server",
            7000,
            "tcp",
            _no("unknown_destination", source_segment="training"),
        ),
        _ask("a foreign agent", "spiffe://partner.example/spire/agent/x", account, 9003, "tcp", _no("unknown_source")),
        _ask(
            "the fallback takes the rest",
            TRAINING,
            "spiffe://td/old/db",
            22,
            "tcp",
            {**_yes("leads-to-legacy"), "destination_segment": "legacy"},
        ),
        _ask(
            "the fallback takes no foreign ID", TRAINING, "spiffe://other/old/db", 22, "tcp", _no("unknown_destination")
        ),
        _ask(
            "a name without a segment is reserved",
            TRAINING,
            "spiffe://td/segment/ghost/x",
            22,
            "tcp",
            _no("unknown_destination"),
        ),
        _ask(
            "a segment's name alone is not reserved",
            TRAINING,
            "spiffe://td/segment/ghost",
            22,
            "tcp",
            _yes("leads-to-legacy"),
        ),
        _ask(
            "claimed by one",
            TRAINING,
            "spiffe://td/shared/a",
            7000,
            "tcp",
            {**_yes("anyone"), "destination_segment": "shared-a"},
        ),
        _ask(
            "claimed by two",
            TRAINING,
            "spiffe://td/shared/b",
            7000,
            "tcp",
            _no("unknown_destination", destination_segment=None),
        ),
    ]


def _time_questions() -> list[Json]:
    def ask(name: str, port: int, time: int, expect: Json) -> Json:
        return _ask(name, TRAINING, REGISTRY, port, "tcp", expect, time=time)

    return [
        ask("inside the window", 9004, 1500, _yes("for-a-day")),
        ask("its first second", 9004, 1000, _yes("for-a-day")),
        ask("its last second", 9004, 1999, _yes("for-a-day")),
        ask("before the window", 9004, 999, _no("out_of_time", near=["for-a-day"])),
        ask("at its end", 9004, 2000, _no("out_of_time", near=["for-a-day"])),
        ask("an open end", 9005, 2**62, _yes("from-then-on")),
        ask("before an open end", 9005, 0, _no("out_of_time")),
        ask("inside both windows", 9006, 1200, _yes("in-both-windows")),
        ask("inside one of two windows", 9006, 1600, _no("out_of_time")),
    ]


def _small() -> list[tuple[str, Json, list[Json]]]:
    base = {"version": 1, "trustDomain": "td"}
    foreign = _segment("mine", "spiffe://td/segment/yours/**")
    everyone = {"ids": ["spiffe://other/**", "spiffe://td/**"]}
    members = [
        _flow("a-first", "inference", "registry", 9001, TCP),
        _flow("anyone", everyone, everyone, 7000, TCP),
        _flow("by-ids-alone", {"ids": ["spiffe://partner.example/*"]}, {"ids": ["spiffe://td/ns/**"]}, 9003, TCP),
        _flow("leads-to-legacy", "training", "legacy", 22, TCP),
    ]
    return [
        ("members", {**_TABLE, "flows": members}, _member_questions()),
        (
            "nothing",
            base,
            [_ask("an empty policy", TRAINING, REGISTRY, 9001, "tcp", _no("unknown_source", source_segment=None))],
        ),
        (
            "reserved",
            {**base, "segments": [foreign], "flows": [_flow("f", "mine", "mine", 1, TCP)]},
            [
                _ask(
                    "another segment's prefix",
                    "spiffe://td/segment/yours/a",
                    "spiffe://td/segment/yours/b",
                    1,
                    "tcp",
                    _no("unknown_source"),
                )
            ],
        ),
    ]


def _refused() -> list[tuple[str, str, Json]]:
    base: Json = {"version": 1, "trustDomain": "td", "segments": [_segment("a"), _segment("b")]}

    def flow(*arguments: Any, **rest: Any) -> Json:
        return {**base, "flows": [_flow(*arguments, **rest)]}

    def services(*changes: Json) -> Json:
        return {**base, "services": [_service(**change) for change in changes]}

    return [
        ("no version", "table_version_unknown", {"trustDomain": "td"}),
        ("a later version", "table_version_unknown", {**base, "version": 2}),
        ("no trust domain", "table_trust_domain", {"version": 1}),
        ("a bad trust domain", "table_trust_domain", {**base, "trustDomain": "TD"}),
        ("a segment twice", "segment_twice", {**base, "segments": [_segment("a"), _segment("a")]}),
        (
            "two fallbacks",
            "segment_twice",
            {**base, "segments": [_segment("a", fallback=True), _segment("b", fallback=True)]},
        ),
        ("a segment without name", "segment_name", {**base, "segments": [_segment("", "spiffe://td/a")]}),
        ("a segment in upper case", "segment_name", {**base, "segments": [_segment("A")]}),
        ("a segment that ends in a hyphen", "segment_name", {**base, "segments": [_segment("a-")]}),
        ("a segment of 64 characters", "segment_name", {**base, "segments": [_segment("a" * 64)]}),
        ("an unknown mode", "segment_value_unknown", {**base, "segments": [_segment("a", mode=9)]}),
        ("an unknown trust", "segment_value_unknown", {**base, "segments": [_segment("a", trust=9)]}),
        ("an unknown audit loss", "segment_value_unknown", {**base, "segments": [_segment("a", auditLoss=9)]}),
        ("a bad member pattern", "id_pattern", {**base, "segments": [_segment("a", "spiffe://td/a*")]}),
        ("a bad pattern in a flow", "id_pattern", flow("f", {"ids": ["10.0.0.0/8"]}, "b", 1, TCP)),
        ("a service without name", "service_name", services({"name": ""})),
        ("a service in upper case", "service_name", services({"name": "S"})),
        ("a service twice", "service_twice", services({}, {"addresses": ["CgAAAg=="]})),
        ("an address of three bytes", "service_address", services({"addresses": ["CgAA"]})),
        ("an empty address", "service_address", services({"addresses": [""]})),
        ("IPv4 in IPv6", "service_address", services({"addresses": ["AAAAAAAAAAAAAP//CgAAAQ=="]})),
        ("an address in two services", "service_address_twice", services({}, {"name": "t"})),
        ("an address twice", "service_address_twice", services({"addresses": ["CgAAAQ==", "CgAAAQ=="]})),
        ("a port twice", "service_address_twice", services({"ports": [_service_port(), _service_port()]})),
        ("a service at port 0", "service_port", services({"ports": [_service_port(port=0)]})),
        ("a service at port 65536", "service_port", services({"ports": [_service_port(port=65536)]})),
        ("a service port 0", "service_port", services({"ports": [_service_port(servicePort=0)]})),
        ("nobody expected", "service_expects_nobody", services({"ports": [_service_port(expect=[])]})),
        ("a bad expectation", "id_pattern", services({"ports": [_service_port(expect=["10.0.0.1"])]})),
        (
            "65 expectations",
            "table_too_many",
            services({"ports": [_service_port(expect=[f"spiffe://td/{n}" for n in range(65)])]}),
        ),
        ("65 hints", "table_too_many", services({"ports": [_service_port(connect=["h:1"] * 65)]})),
        ("a hint without port", "service_hint", services({"ports": [_service_port(connect=["h"])]})),
        ("a hint without host", "service_hint", services({"ports": [_service_port(connect=[":1"])]})),
        ("an unknown protocol", "service_protocol_unknown", services({"ports": [_service_port(protocol=9)]})),
        ("a flow without name", "flow_name", flow("", "a", "b", 1, TCP)),
        ("a flow with a space", "flow_name", flow("a b", "a", "b", 1, TCP)),
        (
            "a flow twice",
            "flow_twice",
            {**base, "flows": [_flow("f", "a", "b", 1, TCP), _flow("f", "b", "a", 1, TCP)]},
        ),
        ("an empty source", "subject_empty", flow("f", {}, "b", 1, TCP)),
        ("an empty destination", "subject_empty", flow("f", "a", {"ids": []}, 1, TCP)),
        ("a segment that is not there", "segment_unknown", flow("f", "a", "c", 1, TCP)),
        ("no port", "port", flow("f", "a", "b", 0, TCP)),
        ("a port too high", "port", flow("f", "a", "b", 65536, TCP)),
        ("a bad path pattern", "path_pattern", flow("f", "a", "b", 1, {"http": {"paths": ["models"]}})),
        ("grpc without service", "grpc_service_empty", flow("f", "a", "b", 1, {"grpc": {"methods": ["m"]}})),
    ]


def _malformed() -> list[tuple[str, str, bytes]]:
    head = b"\x08\x01\x12\x02td"
    return [
        ("not protobuf", "table_malformed", b"\xff\xff\xff"),
        ("a length that leads out", "table_malformed", head + b"\x1a\x7f"),
        ("a segment that is no message", "table_malformed", head + b"\x1a\x01\xff"),
        ("a segment as a number", "table_malformed", head + b"\x18\x01"),
        ("a name that is not UTF-8", "table_malformed", head + b"\x1a\x03\x0a\x01\xff"),
        ("a group", "table_malformed", head + b"\x2b\x2c"),
        ("a varint that does not end", "table_malformed", b"\x08" + b"\x80" * 11),
        ("field number 0", "table_malformed", head + b"\x00\x00"),
        ("a version of 64 bits", "table_version_unknown", b"\x08\x81\x80\x80\x80\x10\x12\x02td"),
    ]
