# SPDX-License-Identifier: Apache-2.0
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firedoor import mtls
from firedoor.certs import SpiffeId, SpiffeIdError

VECTORS = Path(__file__).parents[2] / "vectors/svid/cases.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
PLAIN = next(case for case in CASES if case["name"] == "plain")
LEAF, ROOTS, AT = (
    base64.b64decode(PLAIN["chain"][0]),
    {name: [base64.b64decode(root) for root in roots] for name, roots in PLAIN["bundles"].items()},
    PLAIN["at"],
)

pieces = st.sampled_from(
    ["spiffe://", "spiffe:", "/", "//", "td", "a.b", "..", ".", "*", "%41", "A", " ", "é", "\0", "?", "#", "@", ":"]
)
texts = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=8).map("".join))


@given(texts)
@settings(max_examples=1000)
def test_both_languages_read_ids_alike(text: str) -> None:
    try:
        SpiffeId.parse(text)
        python = "ok"
    except SpiffeIdError as error:
        python = error.code
    try:
        mtls.check_spiffe_id(text)
        rust = "ok"
    except mtls.VerifyError as error:
        rust = error.code
    assert rust == python


@given(texts, texts)
def test_patterns_never_fail_otherwise(pattern: str, spiffe_id: str) -> None:
    try:
        mtls.check_pattern(pattern)
        mtls.match_pattern(pattern, spiffe_id)
    except mtls.VerifyError:
        pass


@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
@settings(max_examples=1000)
def test_no_changed_byte_passes(position: int, change: int) -> None:
    leaf = bytearray(LEAF)
    leaf[position] ^= change
    with pytest.raises(mtls.VerifyError):
        mtls.verify_svid([bytes(leaf)], ROOTS, at=AT)


@given(st.lists(st.binary(max_size=300), max_size=9))
def test_junk_is_an_error(chain: list[bytes]) -> None:
    with pytest.raises(mtls.VerifyError):
        mtls.verify_svid(chain, ROOTS, at=AT)


@given(st.integers(0, len(LEAF) - 1), st.binary(max_size=20))
def test_cut_and_filled_is_an_error(position: int, filling: bytes) -> None:
    if LEAF[:position] + filling != LEAF:
        with pytest.raises(mtls.VerifyError):
            mtls.verify_svid([LEAF[:position] + filling], ROOTS, at=AT)


def test_unchanged_passes() -> None:
    assert mtls.verify_svid([LEAF], ROOTS, at=AT)[0] == PLAIN["id"]
