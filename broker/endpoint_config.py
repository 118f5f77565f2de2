# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of listeners with documents for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from firedoor.broker import values
from firedoor.broker.sites import Endpoint
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.segments.setting_values import choice, duration
from firedoor.segments.setting_values import text as some_text
from firedoor.segments.settings import Option, Section

HTTPS_SPIFFE: Final = "https_spiffe"
HTTPS_WEB: Final = "https_web"
_WEEK: Final = 7 * 86400


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option(
            "bundle_endpoint.listen", "HOST:PORT|off", "where other trust domains fetch our bundle; off unless given"
        ),
        option("bundle_endpoint.profile", f"{HTTPS_SPIFFE}|{HTTPS_WEB}", "by the broker's SVID, or by a certificate"),
        option("bundle_endpoint.certificate", "FILE", "https_web: certificate and intermediates, PEM"),
        option("bundle_endpoint.key", "FILE", "https_web: its key, PEM"),
        option("bundle_endpoint.refresh_hint", "DURATION", "how often others should fetch the bundle"),
        option("oidc.listen", "HOST:PORT|off", "where OIDC discovery is; may be bundle_endpoint.listen with https_web"),
        option("oidc.certificate", "FILE", "its certificate and intermediates, PEM, where it listens alone"),
        option("oidc.key", "FILE", "its key, PEM"),
        option("oidc.domains", "HOST", "hosts that requests may name; that of jwt_issuer unless given", several=True),
        option("federation.relationships", "FILE", "trust domains whose bundles are fetched"),
    )


@dataclass(frozen=True, slots=True)
class BundleEndpoint:
    """Where our bundle is served, and how often others should fetch it, in seconds."""

    endpoint: Endpoint
    refresh_hint: int


def bundle_endpoint(section: Section) -> BundleEndpoint | None:
    """Read `bundle_endpoint`; None when it is off."""
    profile = section.parse("profile", choice(HTTPS_SPIFFE, HTTPS_WEB), HTTPS_SPIFFE)
    listen = section.parse("listen", values.host_port_or_off, None)
    hint = section.parse("refresh_hint", duration(10, _WEEK), 300)
    files = _files(section, profile == HTTPS_WEB, f"profile {HTTPS_WEB}")
    return BundleEndpoint(Endpoint(listen, files), hint) if listen else None


@dataclass(frozen=True, slots=True)
class Oidc:
    """Where discovery is served, for which issuer, and which hosts requests may name."""

    endpoint: Endpoint
    issuer: str
    domains: tuple[str, ...]


def oidc(section: Section, issuer: str, bundle: BundleEndpoint | None) -> Oidc | None:
    """Read `oidc`; None when it is off."""
    listen = section.parse("listen", values.host_port_or_off, None)
    shared = bundle is not None and listen == bundle.endpoint.listen
    files = _files(section, listen is not None and not shared, "a listener of its own")
    domains = section.each("domains", _domain)
    if listen is None:
        return None
    if not issuer:
        section.findings.add(section.at("listen"), "oidc.listen", "needs jwt_issuer, which tokens and documents name")
        return None
    if shared and bundle is not None and bundle.endpoint.files is None:
        wrong = f"bundle_endpoint listens there with {HTTPS_SPIFFE}; OIDC needs {HTTPS_WEB}"
        section.findings.add(section.at("listen"), "oidc.listen", wrong)
    endpoint = bundle.endpoint if shared and bundle is not None else Endpoint(listen, files)
    return Oidc(endpoint, issuer, domains or (urlsplit(issuer).hostname or "",))


def _domain(text: str) -> str:
    """Take a host as requests name it. Raise ValueError."""
    if text != text.lower() or not all(char.isalnum() or char in "-._:" for char in text) or not text.isascii():
        raise ValueError("must be a host name in lower case, without a port")
    return some_text(text)


def _files(section: Section, needed: bool, where: str) -> CertificateFiles | None:
    """Read `certificate` and `key`, which stand in a section together or not at all."""
    found = {name: section.parse(name, values.path, None) for name in ("certificate", "key")}
    for name, path in found.items():
        if needed and path is None:
            section.findings.add(section.node.at, section.path(name), f"is missing; {where} needs it")
        elif not needed and path is not None:
            section.findings.add(section.at(name), section.path(name), f"goes with {where}")
    certificate, key = found.values()
    return CertificateFiles(section.prefix, certificate, key) if needed and certificate and key else None
