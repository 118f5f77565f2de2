# SPDX-License-Identifier: Apache-2.0
"""YAML is read strictly, and every refusal knows its line."""

import pytest
import yaml

from firedoor.segments import Document, PolicyErrors, document
from firedoor.segments.document import Mapping, Scalar, Sequence, read

REFUSED = {
    # name: (text, code, line)
    "an alias": ("a: &x 1\nb: *x\n", "alias", 1),
    "an alias without anchor": ("a: *x\n", "alias", 1),
    "an anchor that nobody uses": ("a: 1\nb: &x {c: 2}\n", "alias", 2),
    "a merge key": ("a: 1\n<<: {b: 2}\n", "merge_key", 2),
    "a custom tag": ("a: !!python/object:os.system x\n", "tag", 1),
    "a standard tag": ("a: 1\nb: !!str 1\n", "tag", 2),
    "a bare tag": ("a: ! x\n", "tag", 1),
    "a YAML directive": ("%YAML 1.1\n---\na: 1\n", "directive", 1),
    "a TAG directive": ("%TAG ! tag:x,2000:\n---\na: 1\n", "directive", 1),
    "a key twice": ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "duplicate_key", 5),
    "a key twice, quoted once": ('a: 1\n"a": 2\n', "duplicate_key", 2),
    "a list as key": ("a: 1\n? [b]\n: 2\n", "bad_key", 2),
    "not closed": ("a: {b: 1\nc: 2\n", "bad_yaml", 2),
    "a tab as indent": ("a:\n\tb: 1\n", "bad_yaml", 2),
    "a pattern without quotes in a list": ("a: [spiffe://{td}/x]\n", "bad_yaml", 1),
    "a control character": ("a: 1\nb: \x07\n", "bad_character", 2),
    "a bidirectional override": ("a: 1\nb: \u202eevil\n", "bad_character", 2),
    "a byte order mark inside": ("a: 1\nb: \ufeffx\n", "bad_character", 2),
    "a lone surrogate": ("a: \ud800\n", "bad_character", 1),
    "too deep": ("a: " + "[" * 40 + "]" * 40, "too_deep", 1),
    "a long value": ("a: 1\nb: " + "x" * 4097, "too_long", 2),
    "too large": ("a: 1\n" + "# comment\n" * 500_000, "too_large", 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, code, line = REFUSED[case]
    with pytest.raises(PolicyErrors) as caught:
        read(Document("x.yaml", text))
    (finding,) = caught.value.findings
    assert (finding.code, finding.at.file, finding.at.line, finding.severity) == (code, "x.yaml", line, "error")
    assert finding.fix


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_NODES", 10)
    assert read(Document("x.yaml", "[1, 2, 3, 4, 5, 6, 7, 8, 9]"))
    with pytest.raises(PolicyErrors, match="more than 10 values"):
        read(Document("x.yaml", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"))


def test_types_and_lines() -> None:
    (node,) = read(Document("x.yaml", "a: 1\nb: [true, null, on, 1.5, '1', 2026-01-01, x]\n\nc:\n  d: |\n    text\n"))
    assert isinstance(node, Mapping)
    listed = node.get("b")
    assert isinstance(listed, Sequence)
    types = [item.type for item in listed.items if isinstance(item, Scalar)]
    assert types == ["boolean", "null", "boolean", "other", "text", "other", "text"]
    inner = node.get("c")
    assert isinstance(inner, Mapping)
    assert [(key.text, key.at.line) for key, _ in (*node.entries, *inner.entries)] == [
        ("a", 1),
        ("b", 2),
        ("c", 4),
        ("d", 5),
    ]
    assert node.get("e") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n", "~\n", "--- null\n...\n"])
def test_empty_documents_are_left_out(text: str) -> None:
    assert read(Document("x.yaml", text)) == []


@pytest.mark.parametrize("case", [case for case in REFUSED if case != "too large"])
def test_both_parsers_of_the_library_refuse_alike(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, code, _ = REFUSED[case]
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        monkeypatch.setattr(document, "_Loader", loader)
        with pytest.raises(PolicyErrors) as caught:
            read(Document("x.yaml", text))
        assert [finding.code for finding in caught.value.findings] == [code], loader
