# SPDX-License-Identifier: Apache-2.0
"""Nodes' certificates: what is refused and by which rule, each beside a twin that passes, and what a good one says."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firedoor.certs import (
    BundleError,
    CertsError,
    EvidenceError,
    NodeCertificate,
    NodeCertificateError,
    TrustDomain,
    node_roots,
    read_roots,
    verify_node_certificate,
)
from firedoor.certs.names import common_name
from tests.cost import costs_less_than
from tests.node_pki import DAY, NOW, Held, NodePki, rsa_public_key, subject, usage

TD = TrustDomain.parse("example.org")
CODE_SIGNING, CLIENT = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
Make = Callable[[NodePki], Held]


@pytest.fixture(scope="module")
def pki() -> NodePki:
    return NodePki()


def verify(pki: NodePki, chain: tuple[bytes, ...], at: int = NOW) -> NodeCertificate:
    return verify_node_certificate(chain, read_roots(pki.root_pem), at)


def deep(pki: NodePki, levels: int) -> Held:
    above = None
    for level in range(levels):
        above = pki.ca(f"Level {level}", issuer=above or pki.root)
    return pki.node(issuer=above)


def below(**wrong: Any) -> Make:
    """Make a node below an intermediate of which something is wrong."""
    return lambda pki: pki.node(issuer=pki.ca("Between", issuer=pki.root, **wrong))


GOOD: dict[str, Make] = {
    "by the root itself": lambda pki: pki.node(),
    "four intermediates": lambda pki: deep(pki, 4),
    "P-384": lambda pki: pki.node(key=ec.generate_private_key(ec.SECP384R1())),
    "P-521": lambda pki: pki.node(key=ec.generate_private_key(ec.SECP521R1())),
    "RSA-2048": lambda pki: pki.node(key=rsa.generate_private_key(65537, 2048)),
    "RSA-2048 with exponent 3": lambda pki: pki.node(public_key=rsa_public_key(2048, 3)),
    "RSA-8192": lambda pki: pki.node(public_key=rsa_public_key(8192)),
    "for TLS clients": lambda pki: pki.node(extended=[CLIENT]),
    "for TLS servers": lambda pki: pki.node(extended=[ExtendedKeyUsageOID.SERVER_AUTH, CODE_SIGNING]),
    "for everything": lambda pki: pki.node(extended=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "no basic constraints": lambda pki: pki.node(basic=None),
    "an unknown extension that is not critical": lambda pki: pki.node(extra=[(UNKNOWN, False)]),
    "256 names": lambda pki: pki.node(dns=[f"h{i}.example" for i in range(256)]),
    "a CA with P-521": below(key=ec.generate_private_key(ec.SECP521R1())),
    "a CA with Ed25519": below(key=ed25519.Ed25519PrivateKey.generate()),
    "a CA for TLS clients": below(extended=[CLIENT]),
    "a CA that lets DNS names of ours pass": lambda pki: pki.node(
        issuer=pki.ca("Between", issuer=pki.root, extra=[(constraints(x509.DNSName("example")), True)]),
        dns=["h1.example"],
    ),
}


def constraints(name: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(permitted_subtrees=[name], excluded_subtrees=None)


def below_constrained(name: x509.GeneralName, **node: Any) -> Make:
    def make(pki: NodePki) -> Held:
        return pki.node(issuer=pki.ca("Between", issuer=pki.root, extra=[(constraints(name), True)]), **node)

    return make


BAD: dict[str, tuple[Make, str]] = {
    "another company": (lambda _: NodePki(common_name="Other Root").node(), "chain_untrusted"),
    "another company, the same name": (lambda _: NodePki().node(), "chain_untrusted"),
    "signed by itself": (lambda pki: pki.node(issuer=pki.ca("Own")), "chain_untrusted"),
    "the intermediate is not there": (
        lambda pki: pki.node(issuer=pki.ca("Between", issuer=pki.root), chain=False),
        "chain_untrusted",
    ),
    "below another node": (lambda pki: pki.node("gpu-2", issuer=pki.node("gpu-1")), "chain_untrusted"),
    "a CA that may not sign": (below(usage=usage("crl_sign")), "chain_untrusted"),
    "a CA for code alone": (below(extended=[CODE_SIGNING]), "chain_untrusted"),
    "a CA with a critical extension": (below(extra=[(UNKNOWN, True)]), "chain_untrusted"),
    "longer than its CA allows": (
        lambda pki: pki.node(
            issuer=pki.ca(
                "Two", issuer=pki.ca("One", issuer=pki.root, basic=x509.BasicConstraints(ca=True, path_length=0))
            )
        ),
        "chain_untrusted",
    ),
    "a DNS name that its CA may not name": (
        below_constrained(x509.DNSName("example"), dns=["h1.elsewhere"]),
        "chain_untrusted",
    ),
    "a CA with constraints on URIs": (
        below_constrained(x509.UniformResourceIdentifier("example")),
        "name_constraints_unsupported",
    ),
    "expired": (lambda pki: pki.node(days=(-30, -1)), "expired"),
    "not yet valid": (lambda pki: pki.node(days=(1, 30)), "not_yet_valid"),
    "below an expired CA": (below(days=(-30, -1)), "expired"),
    "a CA's certificate": (lambda pki: pki.ca("Between", issuer=pki.root), "leaf_is_ca"),
    "the root itself": (lambda pki: pki.root, "leaf_is_ca"),
    "no digitalSignature": (lambda pki: pki.node(usage=usage("key_encipherment")), "digital_signature_missing"),
    "no key usage": (lambda pki: pki.node(usage=None), "digital_signature_missing"),
    "may sign certificates": (
        lambda pki: pki.node(usage=usage("digital_signature", "key_cert_sign")),
        "key_cert_sign_set",
    ),
    "for code alone": (lambda pki: pki.node(extended=[CODE_SIGNING]), "wrong_purpose"),
    "a critical extension": (lambda pki: pki.node(extra=[(UNKNOWN, True)]), "critical_extension"),
    "257 names": (lambda pki: pki.node(dns=[f"h{i}.example" for i in range(257)]), "too_many_names"),
    "RSA-1024": (lambda pki: pki.node(public_key=rsa_public_key(1024)), "unsupported_key"),
    "RSA-2047": (lambda pki: pki.node(public_key=rsa_public_key(2047)), "unsupported_key"),
    "RSA-8193": (lambda pki: pki.node(public_key=rsa_public_key(8193)), "unsupported_key"),
    "RSA-16384": (lambda pki: pki.node(public_key=rsa_public_key(16384)), "unsupported_key"),
    "an exponent of 33 bits": (lambda pki: pki.node(public_key=rsa_public_key(2048, 2**33 - 9)), "unsupported_key"),
    "an exponent of 2000 bits": (lambda pki: pki.node(public_key=rsa_public_key(2048, 2**2000 + 1)), "unsupported_key"),
    "Ed25519": (lambda pki: pki.node(key=ed25519.Ed25519PrivateKey.generate()), "unsupported_key"),
    "DSA": (lambda pki: pki.node(public_key=dsa.generate_private_key(1024).public_key()), "unsupported_key"),
    "another curve": (lambda pki: pki.node(key=ec.generate_private_key(ec.SECP256K1())), "unsupported_key"),
    "a CA with RSA-16384": (below(public_key=rsa_public_key(16384)), "unsupported_key"),
    "a CA with a large exponent": (below(public_key=rsa_public_key(2048, 2**33 - 9)), "unsupported_key"),
}


@pytest.mark.parametrize("case", GOOD)
def test_taken(pki: NodePki, case: str) -> None:
    node = GOOD[case](pki)
    verified = verify(pki, node.chain)
    assert verified.leaf.der == node.der
    assert all(path[-1].der == pki.root.der for path in verified.paths)


@pytest.mark.parametrize("case", BAD)
def test_refused(pki: NodePki, case: str) -> None:
    make, code = BAD[case]
    with pytest.raises(NodeCertificateError) as refused:
        verify(pki, make(pki).chain)
    assert refused.value.code == code
    assert refused.value.grpc_status == "PERMISSION_DENIED"


def test_the_table_holds_every_code() -> None:
    # Whether the key's holder signed is asked in test_x509pop.py.
    assert {code for _, code in BAD.values()} == set(NodeCertificateError.sentences) - {"bad_signature"}


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ((), "no_certificate"),
        ((b"",), "malformed_certificate"),
        ((b"\x30\x03\x02\x01\x01",), "malformed_certificate"),
        ((b"\x30" + b"\xff" * 100,), "malformed_certificate"),
        ((b"\x00" * 20_000,), "malformed_certificate"),
    ],
    ids=["nothing", "empty", "no certificate", "a bad length", "longer than 16 KiB"],
)
def test_what_cannot_be_read(pki: NodePki, chain: tuple[bytes, ...], code: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        verify(pki, chain)
    assert refused.value.code == code


def test_a_chain_has_four_intermediates_at_most(pki: NodePki) -> None:
    with pytest.raises(EvidenceError) as refused:
        verify(pki, deep(pki, 5).chain)
    assert refused.value.code == "too_many_certificates"


def test_an_intermediate_that_cannot_be_read(pki: NodePki) -> None:
    with pytest.raises(EvidenceError) as refused:
        verify(pki, (pki.node().der, b"\x30\x00"))
    assert refused.value.code == "malformed_certificate"


def test_every_byte_of_a_signature_counts(pki: NodePki) -> None:
    good = pki.node().der
    for place in range(len(good) - 60, len(good)):
        forged = bytearray(good)
        forged[place] ^= 1
        with pytest.raises(CertsError):
            verify(pki, (bytes(forged),))
    assert verify(pki, (good,))


def test_no_constructor() -> None:
    with pytest.raises(TypeError, match="verify_node_certificate"):
        NodeCertificate()


def test_both_ends_of_the_validity_belong_to_it(pki: NodePki) -> None:
    chain = pki.node(days=(-1, 1)).chain
    for at in (NOW - DAY, NOW + DAY):
        assert verify(pki, chain, at)
    for at in (NOW - DAY - 1, NOW + DAY + 1):
        with pytest.raises(NodeCertificateError):
            verify(pki, chain, at)


def test_the_shortest_life_of_a_path_and_the_longest_path_count(pki: NodePki) -> None:
    node = pki.node(issuer=pki.ca("Between", issuer=pki.root, days=(-1, 5)))
    assert verify(pki, node.chain).not_after == NOW + 5 * DAY


def test_many_candidates_end_soon(pki: NodePki) -> None:
    """CAs of one name and one key that could each stand above each other, and 64 roots of that name."""
    key = ec.generate_private_key(ec.SECP256R1())
    above = [pki.ca("Same", key=key, serial=number) for number in range(1, 5)]
    chain = (pki.node(issuer=above[0]).der, *(each.der for each in above))
    roots = node_roots([pki.ca("Same", serial=number).der for number in range(1, 65)])
    with costs_less_than(5), pytest.raises(NodeCertificateError) as refused:
        verify_node_certificate(chain, roots, NOW)
    assert (refused.value.code, refused.value.detail) == ("chain_untrusted", "too many candidates")


# --- what it says -------------------------------------------------------------------------------------------------


def said(node: NodeCertificate) -> set[str]:
    return {str(one) for one in node.selectors(TD)}


def test_selectors_are_those_of_spire(pki: NodePki) -> None:
    between = pki.ca("Between", issuer=pki.root)
    uris = ["x509pop://example.org/rack/a7", "x509pop://example.org/role/gpu/large", "https://example.org/rack/b1"]
    node = verify(pki, pki.node("gpu-1", issuer=between, serial=0xA1B2C, uris=uris).chain)
    fingerprints = {f"x509pop:ca:fingerprint:{sha1(each.certificate)}" for each in (between, pki.root)}
    assert said(node) == {
        "x509pop:subject:cn:gpu-1",
        "x509pop:serialnumber:0a1b2c",
        "x509pop:san:rack:a7",
        "x509pop:san:role:gpu/large",
        *fingerprints,
    }
    assert node.fingerprint == sha1(node.leaf.raw)


def sha1(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA1()).hex()


def test_every_ca_of_every_path_is_named(pki: NodePki) -> None:
    """The same intermediate, signed by two roots: both vouch for the node."""
    other = NodePki(common_name="Other Root")
    key = ec.generate_private_key(ec.SECP256R1())
    one, two = (each.ca("Between", issuer=each.root, key=key) for each in (pki, other))
    chain = (pki.node(issuer=one).der, one.der, two.der)
    node = verify_node_certificate(chain, read_roots(pki.root_pem + other.root_pem), NOW)
    named = {text.rpartition(":")[2] for text in said(node) if ":ca:fingerprint:" in text}
    assert named == {sha1(each.certificate) for each in (one, two, pki.root, other.root)}


@pytest.mark.parametrize(
    "uri",
    [
        "x509pop://other.example/rack/a7",
        "x509pop://example.org/rack",
        "x509pop://example.org//a7",
        "x509pop://example.org",
        "x509pop://root@example.org/rack/a7",
        "x509pop://example.org:1/rack/a7",
        "x509pop://example.org/rack/%0a",
        "x509pop://example.org/rack/%ff",
        "x509pop://example.org/ra\nck/a7",
        "x509pop://[example.org/rack/a7",
    ],
)
def test_a_uri_that_says_nothing(pki: NodePki, uri: str) -> None:
    assert not {text for text in said(verify(pki, pki.node(uris=[uri]).chain)) if ":san:" in text}


def test_of_two_uris_with_one_key_the_last_counts(pki: NodePki) -> None:
    uris = ["x509pop://example.org/rack/a7", "x509pop://example.org/rack/a8"]
    assert "x509pop:san:rack:a8" in said(verify(pki, pki.node(uris=uris).chain))
    assert "x509pop:san:rack:a7" not in said(verify(pki, pki.node(uris=uris).chain))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Computers", "gpu-1"), "gpu-1"),
        (("größe.example",), "größe.example"),
        (("a:b/c d",), "a:b/c d"),
        (("line\nbreak",), ""),
    ],
)
def test_the_last_common_name_counts(pki: NodePki, names: tuple[str, ...], expected: str) -> None:
    node = verify(pki, pki.node(*names).chain)
    assert [text for text in said(node) if ":cn:" in text] == ([f"x509pop:subject:cn:{expected}"] if expected else [])


def test_a_subject_without_a_common_name(pki: NodePki) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Company")])
    node = verify(pki, pki.node(subject=name).chain)
    assert node.common_name == ""
    assert {text.split(":")[1] for text in said(node)} == {"ca", "serialnumber"}


@pytest.mark.parametrize(
    ("der", "expected"),
    [
        (b"\x30\x00", ""),
        (subject("plain").public_bytes(), "plain"),
        # BMPString, T.61, and an attribute of another kind.
        (bytes.fromhex("3010310e300c06035504031e0500670031"), ValueError),
        (bytes.fromhex("300f310d300b06035504031e0400670031"), "g1"),
        (bytes.fromhex("300d310b30090603550403140267fc"), "g\xfc"),
        (bytes.fromhex("300d310b30090603550406130267fc"), ""),
        (bytes.fromhex("300d310b30090603550403130267fc"), ValueError),
        (bytes.fromhex("300d310b30090603550403020267fc"), ValueError),
        (bytes.fromhex("3009310730050603550403"), ValueError),
        (b"\x31\x00", ValueError),
        (b"\x30\x05\x31", ValueError),
        (b"\x30", ValueError),
    ],
)
def test_common_name(der: bytes, expected: str | type[Exception]) -> None:
    if isinstance(expected, str):
        assert common_name(der) == expected
    else:
        with pytest.raises(expected):
            common_name(der)


# --- the CAs ------------------------------------------------------------------------------------------------------


def test_roots_are_read_once_each(pki: NodePki) -> None:
    other = NodePki()
    assert [root.der for root in read_roots(pki.root_pem * 2 + other.root_pem)] == [pki.root.der, other.root.der]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda _: b"", "malformed_certificate"),
        (lambda _: b"no PEM", "malformed_certificate"),
        (lambda pki: pki.root_pem.replace(b"MII", b"!!!"), "malformed_certificate"),
        (lambda _: b"x" * (4 * 1024 * 1024 + 1), "bundle_too_large"),
        (lambda pki: pki.node().pem, "not_a_node_ca"),
        (
            lambda pki: pki.root_pem + pki.ca("Weak", issuer=pki.root, public_key=rsa_public_key(1024)).pem,
            "not_a_node_ca",
        ),
        (lambda pki: pki.ca("No", usage=usage("crl_sign")).pem, "not_a_node_ca"),
    ],
)
def test_what_is_no_root(pki: NodePki, make: Callable[[NodePki], bytes], code: str) -> None:
    with pytest.raises(BundleError) as refused:
        read_roots(make(pki))
    assert refused.value.code == code
