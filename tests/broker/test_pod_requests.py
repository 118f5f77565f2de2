# SPDX-License-Identifier: Apache-2.0
"""What is read of a PodCertificateRequest, what it is held against, and which keys are taken."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from firedoor.broker.kubernetes.pod_keys import requested_key
from firedoor.broker.kubernetes.pod_requests import (
    Objects,
    PodRequest,
    RequestFailed,
    RequestingPod,
    RequestRefused,
    read,
    requesting_pod,
)
from firedoor.certs import KeyType, TrustDomain, generate_key, make_csr
from firedoor.cluster.errors import ObjectsUnreadable

TD = TrustDomain.parse("example.org")
SPEC: dict[str, Any] = {
    "podName": "vllm-0",
    "podUID": "pod-1",
    "serviceAccountName": "vllm",
    "serviceAccountUID": "account-1",
    "nodeName": "worker-1",
    "nodeUID": "node-1",
    "maxExpirationSeconds": 86400,
    "stubPKCS10Request": base64.b64encode(b"csr").decode(),
}
METADATA = {
    "name": "req-1",
    "namespace": "serving",
    "uid": "1",
    "resourceVersion": "7",
    "creationTimestamp": "2026-11-27T10:00:00Z",
}


def seen(status: object = None, **spec: object) -> dict[str, Any]:
    return {"metadata": METADATA, "spec": {**SPEC, **spec}, "status": status or {}}


def request(**spec: object) -> PodRequest:
    found = read(seen(**spec))[1]
    assert found is not None
    return found


def there(**changes: Any) -> Objects:
    pod = {
        "metadata": {"uid": "pod-1", "labels": {"firedoor.dev/segment": "inference", "app": "vllm"}},
        "spec": {"nodeName": "worker-1", "serviceAccountName": "vllm"},
        "status": {"phase": "Pending"},
    }
    objects = {
        "pod": pod,
        "account": {"metadata": {"uid": "account-1"}},
        "node": {"metadata": {"uid": "node-1"}},
        "namespace": {"metadata": {"labels": {"team": "llm"}}},
    }
    return Objects(**{**objects, **changes})


def test_of_annotations_no_more_are_kept_than_show_that_they_are_wrong() -> None:
    form = {"firedoor.dev/id": "istio"}
    assert request(unverifiedUserAnnotations=form).annotations == form
    many = {**form, **{f"example.org/{number}": "x" for number in range(5000)}}
    found = request(unverifiedUserAnnotations=many)
    assert len(found.annotations) == 2
    with pytest.raises(RequestRefused, match="and nothing else"):
        requesting_pod(TD, "prod", found, there())


def test_what_is_read() -> None:
    key, found = read(seen())
    assert key == "serving/req-1"
    assert found is not None
    assert (found.pod, found.node_uid, found.max_life, found.csr) == ("vllm-0", "node-1", 86400, b"csr")
    assert found.created_at == 1795773600


@pytest.mark.parametrize("kind", ["Issued", "Denied", "Failed"])
def test_what_has_its_answer_is_not_asked_again(kind: str) -> None:
    assert read(seen({"conditions": [{"type": kind, "status": "True"}]})) == ("serving/req-1", None)


def test_what_is_no_request() -> None:
    with pytest.raises(ObjectsUnreadable, match="without a name"):
        read({"metadata": {"name": "x"}})


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(spec=st.dictionaries(st.sampled_from([*SPEC, "unverifiedUserAnnotations", "proofOfPossession"]), json), it=json)
def test_any_object_is_read_or_refused(spec: dict[str, Any], it: object) -> None:
    """Whatever an API server shows: a request, or a sentence."""
    for one in (
        {"metadata": METADATA, "spec": spec, "status": it},
        {"metadata": it},
        {"metadata": METADATA, "spec": it},
    ):
        try:
            found = read(one)[1]
        except ObjectsUnreadable:
            continue
        if found is None:
            continue
        with pytest.raises(RequestRefused):
            requesting_pod(TD, "prod", replace(found, pod_uid="another"), there())
        with pytest.raises(RequestRefused):
            requested_key(found)


def test_what_is_too_large_is_nothing() -> None:
    assert request(stubPKCS10Request=base64.b64encode(b"x" * 10241).decode()).csr == b""
    assert request(stubPKCS10Request="%%%").csr == b""
    assert request(podName="x" * 254).pod == ""


def test_a_pod_is_what_its_sidecar_would_be_attested_as() -> None:
    found = requesting_pod(TD, "prod", request(), there())
    assert str(found.agent_id) == "spiffe://example.org/spire/agent/k8s_pod/prod/pod-1"
    assert str(found.spiffe_id) == "spiffe://example.org/segment/inference/ns/serving/sa/vllm"
    assert sorted(map(str, found.attested)) == [
        "k8s_pod:cluster:prod",
        "k8s_pod:label:app:vllm",
        "k8s_pod:label:firedoor.dev/segment:inference",
        "k8s_pod:node:worker-1",
        "k8s_pod:ns-label:team:llm",
        "k8s_pod:ns:serving",
        "k8s_pod:pod-uid:pod-1",
        "k8s_pod:sa:vllm",
    ]
    assert sorted(map(str, found.workload)) == [
        "k8s:node-name:worker-1",
        "k8s:ns:serving",
        "k8s:pod-label:app:vllm",
        "k8s:pod-label:firedoor.dev/segment:inference",
        "k8s:pod-name:vllm-0",
        "k8s:pod-uid:pod-1",
        "k8s:sa:vllm",
    ]


def test_nobody_else_makes_one() -> None:
    with pytest.raises(TypeError, match="requesting_pod"):
        RequestingPod()


def test_which_segment_it_asks_for() -> None:
    pod = {**there().pod, "metadata": {"uid": "pod-1"}}  # type: ignore[dict-item]
    assert requesting_pod(TD, "prod", request(), there(pod=pod)).spiffe_id.path == "/segment/serving/ns/serving/sa/vllm"
    istio = request(unverifiedUserAnnotations={"firedoor.dev/id": "istio"})
    assert requesting_pod(TD, "prod", istio, there()).spiffe_id.path == "/ns/serving/sa/vllm"
    pod["metadata"] = {"uid": "pod-1", "annotations": {"firedoor.dev/segment": "no segment"}}
    with pytest.raises(RequestRefused, match="is no name of a segment"):
        requesting_pod(TD, "prod", request(), there(pod=pod))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pod": None}, "there is no pod of that name any more"),
        ({"account": None}, "the service account of that name has another UID"),
        ({"account": {"metadata": {"uid": "x"}}}, "the service account of that name has another UID"),
        ({"node": None}, "the node of that name has another UID"),
        ({"namespace": None}, "the namespace is being deleted"),
        ({"namespace": {"metadata": {"deletionTimestamp": "x"}}}, "the namespace is being deleted"),
    ],
)
def test_what_is_gone_or_another(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestRefused, match=said) as refused:
        requesting_pod(TD, "prod", request(), there(**changes))
    assert (refused.value.condition, refused.value.reason) == ("Denied", "PodDiffers")


def test_no_uid_is_nobodys_uid() -> None:
    with pytest.raises(RequestRefused, match="has another UID"):
        requesting_pod(TD, "prod", request(nodeUID=""), there(node={"metadata": {"uid": ""}}))


# Keys


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def public(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def old(key: Any, proof: bytes) -> PodRequest:
    return request(stubPKCS10Request=None, pkixPublicKey=b64(public(key)), proofOfPossession=b64(proof))


EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 3072)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)


def test_keys_that_are_taken() -> None:
    key = generate_key(KeyType.EC_P256)
    assert requested_key(request(stubPKCS10Request=b64(make_csr(key)))).der == public(key)
    assert requested_key(old(EC, EC.sign(b"pod-1", ec.ECDSA(hashes.SHA256())))).der == public(EC)
    assert requested_key(old(ED, ED.sign(b"pod-1"))).der == public(ED)
    assert requested_key(old(RSA, RSA.sign(b"pod-1", PSS, hashes.SHA256()))).der == public(RSA)


@pytest.mark.parametrize(
    ("asked", "reason", "kind"),
    [
        (request(stubPKCS10Request=None), "InvalidRequest", RequestFailed),
        (request(), "InvalidRequest", RequestFailed),
        (old(EC, EC.sign(b"pod-2", ec.ECDSA(hashes.SHA256()))), "InvalidRequest", RequestFailed),
        (old(ED, b""), "InvalidRequest", RequestFailed),
        (old(RSA, RSA.sign(b"pod-1", padding.PKCS1v15(), hashes.SHA256())), "InvalidRequest", RequestFailed),
        (old(ec.generate_private_key(ec.SECP521R1()), b"x"), "UnsupportedKeyType", RequestRefused),
        (
            request(stubPKCS10Request=None, pkixPublicKey=b64(public(EC)[:-1] + b"\0"), proofOfPossession="AAAA"),
            "InvalidRequest",
            RequestFailed,
        ),
    ],
    ids=["none", "no CSR", "another pod's", "no proof", "another padding", "P-521", "no point"],
)
def test_keys_that_are_not(asked: PodRequest, reason: str, kind: type[RequestRefused]) -> None:
    with pytest.raises(RequestRefused) as refused:
        requested_key(asked)
    assert (refused.value.reason, type(refused.value)) == (reason, kind)
