# SPDX-License-Identifier: Apache-2.0
"""Random policies, and questions about them: some that a flow was made to allow, others one field away from those."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import yaml

TD = "corp.example"
FOREIGN = "partner.example"
SEGMENTS = ("inference", "mcp-files", "registry", "storage", "training", "vector-db")
PORTS = (443, 8081, 9000)
METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
STEPS = ("a b", "llama", "models", "v1", "x+y", "z;k=1", "%zz", "tab")
AUTHORITIES = ("models.corp.example", "models.corp.example:9000", "s3.corp.example")
SERVICES = {"inference.GRPCInferenceService": ("ModelInfer", "ServerLive"), "vectors.Search": ("Query", "Upsert")}
START, END = 1_700_000_000, 1_800_000_000
HOUR = 3600

Question = dict[str, Any]


def rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Generator:
    """One random policy (`text`) and questions about it."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.segments = [self._segment(name) for name in self.r.sample(SEGMENTS, self.r.randint(2, 5))]
        if self.r.random() < 0.5:
            self.segments.append(self._fallback())
        self.flows = [self._flow(number) for number in range(self.r.randint(3, 9))]
        documents = [*self.segments, *self.flows]
        self.r.shuffle(documents)
        self.text = yaml.safe_dump_all(documents, sort_keys=False)

    def _document(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": "firedoor.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}

    def _segment(self, name: str) -> dict[str, Any]:
        members = [f"spiffe://{{td}}/segment/{name}/**"]
        if self.r.random() < 0.5:
            members.append(f"spiffe://{{td}}/ns/*/sa/{name}")
        if self.r.random() < 0.3:
            members.append(f"spiffe://{FOREIGN}/{name}/**")
        if self.r.random() < 0.15:
            # Sometimes two segments claim the same IDs; then those belong to none.
            members.append("spiffe://{td}/ns/shared/**")
        spec = {"function": name, "members": members, "admission": {"node": ["k8s_pod:ns:x"]}}
        return self._document("Segment", name, {**spec, "mode": self.r.choice(("audit", "enforce"))})

    def _fallback(self) -> dict[str, Any]:
        return self._document("Segment", "legacy", {"members": [], "fallback": True, "admission": {}})

    def _flow(self, number: int) -> dict[str, Any]:
        spec: dict[str, Any] = {"owner": "team", "reason": "tests", "from": self._subject()}
        spec["to"] = {**self._subject(), "port": self.r.choice(PORTS)}
        spec["allow"] = [self._action() for _ in range(self.r.randint(1, 2))]
        if spec["allow"][0] == spec["allow"][-1]:
            del spec["allow"][1:]
        if self.r.random() < 0.3:
            spec["valid"] = {
                word: rfc3339(self.r.randint(*span))
                for word, span in (("from", (START, START + HOUR)), ("until", (END - HOUR, END)))
                if self.r.random() < 0.7
            }
        return self._document("Flow", f"flow-{number}", spec)

    def _subject(self) -> dict[str, Any]:
        segment = self.r.choice(self.segments)["metadata"]["name"]
        choice = self.r.random()
        if choice < 0.5 or segment == "legacy":
            return {"segment": segment}
        pattern = self.r.choice(
            (
                f"spiffe://{{td}}/segment/{segment}/host/h{self.r.randint(1, 3)}/**",
                f"spiffe://{{td}}/segment/{segment}/host/*/svc/main",
                f"spiffe://{{td}}/ns/*/sa/{segment}",
                f"spiffe://{FOREIGN}/{segment}/**",
            )
        )
        ids: Any = pattern if self.r.random() < 0.5 else [pattern, f"spiffe://{{td}}/segment/{segment}/host/h3/*/*"]
        return {"segment": segment, "id": ids} if choice < 0.75 else {"id": ids}

    def _action(self) -> dict[str, Any]:
        kind = self.r.choice(("tcp", "http", "http", "http", "grpc"))
        if kind == "tcp":
            return {"tcp": {}}
        if kind == "grpc":
            service = self.r.choice(list(SERVICES))
            some = {"methods": self.r.sample(SERVICES[service], 1)} if self.r.random() < 0.5 else {}
            return {"grpc": {"service": service, **some}}
        rule: dict[str, Any] = {}
        if self.r.random() < 0.7:
            rule["methods"] = self.r.sample(METHODS, self.r.randint(1, 3))
        if self.r.random() < 0.7:
            rule["paths"] = list(dict.fromkeys(self._path_pattern() for _ in range(self.r.randint(1, 3))))
        if self.r.random() < 0.3:
            rule["authorities"] = self.r.sample(AUTHORITIES, self.r.randint(1, 2))
        return {"http": rule}

    def _path_pattern(self) -> str:
        steps = [self.r.choice((*STEPS[:6], "*")) for _ in range(self.r.randint(0, 3))]
        return "/" + "/".join(steps + self.r.choice(([], ["**"], [""] if steps else [])))

    def questions(self, number: int) -> Iterator[Question]:
        """Every third is made to fit a flow, the others differ from such a one in one field."""
        for count in range(number):
            fitting = self._fitting()
            yield fitting if count % 5 < 2 else self._mutated(fitting)

    def _fitting(self, flow: dict[str, Any] | None = None) -> Question:
        spec = (flow or self.r.choice(self.flows))["spec"]
        valid = spec.get("valid", {})
        question: Question = {
            "source": self._member(spec["from"]),
            "destination": self._member(spec["to"]),
            "port": spec["to"]["port"],
            "time": self.r.randint(START + HOUR, END - HOUR - 1) if valid else self.r.randint(START, END),
        }
        ((kind, rule),) = self.r.choice(spec["allow"]).items()
        question["protocol"] = kind
        question.update({"authority": "", "method": "", "path": "", "grpc_service": "", "grpc_method": ""})
        if kind == "http":
            authority = self.r.choice(rule.get("authorities", AUTHORITIES))
            question["authority"] = self.r.choice((authority, authority.upper()))
            question["method"] = self.r.choice(rule.get("methods", METHODS))
            question["path"] = self._target(self.r.choice(rule.get("paths", ("/", "/**"))))
        elif kind == "grpc":
            question["grpc_service"] = rule["service"]
            question["grpc_method"] = self.r.choice(rule.get("methods", SERVICES[rule["service"]]))
        return question

    def _member(self, subject: dict[str, Any]) -> str:
        ids = subject.get("id")
        if ids is None:
            named = next(s for s in self.segments if s["metadata"]["name"] == subject["segment"])
            ids = named["spec"]["members"] or "spiffe://{td}/old/app"
        return self._id(ids if isinstance(ids, str) else self.r.choice(ids))

    def _id(self, pattern: str) -> str:
        text = pattern.replace("{td}", TD).replace("/**", "/host/h2/svc/main" if self.r.random() < 0.5 else "/tail")
        return "/".join(self.r.choice(("h1", "h2", "h3", "n")) if step == "*" else step for step in text.split("/"))

    def _target(self, pattern: str) -> str:
        steps: list[str] = []
        for step in pattern[1:].split("/"):
            if step == "**":
                steps.extend(self.r.choice(STEPS[:6]) for _ in range(self.r.randint(1, 3)))
                steps.extend([""] if self.r.random() < 0.2 else [])
            else:
                steps.append(self.r.choice(STEPS[:6]) if step == "*" else step)
        encoded = "/".join(self._encoded(step) for step in steps)
        return f"/{encoded}" + self.r.choice(("", "", "?q=%2e%2e/.."))

    def _encoded(self, step: str) -> str:
        some = self.r.random() < 0.3
        return "".join(
            f"%{ord(char):02x}" if char == " " or (some and self.r.random() < 0.5) else char for char in step
        )

    def _mutated(self, question: Question) -> Question:
        fields = ["source", "destination", "port", "protocol", "time"]
        fields += {
            "http": ["path", "path", "path", "method", "authority"],
            "grpc": ["grpc_service", "grpc_method"],
        }.get(question["protocol"], [])
        field = self.r.choice(fields)
        return {**question, field: getattr(self, f"_other_{field}")(question[field])}

    def _other_source(self, spiffe_id: str) -> str:
        one, other = self.r.choice(SEGMENTS), self.r.choice(SEGMENTS)
        return self.r.choice(
            (
                spiffe_id.replace(TD, FOREIGN),
                spiffe_id.replace("/segment/", "/segments/"),
                spiffe_id.replace("h1", "h2").replace("main", "other"),
                f"{spiffe_id}/more",
                f"spiffe://{TD}/segment/{one}/host/h1/svc/main",
                f"spiffe://{TD}/segment/{one}",
                f"spiffe://{TD}/segment/nobody/host/h1",
                f"spiffe://{TD}/ns/shared/sa/{other}",
                f"spiffe://{TD}/spire/agent/x",
                f"spiffe://{TD}/spire",
                f"spiffe://{TD}/old/app",
                f"spiffe://{TD}",
            )
        )

    _other_destination = _other_source

    def _other_port(self, port: int) -> int:
        return self.r.choice([other for other in (*PORTS, port + 1) if other != port])

    def _other_protocol(self, protocol: str) -> str:
        return self.r.choice([other for other in ("tcp", "http", "grpc") if other != protocol])

    def _other_time(self, time: int) -> int:
        return self.r.choice((START - 1, START, END - 1, END, END + HOUR, time + 1))

    def _other_method(self, method: str) -> str:
        return self.r.choice([*(other for other in METHODS if other != method), method.lower(), f"{method}X"])

    def _other_authority(self, authority: str) -> str:
        return self.r.choice((f"{authority}:1", "other.example", "", f"x.{authority}"))

    def _other_path(self, path: str) -> str:
        place = self.r.choice([at for at, char in enumerate(path) if char == "/"])
        inserted = (
            "/..",
            "/%2e%2E",
            "/.",
            "/",
            "/%2F",
            "/%5c",
            "\\",
            "/%00",
            "/%",
            "/%252e",
            "/..;x",
            "/é",
            "/%ff",
            "#",
        )
        return self.r.choice(
            (
                path[:place] + self.r.choice(inserted) + path[place:],
                path.split("?")[0] + "/",
                path.split("?")[0].rstrip("/"),
                path.split("?")[0].rpartition("/")[0] or "/",
                path.split("?")[0] + "/more",
                path.upper(),
                f"http://x{path}",
            )
        )

    def _other_grpc_service(self, service: str) -> str:
        return self.r.choice([*(other for other in SERVICES if other != service), service.lower(), f"{service}X"])

    def _other_grpc_method(self, method: str) -> str:
        every = sorted({one for methods in SERVICES.values() for one in methods} - {method})
        return self.r.choice([*every, method.lower()])
