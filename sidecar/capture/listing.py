# SPDX-License-Identifier: Apache-2.0
"""What the kernel lists of our table, compared with what we would write.

>>> from firedoor.sidecar.capture.rules import Ruleset
>>> differences(Ruleset((), ()), None)
['the table is not there']
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from firedoor.sidecar.capture.rules import Ruleset

_OURS = {"metainfo", "table", "chain", "rule"}
_FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20, "ecn": 0x40, "cwr": 0x80}


def differences(expected: Ruleset, listed: Mapping[str, Any] | None) -> list[str]:
    """Say how the listed table differs, a sentence each; None is listed when there is none."""
    if listed is None:
        return ["the table is not there"]
    found = [next(iter(item.items())) for item in listed.get("nftables", []) if isinstance(item, dict) and item]
    lines = [f"there is a {kind} that is not ours" for kind, _ in found if kind not in _OURS]
    for kind, value in found:
        if kind == "table" and value.get("flags"):
            # Which one is not asked: nft 1.0.6 names the table there.
            lines.append("the table has a flag: it is dormant, or somebody else's")
    lines += _chains(expected, [value for kind, value in found if kind == "chain"])
    for chain in expected.chains:
        wanted = [rule.as_json() for rule in expected.rules if rule.chain == chain.name]
        there = [value for kind, value in found if kind == "rule" and value.get("chain") == chain.name]
        lines += _rules(chain.name, wanted, there)
    return lines


def _chains(expected: Ruleset, listed: list[dict[str, Any]]) -> Iterator[str]:
    wanted = {chain.name: chain.as_json() for chain in expected.chains}
    there = {chain.get("name"): {k: v for k, v in chain.items() if k != "handle"} for chain in listed}
    for name, chain in wanted.items():
        if name not in there:
            yield f"chain {name} is missing"
        elif there[name] != chain:
            yield f"chain {name} hangs elsewhere or decides otherwise"
    yield from (f"chain {name} is not ours" for name in there if name not in wanted)


def _rules(chain: str, wanted: list[dict[str, Any]], there: list[dict[str, Any]]) -> Iterator[str]:
    ours, theirs = [_rule(one) for one in wanted], [_rule(one) for one in there]
    if ours == theirs:
        return
    yield from (f"{chain}: missing: {_name(one)}" for one in ours if one not in theirs)
    yield from (f"{chain}: not ours: {_name(one)}" for one in theirs if one not in ours)
    if sorted(ours) == sorted(theirs):
        yield f"{chain}: the rules stand in another order"
    elif set(ours) == set(theirs):
        yield f"{chain}: a rule stands more often than it should, or less"


def _rule(rule: Mapping[str, Any]) -> str:
    """Return a rule in one form, whatever lists it."""
    even = [statement for one in rule.get("expr", []) if (statement := _even(one)) is not None]
    return json.dumps([rule.get("comment", ""), even], sort_keys=True)


def _name(even: str) -> str:
    comment, statements = json.loads(even)
    return str(comment) or json.dumps(statements)


def _even(value: Any) -> Any:
    if isinstance(value, list):
        return [_even(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "counter" in value:
        return "counter"
    if value.keys() == {"set"}:
        members = sorted((_even(one) for one in _words(value["set"])), key=json.dumps)
        return members[0] if len(members) == 1 else {"set": members}
    if "match" in value and _is_flags(value["match"].get("left")):
        return {"match": {**value["match"], "right": _flags(value["match"].get("right"))}}
    return {key: _even(one) for key, one in value.items()}


def _is_flags(left: Any) -> bool:
    return bool(left == {"payload": {"protocol": "tcp", "field": "flags"}})


def _flags(right: Any) -> Any:
    """Return TCP flags as a number: nft has written them as a name, a list, `|` of names and as a number."""
    if isinstance(right, dict) and "|" in right:
        right = right["|"]
    if isinstance(right, str):
        right = [right]
    if isinstance(right, list) and all(isinstance(one, str) and one in _FLAGS for one in right):
        return sum(_FLAGS[one] for one in set(right))
    return right


def _words(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
