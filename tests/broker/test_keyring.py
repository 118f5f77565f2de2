# SPDX-License-Identifier: Apache-2.0
"""The keyring and its threads: what a device that hangs may cost, and who waits for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from firedoor.broker import config
from firedoor.broker.errors import ConfigError, KeysAway
from firedoor.broker.keys import keyring
from firedoor.broker.keys.device import DeviceEcKey
from firedoor.broker.keys.keyring import Keyring
from firedoor.broker.keys.pool import Pool, PoolFull
from firedoor.broker.keys.settings import AwsKmsRules, Pkcs11Rules
from firedoor.certs import KeyManagerAway, KeyType, MemoryKeyManager, PrivateKey, generate_key
from firedoor.certs.keys import signing
from tests.broker.harness import TD, flags
from tests.waiting import async_until


class Hangs(MemoryKeyManager):
    """A device that answers only while `open` is set: none that can be installed hangs when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.why = threading.Event(), ""
        self.open.set()

    def connect(self) -> None:
        self.open.wait()
        if self.why:
            raise KeyManagerAway(self.why)

    def forgive(self) -> None:
        self.why = ""

    def close(self) -> None:
        self.open.set()

    def get(self, key_id: str) -> PrivateKey:
        inner = super().get(key_id)

        def sign(digest: bytes, algorithm: object) -> bytes:
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

            self.connect()
            return inner.sign(digest, ec.ECDSA(Prehashed(algorithm)))  # type: ignore[arg-type, call-arg, return-value]

        return DeviceEcKey(inner.public_key(), sign)  # type: ignore[arg-type]


async def test_a_device_that_hangs_is_given_up_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_RETRY_SECONDS", 0.0)
    device = Hangs()
    keys = Keyring(device)
    device.generate("a", KeyType.EC_P256)
    key = await keys.run(lambda: device.get("a"))
    keys.active = lambda: [key]
    assert await keys.sign(key, lambda: signing(key)(b"x"))
    device.open.clear()
    monkeypatch.setattr(keyring, "SIGN_SECONDS", 0.2)
    with pytest.raises(KeysAway):
        await keys.sign(key, lambda: signing(key)(b"x"))
    assert "in time" in keys.trouble
    # Nobody waits any more: one error, at once, and no thread is given to it.
    with pytest.raises(KeysAway):
        await keys.sign(key, lambda: signing(key)(b"x"))
    await keys.tick()
    assert keys.trouble
    device.open.set()
    monkeypatch.setattr(keyring, "SIGN_SECONDS", 30)

    async def look() -> None:
        while keys.trouble:
            await keys.tick()

    await asyncio.wait_for(look(), 60)
    assert await keys.sign(key, lambda: signing(key)(b"x"))
    keys.close()


async def test_why_it_is_away_is_told_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    device = Hangs()
    keys = Keyring(device)
    for why in ("no_token", "no_token", "wrong_pin"):
        device.why = why
        keys._look_at = 0.0
        await keys.tick()
    assert [r.message.count("away") for r in caplog.records] == [1, 1]
    keys.forgive()
    await keys.tick()
    assert keys.trouble == ""
    keys.close()


async def test_keys_of_this_process_are_used_at_once() -> None:
    keys = Keyring(MemoryKeyManager())
    key = generate_key(KeyType.EC_P256)
    here = threading.get_ident()
    assert await keys.sign(key, threading.get_ident) == here
    assert await keys.run(threading.get_ident) != here
    await keys.tick()
    assert not keys.is_device
    keys.close()


async def test_a_job_waits_its_turn_as_long_as_others_get_on() -> None:
    pool = Pool(threads=1)

    def slow() -> int:
        threading.Event().wait(3.0)
        return 1

    # Together they take longer than any may.
    assert sum(await asyncio.gather(*(pool.run(slow, 8.0) for _ in range(3)))) == 3
    pool.close()


async def test_what_waits_is_bounded() -> None:
    pool, gate = Pool(threads=1, most=3), threading.Event()
    tasks = [asyncio.create_task(pool.run(gate.wait, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(PoolFull):
        await pool.run(gate.wait, 60)
    gate.set()
    assert await asyncio.gather(*tasks) == [True] * 3
    assert await pool.run(lambda: 7, 60) == 7
    pool.close()


async def test_what_nobody_waits_for_is_not_begun() -> None:
    pool, gate, done = Pool(threads=1), threading.Event(), []
    first = asyncio.create_task(pool.run(gate.wait, 60))
    second = asyncio.create_task(pool.run(lambda: done.append(1), 60))
    await async_until(lambda: pool._busy == 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    await first
    await async_until(lambda: pool._busy == 0)
    assert not done
    pool.close()


async def test_a_job_raises_what_it_raises() -> None:
    pool = Pool()
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0, 60)
    pool.close()


# --- the configuration ------------------------------------------------------------------------------------------------


def read(folder: Path, text: str, **given: str) -> config.Config:
    path = folder / "broker.yaml"
    path.write_text(f"trust_domain: {TD}\n{text}\n")
    return config.load(path, {}, given)


def test_a_device_is_a_mapping_in_the_file(tmp_path: Path) -> None:
    text = "key_manager: {pkcs11: {module: /m.so, token: firedoor, pin_file: /pin}}"
    assert read(tmp_path, text).key_manager == Pkcs11Rules(Path("/m.so"), "firedoor", Path("/pin"))
    text = "key_manager: {aws_kms: {region: eu-central-1, key_prefix: alias/prod/fd, endpoint_url: 'http://[::1]:1'}}"
    assert read(tmp_path, text).key_manager == AwsKmsRules("eu-central-1", "prod/fd", "http://[::1]:1")
    assert read(tmp_path, text, key_manager="memory").key_manager == "memory"
    assert read(tmp_path, "key_manager: disk", key_manager_aws_kms_region="x-1").key_manager == AwsKmsRules(
        "x-1", "firedoor", None
    )
    assert read(tmp_path, "").key_manager == "disk"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key_manager: hsm", "key_manager: must be one of disk"),
        ("key_manager: {}", "must be one of disk, memory, pkcs11 and aws_kms"),
        ("key_manager: [disk]", "key_manager: must be"),
        ("key_manager: {pkcs12: {}}", "pkcs12: no such key"),
        ("key_manager: {pkcs11: {module: /m, token: t}}", "key_manager.pkcs11.pin_file: is missing"),
        ("key_manager: {pkcs11: {module: /m, pin_file: /p}}", "key_manager.pkcs11.token: is missing"),
        (f"key_manager: {{pkcs11: {{module: /m, token: {'t' * 33}, pin_file: /p}}}}", "at most 32 bytes"),
        ("key_manager: {pkcs11: {module: /m, token: t, pin_file: /p}, aws_kms: {region: x}}", "choose one"),
        ("key_manager: {aws_kms: {key_prefix: x}}", "key_manager.aws_kms.region: is missing"),
        ("key_manager: {aws_kms: {region: 'EU 1'}}", "must be a region"),
        ("key_manager: {aws_kms: {region: x, key_prefix: 'aws/x'}}", "must be the beginning of an alias"),
        ("key_manager: {aws_kms: {region: x, endpoint_url: 'http://kms.example.org'}}", "nothing but TLS"),
        ("key_manager: {aws_kms: {region: x, endpoint_url: 'https://u:p@kms.example.org'}}", "nothing more"),
        ("key_manager: {aws_kms: {region: x}}\nkey_passphrase_file: /p", "a device has its own"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_validate_names_the_files_that_are_missing(tmp_path: Path) -> None:
    given = flags(
        tmp_path,
        key_manager_pkcs11_module="/absent.so",
        key_manager_pkcs11_token="t",
        key_manager_pkcs11_pin_file="/absent",
    )
    (found,) = config.validate(config.load(None, {}, given))
    assert "key_manager.pkcs11.module: /absent.so cannot be read" in found
