# SPDX-License-Identifier: Apache-2.0
"""A second opinion: decides from the YAML, by the rules as docs/policy.md tells them, with nothing of firedoor's.

Slow and literal on purpose. It shares no code and no table with what it checks.
"""

import re
from datetime import datetime
from urllib.parse import unquote_to_bytes

import yaml


def seconds(value):
    return int(datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp())


def matches(patterns, spiffe_id, td):
    name, _, path = spiffe_id.removeprefix("spiffe://").partition("/")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        steps = pattern.replace("{td}", td, 1).removeprefix("spiffe://").split("/")
        regex = "/".join({"*": "[^/]+", "**": ".+"}.get(step) or re.escape(step) for step in steps)
        if path and path.split("/")[0] != "spire" and re.fullmatch(regex, f"{name}/{path}"):
            return True
    return False


def decoded_path(target):
    """The path's decoded segments, or None where two programs could read it differently."""
    if not target.startswith("/") or not all("!" <= char <= "~" and char != "#" for char in target):
        return None
    parts = target.split("?")[0][1:].split("/")
    if "" in parts[:-1] or any(re.search("%(?![0-9A-Fa-f]{2})", part) for part in parts):
        return None
    try:
        parts = [unquote_to_bytes(part).decode() for part in parts]
    except UnicodeDecodeError:
        return None
    for part in parts:
        if re.search(r"[\x00-\x1f\x7f-\x9f\\]|%[0-9A-Fa-f]{2}", part):
            return None
        if any(piece.split(";")[0] in (".", "..") for piece in part.split("/")):
            return None
    return parts


def path_matches(pattern, parts):
    steps = pattern[1:].split("/")
    if steps[-1] == "**":
        steps, parts = [*steps[:-1], "*"], parts[: len(steps)]
    return len(steps) == len(parts) and all(p != "" if s == "*" else s == p for s, p in zip(steps, parts, strict=True))


class Evaluator:
    def __init__(self, text, td):
        documents = [document for document in yaml.safe_load_all(text) if document]
        named = sorted((d["metadata"]["name"], d["spec"], d["kind"]) for d in documents)
        self.td = td
        self.segments = {name: spec for name, spec, kind in named if kind == "Segment"}
        self.flows = {name: spec for name, spec, kind in named if kind == "Flow"}

    def segment_of(self, spiffe_id):
        name, _, path = spiffe_id.removeprefix("spiffe://").partition("/")
        if not path or path.split("/")[0] == "spire":
            return None
        own = name == self.td
        claims = [s for s, spec in self.segments.items() if matches(spec["members"], spiffe_id, self.td)]
        if not claims and own:
            claims = [s for s, spec in self.segments.items() if spec.get("fallback")]
        reserved = re.match("segment/([^/]+)/", path) if own else None
        if len(claims) != 1 or (reserved and reserved[1] != claims[0]):
            return None
        return claims[0]

    def allowing_flow(self, q):
        """The name of the first flow that allows it, or None."""
        ends = (q["source"], self.segment_of(q["source"])), (q["destination"], self.segment_of(q["destination"]))
        if any(segment is None for _, segment in ends):
            return None
        return next((name for name, flow in self.flows.items() if self.allows(flow, ends, q)), None)

    def allows(self, flow, ends, q):
        for (spiffe_id, segment), end in zip(ends, (flow["from"], flow["to"]), strict=True):
            if end.get("segment", segment) != segment or not matches(end.get("id", spiffe_id), spiffe_id, self.td):
                return False
        valid = {word: seconds(value) for word, value in flow.get("valid", {}).items()}
        if not valid.get("from", q["time"]) <= q["time"] < valid.get("until", q["time"] + 1):
            return False
        return flow["to"]["port"] == q["port"] and any(self.names(action, q) for action in flow["allow"])

    def names(self, action, q):
        ((kind, rule),) = action.items()
        if kind != q["protocol"] or kind == "tcp":
            return kind == q["protocol"]
        if kind == "grpc":
            return rule["service"] == q["grpc_service"] and q["grpc_method"] in rule.get("methods", [q["grpc_method"]])
        parts = decoded_path(q["path"])
        method, authority = rule.get("methods", [q["method"]]), rule.get("authorities", [q["authority"].lower()])
        found = parts is not None and any(path_matches(p, parts) for p in rule.get("paths", ["/", "/**"]))
        return found and q["method"] in method and q["authority"].lower() in authority
