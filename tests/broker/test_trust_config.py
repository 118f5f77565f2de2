# SPDX-License-Identifier: Apache-2.0
"""What the configuration says of the trust bundle in a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from firedoor.broker import config
from firedoor.broker.errors import ConfigError
from firedoor.broker.kubernetes.controllers import ControllerRules

ACCESS = "cluster: prod, namespace: x, server: 'https://127.0.0.1:6443', ca: /ca, token: /token"


def load(tmp_path: Path, more: str, besides: str = "") -> ControllerRules:
    file = tmp_path / "broker.yaml"
    file.write_text(f"trust_domain: a\n{besides}kubernetes_controllers: {{{ACCESS}{more}}}\n")
    found = config.load(file, {}, {}).kubernetes.controllers
    assert found is not None
    return found


def test_it_is_off_unless_it_is_named(tmp_path: Path) -> None:
    assert load(tmp_path, "").bundle is None
    assert load(tmp_path, ", trust_bundle: false").bundle is None


def test_defaults_and_what_may_be_said(tmp_path: Path) -> None:
    found = load(tmp_path, ", trust_bundle: true").bundle
    assert found is not None
    assert (found.config_map, found.namespaces) == ("firedoor-bundle", "firedoor.dev/inject in (enabled,required)")
    found = load(tmp_path, ", trust_bundle: true, bundle_config_map: roots, bundle_namespaces: all").bundle
    assert found is not None
    assert (found.config_map, found.namespaces) == ("roots", "")
    found = load(tmp_path, ", trust_bundle: true, bundle_namespaces: 'team in (a, b),!old'").bundle
    assert found is not None
    assert found.namespaces == "team in (a, b),!old"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (", bundle_config_map: 'a/b'", "bundle_config_map: must be a name of a Kubernetes object"),
        (", bundle_namespaces: 'a&b'", "bundle_namespaces: must be a label selector"),
        (", trust_bundle: perhaps", "trust_bundle: must be"),
        (", pod_certificate_ttl: 30m", "pod_certificate_ttl: must be between"),
        (", pod_certificate_ttl: 2d", "pod_certificate_ttl: must be between"),
        (
            ", pod_certificates: true, pod_certificate_ttl: 5h",
            "broker.yaml:2: kubernetes_controllers.pod_certificate_ttl: ca_ttl must be at least six times as long",
        ),
    ],
)
def test_each_problem_is_named(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, more)
    assert said in str(refused.value)


def test_certificates_of_pods(tmp_path: Path) -> None:
    assert load(tmp_path, ", pod_certificate_ttl: 2h").certificate_ttl == 0
    assert load(tmp_path, ", pod_certificates: true").certificate_ttl == 3600
    assert load(tmp_path, ", pod_certificates: true, pod_certificate_ttl: 4h").certificate_ttl == 4 * 3600


def test_an_authority_must_live_long_enough_for_them(tmp_path: Path) -> None:
    assert load(tmp_path, ", pod_certificates: true", "ca_ttl: 6h\n").certificate_ttl == 3600
    with pytest.raises(ConfigError, match=r"ca_ttl must be at least six times as long \(21600 s\)"):
        load(tmp_path, ", pod_certificates: true", "ca_ttl: 5h\n")


def test_sidecars_are_told_of_the_same_config_map(tmp_path: Path) -> None:
    injector = "injector: {listen: '127.0.0.1:0', names: [a], cluster: prod, image: a, broker: ['a:1']}\n"
    assert load(tmp_path, ", trust_bundle: true", injector).bundle
    with pytest.raises(ConfigError, match="sidecars are told of another, firedoor-bundle"):
        load(tmp_path, ", trust_bundle: true, bundle_config_map: roots", injector)
