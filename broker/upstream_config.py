# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of an authority above the broker."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from firedoor.broker import values
from firedoor.broker.upstream.disk import UpstreamFiles
from firedoor.broker.upstream.spire import UpstreamServer
from firedoor.broker.upstream.vault import UpstreamVault
from firedoor.broker.upstream.vault_login import AppRole, ClientCertificate, KubernetesToken, Login, TokenFile
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.segments.setting_values import choice, host_port, text
from firedoor.segments.settings import Option, Section

Upstream: TypeAlias = UpstreamFiles | UpstreamServer | UpstreamVault

# By what each may be said of itself: the keys beside `auth`, those that it needs first.
_METHODS: Final = {
    "token": (("token_file",), ()),
    "approle": (("role_id", "secret_id_file"), ("auth_mount",)),
    "cert": (("certificate", "key"), ("auth_mount", "role")),
    "kubernetes": (("role",), ("auth_mount", "token_file")),
}
_METHOD_KEYS: Final = ("token_file", "role_id", "secret_id_file", "certificate", "key", "role", "auth_mount")
# Where the kubelet puts it.
_SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
# Segments of a path that mean themselves alone; no dot begins one.
_MOUNT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_MAX_MOUNT: Final = 255


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option(
            "upstream.certificate",
            "FILE",
            "a CA that signs this broker's: its certificate and those below the root, PEM",
        ),
        option("upstream.key", "FILE", "that CA's key, PEM"),
        option(
            "upstream.server", "HOST:PORT", "a spire-server, or another broker, that signs this broker's CAs instead"
        ),
        option("upstream.workload_api", "PATH", "the socket of an agent of that server, beside this broker"),
        option("upstream.bundle", "FILE", "the roots above that CA, PEM; needed unless it is a root"),
        option("upstream.vault.address", "URL", "a Vault whose PKI secrets engine signs this broker's CAs instead"),
        option("upstream.vault.ca", "FILE", "the CAs that vouch for that server's own certificate, PEM"),
        option("upstream.vault.mount", "PATH", "where the engine is mounted; pki unless given"),
        option("upstream.vault.namespace", "NAME", "the namespace of engine and login"),
        option("upstream.vault.auth", "|".join(_METHODS), "how the broker logs in"),
        option("upstream.vault.auth_mount", "PATH", "where that is mounted; as it is called unless given"),
        option("upstream.vault.role", "NAME", "kubernetes, cert: the role to log in with"),
        option("upstream.vault.token_file", "FILE", "token: Vault's token; kubernetes: the service account's"),
        option("upstream.vault.role_id", "ID", "approle: the RoleID"),
        option("upstream.vault.secret_id_file", "FILE", "approle: the SecretID"),
        option("upstream.vault.certificate", "FILE", "cert: the client's certificate and intermediates, PEM"),
        option("upstream.vault.key", "FILE", "cert: its key, PEM"),
    )


def upstream(section: Section) -> Upstream | None:
    """Read `upstream`; None when it is absent."""
    certificate, key, bundle = (section.parse(name, values.path, None) for name in ("certificate", "key", "bundle"))
    server, socket = section.parse("server", host_port, None), section.parse("workload_api", values.socket_path, None)
    if section.get("vault") is not None:
        if certificate or key or server is not None or socket is not None:
            _choose(section, "vault", "stands beside another authority; choose one")
        roots = section.require("bundle", values.path, Path(), "; it has the roots that the Vault's CA leads to")
        return _vault(section.section("vault"), roots)
    if server is not None or socket is not None:
        hint = "; a server upstream is an address, and the socket of an agent of it"
        if certificate or key or bundle:
            _choose(section, "server", "stands beside a CA in files; choose one")
        asked = section.require("server", host_port, "", hint)
        return UpstreamServer(asked, section.require("workload_api", values.socket_path, Path(), hint))
    if certificate is None and key is None and bundle is None:
        return None
    hint = "; a CA upstream is a certificate and its key"
    needed = [section.require(name, values.path, Path(), hint) for name in ("certificate", "key")]
    return UpstreamFiles(CertificateFiles("upstream", *needed), bundle)


def _choose(section: Section, key: str, message: str) -> None:
    section.findings.add(section.at(key), section.path(key), message)


def _vault(section: Section, roots: Path) -> UpstreamVault:
    method = section.require("auth", choice(*_METHODS), "token", f"; it is one of {', '.join(_METHODS)}")
    _check_keys(section, method)
    return UpstreamVault(
        address=section.require("address", _address, "", "; it is https://HOST:PORT"),
        ca=section.require("ca", values.path, Path(), "; it has the CAs that vouch for the server's own certificate"),
        roots=roots,
        mount=section.parse("mount", _mount, "pki"),
        namespace=section.parse("namespace", _mount, ""),
        login=_login(section, method),
    )


def _check_keys(section: Section, method: str) -> None:
    """Note the keys that the method needs and are missing, and those that are another's."""
    needed, more = _METHODS[method]
    for key in needed:
        if section.get(key) is None:
            section.findings.add(section.node.at, section.path(key), f"is missing; auth {method} needs it")
    for key in _METHOD_KEYS:
        if section.get(key) is not None and key not in (*needed, *more):
            section.findings.add(section.at(key), section.path(key), f"does not go with auth {method}")


def _login(section: Section, method: str) -> Login:
    file: Callable[[str], Path] = partial(section.parse, parser=values.path, default=Path())
    mount, role = section.parse("auth_mount", _mount, method), section.parse("role", text, "")
    if method == "approle":
        return AppRole(mount, section.parse("role_id", text, ""), file("secret_id_file"))
    if method == "cert":
        return ClientCertificate(mount, role, CertificateFiles(section.prefix, file("certificate"), file("key")))
    if method == "kubernetes":
        return KubernetesToken(mount, role, section.parse("token_file", values.path, _SERVICE_ACCOUNT_TOKEN))
    return TokenFile(file("token_file"))


def _address(value: str) -> str:
    """Take https://HOST or https://HOST:PORT. Raise ValueError."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("must be https://HOST:PORT") from None
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise ValueError("must be https://HOST:PORT: tokens go there, so nothing but TLS will do")
    if parts.username is not None or parts.query or parts.fragment or not value.isascii() or not value.isprintable():
        raise ValueError("must be https://HOST:PORT and nothing more")
    return f"https://{parts.netloc}"


def _mount(value: str) -> str:
    """Take a path such as pki or teams/pki. Raise ValueError."""
    found = value.strip("/")
    if not _MOUNT.fullmatch(found) or len(found) > _MAX_MOUNT:
        raise ValueError("must be a path such as pki or teams/pki: letters, digits, dot, dash and underscore")
    return found
