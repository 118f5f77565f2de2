# SPDX-License-Identifier: Apache-2.0
"""Signing requests: what is refused, in which order, and that what is read is what `cryptography` reads."""

import contextlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from firedoor.certs import KeyType, SubjectKey, generate_key, make_csr, public_key_der
from firedoor.mtls import VerifyError, read_csr
from tests.cost import costs_less_than

KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = make_csr(KEY)


def request(key: Any, algorithm: Any = None, *, names: list[x509.GeneralName] | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


CODES = {"malformed_csr", "unsupported_key", "invalid_csr_signature"}


def code(der: bytes) -> str:
    with pytest.raises(VerifyError) as caught:
        read_csr(der)
    return caught.value.code


def read_by_another(der: bytes) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Return what `cryptography` reads, if the signature holds for it too."""
    read = x509.load_der_x509_csr(der)
    assert read.is_signature_valid
    key = read.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return key, (), ()
    uris, dns_names = (names.get_values_for_type(kind) for kind in (x509.UniformResourceIdentifier, x509.DNSName))
    return key, tuple(uris), tuple(dns_names)


KEYS: dict[str, tuple[Any, Any]] = {
    "P-256": (KEY, hashes.SHA256()),
    "P-256 with SHA-512": (KEY, hashes.SHA512()),
    "P-256 with SHA-384": (KEY, hashes.SHA384()),
    "P-384 with SHA-256": (ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
    "RSA": (rsa.generate_private_key(public_exponent=65537, key_size=2048), hashes.SHA256()),
    "RSA with SHA-512": (rsa.generate_private_key(public_exponent=3, key_size=2056), hashes.SHA512()),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate(), None),
}


@pytest.mark.parametrize("name", KEYS)
def test_good(name: str) -> None:
    key, algorithm = KEYS[name]
    der = request(key, algorithm)
    assert read_csr(der) == read_by_another(der)
    assert SubjectKey.parse(read_csr(der)[0]) == SubjectKey.of(key.public_key())


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_pss(digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    scheme = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = builder.sign(key, digest, rsa_padding=scheme).public_bytes(serialization.Encoding.DER)
    assert read_csr(der) == read_by_another(der)


@pytest.mark.parametrize("kind", KeyType)
def test_ours(kind: KeyType) -> None:
    key = generate_key(kind)
    assert read_csr(make_csr(key)) == (public_key_der(key.public_key()), (), ())


_names = st.one_of(
    st.from_regex(r"[!-~]{1,40}", fullmatch=True).map(x509.UniformResourceIdentifier),
    st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True).map(x509.DNSName),
    st.ip_addresses().map(x509.IPAddress),
    st.just(x509.RFC822Name("a@b.example")),
    st.just(x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))),
    st.just(x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://td/x")]))),
    st.just(x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x04\x01a")),
)
_others = st.lists(
    st.sampled_from([x509.BasicConstraints(ca=True, path_length=0), x509.OCSPNoCheck(), x509.InhibitAnyPolicy(1)]),
    unique=True,
)


@given(names=st.lists(_names, max_size=40), others=_others, critical=st.booleans(), subject=st.text(max_size=30))
def test_the_names_are_those_that_another_reads(
    names: list[x509.GeneralName], others: list[x509.ExtensionType], critical: bool, subject: str
) -> None:
    named = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(named))
    builder = builder.add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"a challenge")
    for other in others:
        builder = builder.add_extension(other, critical)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical)
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert read_csr(der) == read_by_another(der)


def test_names_in_it_change_nothing() -> None:
    asked = make_csr(KEY, uris=["spiffe://td/admin", "spiffe://td/other"])
    assert read_csr(asked)[0] == public_key_der(KEY.public_key())


def test_names_are_read_for_whoever_mints() -> None:
    asked = read_csr(make_csr(KEY, uris=["spiffe://td/a"], dns_names=["models.internal"]))
    assert asked[1:] == (("spiffe://td/a",), ("models.internal",))
    assert read_csr(GOOD)[1:] == ((), ())


SAN = bytes.fromhex("0603551d11")
UNREADABLE = {
    "a name that is longer than all names": (0x30, SAN + b"\x04\x07\x30\x05\x86\x10abc"),
    "no list": (0x30, SAN + b"\x04\x02\x86\x00"),
    "bytes after the list": (0x30, SAN + b"\x04\x03\x30\x00\x00"),
    "a name of an unknown kind": (0x30, SAN + b"\x04\x05\x30\x03\x89\x01a"),
    "a URI that is not ASCII": (0x30, SAN + b"\x04\x06\x30\x04\x86\x02\xc3\xa4"),
    "a value that is no OCTET STRING": (0x30, SAN + b"\x30\x00"),
    "no value": (0x30, SAN),
    "bytes after the value": (0x30, SAN + b"\x04\x02\x30\x00\x05\x00"),
    "an extension that is no list": (0x31, SAN + b"\x04\x02\x30\x00"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_names_that_cannot_be_read(name: str) -> None:
    assert code(asking(_der(*UNREADABLE[name]))) == "malformed_csr"


def test_names_that_are_given_twice() -> None:
    """Which of two counts would be the reader's whim."""
    one = _der(0x30, SAN + b"\x04\x05\x30\x03\x86\x01a")
    assert read_csr(asking(one))[1] == ("a",)
    assert code(asking(one + one)) == "malformed_csr"
    request = _der(0x30, EXTENSION_REQUEST + _der(0x31, _der(0x30, one)))
    assert read_csr(signed(request))[1] == ("a",)
    assert code(signed(request + request)) == "malformed_csr"
    assert code(signed(_der(0x30, EXTENSION_REQUEST + _der(0x31, _der(0x30, one) * 2)))) == "malformed_csr"


EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")


def asking(extensions: bytes) -> bytes:
    """Return a request for these extensions."""
    return signed(_der(0x30, EXTENSION_REQUEST + _der(0x31, _der(0x30, extensions))))


def signed(attributes: bytes, *, version: int = 0, after: bytes = b"") -> bytes:
    """Return a request with these attributes, whose signature holds."""
    spki = public_key_der(KEY.public_key())
    info = _der(0x30, bytes([2, 1, version]) + bytes.fromhex("3000") + spki + _der(0xA0, attributes) + after)
    signature = KEY.sign(info, ec.ECDSA(hashes.SHA256()))
    return _der(0x30, info + bytes.fromhex("300a06082a8648ce3d040302") + _der(0x03, b"\0" + signature))


def test_a_signature_does_not_excuse_the_form() -> None:
    assert read_csr(signed(b""))[1:] == ((), ())
    assert code(signed(b"", version=1)) == "malformed_csr"
    assert code(signed(b"", after=b"\x05\x00")) == "malformed_csr"
    whole = signed(b"")
    # One length in three bytes that two would do for, and an indefinite one (X.690 sections 10.1 and 8.1.3.6).
    assert whole[1] == 0x81
    assert code(b"\x30\x82\x00" + whole[2:]) == "malformed_csr"
    assert code(b"\x30\x80" + whole[3:] + b"\0\0") == "malformed_csr"


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


def unsigned(spki: bytes) -> bytes:
    """Return a request for this key with an RSA signature of nobody."""
    info = _der(0x30, bytes.fromhex("020100") + bytes.fromhex("3000") + spki + bytes.fromhex("a000"))
    return _der(0x30, info + bytes.fromhex("300d06092a864886f70d01010b0500") + _der(0x03, b"\0" + b"\1" * 256))


RSA_KEYS = {
    "2047 bits": ((1 << 2046) + 1, 65537, "unsupported_key"),
    "2048 bits": ((1 << 2047) + 1, 65537, "invalid_csr_signature"),
    "8192 bits": ((1 << 8191) + 1, 65537, "invalid_csr_signature"),
    "8193 bits": ((1 << 8192) + 1, 65537, "unsupported_key"),
    "a large exponent": ((1 << 2047) + 1, 2**33 - 1, "invalid_csr_signature"),
    "a larger exponent": ((1 << 2047) + 1, 2**33 + 1, "unsupported_key"),
    "an exponent of 20 bytes": ((1 << 2047) + 1, 2**160 + 1, "unsupported_key"),
}


@pytest.mark.parametrize("name", RSA_KEYS)
def test_rsa_caps(name: str) -> None:
    modulus, exponent, expected = RSA_KEYS[name]
    spki = public_key_der(rsa.RSAPublicNumbers(e=exponent, n=modulus).public_key())
    assert code(unsigned(spki)) == expected


POINT = public_key_der(KEY.public_key())
KEYS_OF_ANOTHER_FORM = {
    "a compressed point": bytes.fromhex("3039") + POINT[2:23] + bytes.fromhex("032200") + b"\x02" + POINT[27:59],
    "a point that is cut": bytes.fromhex("3058") + POINT[2:23] + bytes.fromhex("034100") + POINT[26:90],
    "no parameters": bytes.fromhex("304f300906072a8648ce3d0201034200") + POINT[26:],
    "the point at infinity": bytes.fromhex("3019") + POINT[2:23] + bytes.fromhex("03020000"),
}


@pytest.mark.parametrize("name", KEYS_OF_ANOTHER_FORM)
def test_a_key_of_another_form(name: str) -> None:
    assert code(unsigned(KEYS_OF_ANOTHER_FORM[name])) == "unsupported_key"


def test_a_point_beside_the_curve() -> None:
    """No signature holds for it."""
    key = POINT[:-1] + bytes([POINT[-1] ^ 1])
    der = GOOD.replace(POINT, key)
    assert code(der) == "invalid_csr_signature"


def test_size_cap() -> None:
    fits = asking(_der(0x30, SAN + _der(0x04, _der(0x30, _der(0x86, b"a" * 16000)))))
    assert len(read_csr(fits)[1][0]) == 16000
    assert code(asking(_der(0x30, SAN + _der(0x04, _der(0x30, _der(0x86, b"a" * 16300)))))) == "malformed_csr"
    names: list[x509.GeneralName] = [x509.DNSName("a" * 60) for _ in range(300)]
    assert code(request(KEY, hashes.SHA256(), names=names)) == "malformed_csr"


def test_a_large_key_is_refused_before_it_is_used() -> None:
    """One check with such a key would take longer than reading the request a thousand times."""
    numbers = rsa.RSAPublicNumbers(e=(1 << 16000) + 1, n=(1 << 16383) + 1)
    der = unsigned(public_key_der(numbers.public_key()))
    with costs_less_than(0.05):
        assert code(der) == "unsupported_key"


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    octets = length.to_bytes((length.bit_length() + 7) // 8 or 1)
    return bytes([tag, length] if length < 0x80 else [tag, 0x80 | len(octets), *octets]) + content


def test_signed_by_another_key() -> None:
    other = make_csr(generate_key(KeyType.EC_P256))
    assert code(other.replace(read_csr(other)[0], POINT)) == "invalid_csr_signature"


def test_one_bit_of_the_signature_changed() -> None:
    assert code(GOOD[:-1] + bytes([GOOD[-1] ^ 1])) == "invalid_csr_signature"


@pytest.mark.parametrize("der", [b"", b"\0", b"0\0", GOOD[:-1], GOOD + b"\0", b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_malformed(der: bytes) -> None:
    assert code(der) == "malformed_csr"


@given(st.binary(max_size=200))
def test_any_bytes(der: bytes) -> None:
    assert code(der) in CODES


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_any_change_of_a_good_one_is_refused_or_changes_nothing(changes: list[tuple[int, int]]) -> None:
    """The signature covers everything but its own encoding, where a BIT STRING may call a last zero bit unused."""
    der = bytearray(GOOD)
    for position, value in changes:
        der[position] = (der[position] + value) % 256
    with contextlib.suppress(VerifyError):
        assert read_csr(bytes(der)) == read_csr(GOOD)
