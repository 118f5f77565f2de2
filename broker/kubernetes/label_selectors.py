# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' label selectors: which objects are meant, by their labels. Pure.

>>> LabelSelector.read({"matchLabels": {"app": "vllm"}}).matches({"app": "vllm", "tier": "gpu"})
True
>>> LabelSelector.read({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}).matches({"app": "vllm"})
False
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

# What one selector may ask for: more than anybody writes, and little to compare.
_MOST: Final = 100
_MAX_TEXT: Final = 317
_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


@final
@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All of some requirements, each (key, operator, values). None of them: everything is meant."""

    requirements: tuple[tuple[str, str, frozenset[str]], ...] = ()

    @classmethod
    def read(cls, given: object) -> LabelSelector:
        """Read `matchLabels` and `matchExpressions`; None, and everything is meant. Raise ValueError."""
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise ValueError("a label selector has matchLabels and matchExpressions")
        if unknown := sorted(map(str, given.keys() - {"matchLabels", "matchExpressions"})):
            raise ValueError(f"a label selector has no {unknown[0][:63]!r}: it has matchLabels and matchExpressions")
        labels, expressions = given.get("matchLabels") or {}, given.get("matchExpressions") or []
        if not isinstance(labels, dict) or not isinstance(expressions, list):
            raise ValueError("matchLabels is a mapping, and matchExpressions a list")
        if len(labels) + len(expressions) > _MOST:
            raise ValueError(f"a label selector has at most {_MOST} requirements")
        equal = [(_text(key), "In", frozenset([_text(value)])) for key, value in sorted(labels.items())]
        return cls((*equal, *map(_expression, expressions)))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Say whether something with these labels is meant."""
        return all(_holds(labels, *one) for one in self.requirements)


def _expression(given: Any) -> tuple[str, str, frozenset[str]]:
    if not isinstance(given, dict):
        raise ValueError("each of matchExpressions has key, operator and values")
    operator, values = given.get("operator"), given.get("values") or []
    if operator not in _OPERATORS:
        raise ValueError(f"a requirement's operator is one of {', '.join(_OPERATORS)}")
    if not isinstance(values, list) or len(values) > _MOST:
        raise ValueError(f"a requirement's values are a list of at most {_MOST}")
    if bool(values) != (operator in ("In", "NotIn")):
        raise ValueError(f"{operator} {'needs values' if not values else 'takes no values'}")
    return _text(given.get("key")), operator, frozenset(map(_text, values))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError("a label selector's keys and values are texts, as long as labels are")
    return value


def _holds(labels: Mapping[str, str], key: str, operator: str, values: frozenset[str]) -> bool:
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            # Kubernetes': what has no such label is meant too.
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels
