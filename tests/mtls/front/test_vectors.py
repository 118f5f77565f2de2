# SPDX-License-Identifier: Apache-2.0
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from firedoor import mtls
from tests.vectors.listed import listed

VECTORS = Path(__file__).parents[2] / "vectors"


def load(path: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((VECTORS / path).read_text())["cases"]
    return cases


def ders(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


@pytest.mark.parametrize("case", load("svid/cases.json"), ids=lambda case: case["name"])
def test_svid(case: dict[str, Any]) -> None:
    bundles = {name: ders(roots) for name, roots in case["bundles"].items()}
    revocations = [mtls.Revocation(**fields) for fields in case.get("revocations", ())]
    if case["expect"] == "ok":
        verified = mtls.verify_svid(
            ders(case["chain"]), bundles, at=case["at"], revocations=revocations, **listed(case)
        )
        assert verified == (case["id"], case["not_after"])
        return
    with pytest.raises(mtls.VerifyError) as caught:
        mtls.verify_svid(ders(case["chain"]), bundles, at=case["at"], revocations=revocations, **listed(case))
    assert caught.value.code == case["expect"]


@pytest.mark.parametrize("file", ["rules", "alphabets", "lengths"])
def test_spiffe_ids(file: str) -> None:
    for case in load(f"spiffe_ids/{file}.json"):
        if case["expect"] == "ok":
            mtls.check_spiffe_id(case["id"])
            continue
        with pytest.raises(mtls.VerifyError) as caught:
            mtls.check_spiffe_id(case["id"])
        assert caught.value.code == case["expect"], case["name"]


def test_patterns() -> None:
    for case in json.loads((VECTORS / "policy/id_patterns.json").read_text())["patterns"]:
        pattern = case["pattern"]
        if case["expect"] != "ok":
            with pytest.raises(mtls.VerifyError) as caught:
                mtls.check_pattern(pattern)
            assert caught.value.code == case["expect"], case["name"]
            continue
        mtls.check_pattern(pattern)
        for spiffe_id in case["matches"]:
            assert mtls.match_pattern(pattern, spiffe_id), (case["name"], spiffe_id)
        for spiffe_id in case["differs"]:
            assert not mtls.match_pattern(pattern, spiffe_id), (case["name"], spiffe_id)
