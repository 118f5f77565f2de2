# SPDX-License-Identifier: Apache-2.0
"""The key that a PodCertificateRequest is for, and the proof that whoever made it has the other half.

The API server has looked at both; what it has not is that our certificates take such a key.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from firedoor import mtls
from firedoor.broker.kubernetes.pod_requests import INVALID, UNSUPPORTED_KEY, PodRequest, RequestFailed, RequestRefused
from firedoor.certs import IssueError, SubjectKey

_UNSUPPORTED: Final = "unsupported_key"
_SAY: Final = "no certificate here is for a key of this kind: say keyType: ECDSAP256, ECDSAP384, ED25519 or RSA3072"


def requested_key(asked: PodRequest) -> SubjectKey:
    """Return the key, whose holder has signed. Raise RequestRefused."""
    try:
        if asked.csr:
            # Names in it count for nothing.
            return SubjectKey.parse(mtls.read_csr(asked.csr)[0])
        if asked.public_key:
            return _proved(SubjectKey.parse(asked.public_key), asked)
    except (mtls.VerifyError, IssueError) as error:
        if error.code == _UNSUPPORTED:
            raise RequestRefused(UNSUPPORTED_KEY, _SAY) from None
        raise RequestFailed(INVALID, f"its PKCS#10 request cannot be taken: {error}") from None
    raise RequestFailed(INVALID, "it holds no key")


def _proved(key: SubjectKey, asked: PodRequest) -> SubjectKey:
    """Check the signature of the pod's UID, as kubelets before 1.36 make it. Raise RequestFailed."""
    message = asked.pod_uid.encode()
    try:
        match key.public():
            case ed25519.Ed25519PublicKey() as public:
                public.verify(asked.proof, message)
            case ec.EllipticCurvePublicKey() as public:
                public.verify(asked.proof, message, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey() as public:
                pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
                public.verify(asked.proof, message, pss, hashes.SHA256())
    except (InvalidSignature, ValueError):
        raise RequestFailed(INVALID, "its proof of possession is no signature of the pod's UID by its key") from None
    return key
