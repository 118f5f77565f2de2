# SPDX-License-Identifier: Apache-2.0
"""Tokens of pods: what is read, what a review or a cluster's keys vouch for, and everything that is refused."""

from __future__ import annotations

import json
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from firedoor.certs import (
    BundleError,
    CertsError,
    ClusterKeys,
    EvidenceError,
    PodEvidence,
    PodToken,
    VerifiedPod,
    check_review,
    verify_pod_token,
)
from firedoor.certs.pod_token import MAX_POD_TOKEN_BYTES
from tests.service_accounts import AUDIENCE, ISSUER, POD_UID, TokenIssuer, encode, part

AT = 1_800_000_000
CLUSTER = TokenIssuer(AT)
KEYS = ClusterKeys.read(CLUSTER.jwks)
POD = CLUSTER.claims()["kubernetes.io"]


def verify(token: str, now: float = AT + 1, audience: str = AUDIENCE, issuer: str = ISSUER) -> VerifiedPod:
    return verify_pod_token(PodToken.read(token), KEYS, issuer, audience, now)


def bound(**changes: Any) -> dict[str, Any]:
    """Return the claims of Kubernetes with some changed; None takes one away."""
    return {"kubernetes.io": {key: value for key, value in (POD | changes).items() if value is not None}}


def status(**changes: Any) -> dict[str, Any]:
    """Return a TokenReview's status as kube-apiserver 1.37 writes it."""
    extra = {
        "authentication.kubernetes.io/credential-id": ["JTI=x"],
        "authentication.kubernetes.io/node-name": ["worker-1"],
        "authentication.kubernetes.io/pod-name": ["vllm-0"],
        "authentication.kubernetes.io/pod-uid": [POD_UID],
    }
    user = {"username": "system:serviceaccount:inference:vllm", "uid": "u", "extra": extra}
    return {"authenticated": True, "audiences": [AUDIENCE], "user": user} | changes


def test_a_token_is_read_and_verified_by_the_clusters_keys() -> None:
    claims = verify(CLUSTER.token()).claims
    assert (claims.namespace, claims.service_account, claims.pod_name) == ("inference", "vllm", "vllm-0")
    assert (claims.pod_uid, claims.node_name, claims.issuer) == (POD_UID, "worker-1", ISSUER)
    assert (claims.issued_at, claims.expires_at) == (AT, AT + 600)


def test_another_reader_agrees() -> None:
    token = CLUSTER.token()
    key = CLUSTER.key.public_key()
    read = pyjwt.decode(
        token,
        key,
        ["RS256"],
        audience=AUDIENCE,
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
    )
    assert read["jti"] == verify(token).claims.token_id


def test_two_tokens_are_told_apart_and_one_is_not() -> None:
    first, second = (PodToken.read(CLUSTER.token(jti=jti)).claims for jti in ("a", "b"))
    assert first.token_hash() != second.token_hash()
    # The same token in another spelling is the same: what counts is its `jti`.
    assert first.token_hash() == PodToken.read(CLUSTER.token(jti="a", exp=AT + 700)).claims.token_hash()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "of no pod": (bound(pod=None), "not_of_a_pod"),
    "of a pod that is no object": (bound(pod="vllm-0"), "not_of_a_pod"),
    "a legacy token": ({"kubernetes.io": None, "kubernetes.io/serviceaccount/namespace": "a"}, "not_of_a_pod"),
    "no jti": ({"jti": None}, "token_id_missing"),
    "an empty jti": ({"jti": ""}, "token_id_missing"),
    "a jti that is a number": ({"jti": 1}, "token_id_missing"),
    "a long jti": ({"jti": "x" * 256}, "token_id_missing"),
    "another subject": ({"sub": "system:serviceaccount:web:vllm"}, "other_subject"),
    "no subject": ({"sub": None}, "other_subject"),
    "a namespace that leaves the path": (bound(namespace="../x"), "malformed_pod_claim"),
    "no namespace": (bound(namespace=None), "malformed_pod_claim"),
    "a UID that leaves the ID": (bound(pod={"name": "a", "uid": "../../x"}), "malformed_pod_claim"),
    "a UID with a slash": (bound(pod={"name": "a", "uid": "a/b"}), "malformed_pod_claim"),
    "no UID": (bound(pod={"name": "a"}), "malformed_pod_claim"),
    "a pod's name that leaves the path": (bound(pod={"name": "a/../b", "uid": POD_UID}), "malformed_pod_claim"),
    "a pod's name with a newline": (bound(pod={"name": "a\n", "uid": POD_UID}), "malformed_pod_claim"),
    "no service account": (bound(serviceaccount=None), "malformed_pod_claim"),
    "a node's name that is none": (bound(node={"name": "a b"}), "malformed_pod_claim"),
    "no exp": ({"exp": None}, "expiry_missing"),
    "an exp that is text": ({"exp": "9"}, "malformed_claim"),
    "no aud": ({"aud": None}, "audience_missing"),
    "an empty aud": ({"aud": []}, "audience_missing"),
    "an aud of numbers": ({"aud": [1]}, "malformed_claim"),
    "many audiences": ({"aud": ["x"] * 17}, "audience_missing"),
    "another issuer": ({"iss": "https://other"}, "other_issuer"),
    "another audience": ({"aud": ["vault"]}, "wrong_audience"),
    "a long life": ({"exp": AT + 7200}, "lives_too_long"),
    "no iat": ({"iat": None}, "lives_too_long"),
    "expired": ({"exp": AT + 1}, "expired"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    claims, code = REFUSED[case]
    with pytest.raises(CertsError) as refused:
        verify(CLUSTER.token(**claims))
    assert refused.value.code == code


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "no algorithm": ({"kid": "key-1"}, "algorithm_not_allowed"),
    "none": ({"alg": "none", "kid": "key-1"}, "algorithm_not_allowed"),
    "HMAC": ({"alg": "HS256", "kid": "key-1"}, "algorithm_not_allowed"),
    "an algorithm of another kind of key": ({"alg": "ES256", "kid": "key-1"}, "algorithm_mismatch"),
    "no kid": ({"alg": "RS256"}, "key_id_missing"),
    "an unknown kid": ({"alg": "RS256", "kid": "key-2"}, "key_unknown"),
    "a key of its own": ({"alg": "RS256", "kid": "key-1", "jwk": {}}, "header_not_allowed"),
    "critical": ({"alg": "RS256", "kid": "key-1", "crit": ["b64"]}, "header_not_allowed"),
    "another type": ({"alg": "RS256", "kid": "key-1", "typ": "at+jwt"}, "type_not_allowed"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_refused(case: str) -> None:
    header, code = HEADERS[case]
    with pytest.raises(CertsError) as refused:
        verify(CLUSTER.sign(CLUSTER.claims(), header))
    assert refused.value.code == code


def test_a_token_that_somebody_else_signed() -> None:
    with pytest.raises(CertsError) as refused:
        verify(TokenIssuer(AT).token())
    assert refused.value.code == "bad_signature"
    head, _, rest = CLUSTER.token().partition(".")
    forged = f"{head}.{part(CLUSTER.claims('registry', 'models'))}.{rest.rpartition('.')[2]}"
    with pytest.raises(CertsError) as refused:
        verify(forged)
    assert refused.value.code == "bad_signature"


def test_the_public_key_is_no_secret_of_hmac() -> None:
    """The classic confusion: HS256 with the public key as the secret."""
    signed = f"{part({'alg': 'HS256', 'kid': 'key-1'})}.{part(CLUSTER.claims())}"
    with pytest.raises(CertsError) as refused:
        verify(f"{signed}.{encode(bytes(32))}")
    assert refused.value.code == "algorithm_not_allowed"


REVIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "not authenticated": ({"authenticated": False, "error": "secret"}, "not_authenticated"),
    "authenticated is a word": ({"authenticated": "true"}, "not_authenticated"),
    "another audience": ({"audiences": ["vault"]}, "wrong_audience"),
    "no audience": ({"audiences": None}, "wrong_audience"),
    "another account": ({"user": status()["user"] | {"username": "system:serviceaccount:web:vllm"}}, "review_differs"),
    "a user that is no service account": ({"user": {"username": "admin"}}, "not_of_a_pod"),
    "no user": ({"user": None}, "not_of_a_pod"),
    "two pods": (
        {"user": {"extra": {"authentication.kubernetes.io/pod-uid": ["a", "b"]}}},
        "not_of_a_pod",
    ),
}


@pytest.mark.parametrize("case", REVIEWS)
def test_reviews_that_are_refused(case: str) -> None:
    changes, code = REVIEWS[case]
    with pytest.raises(CertsError) as refused:
        check_review(PodToken.read(CLUSTER.token()), status(**changes), AUDIENCE, AT)
    assert refused.value.code == code
    assert "secret" not in str(refused.value)


def test_a_review_of_another_pod_is_refused() -> None:
    """The token says one pod, the API server another: SPIRE 1.15.2."""
    for pod in ({"name": "vllm-0", "uid": "other"}, {"name": "vllm-1", "uid": POD_UID}):
        with pytest.raises(CertsError) as refused:
            check_review(PodToken.read(CLUSTER.token(**bound(pod=pod))), status(), AUDIENCE, AT)
        assert refused.value.code == "review_differs"


def test_why_a_token_is_not_authenticated_as_far_as_it_tells() -> None:
    denied = {"authenticated": False}
    for claims, code in (({"aud": ["vault"]}, "wrong_audience"), ({"exp": AT}, "expired"), ({}, "not_authenticated")):
        with pytest.raises(CertsError) as refused:
            check_review(PodToken.read(CLUSTER.token(**claims)), denied, AUDIENCE, AT)
        assert refused.value.code == code


def test_a_review_vouches_by_our_clock_too() -> None:
    token = PodToken.read(CLUSTER.token())
    assert check_review(token, status(), AUDIENCE, AT + 599).claims == token.claims
    # API servers take a token for a minute after its end.
    with pytest.raises(CertsError) as refused:
        check_review(token, status(), AUDIENCE, AT + 600)
    assert refused.value.code == "expired"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "malformed_evidence"),
        (b"[]", "malformed_evidence"),
        (b'{"cluster":"a","cluster":"b","token":"t"}', "malformed_evidence"),
        (b'{"token":"t"}', "bad_cluster_name"),
        (b'{"cluster":"..","token":"t"}', "bad_cluster_name"),
        (b'{"cluster":"a/b","token":"t"}', "bad_cluster_name"),
        (b'{"cluster":"","token":"t"}', "bad_cluster_name"),
        (b'{"cluster":"a"}', "bad_pod_token"),
        (b'{"cluster":"a","token":""}', "bad_pod_token"),
        (json.dumps({"cluster": "a", "token": "t" * (MAX_POD_TOKEN_BYTES + 1)}).encode(), "bad_pod_token"),
        (json.dumps({"cluster": "a", "token": "t" * 20_000}).encode(), "malformed_evidence"),
    ],
)
def test_evidence_that_is_refused(payload: bytes, code: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        PodEvidence.read(payload)
    assert refused.value.code == code


def test_evidence_is_spires_json() -> None:
    assert PodEvidence.read(b'{"cluster":"prod","token":"a.b.c"}').message() == b'{"cluster":"prod","token":"a.b.c"}'
    assert "a.b.c" not in repr(PodEvidence("prod", "a.b.c"))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b'{"keys":[]}',
        b'{"keys":[{}]}',
        b'{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}',
        b'{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"AA","y":"AA"}]}',
    ],
)
def test_keys_that_are_refused(document: bytes) -> None:
    with pytest.raises(BundleError):
        ClusterKeys.read(document)


def test_keys_with_one_kid_twice_are_refused() -> None:
    keys = json.loads(CLUSTER.jwks)["keys"]
    with pytest.raises(BundleError):
        ClusterKeys.read(json.dumps({"keys": keys * 2}).encode())
    weak = TokenIssuer(AT)
    weak.key = rsa.generate_private_key(65537, 1024)
    with pytest.raises(BundleError):
        ClusterKeys.read(weak.jwks)


def test_an_issuer_with_elliptic_keys() -> None:
    issuer = TokenIssuer(AT)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer.key = key  # type: ignore[assignment]
    token = pyjwt.encode(issuer.claims(), key, "ES256", {"kid": issuer.kid})
    read = PodToken.read(token)
    assert verify_pod_token(read, ClusterKeys.read(issuer.jwks), ISSUER, AUDIENCE, AT).claims.pod_uid == POD_UID
