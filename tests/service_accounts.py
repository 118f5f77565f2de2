# SPDX-License-Identifier: Apache-2.0
"""A cluster's issuer of service-account tokens, as kube-apiserver writes them, for tests without a cluster.

issuer = TokenIssuer(at=int(time.time()))
token = issuer.token(namespace="inference", account="vllm")
issuer.jwks                                # what /openid/v1/jwks shows
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from firedoor.certs import jose
from firedoor.certs.jwks import parameters

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "firedoor"
POD_UID = "0b3f7d0c-5b4e-4e63-9a1a-7d7a1f1f2a01"


class TokenIssuer:
    """Signs with RS256, a cluster's default."""

    def __init__(self, at: int, kid: str = "key-1") -> None:
        self.at, self.kid = at, kid
        self.key = rsa.generate_private_key(65537, 2048)

    @property
    def jwks(self) -> bytes:
        jwk = {"use": "sig", "alg": "RS256", "kid": self.kid, **parameters(self.key.public_key())}
        return json.dumps({"keys": [jwk]}).encode()

    def claims(self, namespace: str = "inference", account: str = "vllm", **more: Any) -> dict[str, Any]:
        """Return what a kubelet's TokenRequest for a pod comes back with. None takes a claim away."""
        found = {
            "aud": [AUDIENCE],
            "exp": self.at + 600,
            "iat": self.at,
            "nbf": self.at,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "kubernetes.io": {
                "namespace": namespace,
                "node": {"name": "worker-1", "uid": str(uuid.uuid4())},
                "pod": {"name": "vllm-0", "uid": POD_UID},
                "serviceaccount": {"name": account, "uid": str(uuid.uuid4())},
            },
        } | more
        return {name: value for name, value in found.items() if value is not None}

    def token(self, namespace: str = "inference", account: str = "vllm", **more: Any) -> str:
        return self.sign(self.claims(namespace, account, **more))

    def sign(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        head = {"alg": "RS256", "kid": self.kid} if header is None else header
        signed = f"{part(head)}.{part(claims)}"
        return f"{signed}.{encode(jose.sign(self.key, 'RS256', signed.encode()))}"


def part(value: object) -> str:
    return encode(json.dumps(value).encode())


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
