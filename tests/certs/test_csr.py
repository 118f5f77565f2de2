# SPDX-License-Identifier: Apache-2.0
import contextlib
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import CsrError, KeyType, generate_key, make_csr, parse_csr, public_key_der

KEY = generate_key(KeyType.EC_P256)
GOOD = make_csr(KEY)


def request(key: Any, algorithm: Any = None, *, names: list[x509.GeneralName] | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def code(der: bytes, **caps: int) -> str:
    with pytest.raises(CsrError) as caught:
        parse_csr(der, **caps)
    return caught.value.code


KEYS = {
    "P-256": (KEY, hashes.SHA256()),
    "P-256 with SHA-512": (KEY, hashes.SHA512()),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
    "RSA": (rsa.generate_private_key(public_exponent=65537, key_size=2048), hashes.SHA256()),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate(), None),
}


@pytest.mark.parametrize("name", KEYS)
def test_good(name: str) -> None:
    key, algorithm = KEYS[name]
    assert public_key_der(parse_csr(request(key, algorithm)).public_key) == public_key_der(key.public_key())


def test_ours() -> None:
    assert public_key_der(parse_csr(GOOD).public_key) == public_key_der(KEY.public_key())


def test_names_in_it_change_nothing() -> None:
    names = [x509.UniformResourceIdentifier("spiffe://td/admin"), x509.UniformResourceIdentifier("spiffe://td/other")]
    assert parse_csr(request(KEY, hashes.SHA256(), names=names)).public_key == KEY.public_key()


def test_names_are_read_for_whoever_mints() -> None:
    asked = parse_csr(make_csr(KEY, uris=["spiffe://td/a"], dns_names=["models.internal"]))
    assert (asked.uris, asked.dns_names) == (("spiffe://td/a",), ("models.internal",))
    assert (parse_csr(GOOD).uris, parse_csr(GOOD).dns_names) == ((), ())


def test_names_that_cannot_be_read() -> None:
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x05\x86\x10a")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = builder.add_extension(broken, critical=False).sign(KEY, hashes.SHA256())
    assert code(der.public_bytes(serialization.Encoding.DER)) == "malformed_csr"


@pytest.mark.parametrize(
    ("name", "key", "algorithm"),
    [
        ("P-521", ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()),
        ("secp256k1", ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
        ("RSA-1024", rsa.generate_private_key(public_exponent=65537, key_size=1024), hashes.SHA256()),
        ("Ed448", ed448.Ed448PrivateKey.generate(), None),
        ("DSA", dsa.generate_private_key(2048), hashes.SHA256()),
    ],
)
def test_unsupported_key(name: str, key: Any, algorithm: Any) -> None:
    assert code(request(key, algorithm)) == "unsupported_key"


def test_rsa_cap() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    der = request(key, hashes.SHA256())
    assert code(der, max_rsa_bits=2048) == "unsupported_key"
    parse_csr(der, max_rsa_bits=3072)


def test_size_cap() -> None:
    assert code(GOOD, max_bytes=len(GOOD) - 1) == "malformed_csr"
    parse_csr(GOOD, max_bytes=len(GOOD))
    names: list[x509.GeneralName] = [x509.DNSName("a" * 60) for _ in range(300)]
    assert code(request(KEY, hashes.SHA256(), names=names)) == "malformed_csr"


def test_a_large_key_is_refused_before_it_is_used() -> None:
    """One check with such a key would take longer than reading the request a thousand times."""
    numbers = rsa.RSAPublicNumbers(e=(1 << 16000) + 1, n=(1 << 16383) + 1)
    spki = public_key_der(numbers.public_key())
    info = _der(0x30, bytes.fromhex("020100") + bytes.fromhex("3000") + spki + bytes.fromhex("a000"))
    algorithm = bytes.fromhex("300d06092a864886f70d01010b0500")
    der = _der(0x30, info + algorithm + _der(0x03, b"\0" + b"\1" * 2048))
    started = time.process_time()
    assert code(der) == "unsupported_key"
    assert time.process_time() - started < 0.05


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    octets = length.to_bytes((length.bit_length() + 7) // 8 or 1)
    return bytes([tag, length] if length < 0x80 else [tag, 0x80 | len(octets), *octets]) + content


def test_signed_by_another_key() -> None:
    other = make_csr(generate_key(KeyType.EC_P256))
    mine, theirs = public_key_der(KEY.public_key()), public_key_der(parse_csr(other).public_key)
    assert code(other.replace(theirs, mine)) == "invalid_csr_signature"


def test_one_bit_of_the_signature_changed() -> None:
    assert code(GOOD[:-1] + bytes([GOOD[-1] ^ 1])) == "invalid_csr_signature"


@pytest.mark.parametrize("der", [b"", b"\0", b"0\0", GOOD[:-1], GOOD + b"\0", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_malformed(der: bytes) -> None:
    assert code(der) == "malformed_csr"


@given(st.binary(max_size=200))
def test_any_bytes(der: bytes) -> None:
    assert code(der) in CsrError.sentences


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_any_change_of_a_good_one_is_refused_or_changes_nothing(changes: list[tuple[int, int]]) -> None:
    """The signature covers everything but its own encoding, where a BIT STRING may call a last zero bit unused."""
    der = bytearray(GOOD)
    for position, value in changes:
        der[position] = (der[position] + value) % 256
    with contextlib.suppress(CsrError):
        assert parse_csr(bytes(der)) == parse_csr(GOOD)
