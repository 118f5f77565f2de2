# SPDX-License-Identifier: Apache-2.0
"""How the broker logs in to a Vault: the four methods of SPIRE's plug-in `vault`.

Secrets are in files, read at each login, so that whoever renews one need not tell us. A file that others may read is
refused, but for the token of a service account: the kubelet decides about that one.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from firedoor.broker.errors import ConfigError
from firedoor.broker.files import OPEN_TO_OTHERS
from firedoor.broker.web_certificate import CertificateFiles

# A batch token of Vault has a few hundred bytes, a service account's two thousand.
MAX_SECRET: Final = 16 * 1024
# What may stand in a header, in one piece.
SECRET: Final = re.compile(r"[\x21-\x7e]{1,16384}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A login: where, and with what. `secrets` are in no message."""

    path: str
    body: Mapping[str, str]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Vault's own token: there is nothing to log in with but the file, which Vault Agent may write."""

    # What an operator looks at when it is refused.
    settings: ClassVar = "token_file, namespace"
    path: Path

    def token(self) -> str:
        """Read the token. Raise ConfigError."""
        return read_secret("upstream.vault.token_file", self.path)

    def check(self) -> None:
        """Read what there is. Raise ConfigError."""
        self.token()


@dataclass(frozen=True, slots=True)
class AppRole:
    """A RoleID, and a SecretID in a file."""

    settings: ClassVar = "role_id, secret_id_file, auth_mount, namespace"
    mount: str
    role_id: str
    secret_id: Path

    def asked(self) -> Asked:
        """Return what is asked. Raise ConfigError."""
        secret = read_secret("upstream.vault.secret_id_file", self.secret_id)
        return Asked(f"auth/{self.mount}/login", {"role_id": self.role_id, "secret_id": secret}, (secret,))

    def check(self) -> None:
        """Read what there is. Raise ConfigError."""
        self.asked()


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate that the TLS handshake shows. `role` empty: whichever takes it."""

    settings: ClassVar = "certificate, role, auth_mount, namespace"
    mount: str
    role: str
    files: CertificateFiles

    def asked(self) -> Asked:
        """Return what is asked."""
        return Asked(f"auth/{self.mount}/login", {"name": self.role} if self.role else {}, ())

    def show(self, context: ssl.SSLContext) -> None:
        """Have the handshake show it. Raise ConfigError."""
        self.files.read()
        try:
            context.load_cert_chain(self.files.certificate, self.files.key, lambda: "")
        except (OSError, ssl.SSLError):
            raise ConfigError(f"upstream.vault.key: {self.files.key} and the certificate cannot be used") from None

    def check(self) -> None:
        """Read what there is. Raise ConfigError."""
        self.files.read()


@dataclass(frozen=True, slots=True)
class KubernetesToken:
    """The token of a Kubernetes service account."""

    settings: ClassVar = "role, token_file, auth_mount, namespace"
    mount: str
    role: str
    path: Path

    def asked(self) -> Asked:
        """Return what is asked. Raise ConfigError."""
        token = read_secret("upstream.vault.token_file", self.path, kubelet=True)
        return Asked(f"auth/{self.mount}/login", {"role": self.role, "jwt": token}, (token,))

    def check(self) -> None:
        """Read what there is. Raise ConfigError."""
        self.asked()


Login: TypeAlias = TokenFile | AppRole | ClientCertificate | KubernetesToken


def read_secret(setting: str, path: Path, *, kubelet: bool = False) -> str:
    """Read a secret of one line. Raise ConfigError, which does not show it. `kubelet`: whatever mode it has."""
    try:
        with path.open("rb") as file:
            if not kubelet and os.fstat(file.fileno()).st_mode & OPEN_TO_OTHERS:
                raise ConfigError(f"{setting}: {path} is open to others; chmod 0600 it")
            data = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    found = data.decode("latin-1").strip("\r\n")
    if not SECRET.fullmatch(found):
        raise ConfigError(f"{setting}: {path} does not hold one secret, on one line and without spaces")
    return found
