# SPDX-License-Identifier: Apache-2.0
"""A broker in a pod logs in to OpenBao, which has Vault's API, by its service account."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from firedoor.broker.errors import AuthorityError
from firedoor.broker.upstream.vault import UpstreamVault, VaultUpstream
from firedoor.broker.upstream.vault_login import KubernetesToken
from firedoor.certs import KeyType, TrustDomain, generate_key
from tests.kubernetes.cluster import Cluster
from tests.openbao import SIGN_POLICY, bao

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def test_a_login_by_service_account(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.namespace("firedoor")
    cluster.service_account(namespace, "another")
    (tmp_path / "bao").mkdir()
    with bao(tmp_path / "bao") as vault:
        (tmp_path / "roots.pem").write_text(vault.engine("pki"))
        vault.policy("firedoor", SIGN_POLICY)
        vault.auth("kubernetes", "clusters/one")
        server = {"kubernetes_host": cluster.url, "kubernetes_ca_cert": cluster.ca_file.read_text()}
        reviewer = {"token_reviewer_jwt": cluster.tokens["admin"]}
        vault.write("auth/clusters/one/config", {**server, **reviewer, "disable_local_ca_jwt": True})
        bound = {"bound_service_account_names": ["default"], "bound_service_account_namespaces": [namespace]}
        role = {**bound, "audience": "vault", "token_policies": ["firedoor"]}
        vault.write("auth/clusters/one/role/firedoor", role)

        def mint(token: str) -> int:
            # A kubelet's file may be read by all in its container.
            (tmp_path / "token").write_text(token)
            login = KubernetesToken("clusters/one", "firedoor", tmp_path / "token")
            config = UpstreamVault(
                address=vault.address,
                ca=vault.folder / "ca.pem",
                roots=tmp_path / "roots.pem",
                mount="pki",
                namespace="",
                login=login,
            )
            upstream = VaultUpstream(config, TrustDomain.parse("example.org"))
            return len(upstream.mint(generate_key(KeyType.EC_P256), 3600, int(time.time())).chain)

        assert mint(cluster.token(namespace, "default", "vault")) == 1
        for wrong in (cluster.token(namespace, "another", "vault"), cluster.token(namespace, "default", "elsewhere")):
            with pytest.raises(
                AuthorityError, match=r"^the login upstream is refused: .*; see role, token_file, auth_m"
            ):
                mint(wrong)
