# SPDX-License-Identifier: Apache-2.0
"""A broker below a real server with Vault's API: OpenBao, its PKI engine, its logins and its policies."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firedoor.broker.broker import Broker
from firedoor.broker.config import load
from firedoor.broker.errors import AuthorityError
from firedoor.broker.upstream import Minted
from firedoor.broker.upstream.vault import UpstreamVault, VaultUpstream
from firedoor.broker.upstream.vault_login import AppRole, ClientCertificate, Login, TokenFile
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.certs import AuthoritySlots, Due, KeyType, X509Svid, generate_key, parse_x509_svid
from tests import openssl
from tests.broker.harness import POLICY, AgentClient, flags, running
from tests.broker.test_downstream import ANY, verified
from tests.broker.test_issuing import USER
from tests.broker.test_upstream import OUR_TD, activate_next
from tests.openbao import DOCUMENT, SIGN_POLICY, Bao, bao
from tests.waiting import async_until

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

KEY = generate_key(KeyType.EC_P256)
LOGIN, RENEW, LOOKUP = "auth/approle/login", "auth/token/renew-self", "auth/token/lookup-self"


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """A server for all tests; what one sets up is below a mount of its own."""
    with bao(tmp_path_factory.mktemp("bao")) as found:
        found.auth("approle")
        found.auth("cert")
        yield found


class World:
    """An engine of a test's own with a root, a role that may have CAs signed there, and the files of a broker."""

    def __init__(self, folder: Path, vault: Bao, namespace: str = "") -> None:
        self.folder, self.vault, self.namespace = folder, vault, namespace
        self.mount = self.role = f"pki-{secrets.token_hex(4)}"
        self.sign = f"{self.mount}/root/sign-intermediate"
        self.role_id, self.secret = "", folder / "secret-id"
        (folder / "web-ca.pem").write_bytes(vault.web.root_pem)
        self.from_here = len(vault.asked())

    def set_up(self, **engine: Any) -> World:
        """Have engine, policy and role."""
        self.roots(self.vault.engine(self.mount, namespace=self.namespace, **engine))
        return self.permit()

    def permit(self, **role: Any) -> World:
        """Let the role do what docs/spire.md says, and have its RoleID and SecretID."""
        self.vault.policy(self.role, SIGN_POLICY.replace("pki/", f"{self.mount}/"), self.namespace)
        self.role_id, secret = self.vault.app_role(self.role, self.namespace, **role)
        self.file("secret-id", secret)
        return self

    def roots(self, *pems: str) -> None:
        (self.folder / "roots.pem").write_text("\n".join(pems))

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def flags(self) -> dict[str, str]:
        given = {
            "upstream_bundle": str(self.folder / "roots.pem"),
            "upstream_vault_address": self.vault.address,
            "upstream_vault_ca": str(self.folder / "web-ca.pem"),
            "upstream_vault_mount": self.mount,
            "upstream_vault_auth": "approle",
            "upstream_vault_role_id": self.role_id,
            "upstream_vault_secret_id_file": str(self.secret),
        }
        return {**given, "upstream_vault_namespace": self.namespace} if self.namespace else given

    def upstream(self, login: Login | None = None, **changes: str) -> VaultUpstream:
        config = UpstreamVault(
            address=self.vault.address,
            ca=self.folder / "web-ca.pem",
            roots=self.folder / "roots.pem",
            mount=self.mount,
            namespace=self.namespace,
            login=login or AppRole("approle", self.role_id, self.secret),
        )
        return VaultUpstream(dataclasses.replace(config, **changes), OUR_TD)

    def asked(self) -> list[str]:
        """Return the paths of what was asked since the test began, but by the operator."""
        return [one.path for one in self.vault.asked()[self.from_here :] if not one.operator]


@pytest.fixture
def world(folder: Path, vault: Bao) -> World:
    return World(folder, vault)


def mint(upstream: VaultUpstream, ttl: int = 3600) -> Minted:
    return upstream.mint(KEY, ttl, int(time.time()))


def refusal(upstream: VaultUpstream) -> str:
    with pytest.raises(AuthorityError) as caught:
        mint(upstream)
    return str(caught.value)


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


def accepted(folder: Path, svid: X509Svid, root: bytes) -> bool:
    """Say whether somebody who knows nothing of brokers takes a certificate."""
    files = folder / "openssl"
    files.mkdir()
    return openssl.verify(files, svid.chain, [root], None, int(time.time())) == "OK"


async def svid_of(agent: AgentClient, entry_id: str) -> X509Svid:
    (result,) = await agent.sign(entry_id)
    assert result.status.code == 0, result.status.message
    return parse_x509_svid(tuple(result.svid.cert_chain))


@pytest.mark.parametrize("key_type", ["ec", "rsa"])
async def test_a_workloads_certificate_leads_to_the_engines_root(world: World, key_type: str) -> None:
    world.set_up(key_type=key_type)
    root = der((world.folder / "roots.pem").read_text())
    async with running(world.folder, **world.flags()) as broker:
        assert broker.roots() == [root]
        agent = await broker.attest()
        svid = await svid_of(agent, (await broker.entry(ANY, agent.path, USER)).id)
        assert len(svid.chain) == 2
        assert verified(broker, svid) == "ok"
        assert accepted(world.folder, svid, root)
    assert set(world.asked()) == {LOGIN, world.sign}


async def test_below_an_engine_that_is_no_root(world: World) -> None:
    above = f"{world.mount}-root"
    root = world.vault.engine(above)
    middle = world.vault.engine(world.mount, above=above)
    world.roots(root)
    world.permit()
    async with running(world.folder, **world.flags()) as broker:
        assert broker.roots() == [der(root)]
        agent = await broker.attest()
        svid = await svid_of(agent, (await broker.entry(ANY, agent.path, USER)).id)
        assert svid.chain[2:] == (der(middle),)
        assert verified(broker, svid) == "ok"
        assert accepted(world.folder, svid, der(root))


async def test_the_next_one_is_signed_too(world: World) -> None:
    world.set_up()
    async with running(world.folder, **world.flags()) as broker:
        agent = await broker.attest()
        entry = await broker.entry(ANY, agent.path, USER)
        first = await svid_of(agent, entry.id)
        active = await activate_next(broker)
        second = await svid_of(agent, entry.id)
        assert first.authority_id != second.authority_id == active.authority_id
        assert [verified(broker, one) for one in (first, second)] == ["ok", "ok"]
    assert world.asked().count(world.sign) == 2
    # The engine keeps what it has signed, beside its own.
    assert len(world.vault.listed(f"{world.mount}/certs")) == 3


@pytest.mark.parametrize("kind", ["service", "batch"])
def test_a_login_by_role(world: World, kind: str) -> None:
    world.set_up()
    world.permit(token_type=kind)
    mint(upstream := world.upstream())
    mint(upstream)
    assert world.asked() == [LOGIN, world.sign, world.sign]


def test_a_login_by_certificate(world: World) -> None:
    world.set_up()
    role = {"certificate": world.vault.web.root_pem.decode(), "allowed_dns_sans": ["broker.example.org"]}
    world.vault.write(f"auth/cert/certs/{world.role}", {**role, "token_policies": [world.role]})

    def login(name: str, common_name: str | None) -> Login:
        files = world.vault.web.write(world.folder, name, common_name=common_name)
        return ClientCertificate("cert", world.role, CertificateFiles("upstream.vault", *files))

    mint(world.upstream(login("broker.example.org", "broker")))
    assert world.asked() == ["auth/cert/login", world.sign]
    assert "missing name in alias" in refusal(world.upstream(login("broker.example.org", None)))
    said = refusal(world.upstream(login("another.example.org", "broker")))
    assert said.startswith("the login upstream is refused: ")
    assert said.endswith("; see certificate, role, auth_mount, namespace (upstream.vault)")


def test_a_token_in_a_file(world: World) -> None:
    world.set_up()
    made = world.vault.write("auth/token/create", {"policies": [world.role], "ttl": "1h"})
    path = world.file("token", made["auth"]["client_token"])
    mint(upstream := world.upstream(TokenFile(path)))
    assert world.asked() == [LOOKUP, world.sign]
    world.vault.write("auth/token/revoke", {"token": made["auth"]["client_token"]})
    said = refusal(upstream)
    assert said.startswith("the login upstream is refused: ")
    assert said.endswith("; see token_file, namespace (upstream.vault)")
    made = world.vault.write("auth/token/create", {"policies": [world.role], "ttl": "1h"})
    world.file("token", made["auth"]["client_token"])
    upstream.poll()
    mint(upstream)


def test_a_token_that_is_revoked_is_replaced_by_another(world: World) -> None:
    mint(upstream := world.set_up().upstream())
    world.vault.write("sys/leases/revoke-prefix/auth/approle/login")
    mint(upstream)
    assert world.asked() == [LOGIN, world.sign, world.sign, LOGIN, world.sign]


def test_a_token_that_is_used_up_is_replaced_by_another(world: World) -> None:
    world.set_up()
    world.permit(token_num_uses=1)
    mint(upstream := world.upstream())
    mint(upstream)
    assert world.asked()[:2] == [LOGIN, world.sign]
    assert world.asked()[-2:] == [LOGIN, world.sign]


def test_a_token_is_renewed_before_it_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.set_up()
    world.permit(token_ttl="1h")
    now = time.monotonic()
    monkeypatch.setattr("firedoor.broker.upstream.vault_client.monotonic", lambda: now)
    mint(upstream := world.upstream())
    now += 2401
    upstream.poll()
    # Past its first end.
    now += 2399
    mint(upstream)
    assert world.asked() == [LOGIN, world.sign, RENEW, world.sign]


def test_without_the_policy_default_a_token_is_used_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.set_up()
    world.permit(token_ttl="1h", token_no_default_policy=True)
    now = time.monotonic()
    monkeypatch.setattr("firedoor.broker.upstream.vault_client.monotonic", lambda: now)
    mint(upstream := world.upstream())
    now += 2401
    with pytest.raises(AuthorityError, match="answers 403 to auth/token/renew-self: "):
        upstream.poll()
    upstream.poll()
    mint(upstream)
    assert world.asked() == [LOGIN, world.sign, RENEW, LOGIN, world.sign]


def test_it_ends_with_the_engines_ca(world: World) -> None:
    world.set_up(ttl="20m")
    made = x509.load_der_x509_certificate(mint(world.upstream()).chain[0])
    root = x509.load_pem_x509_certificate((world.folder / "roots.pem").read_bytes())
    assert made.not_valid_after_utc <= root.not_valid_after_utc
    assert world.asked() == [LOGIN, world.sign, world.sign]


def test_it_lives_no_longer_than_the_engine_allows(world: World) -> None:
    world.set_up()
    world.vault.write(f"sys/mounts/{world.mount}/tune", {"max_lease_ttl": "30m"})
    made = x509.load_der_x509_certificate(mint(world.upstream()).chain[0])
    assert (made.not_valid_after_utc - made.not_valid_before_utc).total_seconds() < 3600
    assert world.asked() == [LOGIN, world.sign]


async def test_in_a_namespace(folder: Path, vault: Bao) -> None:
    vault.write("sys/namespaces/teams")
    vault.write("sys/namespaces/ml", namespace="teams")
    vault.auth("approle", namespace="teams/ml")
    world = World(folder, vault, "teams/ml").set_up()
    async with running(world.folder, **world.flags()) as broker:
        assert await broker.attest()
    for other in ("", "teams", "teams/none"):
        said = await asyncio.to_thread(refusal, world.upstream(namespace=other))
        assert said.startswith("the login upstream is refused: ")


Wrong = Callable[[World], VaultUpstream]


def without_a_ca(world: World) -> VaultUpstream:
    other = f"{world.mount}-new"
    world.vault.write(f"sys/mounts/{other}", {"type": "pki"})
    world.vault.policy(world.role, SIGN_POLICY.replace("pki/", f"{other}/"))
    return world.upstream(mount=other)


def without_policy(world: World) -> VaultUpstream:
    world.vault.policy(world.role, SIGN_POLICY.replace("pki/", "another/"))
    return world.upstream()


def below_a_leaf(world: World) -> VaultUpstream:
    world.roots(world.vault.engine(other := f"{world.mount}-last", max_path_length=0))
    world.vault.policy(world.role, SIGN_POLICY.replace("pki/", f"{other}/"))
    return world.upstream(mount=other)


def another_root(world: World) -> VaultUpstream:
    world.roots(world.vault.engine(f"{world.mount}-other"))
    return world.upstream()


# What an operator may get wrong, and what the broker says of it.
SEE = "; see role_id, secret_id_file, auth_mount, namespace (upstream.vault)"
WRONG: dict[str, tuple[Wrong, str]] = {
    "the role": (lambda w: w.upstream(AppRole("approle", "x", w.secret)), f"invalid role or secret ID{SEE}"),
    "the secret": (
        lambda w: w.upstream(AppRole("approle", w.role_id, w.file("other", "no-such-secret"))),
        f"invalid role or secret ID{SEE}",
    ),
    "the method's mount": (lambda w: w.upstream(AppRole("none", w.role_id, w.secret)), f"permission denied{SEE}"),
    "the engine's mount": (
        lambda w: w.upstream(mount="pki-none"),
        "permission denied; the login's policy must allow `update` there, where upstream.vault.mount",
    ),
    "the namespace": (lambda w: w.upstream(namespace="none"), f"namespace not found{SEE}"),
    "no policy": (without_policy, "permission denied; the login's policy must allow `update` there"),
    "no CA in the engine": (without_a_ca, "could not fetch the CA certificate (was one set?)"),
    "no CA may be below": (below_a_leaf, "has a max path length of zero, and cannot issue further CA"),
    "another root in the file": (another_root, "leads to no root of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(world: World, case: str) -> None:
    make, sentence = WRONG[case]
    said = refusal(make(world.set_up()))
    assert sentence in said
    assert said.isprintable()
    assert world.secret.read_text() not in said


async def test_a_broker_goes_on_while_it_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.set_up()
    vault = world.vault
    monkeypatch.setattr("firedoor.broker.authority._RETRY_SECONDS", 0.0)
    async with running(world.folder, **world.flags()) as broker:
        authority = broker.broker.authority
        agent = await broker.attest()
        entry = await broker.entry(ANY, agent.path, USER)
        first = authority.active().authority_id
        await asyncio.to_thread(vault.stop)
        # The next one is due.
        monkeypatch.setattr(AuthoritySlots, "due", lambda slots, at: None if slots.other else Due.PREPARE)
        await async_until(lambda: f"the Vault at {vault.address} cannot be asked" in caplog.text)
        assert (await svid_of(agent, entry.id)).authority_id == first
        await asyncio.to_thread(vault.back)
        await async_until(lambda: "is sealed" in caplog.text)
        assert (await svid_of(agent, entry.id)).authority_id == first
        assert authority.slots.other is None
        await asyncio.to_thread(vault.unseal)
        await async_until(lambda: authority.slots.other is not None)
    assert world.asked().count(world.sign) >= 2


async def test_the_documents_commands_set_it_up(folder: Path) -> None:
    (commands,) = re.findall(r"^```sh vault\n(.*?)^```", DOCUMENT, re.M | re.S)
    (text,) = re.findall(r"^```text\n(upstream:\n  bundle: [^`]*vault:.*?)^```", DOCUMENT, re.M | re.S)
    (folder / "bao").mkdir()
    with bao(folder / "bao") as vault:
        (folder / "firedoor.hcl").write_text(SIGN_POLICY)
        role_id = vault.shell(commands, folder).splitlines()[-1]
        # As it stands there, but for where things are here.
        for there, here in (
            ("https://vault.example.org:8200", vault.address),
            ("/etc/firedoor/upstream/vault-ca.pem", str(vault.folder / "ca.pem")),
            ("/etc/firedoor/upstream", str(folder)),
            ("675a50e7-cfe0-be76-e35f-49ec009731ea", role_id),
        ):
            assert there in text
            text = text.replace(there, here)
        text = re.sub(r"^    namespace: .*\n", "", text, flags=re.M)
        (folder / "broker.yaml").write_text(text)
        broker = Broker(load(folder / "broker.yaml", {}, flags(folder, POLICY)))
        await broker.start()
        await broker.stop()
        roots = [root.der for root in broker.state.bundles[OUR_TD].x509_roots]
        assert roots == [der((folder / "roots.pem").read_text())]
