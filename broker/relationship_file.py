# SPDX-License-Identifier: Apache-2.0
"""Federation relationships in a file, read again when it changes.

    - trust_domain: partner.example
      url: https://partner.example:8443/
      endpoint_id: spiffe://partner.example/spire/server    # https_spiffe; without it https_web
      bundle: partner.json                                   # what verifies the endpoint the first time
    - trust_domain: cloud.example
      url: https://cloud.example/bundle.json
      ca_file: cloud-ca.pem                                  # https_web: instead of the system's CAs

Paths start at the file's own folder. `bundle` counts as long as no bundle of that trust domain is held; later ones are
fetched.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firedoor import mtls
from firedoor.broker.errors import ConfigError, InvalidRequest
from firedoor.broker.fetched import check_readable
from firedoor.broker.files import stamp
from firedoor.broker.relationship import Relationship, check_url
from firedoor.certs import SpiffeId, TrustBundle, TrustDomain
from firedoor.certs.bundle import MAX_BUNDLE_BYTES
from firedoor.segments import Document, PolicyErrors
from firedoor.segments import document as yaml_text
from firedoor.segments.setting_values import text as some_text
from firedoor.segments.settings import Findings, Section

_KEYS: Final = ("trust_domain", "url", "endpoint_id", "bundle", "ca_file")
# Stand for what is wrong until that is said.
_NO_DOMAIN: Final = TrustDomain.parse("missing")
_NO_URL: Final = "https://missing/"


@dataclass(frozen=True, slots=True)
class Declared:
    """One relationship of the file, with its first bundle."""

    relationship: Relationship
    bundle: TrustBundle | None


class RelationshipFile:
    """The file of one broker."""

    def __init__(self, path: Path, trust_domain: TrustDomain) -> None:
        self._path, self._trust_domain = path, trust_domain
        self._seen: object = None

    def __str__(self) -> str:
        return str(self._path)

    async def changed(self) -> bool:
        """Say whether it is another than was read last."""
        return await asyncio.to_thread(stamp, self._path) != self._seen

    async def read(self) -> tuple[Declared, ...]:
        """Read it. Raise ConfigError."""
        self._seen = await asyncio.to_thread(stamp, self._path)
        return await asyncio.to_thread(read_relationships, self._path, self._trust_domain)


def read_relationships(path: Path, own: TrustDomain) -> tuple[Declared, ...]:
    """Read a file of relationships. Raise ConfigError with every problem."""
    findings, known = Findings(), {own: "is the broker's own trust domain"}
    found = [_declared(Section(node, "", _KEYS, findings), path.parent, known) for node in _items(path)]
    if findings.lines:
        raise ConfigError(*findings.lines)
    return tuple(found)


def _items(path: Path) -> tuple[yaml_text.Node, ...]:
    try:
        nodes = yaml_text.read(Document(str(path), path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the file is not UTF-8 text") from error
    except PolicyErrors as error:
        raise ConfigError(*(f"{f.at}: {f.message}; {f.fix}" for f in error.findings)) from None
    if not nodes:
        return ()
    if len(nodes) > 1 or not isinstance(nodes[0], yaml_text.Sequence):
        raise ConfigError(f"{nodes[-1].at}: relationships are one list")
    return nodes[0].items


def _declared(section: Section, folder: Path, known: dict[TrustDomain, str]) -> Declared:
    """Read one; what is wrong is in the section's findings. `known` says which trust domains it may not be, and why."""
    trust_domain = section.require("trust_domain", TrustDomain.parse, _NO_DOMAIN)
    if trust_domain in known:
        section.findings.add(section.at("trust_domain"), "trust_domain", f"{trust_domain} {known[trust_domain]}")
    elif trust_domain != _NO_DOMAIN:
        known[trust_domain] = f"stands in {section.at('trust_domain')} already"
    url, endpoint_id = section.require("url", _url, _NO_URL), section.parse("endpoint_id", SpiffeId.parse, None)
    ca_file = section.parse("ca_file", lambda name: _readable(folder / some_text(name)), None)
    if endpoint_id is not None and ca_file is not None:
        section.findings.add(section.at("ca_file"), "ca_file", "goes with https_web, without endpoint_id")
    bundle = section.parse("bundle", lambda name: _bundle(folder / some_text(name), trust_domain), None)
    return Declared(Relationship(trust_domain, url, endpoint_id, ca_file), bundle)


def _url(text: str) -> str:
    try:
        check_url(text)
    except InvalidRequest as error:
        raise ValueError(str(error)) from None
    return text


def _readable(path: Path) -> Path:
    _read(path)
    return path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _bundle(path: Path, trust_domain: TrustDomain) -> TrustBundle:
    """Read a first bundle, SPIFFE's format or PEM. Raise ValueError or CertsError."""
    text = _read(path)
    spiffe = text.lstrip().startswith(b"{")
    bundle = TrustBundle.parse(trust_domain, text) if spiffe else TrustBundle.from_pem(trust_domain, text)
    if not bundle.x509_roots:
        raise ValueError(f"{path} holds no X.509 authority")
    try:
        check_readable(bundle)
    except mtls.MtlsError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return bundle
