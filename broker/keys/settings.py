# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of the key manager: `disk`, `memory`, or a mapping of one device to its settings.

key_manager: {pkcs11: {module: /usr/lib/softhsm/libsofthsm2.so, token: firedoor, pin_file: /etc/firedoor/pin}}
key_manager: {aws_kms: {region: eu-central-1}}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias, cast
from urllib.parse import urlsplit

from firedoor.broker import values
from firedoor.broker.errors import ConfigError
from firedoor.segments.setting_values import choice, text
from firedoor.segments.settings import Option, Section

if TYPE_CHECKING:
    from firedoor.broker.keys.device import Device

# CKA_LABEL of a token is 32 characters, padded.
_MAX_TOKEN: Final = 32
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
# Of a KMS alias, which is 256 characters with what comes after.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9/_-]{0,127}")


@dataclass(frozen=True, slots=True)
class Pkcs11Rules:
    """Where keys are: the module's library, the token's label, and the file with its user's PIN."""

    name: ClassVar = "pkcs11"
    module: Path
    token: str
    pin_file: Path

    def open(self, owner: str) -> Device:
        """Return the key manager of a broker. Raise ConfigError."""
        _need("pkcs11", "pkcs11", "pkcs11")
        from firedoor.broker.keys.pkcs11 import Pkcs11KeyManager

        return Pkcs11KeyManager(self, owner)

    def check(self) -> None:
        """Look at what is named. Raise ConfigError."""
        _need("pkcs11", "pkcs11", "pkcs11")
        from firedoor.broker.keys.pkcs11 import check

        check(self)


@dataclass(frozen=True, slots=True)
class AwsKmsRules:
    """Where keys are: a region's KMS, or one at `endpoint_url`, below aliases that begin with `key_prefix`."""

    name: ClassVar = "aws_kms"
    region: str
    key_prefix: str
    endpoint_url: str | None

    def open(self, owner: str) -> Device:
        """Return the key manager of a broker. Raise ConfigError."""
        _need("aws_kms", "boto3", "aws")
        from firedoor.broker.keys.aws_kms import AwsKmsKeyManager

        return AwsKmsKeyManager(self, owner)

    def check(self) -> None:
        """Look at what is needed. Raise ConfigError."""
        _need("aws_kms", "boto3", "aws")


KeyManagerRules: TypeAlias = Literal["disk", "memory"] | Pkcs11Rules | AwsKmsRules


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("key_manager", "disk|memory", "where authority keys are kept, unless in a device"),
        option("key_manager.pkcs11.module", "FILE", "a PKCS#11 module with a token that keeps them, and signs"),
        option("key_manager.pkcs11.token", "LABEL", "that token's label"),
        option("key_manager.pkcs11.pin_file", "FILE", "the PIN of that token's user"),
        option("key_manager.aws_kms.region", "REGION", "the AWS region whose KMS keeps them, and signs"),
        option("key_manager.aws_kms.key_prefix", "PATH", "what aliases of keys begin with; firedoor unless given"),
        option("key_manager.aws_kms.endpoint_url", "URL", "where KMS is, if not where AWS has it"),
    )


def key_manager(top: Section) -> KeyManagerRules:
    """Read `key_manager`."""
    node = top.get("key_manager")
    if node is None or hasattr(node, "text"):
        return cast("Literal['disk', 'memory']", top.parse("key_manager", choice("disk", "memory"), "disk"))
    section = top.section("key_manager")
    given = [name for name in ("pkcs11", "aws_kms") if section.get(name) is not None]
    if len(given) != 1:
        wrong = "stand beside each other; choose one" if given else "must be one of disk, memory, pkcs11 and aws_kms"
        section.findings.add(node.at, "key_manager", f"{' and '.join(given)} {wrong}".strip())
        return "disk"
    return _pkcs11(section.section("pkcs11")) if given == ["pkcs11"] else _aws_kms(section.section("aws_kms"))


def _pkcs11(section: Section) -> Pkcs11Rules:
    return Pkcs11Rules(
        module=section.require("module", values.path, Path(), "; it is a library such as libsofthsm2.so"),
        token=section.require("token", _token, "", "; it is the label of a token"),
        pin_file=section.require("pin_file", values.path, Path(), "; it has the PIN of the token's user"),
    )


def _aws_kms(section: Section) -> AwsKmsRules:
    return AwsKmsRules(
        region=section.require("region", _region, "", "; it is a region such as eu-central-1"),
        key_prefix=section.parse("key_prefix", _prefix, "firedoor"),
        endpoint_url=section.parse("endpoint_url", _endpoint, None),
    )


def _token(value: str) -> str:
    found = text(value)
    if len(found.encode()) > _MAX_TOKEN:
        raise ValueError(f"must be a token's label, of at most {_MAX_TOKEN} bytes")
    return found


def _region(value: str) -> str:
    if not _REGION.fullmatch(value):
        raise ValueError("must be a region such as eu-central-1")
    return value


def _prefix(value: str) -> str:
    found = value.removeprefix("alias/").strip("/")
    if not _PREFIX.fullmatch(found) or found.startswith("aws/") or "//" in found:
        raise ValueError("must be the beginning of an alias: letters, digits, dash, underscore and slash, not aws/")
    return found


def _endpoint(value: str) -> str:
    """Take https://HOST, or http:// on loopback: session tokens go there. Raise ValueError."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("must be https://HOST:PORT") from None
    if not parts.hostname or parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("must be https://HOST:PORT and nothing more")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError("must be https://HOST:PORT: credentials go there, so nothing but TLS will do off this host")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _need(key: str, module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise ConfigError(f"key_manager.{key}: needs more than is installed: pip install 'firedoor[{extra}]'")
