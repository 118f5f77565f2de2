# SPDX-License-Identifier: Apache-2.0
"""Random policies for a cluster, and what they mean for connections between pods, read from the YAML."""

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

import yaml

from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicyErrors, accept
from tests.segments.evaluator import Evaluator, matches, seconds
from tests.segments.packet_filters import Address, Connection, Pod

TD = "corp.example"
NOW = 1_750_000_000
SPACES = ("models", "serving", "web")
ACCOUNTS = ("default", "vllm")
SEGMENTS = ("inference", "registry", "training")
PORTS = (443, 9000)
LABEL = "firedoor.dev/segment"
BROKER = Pod("firedoor-system", "broker", (("app.kubernetes.io/name", "firedoor-broker"),))
DNS = Pod("kube-system", "coredns", (("k8s-app", "kube-dns"),))
NODE_DNS = Address("169.254.20.10")
OUTSIDE = (Address("203.0.113.9"), Address("2001:db8::9"))


def pod(namespace: str, segment: str | None, account: str = "default") -> Pod:
    return Pod(namespace, account, ((LABEL, segment),) if segment else ())


def document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "firedoor.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _text(documents: list[dict[str, Any]]) -> str:
    return str(yaml.safe_dump_all(documents, sort_keys=False))


def _is_clean(documents: list[dict[str, Any]]) -> bool:
    try:
        accept([Document("random.yaml", _text(documents))], TrustDomain.parse(TD))
    except PolicyErrors:
        return False
    return True


class Generator:
    """One random policy; of its flows, those are left out that lint refuses."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        names = self.r.sample(SEGMENTS, self.r.randint(2, 3))
        documents = [self._segment(name) for name in names]
        for number in range(10):
            flow = self._flow(number, names)
            documents += [flow] if _is_clean([*documents, flow]) else []
        self.text = _text(documents)

    def _segment(self, name: str) -> dict[str, Any]:
        tail = self.r.choice(("**", "ns/*/sa/*", f"ns/{self._space()}/sa/*", "ns/*/sa/vllm", "ns/serving/**"))
        members = [f"spiffe://{{td}}/segment/{name}/{tail}"]
        if self.r.random() < 0.4:
            members.append(f"spiffe://{{td}}/ns/{self._space()}/sa/{name}-only")
        if self.r.random() < 0.2:
            members.append(f"spiffe://{{td}}/segment/{name}/host/h1/svc/x")
        admission = {"node": ["k8s_pod:cluster:prod"]}
        if self.r.random() < 0.4:
            admission["node"].append(f"k8s_pod:ns:{self._space()}")
        if self.r.random() < 0.2:
            admission["node"].append("k8s_pod:sa:vllm")
        mode = "audit" if self.r.random() < 0.2 else "enforce"
        return document("Segment", name, {"function": name, "mode": mode, "members": members, "admission": admission})

    def _space(self) -> str:
        return self.r.choice(SPACES)

    def _flow(self, number: int, names: list[str]) -> dict[str, Any]:
        spec = {"owner": "o", "reason": "r", "from": self._end(names), "allow": [{"tcp": {}}]}
        spec["to"] = {**self._end(names), "port": self.r.choice(PORTS)}
        if self.r.random() < 0.2:
            year = self.r.choice((2025, 2026))
            spec["valid"] = {self.r.choice(("from", "until")): f"{year}-01-01T00:00:00Z"}
        return document("Flow", f"flow-{number}", spec)

    def _end(self, names: list[str]) -> dict[str, Any]:
        name = self.r.choice(names)
        ids = [
            f"spiffe://{{td}}/segment/{name}/ns/{self._space()}/sa/*",
            f"spiffe://{{td}}/segment/{name}/ns/*/sa/vllm",
            f"spiffe://{{td}}/segment/{name}/ns/{self._space()}/sa/{self.r.choice(ACCOUNTS)}",
            f"spiffe://{{td}}/ns/{self._space()}/sa/{name}-only",
        ]
        choice = self.r.random()
        if choice < 0.5:
            return {"segment": name}
        picked = self.r.sample(ids, self.r.randint(1, 2))
        return {"id": picked, **({"segment": name} if choice < 0.8 else {})}


class Meaning:
    """What a policy means for pods. `accounts`: whether service accounts can be told from each other."""

    def __init__(self, text: str, namespaces: tuple[str, ...], *, accounts: bool, td: str = TD, now: int = NOW) -> None:
        self.policy = Evaluator(text, td)
        self.namespaces, self.accounts, self.td, self.now = namespaces, accounts, td, now
        self.every_account = sorted({*ACCOUNTS, *(f"{name}-only" for name in self.policy.segments)})

    @functools.cache  # noqa: B019 - it lives as long as a test
    def ids(self, one: Pod, account: str) -> list[str]:
        """The IDs that this pod could hold if this were its account."""
        segment = dict(one.labels).get(LABEL)
        spec = self.policy.segments.get(segment)
        if spec is None or one.namespace not in self.namespaces:
            return []
        for selector in (*spec["admission"].get("entry", ()), *spec["admission"].get("node", ())):
            kind, _, value = selector.partition(":")[2].partition(":")
            if {"ns": one.namespace, "sa": account}.get(kind, value) != value:
                return []
        path = f"ns/{one.namespace}/sa/{account}"
        both = (f"spiffe://{self.td}/segment/{segment}/{path}", f"spiffe://{self.td}/{path}")
        return [text for text in both if self.policy.segment_of(text) == segment]

    @functools.cache  # noqa: B019
    def is_member(self, one: Pod) -> bool:
        return any(self.ids(one, account) for account in self.every_account)

    def audits(self, one: Pod) -> bool:
        segment = dict(one.labels).get(LABEL)
        return self.is_member(one) and self.policy.segments[segment].get("mode") == "audit"

    def allows(self, c: Connection) -> bool:
        """Whether both ends let a connection between two pods of the namespaces pass."""
        named = self._named(c)
        return all(self.audits(one) or (named and self.is_member(one)) for one in (c.source, c.destination))

    def _named(self, c: Connection) -> bool:
        return any(
            self._end(name, "from", c.source) and self._end(name, "to", c.destination)
            for name, flow in self.policy.flows.items()
            if flow["to"]["port"] == c.port and self._valid(flow)
        )

    def _valid(self, flow: dict[str, Any]) -> bool:
        valid = {word: seconds(value) for word, value in flow.get("valid", {}).items()}
        return bool(valid.get("from", 0) <= self.now < valid.get("until", self.now + 1))

    @functools.cache  # noqa: B019
    def _end(self, flow: str, word: str, one: Pod) -> bool:
        accounts = [one.account] if self.accounts else self.every_account
        end, segment = self.policy.flows[flow][word], dict(one.labels).get(LABEL)
        return end.get("segment", segment) == segment and any(
            matches(end.get("id", text), text, self.td) for account in accounts for text in self.ids(one, account)
        )


def pods(meaning: Meaning) -> list[Pod]:
    """Pods that differ in all that a policy could look at."""
    labels = (*meaning.policy.segments, "ghost", None)
    accounts = meaning.every_account if meaning.accounts else ["default"]
    return [pod(space, label, account) for space in meaning.namespaces for label in labels for account in accounts]


def mutants(objects: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every export with one object, one rule, or one of several items of a list taken away.

    Never the last peer or port: an empty list of those opens a rule to all, which the other end may still refuse.
    """
    for number, one in enumerate(objects):
        name = f"{one['metadata'].get('namespace', '')}/{one['metadata']['name']}"
        yield name, objects[:number] + objects[number + 1 :]
        for path in _items({key: one[key] for key in ("spec", "specs") if key in one}, ()):
            changed = copy.deepcopy(one)
            where: Any = changed
            for step in path[:-1]:
                where = where[step]
            del where[path[-1]]
            yield f"{name}:{'.'.join(map(str, path))}", [*objects[:number], changed, *objects[number + 1 :]]


_RULES = ("ingress", "egress", "egressDeny", "specs")


def _items(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if isinstance(value, list) and (len(value) > 1 or path[-1] in _RULES):
            yield (*path, key)
        yield from _items(part, (*path, key))
