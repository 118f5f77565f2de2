# SPDX-License-Identifier: Apache-2.0
"""The roots above the broker, which an operator puts into the file of `upstream.bundle`."""

from __future__ import annotations

from pathlib import Path

from firedoor.broker.errors import ConfigError
from firedoor.broker.read_files import read_capped
from firedoor.certs import BundleError, TrustBundle, TrustDomain


def read_roots(trust_domain: TrustDomain, path: Path) -> tuple[bytes, ...]:
    """Read the roots, DER. Raise ConfigError, for a file without one, too."""
    try:
        found = TrustBundle.from_pem(trust_domain, read_capped("upstream.bundle", path)).x509_roots
    except BundleError as error:
        raise ConfigError(f"upstream.bundle: {path}: {error}") from None
    if not found:
        raise ConfigError(f"upstream.bundle: {path} holds no certificate in PEM")
    return tuple(root.der for root in found)
