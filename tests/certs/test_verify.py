# SPDX-License-Identifier: Apache-2.0
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from firedoor.certs import (
    IdPattern,
    Revocation,
    SvidError,
    TrustBundle,
    TrustDomain,
    VerifiedSvid,
    verify_x509_svid,
)

VECTORS = Path(__file__).parent.parent / "vectors/svid/cases.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]


def verify(case: dict[str, Any]) -> VerifiedSvid:
    domains = {TrustDomain.parse(name): roots for name, roots in case["bundles"].items()}
    bundles = {td: TrustBundle.of(td, [*map(base64.b64decode, roots)]) for td, roots in domains.items()}
    revocations = [_revocation(each) for each in case.get("revocations", ())]
    chain = [*map(base64.b64decode, case["chain"])]
    return verify_x509_svid(chain, bundles, case["at"], revocations=revocations)


def _revocation(fields: dict[str, Any]) -> Revocation:
    pattern = fields.get("pattern")
    parsed = IdPattern.parse(pattern, TrustDomain.parse("td")) if pattern else None
    return Revocation(**{**fields, "pattern": parsed})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        verified = verify(case)
        assert (str(verified.id), verified.not_after) == (case["id"], case["not_after"])
        return
    with pytest.raises(SvidError) as caught:
        verify(case)
    assert caught.value.code == case["expect"]


def test_names_are_unique() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names))


def test_vectors_hold_every_code() -> None:
    assert {case["expect"] for case in CASES} == {"ok", *SvidError.sentences}


def test_no_constructor() -> None:
    with pytest.raises(TypeError, match="verify_x509_svid"):
        VerifiedSvid()
