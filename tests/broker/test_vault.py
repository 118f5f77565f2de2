# SPDX-License-Identifier: Apache-2.0
"""A broker below a Vault that misbehaves, or whose files do: what is refused, and what is never said."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firedoor.broker.broker import Broker
from firedoor.broker.clock import Clock
from firedoor.broker.config import load, validate
from firedoor.broker.errors import AuthorityError, ConfigError
from firedoor.broker.upstream.vault import UpstreamVault, VaultUpstream
from firedoor.broker.upstream.vault_login import AppRole, ClientCertificate, KubernetesToken, Login, TokenFile
from firedoor.broker.web_certificate import CertificateFiles
from firedoor.certs import AuthoritySlots, Due, KeyType, X509Issuer, generate_key
from tests.broker.harness import POLICY, flags, running
from tests.broker.test_authority import jump
from tests.broker.test_downstream import ANY
from tests.broker.test_issuing import USER
from tests.broker.test_upstream import OUR_TD, Files, made
from tests.broker.vault_like import LOOKUP, RENEW, SIGN, Asked, VaultLike
from tests.waiting import async_until
from tests.web_pki import WebPki

KEY = generate_key(KeyType.EC_P256)
SECRET = "s.3cr3t-of-the-broker"
LOGIN = "auth/approle/login"


class World:
    """A Vault-like server, and the files of a broker below it."""

    def __init__(self, folder: Path, vault: VaultLike, root: X509Issuer) -> None:
        self.folder, self.vault, self.root = folder, vault, root
        self.secret = self.file("secret", SECRET)

    def file(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def config(self, login: Login | None = None) -> UpstreamVault:
        return UpstreamVault(
            address=self.vault.address,
            ca=self.folder / "web-ca.pem",
            roots=self.folder / "roots.pem",
            mount="pki",
            namespace="",
            login=login or AppRole("approle", "the-role", self.secret),
        )

    def upstream(self, login: Login | None = None) -> VaultUpstream:
        return VaultUpstream(self.config(login), OUR_TD)

    def mint(self, upstream: VaultUpstream | None = None, ttl: int = 3600) -> Any:
        return (upstream or self.upstream()).mint(KEY, ttl, int(time.time()))

    def refusal(self) -> str:
        with pytest.raises(AuthorityError) as caught:
            self.mint()
        return str(caught.value)

    def paths(self) -> list[str]:
        return [one.path for one in self.vault.asked]

    def flags(self) -> dict[str, str]:
        return {
            "upstream_bundle": str(self.folder / "roots.pem"),
            "upstream_vault_address": self.vault.address,
            "upstream_vault_ca": str(self.folder / "web-ca.pem"),
            "upstream_vault_auth": "approle",
            "upstream_vault_role_id": "the-role",
            "upstream_vault_secret_id_file": str(self.secret),
        }


@pytest.fixture
def web() -> WebPki:
    return WebPki()


@pytest.fixture
def world(folder: Path, web: WebPki) -> Iterator[World]:
    root = made()
    vault = VaultLike(web, made(root))
    vault.answers[LOGIN] = vault.login
    (folder / "web-ca.pem").write_bytes(web.root_pem)
    roots = Files(folder)
    roots.write(root)
    with vault.serving():
        yield World(folder, vault, root)


async def test_chains_lead_over_the_vaults_ca_to_the_root_in_the_file(world: World) -> None:
    async with running(world.folder, **world.flags()) as broker:
        assert broker.roots() == [world.root.der]
        agent = await broker.attest()
        assert agent.svid is not None
        assert agent.svid.chain[-1] == world.vault.issuer.der
        assert len(agent.svid.chain) == 3
        entry = await broker.entry(ANY, agent.path, USER)
        (result,) = await agent.sign(entry.id)
        assert result.status.code == 0
    sign = world.vault.asked[-1]
    assert sign.body["uri_sans"] == "spiffe://example.org"
    assert sign.body["exclude_cn_from_sans"] is True
    assert sign.body["ttl"] == "86400s"
    assert "x-vault-namespace" not in sign.headers


def away(_: Asked) -> tuple[int, Any]:
    return 503, {"errors": ["Vault is sealed"]}


async def test_while_the_vault_is_away_a_broker_goes_on_with_what_it_has(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(world.folder, **world.flags()) as broker:
        first = broker.broker.authority.active()
    # The next one is due.
    due = lambda slots, at: None if slots.other else Due.PREPARE  # noqa: E731
    monkeypatch.setattr(AuthoritySlots, "due", due)
    monkeypatch.setattr("firedoor.broker.authority._RETRY_SECONDS", 0.0)
    world.vault.answers[SIGN] = away
    async with running(world.folder, **world.flags()) as broker:
        authority = broker.broker.authority
        assert f"X.509 authority {first.authority_id} signs on, until 20" in caplog.text
        assert "Vault is sealed" in caplog.text
        assert (authority.active().authority_id, authority.slots.other) == (first.authority_id, None)
        assert await broker.attest()
        world.vault.answers[SIGN] = world.vault.sign
        await async_until(lambda: authority.slots.other is not None)


async def test_with_nothing_that_can_sign_it_does_not_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> None:
        with pytest.raises(AuthorityError, match="Vault is sealed"):
            await Broker(load(None, {}, flags(world.folder, POLICY, **world.flags()))).start()

    world.vault.answers[SIGN] = away
    await refused()
    world.vault.answers[SIGN] = world.vault.sign
    async with running(world.folder, **world.flags()):
        pass
    world.vault.answers[SIGN] = away
    # What there is has ended.
    with monkeypatch.context() as patched:
        patched.setattr("firedoor.broker.broker.Clock", lambda: Clock(lambda: time.time() + 90000, time.monotonic))
        await refused()
    # The key is gone.
    shutil.rmtree(world.folder / "data" / "keys")
    await refused()


async def test_one_that_is_away_is_asked_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(world.folder, **world.flags()) as broker:
        now = time.monotonic()
        monkeypatch.setattr("firedoor.broker.authority.monotonic", lambda: now)
        world.vault.answers[SIGN] = away
        jump(broker, monkeypatch, 0.6 * 86400)
        # The broker asks by itself, and after that no more.
        await async_until(lambda: world.paths().count(SIGN) == 2)
        await async_until(lambda: broker.broker.authority._again > now)
        await broker.broker.authority.tick()
        assert world.paths().count(SIGN) == 2
        now += 5
        await async_until(lambda: world.paths().count(SIGN) == 3)


# What a Vault, or who stands in its place, may sign otherwise than it was asked.
WRONG: dict[str, tuple[Callable[[World, Asked], Any], str]] = {
    "another key": (
        lambda w, a: w.vault.signed(a.body, key=generate_key(KeyType.EC_P256).public_key()),
        "for another key",
    ),
    "another trust domain": (lambda w, a: w.vault.signed(a.body, uris=["spiffe://evil.test"]), "is not for"),
    "a workload's ID": (lambda w, a: w.vault.signed(a.body, uris=["spiffe://example.org/x"]), "is not for"),
    "two IDs": (
        lambda w, a: w.vault.signed(a.body, uris=["spiffe://example.org", "spiffe://evil.test"]),
        "is not for",
    ),
    "no CA": (lambda w, a: w.vault.signed(a.body, ca=False), "is no CA"),
    "a root that is in no file": (lambda w, a: VaultLike.signed(_of(made(made())), a.body), "leads to no root"),
    "its own root": (lambda w, a: VaultLike.signed(_of(made()), a.body), "leads to no root"),
    "no chain": (
        lambda w, a: {**w.vault.signed(a.body), "ca_chain": [], "issuing_ca": _other_pem(w, a)},
        "leads to no root",
    ),
    "a long chain": (lambda w, a: {**w.vault.signed(a.body), "ca_chain": ["x"] * 8}, "longer than 7"),
    "a chain that is none": (lambda w, a: {**w.vault.signed(a.body), "ca_chain": "x"}, "is no list"),
    "no certificate": (lambda w, a: {}, "cannot be read"),
    "no PEM": (lambda w, a: {**w.vault.signed(a.body), "certificate": "x"}, "cannot be read"),
    "a number": (lambda w, a: {**w.vault.signed(a.body), "issuing_ca": 7}, "cannot be read"),
    "one that lives too long": (lambda w, a: w.vault.signed(a.body, ttl=90 * 86400), "outlives what signed it"),
}


def _of(issuer: X509Issuer) -> VaultLike:
    return VaultLike(WebPki(), issuer)


def _other_pem(world: World, asked: Asked) -> str:
    return str(_of(made()).signed(asked.body)["issuing_ca"])


@pytest.mark.parametrize("case", WRONG)
def test_a_ca_that_was_not_asked_for_is_not_used(world: World, case: str) -> None:
    make, sentence = WRONG[case]
    world.vault.answers[SIGN] = lambda asked: (200, {"data": make(world, asked)})
    assert sentence in world.refusal()


BROKEN: dict[str, tuple[int, Any, str]] = {
    "no JSON": (200, b"<html>", "no JSON object"),
    "a list": (200, b"[]", "no JSON object"),
    "a name twice": (200, b'{"data": {}, "data": {}}', "no JSON object"),
    "very deep": (200, b"[" * 100_000, "no JSON object"),
    "no data": (200, {}, "without data"),
    "too much": (200, b" " * (256 * 1024 + 1), "more than 256 KiB"),
    "a redirect": (307, {}, "answers 307"),
    "nothing": (204, b"", "answers 204"),
    "a fault": (500, {"errors": ["1 error occurred:\n\t* no\x1b[31m"]}, "answers 500 to pki/root/sign-intermediate: 1"),
    "an odd fault": (503, {"errors": [{}]}, "answers 503"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_is_none(world: World, case: str) -> None:
    status, body, sentence = BROKEN[case]
    world.vault.answers[SIGN] = lambda _: (status, body)
    said = world.refusal()
    assert sentence in said
    assert said.isprintable()
    assert "elsewhere" not in world.paths()


LOGINS: tuple[Any, ...] = (
    {},
    {"auth": []},
    {"auth": {"client_token": "a b", "lease_duration": 1}},
    {"auth": {"client_token": "a"}},
)


@pytest.mark.parametrize("answer", LOGINS)
def test_a_login_without_a_token(world: World, answer: Any) -> None:
    world.vault.answers[LOGIN] = lambda _: (200, answer)
    assert "without a token" in world.refusal()


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_login_that_is_refused_names_what_to_look_at(world: World, status: int) -> None:
    world.vault.answers[LOGIN] = lambda _: (status, {"errors": ["no such role"]})
    said = world.refusal()
    assert said.startswith(f"the login upstream is refused: the Vault at {world.vault.address} answers {status} to ")
    assert said.endswith(": no such role; see role_id, secret_id_file, auth_mount, namespace (upstream.vault)")


def test_a_vault_that_cannot_log_in_now_refuses_nobody(world: World) -> None:
    world.vault.answers[LOGIN] = away
    assert "refused" not in world.refusal()


def test_a_secret_that_a_server_repeats_is_not_said(world: World) -> None:
    world.vault.answers[LOGIN] = lambda asked: (400, {"errors": [f"invalid secret {asked.body['secret_id']}"]})
    assert "invalid secret ..." in world.refusal()
    world.vault.answers[LOGIN] = world.vault.login
    world.vault.answers[SIGN] = lambda asked: (400, {"errors": [f"not with {asked.headers['x-vault-token']}"]})
    assert "not with ..." in world.refusal()


async def test_no_secret_is_in_any_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(world.folder, **world.flags()):
        pass
    world.vault.answers[LOGIN] = lambda asked: (403, {"errors": [str(asked.body)]})
    await asyncio.to_thread(world.refusal)
    said = caplog.text + repr(world.config())
    assert SECRET not in said
    assert not any(token in said for token in world.vault.tokens)


def test_a_server_that_nobody_named_vouches_for_learns_nothing(world: World) -> None:
    (world.folder / "web-ca.pem").write_bytes(WebPki().root_pem)
    assert "cannot be asked" in world.refusal()
    assert world.vault.asked == []


def test_a_server_of_another_name_learns_nothing(world: World) -> None:
    config = dataclasses.replace(world.config(), address=world.vault.address.replace("127.0.0.1", "localhost"))
    with pytest.raises(AuthorityError, match="cannot be asked"):
        world.mint(VaultUpstream(config, OUR_TD))
    assert world.vault.asked == []


def test_one_that_says_nothing_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firedoor.broker.upstream.vault_client._SECONDS", 0.2)

    def slowly(_: Asked) -> tuple[int, Any]:
        time.sleep(1)
        return 200, {}

    world.vault.answers[SIGN] = slowly
    assert "does not answer within" in world.refusal()


def test_a_token_is_kept_and_another_is_fetched_when_it_is_taken_no_more(world: World) -> None:
    upstream = world.upstream()
    world.mint(upstream)
    world.mint(upstream)
    assert world.paths() == [LOGIN, SIGN, SIGN]
    world.vault.tokens.clear()
    world.mint(upstream)
    assert world.paths()[3:] == [SIGN, LOGIN, SIGN]


def test_what_is_not_allowed_is_asked_once_more_and_then_said(world: World) -> None:
    world.mint(upstream := world.upstream())
    world.vault.answers[SIGN] = lambda _: (403, {"errors": ["permission denied"]})
    with pytest.raises(AuthorityError, match="sign-intermediate: permission denied; the login's policy must allow"):
        world.mint(upstream)
    assert world.paths()[2:] == [SIGN, LOGIN, SIGN]


def test_a_token_is_renewed_in_time_and_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("firedoor.broker.upstream.vault_client.monotonic", lambda: now)
    upstream = world.upstream()
    world.mint(upstream)
    now += 2399
    upstream.poll()
    assert world.vault.renewals == 0
    now += 2
    upstream.poll()
    upstream.poll()
    assert world.vault.renewals == 1
    now += 2401
    world.vault.answers[RENEW] = lambda _: (500, {})
    for _ in range(2):
        with pytest.raises(AuthorityError, match="answers 500 to auth/token/renew-self"):
            upstream.poll()
        # Not once a second.
        upstream.poll()
        now += 31
    now += 1200
    upstream.poll()
    world.mint(upstream)
    assert world.paths()[-2:] == [LOGIN, SIGN]


def test_a_token_that_cannot_be_renewed_is_used_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("firedoor.broker.upstream.vault_client.monotonic", lambda: now)
    world.vault.answers[RENEW] = lambda asked: (
        200,
        {"auth": {"client_token": asked.headers["x-vault-token"], "lease_duration": 600, "renewable": True}},
    )
    upstream = world.upstream()
    world.mint(upstream)
    now += 3000
    upstream.poll()
    now += 400
    upstream.poll()
    assert world.paths().count(RENEW) == 1
    now += 201
    upstream.poll()
    world.mint(upstream)
    assert world.paths()[-2:] == [LOGIN, SIGN]


def test_a_token_in_a_file_that_somebody_renews(world: World) -> None:
    world.vault.tokens.add("hvs.first")
    path = world.file("token", "hvs.first\n")
    upstream = world.upstream(TokenFile(path))
    world.mint(upstream)
    assert world.paths() == [LOOKUP, SIGN]
    world.vault.tokens.add("hvs.second")
    world.file("token", "hvs.second\n")
    upstream.poll()
    world.mint(upstream)
    assert world.paths()[2:] == [LOOKUP, SIGN]
    assert world.vault.asked[-1].headers["x-vault-token"] == "hvs.second"


def test_a_login_by_certificate_shows_it(world: World, web: WebPki) -> None:
    world.vault.answers["auth/cert/login"] = world.vault.login
    certificate, key = web.write(world.folder, "broker.example.org")
    world.mint(
        world.upstream(ClientCertificate("cert", "firedoor", CertificateFiles("upstream.vault", certificate, key)))
    )
    asked = world.vault.asked[0]
    assert asked.body == {"name": "firedoor"}
    assert asked.peer == "broker.example.org"
    assert asked.headers.get("x-vault-token") is None


def test_a_login_by_service_account(world: World) -> None:
    world.vault.answers["auth/clusters/one/login"] = world.vault.login
    token = world.file("sa-token", "a.b.c\n", 0o644)
    world.mint(world.upstream(KubernetesToken("clusters/one", "firedoor", token)))
    assert world.vault.asked[0].body == {"role": "firedoor", "jwt": "a.b.c"}


def test_the_namespace_is_said(world: World) -> None:
    config = dataclasses.replace(world.config(), namespace="teams/ml")
    world.mint(VaultUpstream(config, OUR_TD))
    assert {one.headers["x-vault-namespace"] for one in world.vault.asked} == {"teams/ml"}


def test_a_ca_ends_with_the_one_that_signed_it(world: World) -> None:
    world.vault.issuer = made(world.root, ttl=1800)
    minted = world.mint()
    (first, second) = [one.body["ttl"] for one in world.vault.asked if one.path == SIGN]
    assert first == "3600s"
    assert int(second.removesuffix("s")) < 1800
    assert minted.chain[1:] == (world.vault.issuer.der,)


def test_roots_are_read_again(world: World) -> None:
    upstream, new = world.upstream(), made()
    Files(world.folder).write(new, world.root, new)
    assert upstream.poll() is not None
    assert upstream.poll() is None
    world.vault.issuer = made(new)
    assert world.mint(upstream).roots == (world.root.der, new.der)
    (world.folder / "roots.pem").write_text("nothing")
    assert upstream.poll() is None
    assert world.mint(upstream).roots == (world.root.der, new.der)


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o640, True), (0o644, False), (0o660, False), (0o604, False)]
)
def test_a_secret_that_others_may_read_is_refused(world: World, mode: int, taken: bool) -> None:
    world.secret.chmod(mode)
    found = validate(load(None, {}, flags(world.folder, **world.flags())))
    assert (found == []) == taken
    if not taken:
        assert found == [f"upstream.vault.secret_id_file: {world.secret} is open to others; chmod 0600 it"]


@pytest.mark.parametrize("content", ["", "two words", "two\nlines", "\u00e9", "x" * 16385])
def test_a_secret_is_one_word(world: World, content: str) -> None:
    world.secret.write_text(content)
    (found,) = validate(load(None, {}, flags(world.folder, **world.flags())))
    assert found.startswith(f"upstream.vault.secret_id_file: {world.secret} does not hold one secret")


FILES = {
    "ca": ("web-ca.pem", "upstream.vault.ca: "),
    "roots": ("roots.pem", "upstream.bundle: "),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_wrong_with_files_is_said(world: World, case: str) -> None:
    name, begins = FILES[case]
    (world.folder / name).write_text("nothing")
    (found,) = validate(load(None, {}, flags(world.folder, **world.flags())))
    assert found.startswith(begins)
    (world.folder / name).unlink()
    (found,) = validate(load(None, {}, flags(world.folder, **world.flags())))
    assert found.startswith(begins)
    assert "cannot be read" in found


# The text below `upstream:`, and what is said of it.
CONFIGURED = {
    "nothing said": (
        "vault: {}",
        ["bundle: is missing", "vault.auth: is missing", "vault.token_file", "vault.address", "vault.ca"],
    ),
    "plain": (
        "bundle: r\n  vault: {address: 'http://v:8200', ca: c, auth: token, token_file: t}",
        ["vault.address: must be https://HOST:PORT: tokens go there"],
    ),
    "a path": (
        "bundle: r\n  vault: {address: 'https://v:8200/x', ca: c, auth: token, token_file: t}",
        ["vault.address: must be https://HOST:PORT"],
    ),
    "a password": (
        "bundle: r\n  vault: {address: 'https://u:p@v', ca: c, auth: token, token_file: t}",
        ["vault.address: must be https://HOST:PORT and nothing more"],
    ),
    "no such method": (
        "bundle: r\n  vault: {address: 'https://v', ca: c, auth: ldap}",
        ["vault.auth: must be one of token, approle, cert, kubernetes", "vault.token_file"],
    ),
    "a key is missing": (
        "bundle: r\n  vault: {address: 'https://v', ca: c, auth: approle, role_id: x}",
        ["vault.secret_id_file: is missing; auth approle needs it"],
    ),
    "another method's": (
        "bundle: r\n  vault: {address: 'https://v', ca: c, auth: token, token_file: t, role: x}",
        ["vault.role: does not go with auth token"],
    ),
    "two authorities": (
        "bundle: r\n  key: k\n  vault: {address: 'https://v', ca: c, auth: token, token_file: t}",
        ["vault: stands beside another authority"],
    ),
    "a mount that climbs": (
        "bundle: r\n  vault: {address: 'https://v', ca: c, auth: token, token_file: t, mount: ../sys}",
        ["vault.mount: must be a path such as pki"],
    ),
    "a key that is none": (
        "bundle: r\n  vault: {address: 'https://v', ca: c, auth: token, token_file: t, insecure_skip_verify: true}",
        ["vault.insecure_skip_verify: no such key"],
    ),
}


@pytest.mark.parametrize("case", CONFIGURED)
def test_what_is_wrong_with_the_configuration_is_said(tmp_path: Path, case: str) -> None:
    text, wanted = CONFIGURED[case]
    file = tmp_path / "broker.yaml"
    file.write_text(f"trust_domain: example.org\nupstream:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    assert len(caught.value.findings) == len(wanted), caught.value.findings
    for finding, sentence in zip(caught.value.findings, wanted, strict=True):
        assert f"upstream.{sentence}" in finding


def test_flags_win_over_a_file_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "broker.yaml"
    text = "{address: 'https://v', ca: c, auth: kubernetes, role: firedoor, namespace: teams/ml/}"
    file.write_text(f"trust_domain: example.org\nupstream:\n  bundle: r\n  vault: {text}\n")
    found = load(file, {"FIREDOOR_BROKER_UPSTREAM_VAULT_MOUNT": "pki/ml"}, {"upstream_vault_address": "https://w:1"})
    assert isinstance(found.upstream, UpstreamVault)
    assert (found.upstream.address, found.upstream.mount) == ("https://w:1", "pki/ml")
    assert found.upstream.namespace == "teams/ml"
    assert isinstance(found.upstream.login, KubernetesToken)
    assert str(found.upstream.login.path) == "/var/run/secrets/kubernetes.io/serviceaccount/token"
