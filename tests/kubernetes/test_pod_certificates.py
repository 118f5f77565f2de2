# SPDX-License-Identifier: Apache-2.0
"""Kubelets ask a real API server for certificates of pods, and a broker signs what it may."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from firedoor.broker import revoking
from firedoor.broker.agent import Agent
from firedoor.broker.db.rows import issued_after
from firedoor.broker.followers import Fetches, Followers, News
from firedoor.broker.issuing import Signer
from firedoor.broker.kubernetes import pod_certificates
from firedoor.broker.kubernetes.cluster_bundle import NAME
from firedoor.broker.ratelimit import Rate
from firedoor.broker.rotation_order import Order as RotationOrder
from firedoor.certs import IdPattern, Rotation, SpiffeId, Stage, parse_x509_svid
from tests.broker.harness import RunningBroker
from tests.kubernetes.api import ApiError
from tests.kubernetes.asking import until_answer, until_here
from tests.kubernetes.cluster import Cluster, running_cluster
from tests.kubernetes.pod_certificates import ROOT, Signing, csr_of, encoded, kubelets, settled
from tests.kubernetes.test_crds import resources

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]
DOCS = Path(__file__).parents[2] / "docs/kubernetes.md"
__all__ = ["resources"]
GUARD = Path(__file__).parents[2] / "deploy/kubernetes/pod-certificates.yaml"


@pytest.fixture
def signing(cluster: Cluster, tmp_path: Path) -> Iterator[Signing]:
    with kubelets(cluster):
        yield Signing(cluster, tmp_path)
    for one in cluster.api().get(f"{ROOT}/v1/clustertrustbundles")["items"]:
        cluster.api().delete(f"{ROOT}/v1/clustertrustbundles/{one['metadata']['name']}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused at once."""
    monkeypatch.setattr(pod_certificates, "PATIENCE", 0.0)


async def entry_for(broker: RunningBroker, namespace: str, account: str = "default", **how: Any) -> str:
    """Let an account's pods have their ID; return it."""
    path = how.pop("path", f"/segment/inference/ns/{namespace}/sa/{account}")
    await broker.entry(path, "/node/prod", [f"k8s:ns:{namespace}", f"k8s:sa:{account}"], **how)
    return f"spiffe://example.org{path}"


def uris(leaf: x509.Certificate) -> list[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


async def test_it_is_signed_and_verifies_against_the_cluster_trust_bundle(signing: Signing, tmp_path: Path) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        spiffe_id = await entry_for(broker, namespace)
        began = time.monotonic()
        path = signing.ask(signing.pod(namespace))
        found = await signing.answer(path)
        print(f"\nPodCertificateRequest: {time.monotonic() - began:.2f} s from its pod's creation to Issued")
        assert found["said"]["type"] == "Issued", found
        leaf, *_ = x509.load_pem_x509_certificates(found["certificateChain"].encode())
        assert uris(leaf) == [spiffe_id]
        # It keeps to the profile of SVIDs, and lives no longer than an hour.
        svid = parse_x509_svid([leaf.public_bytes(Encoding.DER)])
        assert (svid.id, svid.not_after - svid.not_before) == (SpiffeId.parse(spiffe_id), 3600)
        bundle = f"{ROOT}/v1/clustertrustbundles/{NAME}"
        stored = await until_answer(lambda: _found(signing.cluster, bundle), bool, "there is a ClusterTrustBundle")
        (tmp_path / "roots.pem").write_text(stored["spec"]["trustBundle"])
        (tmp_path / "chain.pem").write_text(found["certificateChain"])
        said = await asyncio.to_thread(_openssl, tmp_path)
        assert said == "chain.pem: OK\n"
        # It is written down, so that it can be revoked, and in the audit log.
        assert await _serials(broker) >= {svid.serial}
        (event,) = [one for one in broker.audit() if one.get("event") == "pod_certificate_issued"]
        assert (event["spiffe_id"], event["serial"], event["node"]) == (spiffe_id, svid.serial, signing.node)
        counted = 'firedoor_broker_pod_certificates_total{outcome="issued"} 1.0'
        await until_here(lambda: broker.broker.metrics.text().decode(), lambda text: counted in text, "it is counted")


def _openssl(folder: Path) -> str:
    """Return what OpenSSL says of the chain there."""
    words = ["openssl", "verify", "-x509_strict", "-CAfile", "roots.pem", "-untrusted", "chain.pem", "chain.pem"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False).stdout


def _found(cluster: Cluster, path: str) -> dict[str, Any]:
    try:
        return cluster.api().get(path)
    except ApiError:
        return {}


async def _serials(broker: RunningBroker) -> set[str]:
    rows = await broker.broker.database.read(lambda connection: issued_after(connection, 0))
    return {row.serial for row in rows if row.entry_id}


def _p521() -> dict[str, Any]:
    return {"stubPKCS10Request": csr_of(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512())}


# What is wrong, what it is: changes of the request. They come from an administrator: a kubelet is stopped before.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another pod of that name": ({"podUID": "another"}, "Denied PodDiffers: the pod of that name has another UID"),
    "no such pod": ({"podName": "nobody"}, "Denied PodDiffers: there is no pod of that name any more"),
    "another account": ({"serviceAccountName": "other"}, "Denied PodDiffers: the pod of that name has another UID"),
    "another account of that name": ({"serviceAccountUID": "x"}, "Denied PodDiffers: the service account of that name"),
    "another node": ({"nodeName": "elsewhere"}, "Denied PodDiffers: the pod of that name has another UID"),
    "another node of that name": ({"nodeUID": "another"}, "Denied PodDiffers: the node of that name has another UID"),
    "a key that nobody takes": (_p521(), "Denied UnsupportedKeyType: no certificate here is for a key of this kind"),
    "an annotation that nobody knows": (
        {"unverifiedUserAnnotations": {"example.org/x": "y"}},
        "Denied InvalidUnverifiedUserAnnotations: userAnnotations may say `firedoor.dev/id: istio`",
    ),
    "another ID than there is": (
        {"unverifiedUserAnnotations": {"firedoor.dev/id": "spire"}},
        "Denied InvalidUnverifiedUserAnnotations:",
    ),
}


async def test_a_request_that_is_not_the_pods_is_denied(signing: Signing) -> None:
    namespace = signing.namespace()
    signing.cluster.service_account(namespace, "other")
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        await entry_for(broker, namespace, "other")
        pod = signing.pod(namespace)
        asked = {name: signing.ask(pod, by_kubelet=False, **changes) for name, (changes, _) in WRONG.items()}
        for name, path in asked.items():
            said = await signing.refused(path)
            assert said.startswith(WRONG[name][1]), (name, said)
        assert await _serials(broker) == set()
        refused = [one for one in broker.audit() if one.get("event") == "pod_certificate_refused"]
        assert len(refused) == len(WRONG)
        # The twin.
        await signing.issued(signing.ask(pod, by_kubelet=False))


@pytest.mark.usefixtures("impatient")
async def test_what_no_entry_or_segment_allows_is_denied(signing: Signing) -> None:
    namespace, other = signing.namespace(), signing.namespace("web")
    async with signing.broker() as broker:
        pod = signing.pod(namespace)
        said = await signing.refused(signing.ask(pod))
        assert said == (
            "Denied NotAdmitted: no entry gives "
            f"spiffe://example.org/segment/inference/ns/{namespace}/sa/default to this pod"
        )
        await entry_for(broker, namespace)
        await signing.issued(signing.ask(pod))
        # Another namespace's account has no entry for it, and where it has one the segment does not admit it.
        await entry_for(broker, other)
        said = await signing.refused(signing.ask(signing.pod(other)))
        assert "only with the node selector k8s_pod:ns-label:…" in said
        # A label is a claim: it chooses what is asked for.
        await entry_for(broker, namespace, path=f"/segment/registry/ns/{namespace}/sa/default")
        said = await signing.refused(signing.ask(signing.pod(namespace, segment="registry")))
        assert said.startswith("Denied NotAdmitted: ")
        # Without one, and without an annotation, it is the segment of the namespace's name.
        said = await signing.refused(signing.ask(signing.pod(namespace, segment="")))
        assert f"/segment/{namespace}/ns/{namespace}" in said


@pytest.mark.usefixtures("impatient")
async def test_a_pod_that_ends_or_whose_agent_is_banned_is_denied(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        pod = signing.pod(namespace)
        api, name = signing.cluster.api(), pod["metadata"]["name"]
        keep = {"metadata": {"finalizers": ["firedoor.dev/test"]}}
        api.patch(f"/api/v1/namespaces/{namespace}/pods/{name}", keep)
        path = signing.spec(pod)
        signing.cluster.delete_pod(namespace, name)
        body = {"metadata": {"generateName": "req-"}, "spec": path}
        below = f"{ROOT}/v1/namespaces/{namespace}/podcertificaterequests"
        made = api.post(below, body)["metadata"]["name"]
        assert "the pod has ended or is being deleted" in await signing.refused(f"{below}/{made}")
        api.patch(f"/api/v1/namespaces/{namespace}/pods/{name}", {"metadata": {"finalizers": None}})
        # What its own sidecar attested counts for it too.
        other = signing.pod(namespace)
        agent = Agent(
            id=SpiffeId.parse(f"spiffe://example.org/spire/agent/k8s_pod/prod/{other['metadata']['uid']}"),
            attestation_type="k8s_pod",
            selectors=frozenset(),
            can_reattest=True,
            serial="1",
            not_after=int(time.time()) + 3600,
            banned=True,
        )
        broker.broker.state.agents[agent.id] = agent
        assert "the pod's agent is banned" in await signing.refused(signing.ask(other))


@pytest.mark.usefixtures("impatient")
async def test_an_entry_that_gives_less_than_an_hour(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace, x509_svid_ttl=600)
        said = await signing.refused(signing.ask(signing.pod(namespace)))
        assert "gives less than an hour" in said


async def test_kinds_of_keys_and_forms_of_ids(signing: Signing) -> None:
    namespace = signing.namespace()
    signing.cluster.service_account(namespace, "istio")
    async with signing.broker() as broker:
        spiffe_id = await entry_for(broker, namespace)
        istio = await entry_for(broker, namespace, "istio", path=f"/ns/{namespace}/sa/istio")
        pod = signing.pod(namespace)
        keys: dict[str, tuple[Any, Any]] = {
            "ECDSAP384": (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
            "ED25519": (ed25519.Ed25519PrivateKey.generate(), None),
            "RSA3072": (rsa.generate_private_key(65537, 3072), hashes.SHA256()),
        }
        asked = {name: signing.ask(pod, stubPKCS10Request=csr_of(*key)) for name, key in keys.items()}
        for name, path in asked.items():
            leaf = (await signing.issued(path))[0]
            assert leaf.public_key() == keys[name][0].public_key()
            assert uris(leaf) == [spiffe_id]
        form = {"firedoor.dev/id": "istio"}
        path = signing.ask(signing.pod(namespace, account="istio"), unverifiedUserAnnotations=form)
        assert uris((await signing.issued(path))[0]) == [istio]


async def test_it_lives_no_longer_than_is_asked_for(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker(kubernetes_controllers_pod_certificate_ttl="3h") as broker:
        await entry_for(broker, namespace)
        pod = signing.pod(namespace)
        for asked, lives in ((3600, 3600), (7200, 7200), (86400, 10800)):
            leaf = (await signing.issued(signing.ask(pod, maxExpirationSeconds=asked)))[0]
            assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == lives


async def test_a_node_gets_so_many_and_no_more(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_certificates, "_OF_NODE", Rate(1e-9, 2))
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        pod = signing.pod(namespace)
        asked = [signing.ask(pod) for _ in range(4)]
        await until_answer(
            lambda: [settled(signing.cluster.api().get(path)) for path in asked].count(True),
            lambda count: count == 2,
            "two are issued",
        )
        # Another node has its own; and the others are still open, not denied.
        signing.node = f"{signing.node}-2"
        await signing.issued(signing.ask(signing.pod(namespace)))
        assert [settled(signing.cluster.api().get(path)) for path in asked].count(True) == 2


async def test_a_node_with_too_many_open_requests_leaves_others_their_turn(
    signing: Signing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pod_certificates, "_MOST_OF_NODE", 3)
    nobody, namespace = signing.namespace(), signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        # No entry gives them anything, so that they stay open.
        pod = signing.pod(nobody)
        for _ in range(6):
            signing.ask(pod)
        await until_here(lambda: caplog.text, lambda text: "it has more than 3 open" in text, "a line of the log")
        signing.node = f"{signing.node}-2"
        await signing.issued(signing.ask(signing.pod(namespace)))


async def test_a_request_that_nobody_waits_for_is_left(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_certificates, "_OLDEST", -3600)
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        path = signing.ask(signing.pod(namespace))
        signs = broker.broker.metrics.pod_certificates
        await until_here(lambda: broker.broker.controllers.lease.held, bool, "it is its turn")  # type: ignore[union-attr]
        assert not settled(signing.cluster.api().get(path))
        assert not next(iter(signs.collect())).samples
        monkeypatch.setattr(pod_certificates, "_OLDEST", 3600)
        await signing.issued(path)


async def test_an_entry_that_comes_later_is_waited_for(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        path = signing.ask(signing.pod(namespace))
        retried = 'firedoor_broker_pod_certificates_total{outcome="retried"}'
        await until_here(
            lambda: broker.broker.metrics.text().decode(), lambda text: retried in text, "it was looked at"
        )
        assert not settled(signing.cluster.api().get(path))
        spiffe_id = await entry_for(broker, namespace)
        assert uris((await signing.issued(path))[0]) == [spiffe_id]


async def test_registration_makes_the_entry(resources: Cluster, signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker(kubernetes_controllers_registration="true"):
        path = signing.ask(signing.pod(namespace))
        assert uris((await signing.issued(path))[0]) == [
            f"spiffe://example.org/segment/inference/ns/{namespace}/sa/default"
        ]


async def test_after_a_rotation_the_next_authority_signs(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        pod, authority = signing.pod(namespace), broker.broker.authority
        first = (await signing.issued(signing.ask(pod)))[0]
        old = authority.active().authority_id
        fresh = await authority.prepare()
        await authority.activate(fresh.authority_id)
        await authority.taint(old)
        second = (await signing.issued(signing.ask(pod)))[0]
        assert (_authority(first), _authority(second)) == (old, fresh.authority_id)

        def both(found: dict[str, Any]) -> bool:
            return {_id(root) for root in _roots(found)} == {old, fresh.authority_id}

        path = f"{ROOT}/v1/clustertrustbundles/{NAME}"
        stored = await until_answer(lambda: _found(signing.cluster, path), both, "both are in the ClusterTrustBundle")
        for leaf in (first, second):
            (root,) = [one for one in _roots(stored) if _id(one) == _authority(leaf)]
            leaf.verify_directly_issued_by(root)
        await authority.revoke(old)
        await until_answer(
            lambda: _roots(_found(signing.cluster, path)), lambda all_: len(all_) == 1, "the old one is gone"
        )


def _roots(bundle: dict[str, Any]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle["spec"]["trustBundle"].encode()) if bundle else []


def _id(root: x509.Certificate) -> str:
    return root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _authority(leaf: x509.Certificate) -> str:
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return (found or b"").hex()


async def test_a_rotation_waits_until_a_pod_has_another_and_for_no_word_of_it(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        pod, state, authority = signing.pod(namespace), broker.broker.state, broker.broker.authority
        await signing.issued(signing.ask(pod))
        followers = Followers(state, {}, Fetches(state))
        # No kubelet says which bundle a pod has.
        assert (await followers.without_news(News(state.generation, 1000))).missing == ()
        old, now = authority.active().authority_id, state.clock.now()
        await authority.activate((await authority.prepare()).authority_id)
        rotation = Rotation("x509", Stage.REISSUE, "test", now, now, old)
        (missing,) = (await followers.not_reissued(rotation, agents=True)).missing
        assert missing.who.endswith(f"/k8s_pod/prod/{pod['metadata']['uid']}")
        assert now < missing.until <= now + 3600
        await signing.issued(signing.ask(pod))
        assert (await followers.not_reissued(rotation, agents=True)).missing == ()
        # A rotation leaves kubelets the time to bring the bundle.
        assert broker.broker.rotations.planned("x509", RotationOrder("test")).others == 120


async def test_what_was_revoked_stays_revoked_and_the_next_is_valid(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker() as broker:
        spiffe_id = await entry_for(broker, namespace)
        pod, state = signing.pod(namespace), broker.broker.state
        first = (await signing.issued(signing.ask(pod)))[0]
        agent = SpiffeId.parse(f"spiffe://example.org/spire/agent/k8s_pod/prod/{pod['metadata']['uid']}")
        # By agent, though no sidecar has ever attested.
        made = await revoking.revoke(state, revoking.Target(agent_id=agent), entries=[], delete=False)
        assert [one.value for one in made] == [format(first.serial_number, "x")]
        pattern = IdPattern.parse(spiffe_id, state.trust_domain)
        await revoking.revoke(state, revoking.Target(patterns=(pattern,)), entries=[], delete=False)
        second = (await signing.issued(signing.ask(pod)))[0]
        assert not state.ends(SpiffeId.parse(spiffe_id), int(second.not_valid_before_utc.timestamp()) + 10)


async def test_a_request_that_is_changed_meanwhile_is_read_again(
    signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = signing.namespace()
    issue, labelled = Signer.issue, asyncio.Event()
    paths: list[str] = []

    async def late(self: Signer, orders: Any) -> Any:
        made = await issue(self, orders)
        if not labelled.is_set():
            labelled.set()
            change = {"metadata": {"labels": {"seen": "yes"}}}
            await asyncio.to_thread(signing.cluster.api().patch, paths[0], change)
        return made

    monkeypatch.setattr(Signer, "issue", late)
    async with signing.broker() as broker:
        await entry_for(broker, namespace)
        body = {"metadata": {"name": "one"}, "spec": signing.spec(signing.pod(namespace))}
        below = f"{ROOT}/v1/namespaces/{namespace}/podcertificaterequests"
        paths.append(f"{below}/one")
        await asyncio.to_thread(signing.cluster.api().post, below, body)
        leaf = (await signing.issued(paths[0]))[0]
        assert labelled.is_set()
        # The one that could not be handed out is written down as well.
        serials = await _serials(broker)
        assert len(serials) == 2
        assert format(leaf.serial_number, "x") in serials


async def test_of_two_brokers_one_signs(signing: Signing) -> None:
    namespace = signing.namespace()
    async with signing.broker("a") as first:
        await entry_for(first, namespace)
        await signing.issued(signing.ask(signing.pod(namespace)))
        async with signing.broker("b") as second:
            await entry_for(second, namespace)
            asked = [signing.ask(signing.pod(namespace)) for _ in range(10)]
            for path in asked:
                await signing.issued(path)
            assert (len(await _serials(first)), len(await _serials(second))) == (11, 0)


async def test_it_outlives_an_api_server_that_restarts(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, kubelets(cluster):
        signing = Signing(cluster, tmp_path)
        namespace = signing.namespace()
        async with signing.broker() as broker:
            await entry_for(broker, namespace)
            pods = [signing.pod(namespace) for _ in range(20)]
            await signing.issued(signing.ask(pods[0]))
            asked = [signing.ask(pod) for pod in pods]
            await asyncio.to_thread(cluster.stop_server)
            assert await asyncio.to_thread(cluster.start_server)
            for path in [*asked, signing.ask(pods[0])]:
                await signing.issued(path)


async def test_a_cluster_that_has_v1beta1_alone(tmp_path: Path) -> None:
    """As kubelets and API servers of 1.35 have it: a public key, and a signature of the pod's UID."""
    group = "certificates.k8s.io"
    kinds = ("podcertificaterequests", "clustertrustbundles")
    off = ",".join(f"{group}/v1/{kind}=false" for kind in kinds)
    on = ",".join(f"{group}/v1beta1/{kind}=true" for kind in kinds)
    with running_cluster(tmp_path, "--runtime-config", f"{off},{on}") as cluster, kubelets(cluster):
        signing = Signing(cluster, tmp_path)
        namespace = signing.namespace()
        async with signing.broker() as broker:
            spiffe_id = await entry_for(broker, namespace)
            pod = signing.pod(namespace)
            assert uris((await signing.issued(signing.ask(pod, version="v1beta1")))[0]) == [spiffe_id]
            path = signing.ask(pod, version="v1beta1", **_old_form(pod))
            assert uris((await signing.issued(path))[0]) == [spiffe_id]
            bundle = f"{ROOT}/v1beta1/clustertrustbundles/{NAME}"
            await until_answer(lambda: _found(cluster, bundle), bool, "there is a ClusterTrustBundle")


async def test_an_old_kubelets_request_is_read_where_it_shows_its_key(tmp_path: Path) -> None:
    on = "certificates.k8s.io/v1beta1/podcertificaterequests=true"
    with running_cluster(tmp_path, "--runtime-config", on) as cluster, kubelets(cluster):
        signing = Signing(cluster, tmp_path)
        namespace = signing.namespace()
        async with signing.broker() as broker:
            spiffe_id = await entry_for(broker, namespace)
            pod = signing.pod(namespace)
            path = signing.ask(pod, version="v1beta1", **_old_form(pod))
            assert uris((await signing.issued(path))[0]) == [spiffe_id]


def _old_form(pod: dict[str, Any]) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    proof = key.sign(pod["metadata"]["uid"].encode(), ec.ECDSA(hashes.SHA256()))
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {"stubPKCS10Request": None, "pkixPublicKey": encoded(public), "proofOfPossession": encoded(proof)}


async def test_the_documented_pod_gets_what_it_projects(signing: Signing) -> None:
    namespace = signing.namespace()
    (text,) = re.findall(r"^```yaml\n(apiVersion: v1\nkind: Pod\n.*?)^```", DOCS.read_text(), re.M | re.S)
    (documented,) = yaml.load_all(text, Loader=yaml.SafeLoader)
    signing.cluster.service_account(namespace, "vllm")
    api = signing.cluster.api()
    api.post(f"/api/v1/namespaces/{namespace}/pods", documented)
    signing.cluster.bind(namespace, "vllm", signing.node)
    pod = api.get(f"/api/v1/namespaces/{namespace}/pods/vllm")
    (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "identity"]
    assert [sorted(one) for one in volume["projected"]["sources"]] == [["podCertificate"], ["clusterTrustBundle"]]
    async with signing.broker() as broker:
        spiffe_id = await entry_for(broker, namespace, "vllm")
        assert uris((await signing.issued(signing.ask(pod)))[0]) == [spiffe_id]


async def test_nobody_but_the_kubelet_of_its_node_may_ask(signing: Signing) -> None:
    """The API server's NodeRestriction holds kubelets, and the delivered policy all others."""
    namespace = signing.namespace()
    pod, api = signing.pod(namespace), signing.cluster.api()
    policy, binding = yaml.load_all(GUARD.read_text(), Loader=yaml.SafeLoader)
    name = f"guard-{signing.node}"
    policy["metadata"]["name"] = binding["metadata"]["name"] = binding["spec"]["policyName"] = name
    admission = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    api.post(f"{admission}ies", policy)
    api.post(f"{admission}ybindings", binding)
    try:
        await until_answer(lambda: _refusal(lambda: signing.ask(pod, by_kubelet=False)), bool, "others are refused")
        said = _refusal(lambda: signing.ask(pod, by_kubelet=False))
        assert "are asked for by the kubelet of the pod's node, and by nobody else" in said
        assert signing.ask(pod)
        elsewhere = signing.cluster.pod(namespace, "elsewhere", node="another")
        said = _refusal(lambda: signing.ask(elsewhere))
        assert "which is not the requesting node" in said
    finally:
        api.delete(f"{admission}ybindings/{name}")
        api.delete(f"{admission}ies/{name}")


def _refusal(ask: Callable[[], str]) -> str:
    try:
        ask()
    except ApiError as error:
        return error.message
    return ""
