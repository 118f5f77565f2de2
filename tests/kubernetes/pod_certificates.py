# SPDX-License-Identifier: Apache-2.0
"""What a kubelet does for a pod that projects a certificate of ours, and a broker that signs."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from firedoor.broker.kubernetes.certificates_api import SIGNER
from firedoor.certs import KeyType, generate_key, make_csr
from tests.broker.harness import RunningBroker, running
from tests.kubernetes import controllers
from tests.kubernetes.asking import until_answer
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import RBAC
from tests.kubernetes.rights import bind, may
from tests.pod_policy import pod_segment
from tests.waiting import until

ROOT = "/apis/certificates.k8s.io"
POLICY = "---\n".join(
    (
        pod_segment("inference", "k8s_pod:ns-label:segment:inference", members=("spiffe://{td}/ns/*/sa/istio",)),
        pod_segment("registry", "k8s_pod:ns-label:segment:registry"),
    )
)


@contextlib.contextmanager
def kubelets(cluster: Cluster) -> Iterator[None]:
    """Give kubelets their rights by RBAC: this control plane has no authorizer of nodes."""
    name = f"kubelets-{secrets.token_hex(4)}"
    group = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}
    bind(cluster, name, "system:node", group)
    asks = {"apiGroups": ["certificates.k8s.io"], "resources": ["podcertificaterequests"], "verbs": ["create"]}
    until(lambda: may(cluster, asks, user="system:node:x", groups=["system:nodes"]), "kubelets may ask")
    try:
        yield
    finally:
        cluster.api().delete(f"{RBAC}/clusterrolebindings/{name}")


def volume(key_type: str = "ECDSAP256") -> dict[str, Any]:
    """Return the volume of a pod that wants a certificate and the roots."""
    certificate = {"signerName": SIGNER, "keyType": key_type, "credentialBundlePath": "credentials.pem"}
    roots = {"signerName": SIGNER, "labelSelector": {}, "path": "roots.pem"}
    return {
        "name": "identity",
        "projected": {"sources": [{"podCertificate": certificate}, {"clusterTrustBundle": roots}]},
    }


class Signing:
    """A cluster whose pods get certificates from a broker."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.node = f"worker-{secrets.token_hex(4)}"
        self.flags = {
            **controllers.flags(cluster, folder / "account"),
            "kubernetes_controllers_trust_bundle": "true",
            "kubernetes_controllers_pod_certificates": "true",
        }

    @asynccontextmanager
    async def broker(self, name: str = "b", **more: str) -> AsyncIterator[RunningBroker]:
        """Run a broker with an alias for all pods of the cluster."""
        (self.folder / name).mkdir(exist_ok=True)
        async with running(self.folder / name, POLICY, **self.flags, **more) as found:
            await found.entry("/node/prod", "/spire/server", ["k8s_pod:cluster:prod"])
            yield found

    def namespace(self, segment: str = "inference") -> str:
        """Make a namespace whose pods a segment admits."""
        return self.cluster.namespace("serving", {"segment": segment})

    def pod(self, namespace: str, name: str = "", *, segment: str = "inference", **how: Any) -> dict[str, Any]:
        """Make a pod that projects a certificate, on the node."""
        labels = {"firedoor.dev/segment": segment} if segment else {}
        spec = {"volumes": [volume()]}
        name = name or f"pod-{secrets.token_hex(4)}"
        return self.cluster.pod(namespace, name, labels=labels, spec=spec, node=self.node, **how)

    def spec(self, pod: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        """Return what a kubelet asks for, but for `changes`; the key is a new one unless it is given."""
        metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        api, namespace = self.cluster.api(), pod["metadata"]["namespace"]
        account_uid = api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}")["metadata"]["uid"]
        node = pod["spec"]["nodeName"]
        found = {
            "signerName": SIGNER,
            "podName": metadata["name"],
            "podUID": metadata["uid"],
            "serviceAccountName": account,
            "serviceAccountUID": account_uid,
            "nodeName": node,
            "nodeUID": api.get(f"/api/v1/nodes/{node}")["metadata"]["uid"],
            "maxExpirationSeconds": 86400,
            "stubPKCS10Request": encoded(make_csr(generate_key(KeyType.EC_P256))),
        }
        return {key: value for key, value in {**found, **changes}.items() if value is not None}

    def ask(self, pod: Mapping[str, Any], *, by_kubelet: bool = True, version: str = "v1", **changes: Any) -> str:
        """Create a request; return where it is."""
        api = self.cluster.kubelet(self.node) if by_kubelet else self.cluster.api()
        namespace = pod["metadata"]["namespace"]
        body = {"metadata": {"generateName": "req-", "namespace": namespace}, "spec": self.spec(pod, **changes)}
        path = f"{ROOT}/{version}/namespaces/{namespace}/podcertificaterequests"
        return f"{path}/{api.post(path, body)['metadata']['name']}"

    async def answer(self, path: str) -> dict[str, Any]:
        """Wait for an answer; return the status, its condition under `said`."""
        found = await until_answer(lambda: self.cluster.api().get(path), settled, f"an answer to {path}")
        (condition,) = found["status"]["conditions"]
        assert condition["status"] == "True"
        return {**found["status"], "said": condition}

    async def issued(self, path: str) -> list[x509.Certificate]:
        """Wait until it is issued; return the chain."""
        found = await self.answer(path)
        assert found["said"]["type"] == "Issued", found["said"]
        return x509.load_pem_x509_certificates(found["certificateChain"].encode())

    async def refused(self, path: str) -> str:
        """Wait until it is refused; return how, why, and the sentence."""
        found = await self.answer(path)
        assert "certificateChain" not in found
        return f"{found['said']['type']} {found['said']['reason']}: {found['said']['message']}"


def settled(found: Mapping[str, Any]) -> bool:
    """Say whether a request has its answer."""
    return bool(found.get("status", {}).get("conditions"))


def encoded(data: bytes) -> str:
    """Return what JSON has for bytes."""
    return base64.b64encode(data).decode()


def csr_of(key: Any, digest: hashes.HashAlgorithm) -> str:
    """Return an empty signing request as kubelets make it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return encoded(builder.sign(key, digest).public_bytes(serialization.Encoding.DER))
