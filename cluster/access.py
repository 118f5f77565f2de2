# SPDX-License-Identifier: Apache-2.0
"""Where a server of a cluster is, and as whom we come.

CA and token are files, as kubelets renew them: what is in them counts at each call. No error holds a token.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firedoor.cluster.errors import AccessUnusable

# Where a pod finds what its own cluster gave it.
IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Bundles of CAs have some dozen KiB, tokens some KiB.
_MAX_FILE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Access:
    """Whom to ask, whose certificates to trust, and the file with our token."""

    # A URL. Empty: the API server of the cluster that this process runs in.
    server: str
    ca: Path
    token: Path
    # Whose certificate it shows, if not that of the URL's host.
    server_name: str = ""

    def address(self) -> str:
        """Return the server's URL. Raise AccessUnusable."""
        if self.server:
            return self.server.rstrip("/")
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port:
            raise AccessUnusable("server: is missing, and this process runs in no pod, which would say its own")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def check(self) -> None:
        """Read what is needed, as it is now. Raise AccessUnusable."""
        _ = self.address(), self.bearer(), self.trusting(self.roots())

    def roots(self) -> str:
        """Return what is in the file of the CA. Raise AccessUnusable."""
        return _read("ca", self.ca).decode("latin-1")

    def trusting(self, roots: str) -> ssl.SSLContext:
        """Return a context that trusts these, and nobody else. Raise AccessUnusable."""
        try:
            # Without a text it would trust what the system trusts.
            if "-----BEGIN" not in roots:
                raise ValueError("empty")
            context = ssl.create_default_context(cadata=roots)
        except (ssl.SSLError, ValueError):
            raise AccessUnusable(f"ca: {self.ca} holds no certificates in PEM") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def bearer(self) -> str:
        """Return our token. Raise AccessUnusable."""
        text = _read("token", self.token).strip()
        if not text or not text.isascii() or len(text.split()) != 1:
            raise AccessUnusable(f"token: {self.token} holds no token: one word is expected")
        return text.decode("ascii")


def server_address(value: str) -> str:
    """Take where an API server is, of a setting. Raise ValueError."""
    if not value.startswith("https://") or "?" in value or "#" in value or "@" in value:
        raise ValueError("must be an address such as https://10.0.0.1:6443")
    return value


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise AccessUnusable(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise AccessUnusable(f"{setting}: {path} is longer than {_MAX_FILE // 1024} KiB")
    return data
