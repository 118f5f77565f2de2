# SPDX-License-Identifier: Apache-2.0
"""An AdmissionReview (admission.k8s.io/v1) in, its answer out. Pure.

Whatever is wrong with a pod is a refusal with a sentence, which kubectl shows. What is no review at all is an error: an
API server never sends that.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from firedoor.broker.errors import InvalidRequest
from firedoor.broker.injector.demands import Demands
from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.broker.injector.json_patch import difference
from firedoor.broker.injector.pod import Injected, inject
from firedoor.broker.injector.settings import InjectorRules

# etcd takes objects of 1.5 MiB; a review may hold one twice.
MAX_REVIEW: Final = 4 * 1024 * 1024
_VERSION: Final = "admission.k8s.io/v1"
_MAX_UID: Final = 253
# kube-apiserver cuts longer ones, and all together at 4096.
_MAX_WARNING: Final = 256
_MAX_WARNINGS: Final = 15


def answer(body: bytes, rules: InjectorRules, trust_domain: str, demands: Demands) -> bytes:
    """Return the answer to a review of a pod whose namespace demands so much. Raise InvalidRequest."""
    uid, request = _read(body)
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    try:
        made = _injected(request, rules, trust_domain, demands)
    except InjectionRefused as error:
        message = f"firedoor cannot inject its sidecar: {error}"
        response |= {"allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": message}}
    else:
        patch = difference(request.get("object"), made.pod) if made is not None else []
        if patch:
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        if made is not None and made.warnings:
            response["warnings"] = [one[:_MAX_WARNING] for one in made.warnings[:_MAX_WARNINGS]]
    return json.dumps({"apiVersion": _VERSION, "kind": "AdmissionReview", "response": response}).encode()


def _injected(request: Mapping[str, Any], rules: InjectorRules, trust_domain: str, demands: Demands) -> Injected | None:
    """Return the pod that a request is to make; None for a request that makes none."""
    made, namespace = request.get("object"), request.get("namespace")
    kind = request.get("resource")
    pods = isinstance(kind, dict) and (kind.get("group"), kind.get("resource")) == ("", "pods")
    if request.get("operation") != "CREATE" or not pods or request.get("subResource"):
        return None
    if not isinstance(made, dict) or not isinstance(namespace, str):
        raise InjectionRefused("this is no pod in a namespace")
    return inject(made, namespace, rules, trust_domain, demands)


def _read(body: bytes) -> tuple[str, Mapping[str, Any]]:
    if len(body) > MAX_REVIEW:
        raise InvalidRequest("the review is longer than 4 MiB")
    try:
        review = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("the review is no JSON") from None
    request = review.get("request") if isinstance(review, dict) else None
    if not isinstance(request, dict) or review.get("apiVersion") != _VERSION or review.get("kind") != "AdmissionReview":
        raise InvalidRequest(f"this is no AdmissionReview of {_VERSION}")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= _MAX_UID:
        raise InvalidRequest("the review has no uid")
    return uid, request
