# SPDX-License-Identifier: Apache-2.0
"""What every key manager keeps, wherever its keys are."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from firedoor.broker.files import FileStore
from firedoor.broker.keys.aws_kms import AwsKmsKeyManager
from firedoor.broker.keys.device import Device, DeviceKey
from firedoor.broker.keys.pkcs11 import Pkcs11KeyManager
from firedoor.certs import (
    DiskKeyManager,
    JwtIssuer,
    KeyManager,
    KeyManagerError,
    KeyType,
    MemoryKeyManager,
    PrivateKey,
    TrustBundle,
    TrustDomain,
    generate_key,
    issue_ca,
    issue_x509,
    make_csr,
    mint_jwt,
    public_key_der,
    validate_jwt_svid,
    verify_x509_svid,
)
from firedoor.mtls import read_csr
from tests.kms import Kms, kms
from tests.softhsm import softhsm

TD = TrustDomain.parse("example.org")
NOW = 1_800_000_000
LASTING = ("disk", "disk, encrypted", "pkcs11", "aws_kms")
# RSA-4096 takes a token half a minute, and differs from RSA-2048 in nothing that is looked at here.
KINDS = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)
DEVICES = ("pkcs11", "aws_kms")
# Opens the manager again, as after a restart; another owner's has keys of its own.
Opener = Callable[..., KeyManager]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Kms]:
    with kms() as server:
        yield server


@pytest.fixture
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    memory, opened = MemoryKeyManager(), contextlib.ExitStack()

    def device(made: Any) -> KeyManager:
        opened.callback(made.close)
        return made  # type: ignore[no-any-return]

    def manager(owner: str = request.node.name) -> KeyManager:
        match request.param:
            case "memory":
                return memory
            case "disk":
                return DiskKeyManager(FileStore(tmp_path / f"keys{len(owner)}"))
            case "disk, encrypted":
                return DiskKeyManager(FileStore(tmp_path / f"keys{len(owner)}"), b"correct horse")
            case "pkcs11":
                return device(Pkcs11KeyManager(token.rules, owner))
            case _:
                cloud: Kms = request.getfixturevalue("cloud")
                name = "".join(letter if letter.isalnum() else "-" for letter in owner)
                return device(AwsKmsKeyManager(cloud.rules, name))

    with contextlib.ExitStack() as stack:
        if request.param == "pkcs11":
            token = stack.enter_context(softhsm(tmp_path / "hsm"))
        stack.callback(opened.close)
        yield manager


every = pytest.mark.parametrize("opener", ["memory", *LASTING], indirect=True)
lasting = pytest.mark.parametrize("opener", LASTING, indirect=True)
devices = pytest.mark.parametrize("opener", DEVICES, indirect=True)


def same(one: PrivateKey, other: PrivateKey) -> bool:
    return public_key_der(one.public_key()) == public_key_der(other.public_key())


def code(keys: KeyManager, key_id: str) -> str:
    with pytest.raises(KeyManagerError) as caught:
        keys.get(key_id)
    return caught.value.code


bytes_of = secrets.token_bytes


@every
def test_a_key_is_made_replaced_and_forgotten(opener: Opener) -> None:
    keys = opener()
    assert code(keys, "x509-CA-A") == "key_not_found"
    keys.delete("x509-CA-A")
    first = keys.generate("x509-CA-A", KeyType.EC_P256)
    assert same(keys.get("x509-CA-A"), first)
    assert code(keys, "x509-CA-B") == "key_not_found"
    second = keys.generate("x509-CA-A", KeyType.EC_P256)
    assert not same(first, second)
    assert same(keys.get("x509-CA-A"), second)
    keys.delete("x509-CA-A")
    assert code(keys, "x509-CA-A") == "key_not_found"


@every
@pytest.mark.parametrize("key_id", ["", "a/b", "../x", "a b", "x" * 65, "a.b", "a\n"])
def test_a_bad_id_is_refused(opener: Opener, key_id: str) -> None:
    keys = opener()
    for act in (keys.get, keys.delete, lambda each: keys.generate(each, KeyType.EC_P256)):
        with pytest.raises(KeyManagerError) as caught:
            act(key_id)
        assert caught.value.code == "bad_key_id"


@lasting
def test_a_key_outlives_who_made_it(opener: Opener) -> None:
    made = opener().generate("JWT-Signer-B", KeyType.EC_P384)
    found = opener().get("JWT-Signer-B")
    assert same(made, found)
    assert code(opener("somebody else"), "JWT-Signer-B") == "key_not_found"


@every
@pytest.mark.parametrize("key_type", KINDS, ids=lambda one: one.value)
def test_what_a_key_signs_holds(opener: Opener, key_type: KeyType) -> None:
    key = opener().generate("x509-CA-A", key_type)
    ca = issue_ca(TD, key, at=NOW, random=bytes_of)
    holder = generate_key(KeyType.EC_P256).public_key()
    # The first is written by the builder, the second by the stamp.
    for _ in range(2):
        svid = issue_x509(TD.with_path("/a"), holder, ca, at=NOW, random=bytes_of)
        assert verify_x509_svid(svid.chain, {TD: TrustBundle.of(TD, (ca.der,))}, NOW).id == svid.id
    issuer = JwtIssuer.load(TD, "k", public_key_der(key.public_key()), key, not_after=NOW + 600)
    token = mint_jwt(TD.with_path("/a"), ["b"], issuer, at=NOW, token_id="1").token
    assert validate_jwt_svid(token, "b", {TD: TrustBundle(TD, jwt_keys=(issuer.public,))}, NOW).id.path == "/a"
    # What an authority upstream is sent.
    assert read_csr(make_csr(key))[0] == public_key_der(key.public_key())


@devices
def test_a_device_keeps_its_keys(opener: Opener) -> None:
    keys = opener()
    key = keys.generate("x509-CA-A", KeyType.EC_P256)
    assert isinstance(keys, Device)
    assert isinstance(key, DeviceKey)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    rsa_key = keys.generate("x509-CA-B", KeyType.RSA_2048)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    for act in (key.private_numbers, rsa_key.private_numbers, lambda: key.exchange(ec.ECDH(), key.public_key())):
        with pytest.raises(Exception, match="the device keeps the key"):
            act()


@devices
def test_many_threads_sign_at_once(opener: Opener) -> None:
    keys = opener()
    key = keys.generate("x509-CA-A", KeyType.EC_P256)
    ca = issue_ca(TD, key, at=NOW, random=bytes_of)
    bundle = {TD: TrustBundle.of(TD, (ca.der,))}
    holder = generate_key(KeyType.EC_P256).public_key()

    def sign(number: int) -> str:
        svid = issue_x509(TD.with_path(f"/n{number}"), holder, ca, at=NOW, random=bytes_of)
        return verify_x509_svid(svid.chain, bundle, NOW).id.path

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sign, range(64))) == [f"/n{number}" for number in range(64)]


# AWS refuses to sign with a key that waits to be deleted; moto does not.
@pytest.mark.parametrize("opener", ["pkcs11"], indirect=True)
def test_a_key_that_was_replaced_signs_nothing_more(opener: Opener) -> None:
    keys = opener()
    first = keys.generate("x509-CA-A", KeyType.EC_P256)
    keys.generate("x509-CA-A", KeyType.EC_P256)
    assert isinstance(first, ec.EllipticCurvePrivateKey)
    with pytest.raises(KeyManagerError):
        issue_ca(TD, first, at=NOW, random=bytes_of)
