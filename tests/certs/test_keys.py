# SPDX-License-Identifier: Apache-2.0
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from firedoor.certs import DiskKeyManager, KeyManager, KeyManagerError, KeyType, MemoryKeyManager, public_key_der
from firedoor.certs.keys import generate_key, is_supported, private_key_der, signature_hash


class Shelf:
    """A key store in memory."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}

    def load(self, name: str) -> bytes | None:
        return self.items.get(name)

    def replace(self, name: str, data: bytes) -> None:
        self.items[name] = data

    def delete(self, name: str) -> None:
        self.items.pop(name, None)


MANAGERS = {
    "memory": MemoryKeyManager,
    "disk": lambda: DiskKeyManager(Shelf()),
    "disk, encrypted": lambda: DiskKeyManager(Shelf(), b"correct horse"),
}


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> KeyManager:
    made: KeyManager = MANAGERS[request.param]()
    return made


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_generate_and_get(manager: KeyManager, key_type: KeyType) -> None:
    made = manager.generate("x509-CA-A", key_type)
    assert public_key_der(manager.get("x509-CA-A").public_key()) == public_key_der(made.public_key())


def test_generate_replaces(manager: KeyManager) -> None:
    first = manager.generate("a", KeyType.EC_P256)
    manager.generate("a", KeyType.EC_P256)
    assert public_key_der(manager.get("a").public_key()) != public_key_der(first.public_key())


def test_delete(manager: KeyManager) -> None:
    manager.generate("a", KeyType.EC_P256)
    manager.delete("a")
    manager.delete("a")
    assert code(manager, "a") == "key_not_found"


@pytest.mark.parametrize("key_id", ["", "../a", "a/b", "a.b", "a" * 65, "a\n", "é"])
def test_bad_key_id(manager: KeyManager, key_id: str) -> None:
    assert code(manager, key_id) == "bad_key_id"
    with pytest.raises(KeyManagerError):
        manager.generate(key_id, KeyType.EC_P256)
    with pytest.raises(KeyManagerError):
        manager.delete(key_id)


def code(manager: KeyManager, key_id: str) -> str:
    with pytest.raises(KeyManagerError) as caught:
        manager.get(key_id)
    return caught.value.code


def test_disk_outlives_the_manager() -> None:
    shelf = Shelf()
    made = DiskKeyManager(shelf).generate("a", KeyType.EC_P256)
    assert private_key_der(DiskKeyManager(shelf).get("a")) == private_key_der(made)
    assert shelf.items["a.pem"].startswith(b"-----BEGIN PRIVATE KEY-----")


def test_encrypted() -> None:
    shelf = Shelf()
    made = DiskKeyManager(shelf, b"right").generate("a", KeyType.EC_P256)
    assert shelf.items["a.pem"].startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert DiskKeyManager(shelf, b"right").encrypted
    assert private_key_der(DiskKeyManager(shelf, b"right").get("a")) == private_key_der(made)
    assert code(DiskKeyManager(shelf, b"wrong"), "a") == "wrong_passphrase"
    assert code(DiskKeyManager(shelf), "a") == "wrong_passphrase"
    assert code(DiskKeyManager(shelf, b""), "a") == "wrong_passphrase"


def test_a_plain_key_is_read_when_a_passphrase_is_given() -> None:
    shelf = Shelf()
    made = DiskKeyManager(shelf).generate("a", KeyType.EC_P256)
    assert private_key_der(DiskKeyManager(shelf, b"new").get("a")) == private_key_der(made)


ED25519 = ed25519.Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ED25519]
)
def test_damaged(data: bytes) -> None:
    shelf = Shelf()
    shelf.items["a.pem"] = data
    assert code(DiskKeyManager(shelf), "a") == "key_damaged"


def test_key_types() -> None:
    assert [KeyType.parse(each.value) for each in KeyType] == list(KeyType)
    with pytest.raises(KeyManagerError) as caught:
        KeyType.parse("ec-p521")
    assert caught.value.code == "unknown_key_type"


def test_hash_goes_with_the_curve() -> None:
    assert signature_hash(generate_key(KeyType.EC_P256)).name == "sha256"
    assert signature_hash(generate_key(KeyType.EC_P384)).name == "sha384"


def rsa_public(bits: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(e=exponent, n=(1 << (bits - 1)) + 1).public_key()


@pytest.mark.parametrize(
    ("name", "key", "supported"),
    [
        ("P-256", ec.generate_private_key(ec.SECP256R1()).public_key(), True),
        ("P-384", ec.generate_private_key(ec.SECP384R1()).public_key(), True),
        ("P-521", ec.generate_private_key(ec.SECP521R1()).public_key(), False),
        ("secp256k1", ec.generate_private_key(ec.SECP256K1()).public_key(), False),
        ("Ed25519", ed25519.Ed25519PrivateKey.generate().public_key(), True),
        ("RSA 2047", rsa_public(2047), False),
        ("RSA 2048", rsa_public(2048), True),
        ("RSA 8192", rsa_public(8192), True),
        ("RSA 8193", rsa_public(8193), False),
        ("RSA, largest exponent", rsa_public(2048, 2**33 - 1), True),
        ("RSA, larger exponent", rsa_public(2048, 2**33 + 1), False),
        ("DSA", dsa.generate_private_key(2048).public_key(), False),
        ("no key", None, False),
    ],
)
def test_supported(name: str, key: object, supported: bool) -> None:
    assert is_supported(key) == supported


def test_rsa_cap_is_the_callers() -> None:
    assert is_supported(rsa_public(4096), max_rsa_bits=4096)
    assert not is_supported(rsa_public(4097), max_rsa_bits=4096)
