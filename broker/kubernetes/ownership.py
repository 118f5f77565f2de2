# SPDX-License-Identifier: Apache-2.0
"""Whose an object is: one of ours has a label that says so, and an annotation that names our trust domain.

What somebody else has made under a name of ours stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from firedoor.certs import TrustDomain
from firedoor.segments.well_known import TRUST_DOMAIN

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "firedoor"


def mark(trust_domain: TrustDomain) -> dict[str, Any]:
    """Return what the metadata of an object of ours has."""
    return {"labels": {MANAGED_BY: MANAGER}, "annotations": {TRUST_DOMAIN: trust_domain.name}}


def is_ours(metadata: Mapping[str, Any], trust_domain: TrustDomain) -> bool:
    """Say whether an object with this metadata is one of ours."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return labels.get(MANAGED_BY) == MANAGER and annotations.get(TRUST_DOMAIN) == trust_domain.name
