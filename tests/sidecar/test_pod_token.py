# SPDX-License-Identifier: Apache-2.0
"""A sidecar that attests by a token of its cluster: which file it reads, when, and what it goes on with."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from firedoor.certs import ClusterKeys
from firedoor.sidecar import config, updates
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import AttestationRefused, CallerRefused, ConfigError, NotReady, PodTokenUnusable
from firedoor.sidecar.pod_token import PodProof, PsatProof
from firedoor.sidecar.pod_workload import PodWorkload
from firedoor.wire import types, workload_grpc, workload_pb2
from tests.service_accounts import POD_UID, TokenIssuer
from tests.sidecar.harness import Start, entry, ids, settings, write_files
from tests.sidecar.spire_like import SpireLike
from tests.simulator import SimulatedTrustDomain

MIN = {"trust_domain": "example.org", "broker": "127.0.0.1:1"}
AGENT = f"/spire/agent/k8s_pod/prod/{POD_UID}"


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return TokenIssuer(int(time.time()) - 1)


def project(folder: Path, token: str) -> None:
    """Do what a kubelet does: replace the file whole."""
    (folder / "token.new").write_text(token)
    (folder / "token.new").rename(folder / "token")


@pytest.fixture
async def server(tmp_path: Path, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SpireLike]:
    monkeypatch.setattr(updates, "POLL_SECONDS", 0.1)
    found = SpireLike(SimulatedTrustDomain("example.org", at=int(time.time())))
    found.cluster_keys = ClusterKeys.read(issuer.jwks)
    found.entries["x"] = entry("x")
    (tmp_path / "server").mkdir(mode=0o700)
    write_files(tmp_path, found, await found.start(tmp_path / "server"))
    project(tmp_path, issuer.token())
    yield found
    await found.stop()


def pod_settings(tmp_path: Path, kind: str = "k8s_pod") -> Config:
    files = {f"{kind}_cluster": "prod", f"{kind}_token": str(tmp_path / "token")}
    return settings(tmp_path, join_token_file=None, **files)


async def test_a_restarted_sidecar_goes_on_with_its_stored_agent_key(
    server: SpireLike, running: Start, tmp_path: Path
) -> None:
    """A token attests once, and the next one comes minutes later: the agent's key has to outlive a restart."""
    one = running(pod_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    await one.stop()
    assert (tmp_path / "data" / "agent.key").stat().st_mode & 0o777 == 0o600
    two = running(pod_settings(tmp_path))
    await two.until(lambda p: ids(p) == {"x"}, "an SVID after a restart")
    assert server.attested == [AGENT]


async def test_attests_again_by_the_next_token(
    server: SpireLike, running: Start, tmp_path: Path, issuer: TokenIssuer
) -> None:
    server.agent_ttl, server.once = 6, False
    one = running(pod_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    assert len(server.spent) == 1
    project(tmp_path, issuer.token())
    await one.until(lambda _: len(server.spent) == 2, "an attestation by the token that was projected meanwhile")
    assert server.renewals == 0


async def test_without_its_key_and_a_fresh_token_it_says_what_is_wrong(
    server: SpireLike, running: Start, tmp_path: Path
) -> None:
    one = running(pod_settings(tmp_path))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    await one.stop()
    (tmp_path / "data" / "agent.json").unlink()
    two = running(pod_settings(tmp_path))
    with pytest.raises(AttestationRefused, match=r"already been used.*must be projected for the audience"):
        await asyncio.wait_for(two.task, 60)


async def test_as_the_agent_of_a_node_nothing_is_stored(server: SpireLike, running: Start, tmp_path: Path) -> None:
    one = running(pod_settings(tmp_path, "k8s_psat"))
    await one.until(lambda p: ids(p) == {"x"}, "an SVID")
    await one.stop()
    assert not (tmp_path / "data" / "agent.json").exists()
    two = running(pod_settings(tmp_path, "k8s_psat"))
    await two.until(lambda p: ids(p) == {"x"}, "an SVID after a restart")
    assert server.attested == [f"/spire/agent/k8s_psat/prod/{POD_UID}"] * 2


def test_configured(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("k8s_pod: {cluster: prod}\n")
    found = config.load(file, {}, MIN).pod_token
    assert found == PodProof("prod", Path("/var/run/secrets/firedoor.dev/token"))
    assert (found.kind, found.again) == ("k8s_pod", False)
    file.write_text("k8s_psat: {cluster: prod, token: /t}\n")
    found = config.load(file, {}, MIN).pod_token
    assert found == PsatProof("prod", Path("/t"))
    assert (found.kind, found.again) == ("k8s_psat", True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"k8s_pod_token": "/t"}, "k8s_pod.cluster: is missing"),
        ({"k8s_pod_cluster": "a/b"}, "must be letters, digits, dots"),
        ({"k8s_pod_cluster": "a", "k8s_psat_cluster": "a"}, "a node attests by it or by k8s_pod, not by both"),
        ({"k8s_pod_cluster": "a", "join_token_file": "/t"}, "a node attests by it or by join_token_file, not by both"),
    ],
)
def test_configured_wrong(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.load(None, {}, {**MIN, **given})
    assert words in str(refused.value)


def test_a_token_that_cannot_attest_is_not_sent(tmp_path: Path, issuer: TokenIssuer) -> None:
    proof, now = PodProof("prod", tmp_path / "token"), issuer.at
    with pytest.raises(PodTokenUnusable, match="cannot be read: No such file"):
        proof.show(now)
    for text, words in (
        ("", "is not a JWS"),
        ("x" * 40_000, "is not a JWS"),
        ("\xff", "holds no token"),
        (issuer.token(**{"kubernetes.io": None}), "is bound to no pod"),
        (issuer.token(exp=now), "has expired: the kubelet renews it no more"),
    ):
        (tmp_path / "token").write_text(text)
        with pytest.raises(PodTokenUnusable, match=words) as refused:
            proof.show(now)
        assert not text or text not in str(refused.value)


# --- a pod's own auth socket ----------------------------------------------------------------------------------------


class Caller:
    """A program in a PID namespace that we do not see."""

    pid: int | None = 0
    uid: int | None = 65534
    gid: int | None = 65534

    def __init__(self) -> None:
        self.lives = True

    def alive(self) -> bool:
        return self.lives


async def test_whoever_reaches_the_socket_of_a_pod_is_that_pod(tmp_path: Path, issuer: TokenIssuer) -> None:
    attestor, caller = PodWorkload(PodProof("prod", tmp_path / "token")), Caller()
    with pytest.raises(NotReady, match="cannot be read"):
        await attestor.attest(caller, ())
    project(tmp_path, issuer.token())
    pod = {"ns:inference", "sa:vllm", "pod-name:vllm-0", f"pod-uid:{POD_UID}", "node-name:worker-1"}
    assert {str(one) for one in await attestor.attest(caller, ())} == {f"k8s:{value}" for value in pod}
    # A pod is the same until it ends, whatever the file says by then.
    (tmp_path / "token").unlink()
    assert len(await attestor.attest(caller, ())) == len(pod)
    caller.lives = False
    with pytest.raises(CallerRefused, match="has ended"):
        await attestor.attest(caller, ())


def test_a_pods_socket_needs_a_pods_token(tmp_path: Path) -> None:
    assert config.load(None, {}, {**MIN, "workload": "pod", "k8s_pod_cluster": "prod"}).workload == "pod"
    assert config.load(None, {}, MIN).workload == "process"
    for given in ({}, {"k8s_psat_cluster": "prod"}):
        with pytest.raises(ConfigError, match="workload: `pod` needs k8s_pod"):
            config.load(None, {}, {**MIN, "workload": "pod", **given})


async def test_programs_of_a_pod_get_its_identities(
    server: SpireLike, running: Start, tmp_path: Path, issuer: TokenIssuer
) -> None:
    of_pod = [types.Selector(type="k8s", value="ns:inference"), types.Selector(type="k8s", value="sa:vllm")]
    other = [types.Selector(type="k8s", value="ns:web")]
    server.entries = {"pod": entry("pod", selectors=of_pod), "web": entry("web", selectors=other), "x": entry("x")}
    files = {"k8s_pod_cluster": "prod", "k8s_pod_token": str(tmp_path / "token"), "workload": "pod"}
    one = running(settings(tmp_path, join_token_file=None, **files))
    await one.until(lambda p: ids(p) >= {"pod"}, "an SVID")
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'auth.sock'}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        call = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),))
        svids = (await anext(aiter(call))).svids
    # Not what the user that runs this test would get.
    assert [one.spiffe_id for one in svids] == ["spiffe://example.org/segment/a/pod"]
