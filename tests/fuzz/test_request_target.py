# SPDX-License-Identifier: Apache-2.0
"""Two readings of a request target, Rust's and the second opinion's, agree on whatever it is: segments, or refused.

The corpus is that of the Rust target `request_target`, and the vectors. What differs is kept there as found-python;
give it a name of its own when it is repaired.
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firedoor import mtls
from tests.segments.evaluator import decoded_path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "request_target"
VECTORS = json.loads((HERE.parent / "vectors" / "policy" / "paths.json").read_text())["cases"]
# Bytes; the second opinion knows no such cap.
MAX_TARGET = 8192
# About this many examples a second; without a time to fill, a quick look.
EXAMPLES = max(500, int(os.environ.get("FIREDOOR_FUZZ_SECONDS", "0")) * 300)

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
# What readers of paths are known to differ in.
PIECES = (
    *("/", "//", "/.", "/..", "/...", "/..;x", "/.;", ";", "?", "#", "\\", " ", "\t", "\0", "é", "a", "b c", "*", "**"),
    *("%", "%2", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%25", "%252e", "%00", "%0a", "%20", "%23", "%3b", "%3f"),
    *("%7f", "%80", "%85", "%9f", "%c2%80", "%c2%a0", "%c0%ae", "%e0%80%af", "%ed%a0%80", "%ef%bb%bf", "%f4%90%80%80"),
    *(
        "%c3",
        "%a4",
        "%c3%a4",
        "%e2%80%ae",
        "%u002e",
        "%%32e",
        "%2%65",
        "&",
        "=",
        "+",
        "~",
        "@",
        ":",
        "!",
        "\x7f",
        "\x80",
    ),
)
targets = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=("Cs",)), max_size=12).map("".join)


def readings(target: str) -> tuple[list[str] | None, list[str] | None]:
    try:
        rust = mtls.canonical_path(target)
    except mtls.MtlsError:
        rust = None
    return rust, decoded_path(target) if len(target.encode()) <= MAX_TARGET else None


def check(target: str) -> list[str] | None:
    rust, python = readings(target)
    if rust != python:
        (CORPUS / "found-python").write_text(target)
    assert rust == python, target
    return rust


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda seed: seed.name)
def test_corpus(seed: Path) -> None:
    check(seed.read_bytes().decode("utf-8", "replace"))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case: dict[str, object]) -> None:
    assert check(str(case["target"])) == case.get("segments")


@fuzz
@given(targets | targets.map("/".__add__))
def test_any_target(target: str) -> None:
    check(target)


@fuzz
@given(st.lists(st.text("ab.;%2eEfF/\\?#", max_size=6), max_size=6))
def test_any_path_of_few_characters(parts: list[str]) -> None:
    check("/" + "/".join(parts))


@fuzz
@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_bytes_escaped(parts: list[bytes]) -> None:
    check("/" + "/".join("".join(f"%{byte:02x}" for byte in part) for part in parts))


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_as_it_is_and_escaped(byte: int) -> None:
    assert check(f"/%{byte:02x}") == check(f"/%{byte:02X}")
    check(f"/x{chr(byte)}y")
