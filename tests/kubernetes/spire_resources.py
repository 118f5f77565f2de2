# SPDX-License-Identifier: Apache-2.0
"""SPIRE's three resources, as API servers know them: fields, statuses and scopes are those of spire-controller-manager.

Its own files are not here: no registry of modules has them. As there, a status has no conditions, so that an API server
leaves them out; `with_conditions` keeps them, for tests that read sentences.
"""

from __future__ import annotations

from typing import Any

from tests.kubernetes.api import AlreadyExists, ApiError
from tests.kubernetes.cluster import Cluster
from tests.waiting import until

GROUP = "/apis/spire.spiffe.io/v1alpha1"
PLURALS = {
    "ClusterSPIFFEID": "clusterspiffeids",
    "ClusterStaticEntry": "clusterstaticentries",
    "ClusterFederatedTrustDomain": "clusterfederatedtrustdomains",
}
Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer"}


def record(fields: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}


_EXPRESSION = record({"key": TEXT, "operator": TEXT, "values": TEXTS}, "key", "operator")
LABELS: Schema = {
    **record(
        {
            "matchLabels": {"type": "object", "additionalProperties": TEXT},
            "matchExpressions": {"type": "array", "items": _EXPRESSION},
        }
    ),
    "x-kubernetes-map-type": "atomic",
}
_STATS = (
    "namespacesSelected",
    "namespacesIgnored",
    "podsSelected",
    "podEntryRenderFailures",
    "entriesMasked",
    "entriesToSet",
    "entryFailures",
)
SPECS: dict[str, Schema] = {
    "ClusterSPIFFEID": record(
        {
            **dict.fromkeys(("spiffeIDTemplate", "ttl", "jwtTtl", "className", "hint"), TEXT),
            **dict.fromkeys(("dnsNameTemplates", "workloadSelectorTemplates", "federatesWith"), TEXTS),
            **dict.fromkeys(("admin", "downstream", "autoPopulateDNSNames", "fallback"), FLAG),
            **dict.fromkeys(("namespaceSelector", "podSelector"), LABELS),
        },
        "spiffeIDTemplate",
    ),
    "ClusterStaticEntry": record(
        {
            **dict.fromkeys(("spiffeID", "parentID", "x509SVIDTTL", "jwtSVIDTTL", "hint", "className"), TEXT),
            **dict.fromkeys(("selectors", "federatesWith", "dnsNames"), TEXTS),
            **dict.fromkeys(("admin", "downstream", "storeSVID"), FLAG),
        },
        *("parentID", "selectors", "spiffeID"),
    ),
    "ClusterFederatedTrustDomain": record(
        {
            **dict.fromkeys(("bundleEndpointURL", "trustDomainBundle", "className"), TEXT),
            "trustDomain": {"type": "string", "pattern": "[a-z0-9._-]{1,255}"},
            "bundleEndpointProfile": record(
                {"type": {"type": "string", "enum": ["https_spiffe", "https_web"]}, "endpointSPIFFEID": TEXT}, "type"
            ),
        },
        *("bundleEndpointProfile", "bundleEndpointURL", "trustDomain"),
    ),
}
STATUSES: dict[str, Schema] = {
    "ClusterSPIFFEID": record({"stats": record(dict.fromkeys(_STATS, COUNT))}),
    "ClusterStaticEntry": record(dict.fromkeys(("masked", "rendered", "set"), FLAG), "masked", "rendered", "set"),
    "ClusterFederatedTrustDomain": {"type": "object"},
}
_CONDITION: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def definition(kind: str, *, with_conditions: bool) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    status = STATUSES[kind]
    if with_conditions:
        conditions: Schema = {"type": "array", "items": _CONDITION}
        status = {**status, "properties": {**status.get("properties", {}), "conditions": conditions}}
    head = {"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"}}
    whole = record({**head, "spec": SPECS[kind], "status": status})
    names = {"kind": kind, "listKind": f"{kind}List", "plural": PLURALS[kind], "singular": kind.lower()}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": whole}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURALS[kind]}.spire.spiffe.io"},
        "spec": {
            "group": "spire.spiffe.io",
            "scope": "Cluster",
            "names": names,
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }


def install(cluster: Cluster, *, with_conditions: bool) -> None:
    """Have the API server know the resources."""
    for kind in PLURALS:
        try:
            made = definition(kind, with_conditions=with_conditions)
            cluster.api().post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", made)
        except AlreadyExists:
            continue
    until(lambda: _served(cluster), "SPIRE's resources are served")


def _served(cluster: Cluster) -> bool:
    try:
        for plural in PLURALS.values():
            cluster.api().get(f"{GROUP}/{plural}")
    except ApiError:
        return False
    return True
