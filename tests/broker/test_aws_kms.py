# SPDX-License-Identifier: Apache-2.0
"""Keys in AWS KMS: what is asked of it, what happens when it refuses, is slow or away, and a broker on it."""

from __future__ import annotations

import contextlib
import http.server
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest

from firedoor.broker.keys import keyring
from firedoor.broker.keys.aws_kms import AwsKmsKeyManager
from firedoor.broker.keys.settings import AwsKmsRules
from firedoor.certs import KeyManagerAway, KeyType
from firedoor.certs.keys import signing
from tests.broker.harness import running
from tests.kms import SECRET, Kms, kms, waits
from tests.waiting import async_until

NAME = "x509-CA-A"
PATH = "/segment/registry/x"
USER = ["unix:user:registry"]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Kms]:
    with kms() as server:
        yield server


def client(cloud: Kms) -> Any:
    return boto3.client("kms", region_name="eu-central-1", endpoint_url=cloud.url)


def away(act: Any, *given: Any) -> KeyManagerAway:
    with pytest.raises(KeyManagerAway) as caught:
        act(*given)
    assert SECRET not in str(caught.value)
    return caught.value


def test_one_alias_leads_to_the_present_key_and_others_wait_to_be_deleted(cloud: Kms) -> None:
    keys, asked = AwsKmsKeyManager(cloud.rules, "b1"), client(cloud)
    keys.generate(NAME, KeyType.EC_P256)
    first = asked.describe_key(KeyId=f"alias/firedoor/b1/{NAME}")["KeyMetadata"]
    assert (first["KeySpec"], first["KeyUsage"], first["KeyState"]) == ("ECC_NIST_P256", "SIGN_VERIFY", "Enabled")
    assert asked.list_resource_tags(KeyId=first["KeyId"])["Tags"] == [{"TagKey": "firedoor", "TagValue": "b1"}]
    keys.generate(NAME, KeyType.EC_P384)
    second = asked.describe_key(KeyId=f"alias/firedoor/b1/{NAME}")["KeyMetadata"]
    assert second["KeySpec"] == "ECC_NIST_P384"
    old = asked.describe_key(KeyId=first["KeyId"])["KeyMetadata"]
    assert old["KeyState"] == "PendingDeletion"
    assert 6 <= (old["DeletionDate"] - old["CreationDate"]).days <= 7
    keys.delete(NAME)
    keys.delete(NAME)
    assert asked.describe_key(KeyId=second["KeyId"])["KeyMetadata"]["KeyState"] == "PendingDeletion"
    assert not [one for one in asked.list_aliases()["Aliases"] if "/b1/" in one["AliasName"]]
    keys.close()


def test_a_key_that_somebody_disabled_is_not_given_up(cloud: Kms) -> None:
    keys = AwsKmsKeyManager(cloud.rules, "b2")
    key = keys.generate(NAME, KeyType.EC_P256)
    asked = client(cloud)
    kms_id = asked.describe_key(KeyId=f"alias/firedoor/b2/{NAME}")["KeyMetadata"]["KeyId"]
    asked.disable_key(KeyId=kms_id)
    error = away(keys.get, NAME)
    assert (error.code, "Disabled" in error.detail) == ("refused", True)
    asked.enable_key(KeyId=kms_id)
    keys.get(NAME)
    assert signing(key)(b"x")
    keys.close()


def test_a_broker_whose_id_has_a_dot_has_keys_of_its_own(cloud: Kms) -> None:
    for owner in ("a.b", "a_b", "a-b"):
        AwsKmsKeyManager(cloud.rules, owner).generate(NAME, KeyType.EC_P256)
    names = [one["AliasName"] for one in client(cloud).list_aliases()["Aliases"]]
    assert len([name for name in names if name.endswith(NAME)]) >= 3


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        rules = AwsKmsRules("eu-central-1", "firedoor", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with credentials():
            assert away(AwsKmsKeyManager(rules, "b").get, NAME).code == "device_failed"


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cloud: Kms) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    error = away(AwsKmsKeyManager(cloud.rules, "b").get, NAME)
    assert (error.code, error.detail) == ("refused", "no AWS credentials were found")


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize(
    ("code", "status", "expected", "tries"),
    [
        ("ThrottlingException", 400, "device_failed", 3),
        ("KMSInternalException", 500, "device_failed", 3),
        ("AccessDeniedException", 400, "refused", 1),
        ("DisabledException", 400, "refused", 1),
        ("UnrecognizedClientException", 400, "refused", 1),
    ],
    ids=["throttled", "broken", "denied", "disabled", "unknown caller"],
)
def test_what_kms_says_no_with(
    code: str, status: int, expected: str, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bytes] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            text = f'{{"__type": "{code}", "message": "arn:aws:iam::1:role/secret may not"}}'.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    caplog.set_level(logging.DEBUG, "firedoor")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server, credentials():
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rules = AwsKmsRules("eu-central-1", "firedoor", f"http://127.0.0.1:{server.server_port}")
        error = away(AwsKmsKeyManager(rules, "b").connect)
        server.shutdown()
    assert (error.code, error.detail) == (expected, f"describe_key: {code}")
    assert len(asked) == tries
    assert not [one for one in caplog.records if SECRET in one.getMessage()]


def test_one_that_never_answers_is_given_up(cloud: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch, 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rules = replace(cloud.rules, endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert away(AwsKmsKeyManager(rules, "b").connect).code == "device_failed"


def test_a_signature_of_something_else_is_not_taken(cloud: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = AwsKmsKeyManager(cloud.rules, "b3")
    sign = signing(keys.generate(NAME, KeyType.EC_P256))
    called = keys._called

    def other(name: str, **arguments: Any) -> Any:
        # moto then takes the digest for the message, as a faulty device might.
        return called(name, **{**arguments, "MessageType": "RAW"}) if name == "sign" else called(name, **arguments)

    monkeypatch.setattr(keys, "_called", other)
    assert away(sign, b"x").code == "wrong_signature"
    keys.close()


async def test_a_broker_on_it_goes_on_when_kms_is_back(
    folder: Path, cloud: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(folder, **cloud.flags) as broker:
        agent = await broker.attest()
        made = await broker.entry(PATH, agent.path, USER)
        assert (await agent.sign(made.id))[0].status.code == 0
        before = broker.broker.authority.active().authority_id
        results = await agent.sign(*[made.id] * 20)
        assert [one.status.code for one in results] == [0] * 20
    async with running(folder, **cloud.flags) as again:
        assert again.broker.authority.active().authority_id == before
        agent = await again.attest()
        made = await again.entry("/segment/registry/y", agent.path, USER)
        cloud.process.send_signal(signal.SIGSTOP)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(keyring, "SIGN_SECONDS", 2.0)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await agent.sign(made.id)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert again.broker.condition().degraded
            assert (await again.bundle()).x509_authorities
        finally:
            cloud.process.send_signal(signal.SIGCONT)
        await async_until(lambda: not again.broker.condition().degraded)
        assert (await agent.sign(made.id))[0].status.code == 0
        assert (await agent.token(made.id)).token
