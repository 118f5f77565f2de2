# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of a node's own evidence: a certificate, a name, or a token of its cluster."""

from functools import partial
from pathlib import Path

from firedoor.certs import HttpNode, is_agent_name, is_host_name
from firedoor.segments.setting_values import MAX_PORT, cluster_name, integer, ip_port, split_host_port
from firedoor.segments.settings import Option, Section
from firedoor.sidecar import settings
from firedoor.sidecar.http_challenge import HttpNonce
from firedoor.sidecar.node_certificate import X509Pop
from firedoor.sidecar.pod_token import PROOFS, TOKENS, ClusterToken
from firedoor.sidecar.ssh_certificate import SshPop

# The ways to attest, of which a node has one.
WAYS = ("join_token_file", "x509pop", "sshpop", "http_challenge", "k8s_pod", "k8s_psat")


def options(environment: str) -> tuple[Option, ...]:
    """Return the keys."""
    option = partial(Option, environment)
    return (
        option("x509pop.certificate", "FILE", "this node's certificate, PEM; intermediates may follow it"),
        option("x509pop.key", "FILE", "its key, PEM; the node attests with both as often as it has to"),
        option("x509pop.intermediates", "FILE", "further certificates up to the broker's CA, PEM"),
        option("sshpop.certificate", "FILE", "this host's SSH certificate, as in /etc/ssh/ssh_host_*_key-cert.pub"),
        option("sshpop.key", "FILE", "its key, as in /etc/ssh/ssh_host_*_key"),
        option("http_challenge.hostname", "NAME", "this host's DNS name, at which the broker looks for a nonce"),
        option("http_challenge.listen", "IP:PORT", "where that leads to; listened on only while the node attests"),
        option("http_challenge.advertised_port", "PORT", "the port at the name, where it is another"),
        option("http_challenge.agentname", "NAME", "where several agents share the port"),
        option("k8s_pod.cluster", "NAME", "the cluster of this pod, as the broker calls it"),
        option("k8s_pod.token", "FILE", "this pod's projected token, for the audience of the broker's k8s_pod"),
        option("k8s_psat.cluster", "NAME", "the cluster of this node, as the server calls it"),
        option("k8s_psat.token", "FILE", "the projected token of this agent's pod, as SPIRE's agents have it"),
    )


def x509pop(top: Section) -> X509Pop | None:
    """Read `x509pop`; None when it is absent."""
    if top.get("x509pop") is None:
        return None
    section, nowhere = top.section("x509pop"), Path()
    return X509Pop(
        certificate=section.require("certificate", settings.path, nowhere),
        key=section.require("key", settings.path, nowhere),
        intermediates=section.parse("intermediates", settings.path, None),
    )


def sshpop(top: Section) -> SshPop | None:
    """Read `sshpop`; None when it is absent."""
    if top.get("sshpop") is None:
        return None
    section, nowhere = top.section("sshpop"), Path()
    return SshPop(
        certificate=section.require("certificate", settings.path, nowhere),
        key=section.require("key", settings.path, nowhere),
    )


def http_challenge(top: Section) -> HttpNonce | None:
    """Read `http_challenge`; None when it is absent."""
    if top.get("http_challenge") is None:
        return None
    section = top.section("http_challenge")
    listen = section.require("listen", _listen, "127.0.0.1:1")
    node = HttpNode(
        hostname=section.require("hostname", _host_name, ""),
        agent_name=section.parse("agentname", _agent_name, "default"),
        port=section.parse("advertised_port", integer(1, MAX_PORT), split_host_port(listen)[1]),
    )
    return HttpNonce(node, listen)


def pod_token(top: Section) -> ClusterToken | None:
    """Read `k8s_pod`, or `k8s_psat`; None when both are absent."""
    kind = next((kind for kind in PROOFS if top.get(kind) is not None), None)
    if kind is None:
        return None
    section = top.section(kind)
    cluster = section.require("cluster", cluster_name, "")
    return PROOFS[kind](cluster, section.parse("token", settings.path, TOKENS[kind]))


def check_one(top: Section) -> None:
    """Add a finding when there is more than one way to attest."""
    given = [way for way in WAYS if top.get(way) is not None]
    for way in given[1:]:
        top.findings.add(top.at(way), way, f"a node attests by it or by {given[0]}, not by both")


def _listen(text: str) -> str:
    if split_host_port(ip_port(text))[1] == 0:
        raise ValueError("needs a port: the server is told where to look")
    return text


def _host_name(text: str) -> str:
    if not is_host_name(text):
        raise ValueError("must be a DNS name in lower case, without a dot at its end; not an address, nor localhost")
    return text


def _agent_name(text: str) -> str:
    if not is_agent_name(text):
        raise ValueError("must be a letter, then letters, digits and dashes, at most 32 in all")
    return text
