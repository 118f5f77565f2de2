# SPDX-License-Identifier: Apache-2.0
"""Signing leaves in the Rust core, with keys that can be copied there.

Keys of a device or a cloud cannot, and sign by themselves; so do RSA keys, of which the core has no faster way.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from firedoor import mtls
from firedoor.certs import PrivateKey, private_key_der
from firedoor.certs.keys import Sign


def sign_in_core(key: PrivateKey) -> Sign | None:
    """Return what signs with a copy of the key in the core; None when the key itself has to."""
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    try:
        return mtls.SigningKey(private_key_der(key)).sign
    except (NotImplementedError, UnsupportedAlgorithm, TypeError, ValueError, mtls.MtlsError):
        return None
