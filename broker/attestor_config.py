# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of node attestors, but for join tokens, which need none."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from firedoor.broker import values
from firedoor.broker.agent_path import SshPath, X509Path
from firedoor.broker.http_challenge import HttpChallengeRules, check_rules
from firedoor.broker.reach import Network
from firedoor.certs import DnsPattern, is_host_name
from firedoor.segments.setting_values import MAX_PORT, boolean, integer
from firedoor.segments.settings import Option, Section


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("x509pop.ca_bundles", "FILE", "CAs that vouch for nodes' certificates, PEM", several=True),
        option("x509pop.spiffe_prefix", "PATH", "take our own SVIDs below it instead"),
        option("x509pop.agent_path", "TEMPLATE", "agents' IDs, such as cn/{cn}; {fingerprint}"),
        option("sshpop.cert_authorities", "FILE", "CAs of SSH hosts, a public key a line", several=True),
        option("sshpop.canonical_domain", "DOMAIN", "the domain of hosts, which their principals end with"),
        option("sshpop.agent_path", "TEMPLATE", "agents' IDs, such as host/{hostname}; {fingerprint}"),
        option("http_challenge.allowed_dns_patterns", "PATTERN", "hosts that may attest by their name", several=True),
        option("http_challenge.required_port", "PORT", "the one port where hosts are asked"),
        option("http_challenge.allow_non_root_ports", "true|false", "whether ports from 1024 on may be asked"),
        option("http_challenge.tofu", "true|false", "whether a host attests once alone"),
        option("http_challenge.networks", "CIDR", "where nodes are, and nothing else is asked", several=True),
    )


@dataclass(frozen=True, slots=True)
class X509PopRules:
    """Who vouches for nodes' X.509 certificates; nobody unless one of the first two says so."""

    ca_bundles: tuple[Path, ...]
    # Empty: nodes' certificates are no SVIDs.
    spiffe_prefix: str
    agent_path: X509Path


@dataclass(frozen=True, slots=True)
class SshPopRules:
    """Who vouches for SSH hosts."""

    cert_authorities: tuple[Path, ...]
    canonical_domain: str
    agent_path: SshPath


def x509pop(section: Section) -> X509PopRules:
    """Read `x509pop`."""
    ca_bundles, prefix = section.each("ca_bundles", values.path), section.parse("spiffe_prefix", values.id_path, "")
    path = section.parse("agent_path", X509Path.parse, X509Path.parse("{path}" if prefix else "{fingerprint}"))
    if section.get("ca_bundles") is not None:
        section.require_some("ca_bundles", "files with the certificates of CAs")
    if prefix and ca_bundles:
        section.findings.add(section.at("spiffe_prefix"), "x509pop.spiffe_prefix", "stands without x509pop.ca_bundles")
    if path.names("path") and not prefix:
        section.findings.add(section.at("agent_path"), "x509pop.agent_path", "{path} needs x509pop.spiffe_prefix")
    return X509PopRules(ca_bundles, prefix, path)


def sshpop(top: Section) -> SshPopRules | None:
    """Read `sshpop`; None when it is absent."""
    if top.get("sshpop") is None:
        return None
    section = top.section("sshpop")
    section.require_some("cert_authorities", "files with the public keys of CAs of SSH hosts")
    return SshPopRules(
        cert_authorities=section.each("cert_authorities", values.path),
        canonical_domain=section.parse("canonical_domain", _domain, ""),
        agent_path=section.parse("agent_path", SshPath.parse, SshPath.parse("{fingerprint}")),
    )


def http_challenge(top: Section) -> HttpChallengeRules | None:
    """Read `http_challenge`; None when it is absent."""
    if top.get("http_challenge") is None:
        return None
    section = top.section("http_challenge")
    section.require_some("allowed_dns_patterns", "names of hosts, such as *.nodes.example.org")
    rules = HttpChallengeRules(
        allowed_dns_patterns=section.each("allowed_dns_patterns", DnsPattern.parse),
        required_port=section.parse("required_port", integer(1, MAX_PORT), None),
        allow_non_root_ports=section.parse("allow_non_root_ports", boolean, False),
        tofu=section.parse("tofu", boolean, True),
        networks=section.each("networks", _network),
    )
    wrong = check_rules(rules)
    if wrong is not None:
        section.findings.add(section.at(wrong[0]), section.path(wrong[0]), wrong[1])
    return rules


def _domain(text: str) -> str:
    if not is_host_name(text):
        raise ValueError("must be a DNS name in lower case, without a dot at either end")
    return text


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be a network such as 10.0.0.0/8 or fd00:1::/32, without bits after the prefix") from None
