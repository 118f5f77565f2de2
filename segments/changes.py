# SPDX-License-Identifier: Apache-2.0
"""What a policy edit changes, for people and for certificates that are already out."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, final

from firedoor.certs import IdPattern
from firedoor.segments.cover import any_covers
from firedoor.segments.document import Document, Mapping, Node, Scalar, read
from firedoor.segments.model import Admission, PolicySet, Segment

_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_MARKER: Final = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.M)
Op = Literal["added", "removed", "changed"]


@final
@dataclass(frozen=True, order=True, slots=True)
class Change:
    """One segment or flow that differs. `text` is a unified diff of its canonical form."""

    kind: str
    name: str
    op: Op
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.op}\n{self.text}"


def diff(old: Iterable[Document], new: Iterable[Document]) -> list[Change]:
    """Compare two sets of documents object by object. Files, comments and the order of keys do not count.

    Raise PolicyErrors for what is not YAML.
    """
    old_pieces, new_pieces = _pieces(old), _pieces(new)
    # What stands in both sets brings the same objects to both.
    before = _objects(one for text, one in old_pieces.items() if text not in new_pieces)
    after = _objects(one for text, one in new_pieces.items() if text not in old_pieces)
    changes: list[Change] = []
    for kind, name in sorted(before.keys() | after.keys()):
        left, right = before.get((kind, name)), after.get((kind, name))
        if left != right:
            op: Op = "added" if left is None else "removed" if right is None else "changed"
            label = f"{kind}/{name}"
            lines = difflib.unified_diff(left or [], right or [], f"old/{label}", f"new/{label}", lineterm="")
            changes.append(Change(kind, name, op, "\n".join(lines)))
    return changes


def _pieces(documents: Iterable[Document]) -> dict[str, Document]:
    """Cut texts at the markers between their YAML documents: no other value may have one (YAML 1.2, 9.1.2)."""
    found: dict[str, Document] = {}
    for document in documents:
        pieces = (piece for piece in _MARKER.split(document.text) if piece.strip())
        for number, piece in enumerate(pieces):
            found.setdefault(piece, Document(f"{document.name}#{number}", piece))
    return found


def _objects(documents: Iterable[Document]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for document in documents:
        for node in read(document):
            metadata = node.get("metadata") if isinstance(node, Mapping) else None
            name = _word(metadata, "name") or document.name
            found[_word(node, "kind") or "Document", name] = list(_render(node, ""))
    return found


def _word(node: Node | None, key: str) -> str:
    value = node.get(key) if isinstance(node, Mapping) else None
    return value.text if isinstance(value, Scalar) else ""


def _render(node: Node, indent: str) -> Iterator[str]:
    """Write a tree as YAML with sorted keys, a value a line."""
    if isinstance(node, Scalar):
        yield indent + _scalar(node)
    elif isinstance(node, Mapping):
        for key, value in sorted(node.entries, key=lambda entry: entry[0].text):
            yield from _part(f"{indent}{_scalar(key)}:", value, indent + "  ")
    else:
        for item in node.items:
            yield from _part(f"{indent}-", item, indent + "  ")


def _part(head: str, value: Node, indent: str) -> Iterator[str]:
    if isinstance(value, Scalar):
        yield f"{head} {_scalar(value)}"
    elif not (value.entries if isinstance(value, Mapping) else value.items):
        yield f"{head} {'{}' if isinstance(value, Mapping) else '[]'}"
    else:
        yield head
        yield from _render(value, indent)


def _scalar(node: Scalar) -> str:
    if node.type != "text" or _PLAIN.fullmatch(node.text):
        return node.text
    return json.dumps(node.text, ensure_ascii=False)


def promoted(old: PolicySet, new: PolicySet) -> list[IdPattern]:
    """Return patterns for the IDs whose certificates, issued under `old`, would mean more under `new` than was checked.

    That is each ID that comes to a segment which did not claim it before, and each member of a segment whose admission
    changed. Certificates for them are re-issued before the edit counts on the data path. The answer may name more IDs
    than necessary, never fewer; a pattern that another one covers is left out.
    """
    found: set[IdPattern] = set()
    for segment in new.segments:
        found.update(_gained(old.segment(segment.name), segment, old, new))
    widest = [one for one in found if not any(other != one and other.covers(one) for other in found)]
    return sorted(widest)


def _gained(before: Segment | None, after: Segment, old: PolicySet, new: PolicySet) -> Iterator[IdPattern]:
    if before is None or _asked(before.admission) != _asked(after.admission):
        yield from after.members
    else:
        yield from (pattern for pattern in after.members if not any_covers(before.members, pattern))
    if not after.fallback:
        return
    if before is None or not before.fallback or _asked(before.admission) != _asked(after.admission):
        # No pattern matches what is at or below /spire, so agents and servers keep their certificates.
        yield IdPattern.parse("spiffe://{td}/**", new.trust_domain)
    for segment in old.segments:
        yield from (pattern for pattern in segment.members if _released(pattern, new))


def _released(pattern: IdPattern, new: PolicySet) -> bool:
    """Say whether IDs that a segment claimed may now fall to the fallback."""
    own = pattern.trust_domain == new.trust_domain
    return own and not any(any_covers(segment.members, pattern) for segment in new.segments)


def _asked(rule: Admission) -> tuple[frozenset[object], frozenset[object], bool, bool]:
    return frozenset(rule.entry), frozenset(rule.node), rule.mint, rule.breakglass
