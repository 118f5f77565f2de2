# SPDX-License-Identifier: Apache-2.0
"""What `firedoor sidecar validate` checks beyond the form: files, and listeners against the policy when it is known."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from google.protobuf.message import DecodeError

from firedoor import segments
from firedoor.cluster.errors import AccessUnusable
from firedoor.segments import PolicySet, Protocol
from firedoor.sidecar import bundles, enrolment
from firedoor.sidecar.captured import CaptureInbound
from firedoor.sidecar.errors import ConfigError, NodeCertificateUnusable, OperatorError, PodTokenUnusable
from firedoor.sidecar.listeners import Listener
from firedoor.sidecar.policy_files import read_policy
from firedoor.wire import control_pb2, policy_pb2

if TYPE_CHECKING:
    from firedoor.sidecar.config import Config


def validate(config: "Config") -> list[str]:
    """Return what would keep this sidecar from working, a line each; nothing is started or changed."""
    findings: list[str] = []
    _check_bootstrap(config, findings)
    _check_evidence(config, findings)
    _check_pods(config, findings)
    policy = _policy(config, findings)
    if policy is not None:
        findings += check_listeners(config, policy)
    return findings


def check_listeners(config: "Config", policy: PolicySet | policy_pb2.Table) -> list[str]:
    """Find the inbound listeners that would deny everything, because no flow with their protocol leads to them."""
    findings = []
    for listener, port, word in _arrivals(config):
        protocol = cast(Protocol, word)
        flows = segments.flows_for_listener(policy, listener.identity, port, protocol)
        problem = flows.problem(listener.identity, port, protocol)
        if problem and flows.other:
            findings.append(f"{listener.at}: inbound listener {listener.name}: {problem}")
    return findings


def _arrivals(config: "Config") -> Iterator[tuple[Listener, int, str]]:
    """Yield the service ports that are configured, with their protocols."""
    yield from ((one, one.service_port, one.protocol) for one in config.inbound)
    for listener in config.captured:
        if isinstance(listener, CaptureInbound):
            yield from ((listener, one.port, one.protocol) for one in listener.ports)


def _check_bootstrap(config: "Config", findings: list[str]) -> None:
    if config.bootstrap_bundle is None:
        if not _exists(config.data_dir / "bundle.json"):
            findings.append("bootstrap_bundle: is missing, and no bundle is stored: the server could not be verified")
        return
    try:
        bundles.read_bootstrap(config.bootstrap_bundle.read_bytes(), config.trust_domain, str(config.bootstrap_bundle))
    except OSError as error:
        findings.append(f"{config.bootstrap_bundle}: bootstrap_bundle: the file cannot be read: {error.strerror}")
    except ConfigError as error:
        findings += error.findings


def _check_evidence(config: "Config", findings: list[str]) -> None:
    evidence = enrolment.evidence_of(config)
    if _exists(config.data_dir / "agent.json") and (evidence is None or not evidence.again):
        return
    if evidence is None:
        findings.append(
            "join_token_file: is missing, and so are x509pop, sshpop, http_challenge, k8s_pod and k8s_psat, and no "
            "agent SVID is stored: this node could not attest"
        )
        return
    try:
        evidence.show(time.time())
    except (NodeCertificateUnusable, PodTokenUnusable) as error:
        findings.append(str(error))
    except OperatorError as error:
        findings.append(f"join_token_file: {error}")


def _check_pods(config: "Config", findings: list[str]) -> None:
    if config.k8s_workloads is not None:
        try:
            config.k8s_workloads.access.check()
        except AccessUnusable as error:
            findings.append(f"k8s_workloads.{error}")


def _policy(config: "Config", findings: list[str]) -> PolicySet | policy_pb2.Table | None:
    """Return the policy that is known: the local one, else what the server pushed last."""
    if config.segments is not None:
        try:
            return read_policy(config.segments, config.trust_domain)
        except ConfigError as error:
            findings += error.findings
            return None
    try:
        update = control_pb2.Update.FromString((config.data_dir / "generation.pb").read_bytes())
    except (OSError, DecodeError):
        return None
    return next((part.policy.table for part in update.parts if part.HasField("policy")), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
