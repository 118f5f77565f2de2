# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes control plane of the tests' own: etcd and kube-apiserver as processes on loopback.

    with running_cluster(folder) as cluster:
        namespace = cluster.namespace("inference", labels={"firedoor.dev/inject": "enabled"})
        pod = cluster.pod(namespace, "vllm", node="gpu-1")
        token = cluster.token(namespace, "default", "firedoor", pod=pod)

RBAC is on, service-account tokens are issued, and nothing else runs: no kubelet, no scheduler, no controller. What
those would do (bind a pod, set its status, make a namespace's `default` account) the methods here do, or a test itself.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kubernetes.api import AlreadyExists, Api, ApiError
from tests.peers.build import source
from tests.ports import own_port
from tests.spire.programs import Answer, Daemon, needed, run
from tests.waiting import until

# Starting a large program on a busy machine.
START_SECONDS = 200.0
ISSUER = "https://kubernetes.default.svc.cluster.local"
# Nodes with it are played by kwok.
KWOK = ("kwok.x-k8s.io/node", "fake")
# A port that was free may be taken a moment later.
_TRIES = 5


class Cluster:
    """The control plane, and what a kubelet and the controllers would do."""

    def __init__(self, folder: Path, more: Sequence[str] = ()) -> None:
        """`more`: what kube-apiserver is told beside the rest."""
        self.folder, self._more = folder, more
        self._programs = {name: needed(module, name) for module, name in _PROGRAMS}
        self.etcd, self.server = Daemon(folder / "etcd.log"), Daemon(folder / "apiserver.log")
        self.port = 0
        # Who may do everything, and who may do nothing but ask who they are.
        self.tokens = {"admin": secrets.token_hex(16), "stranger": secrets.token_hex(16)}
        self._etcd_url = ""
        self._write_files()

    def _write_files(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        served = authority.issue_cert("127.0.0.1", "localhost", "kubernetes.default.svc")
        served.private_key_pem.write_to_path(self.folder / "tls.key")
        for number, pem in enumerate(served.cert_chain_pems):
            pem.write_to_path(self.folder / "tls.crt", append=number > 0)
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "accounts.key").write_bytes(private)
        (self.folder / "accounts.pub").write_bytes(public)
        groups = {"admin": "system:masters"}
        lines = [f'{token},{user},{user},"{groups.get(user, "")}"\n' for user, token in self.tokens.items()]
        (self.folder / "tokens.csv").write_text("".join(lines))

    # Life

    def start(self) -> None:
        """Start both programs, and wait until the API answers."""
        self._start_etcd()
        for _ in range(_TRIES):
            self.port = own_port()
            if self.start_server():
                break
        else:
            raise AssertionError(f"kube-apiserver has not started:\n{self.server.text[-3000:]}")
        for user in self.tokens:
            self._write_kubeconfig(user)

    def _start_etcd(self) -> None:
        for _ in range(_TRIES):
            client, peer = (f"http://127.0.0.1:{own_port()}" for _ in range(2))
            self.etcd.launch(
                self._programs["etcd"],
                *("--data-dir", str(self.folder / "etcd"), "--name", "one", "--unsafe-no-fsync", "--log-level", "warn"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"one={peer}"),
            )
            self._etcd_url = client
            if self._answers(self.etcd, Api(client), "/health"):
                return
        raise AssertionError(f"etcd has not started:\n{self.etcd.text[-3000:]}")

    def start_server(self) -> bool:
        """Start kube-apiserver on its port; say whether it serves. Also after `stop_server()`."""
        folder = self.folder
        self.server.launch(
            self._programs["kube-apiserver"],
            *("--etcd-servers", self._etcd_url, "--bind-address", "127.0.0.1", "--secure-port", str(self.port)),
            *("--tls-cert-file", str(folder / "tls.crt"), "--tls-private-key-file", str(folder / "tls.key")),
            *("--service-account-issuer", ISSUER, "--api-audiences", ISSUER),
            *("--service-account-signing-key-file", str(folder / "accounts.key")),
            *("--service-account-key-file", str(folder / "accounts.pub")),
            *("--token-auth-file", str(folder / "tokens.csv"), "--authorization-mode", "RBAC"),
            *("--service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112", "--allow-privileged=true"),
            *("--cert-dir", str(folder / "certs"), "--shutdown-delay-duration=0s"),
            # As every cluster of today has it: a kubelet asks for its own pods alone.
            *("--enable-admission-plugins", "NodeRestriction"),
            *self._more,
        )
        return self._answers(self.server, self.api(), "/readyz")

    @staticmethod
    def _answers(daemon: Daemon, api: Api, path: str) -> bool:
        """Wait until it answers; False when it has ended."""

        def answered() -> bool:
            with contextlib.suppress(OSError, ApiError):
                api.text("GET", path)
                return True
            return False

        def settled() -> bool:
            return not daemon.alive() or answered()

        until(settled, f"an answer of {daemon.log.stem}", seconds=START_SECONDS)
        return daemon.alive()

    def stop_server(self) -> None:
        """Take the API away, as in a crash; what is stored stays."""
        self.server.close()

    def close(self) -> None:
        """End both. The data is thrown away, so nothing waits for a clean end."""
        self.server.close()
        self.etcd.close()

    # Who asks

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate that the API's is issued by."""
        return self.folder / "ca.pem"

    def api(self, token: str | None = None) -> Api:
        """Return the API as the administrator, or as whoever a token stands for."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return Api(self.url, context, self.tokens["admin"] if token is None else token)

    def kubelet(self, node: str) -> Api:
        """Return the API as the kubelet of a node comes to it."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        who = (("Impersonate-User", f"system:node:{node}"), ("Impersonate-Group", "system:nodes"))
        return Api(self.url, context, self.tokens["admin"], who)

    def kubeconfig(self, user: str = "admin") -> Path:
        """Return the file that kubectl and clients read."""
        return self.folder / f"{user}.kubeconfig"

    def _write_kubeconfig(self, user: str) -> None:
        self.kubeconfig(user).touch(0o600)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "t", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": user}}],
            "current-context": "t",
        }
        self.kubeconfig(user).write_text(yaml.safe_dump(config))

    def kubectl(self, *words: str, given: object = "", user: str = "admin") -> Answer:
        """Run kubectl; what is `given` (text, or objects to be written as JSON) is its stdin."""
        text = given if isinstance(given, str) else json.dumps(_as_list(given))
        return run(
            [self._programs["kubectl"], "--cache-dir", str(self.folder / "kubectl"), *words],
            given=text,
            env={"KUBECONFIG": str(self.kubeconfig(user)), "HOME": str(self.folder)},
        )

    # What controllers and kubelets do

    def namespace(self, prefix: str, labels: Mapping[str, str] | None = None, *, exact: bool = False) -> str:
        """Make a namespace with its `default` account; return its name, which begins with the prefix."""
        name = prefix if exact else f"{prefix}-{secrets.token_hex(4)}"
        self.api().post("/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        self.service_account(name, "default")
        return name

    def service_account(self, namespace: str, name: str) -> None:
        """Make a service account."""
        self.api().post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    def node(self, name: str) -> None:
        """Have a node that is ready. It is in no namespace: another test may have made it."""
        with contextlib.suppress(AlreadyExists):
            self.api().post("/api/v1/nodes", {"metadata": {"name": name}})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        self.api().patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [ready]}})

    def pod(
        self,
        namespace: str,
        name: str,
        *,
        account: str = "default",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
        node: str | None = None,
        address: str | None = None,
    ) -> dict[str, Any]:
        """Make a pod; with a node it is bound there, with an address it runs. Return it as it is stored."""
        metadata = {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})}
        containers = [{"name": "app", "image": "registry.example/app:1"}]
        whole = {"serviceAccountName": account, "containers": containers, **(spec or {})}
        self.api().post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": whole})
        if node is not None:
            self.bind(namespace, name, node)
        if address is not None:
            self.runs(namespace, name, address)
        return self.api().get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def bind(self, namespace: str, name: str, node: str) -> None:
        """Do what the scheduler does, on a node that is made when it is not there."""
        self.node(node)
        body = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        self.api().post(f"/api/v1/namespaces/{namespace}/pods/{name}/binding", body)

    def runs(self, namespace: str, name: str, address: str) -> None:
        """Say what a kubelet says when the pod's containers have started."""
        ready = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
        self.api().patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete a pod at once: nobody would confirm that its containers have ended."""
        self.api().delete(f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    def token(
        self,
        namespace: str,
        account: str = "default",
        *audiences: str,
        pod: Mapping[str, Any] | None = None,
        seconds: int = 3600,
        by: Api | None = None,
    ) -> str:
        """Issue a token as a kubelet asks for it: for some audiences, and bound to a pod when one is given.

        The administrator asks unless somebody else is given.
        """
        spec: dict[str, Any] = {"audiences": list(audiences), "expirationSeconds": seconds}
        if pod is not None:
            bound = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", **bound}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str((by or self.api()).post(path, {"spec": spec})["status"]["token"])

    def review(self, token: str, *audiences: str) -> dict[str, Any]:
        """Return what a TokenReview says of a token."""
        body = {"spec": {"token": token, "audiences": list(audiences)}}
        status: dict[str, Any] = self.api().post("/apis/authentication.k8s.io/v1/tokenreviews", body)["status"]
        return status


_PROGRAMS = (("etcd", "etcd"), ("kubernetes", "kube-apiserver"), ("kubernetes", "kubectl"))


def _as_list(given: object) -> object:
    return {"apiVersion": "v1", "kind": "List", "items": given} if isinstance(given, list) else given


@contextlib.contextmanager
def running_cluster(folder: Path, *more: str) -> Iterator[Cluster]:
    """Run a control plane, told `more` than others; the test skips when its programs are not there."""
    cluster = Cluster(folder, more)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def running_kwok(cluster: Cluster) -> Iterator[None]:
    """Run kwok, which plays the kubelets of the nodes with its annotation, beside a control plane."""
    kwok = Daemon(cluster.folder / "kwok.log")
    program = needed("kwok", "kwok")
    # What kubelets do, as kwok's own project has it: everything is ready at once.
    stages = source("kwok", "sigs.k8s.io/kwok") / "kustomize/stage"
    files = [path for kind in ("node", "pod") for path in sorted((stages / kind / "fast").glob("*-*.yaml"))]
    kwok.launch(
        program,
        *(word for path in files for word in ("--config", str(path))),
        *("--kubeconfig", str(cluster.kubeconfig()), "--manage-all-nodes=false"),
        *("--manage-nodes-with-annotation-selector", f"{KWOK[0]}={KWOK[1]}", "--node-lease-duration-seconds", "0"),
    )
    try:
        yield
    finally:
        kwok.close()
