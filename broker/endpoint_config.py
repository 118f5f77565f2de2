# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of listeners with documents for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from firedoor.broker import values
from firedoor.broker.sites import Endpoint
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.segments.setting_values import choice, duration
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
    files = certificate_files(section, needed=profile == HTTPS_WEB)
    return BundleEndpoint(Endpoint(listen, files), hint) if listen else None


def certificate_files(section: Section, *, needed: bool) -> CertificateFiles | None:
    """Read `certificate` and `key`, which stand in a section together or not at all."""
    found = [section.parse(name, values.path, None) for name in ("certificate", "key")]
    for name, path in zip(("certificate", "key"), found, strict=True):
        if needed and path is None:
            section.findings.add(section.at("profile"), section.path(name), f"is missing; profile {HTTPS_WEB} needs it")
        elif not needed and path is not None:
            section.findings.add(section.at(name), section.path(name), f"goes with profile {HTTPS_WEB}")
    certificate, key = found
    return CertificateFiles(section.prefix, certificate, key) if needed and certificate and key else None
