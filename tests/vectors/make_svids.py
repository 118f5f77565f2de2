# SPDX-License-Identifier: Apache-2.0
"""The cases of tests/vectors/svid/cases.json; written by `generate.py svid`.

A case is a chain, the roots by trust domain, the time, revocations, and what a verifier must answer: "ok" with the ID
and the least notAfter of the path, or an error code. Where somebody keeps a list of the CAs below roots, the case has
it too: the segments of each, by SHA-256 of its key. Nearly every refusal differs in one fact from a case that passes.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.simulator import NOW, Authority, Identity, SimulatedTrustDomain, name

TD = SimulatedTrustDomain("td")
OTHER = SimulatedTrustDomain("other.org")
PATH = "/segment/registry/host/h1/svc/models"

# For the cases with a list of CAs: which segment has which IDs of the trust domain "td".
MEMBERS: Mapping[str, Sequence[str]] = {
    "registry": ["spiffe://td/segment/registry/**"],
    "inference": ["spiffe://td/segment/inference/**"],
}

_cases: list[dict[str, Any]] = []


def svids() -> list[dict[str, Any]]:
    """Every case."""
    _cases.clear()
    groups = (_good, _encoding, _names, _leaf, _keys, _roots, _intermediates, _constraints, _times, _revocations)
    for group in (*groups, _listed):
        group()
    return _cases


def case(
    title: str,
    chain: Sequence[bytes] | Identity,
    expect: str = "ok",
    *,
    bundles: Mapping[str, Sequence[bytes]] | None = None,
    at: int = NOW,
    revocations: Sequence[Mapping[str, Any]] = (),
    listed: Mapping[str, Sequence[str]] | None = None,
    identity: str = f"spiffe://td{PATH}",
    not_after: int = NOW + 3600,
) -> None:
    ders = chain.chain if isinstance(chain, Identity) else list(chain)
    roots = TD.roots_by_name(OTHER) if bundles is None else bundles
    written: dict[str, Any] = {
        "name": title,
        "expect": expect,
        "at": at,
        "chain": [_text(der) for der in ders],
        "bundles": {td: [_text(der) for der in each] for td, each in roots.items()},
    }
    if revocations:
        written["revocations"] = list(revocations)
    if listed is not None:
        written |= {"intermediates": {key: list(each) for key, each in listed.items()}, "members": MEMBERS}
    if expect == "ok":
        written |= {"id": identity, "not_after": not_after}
    _cases.append(written)


def _text(der: bytes) -> str:
    return base64.b64encode(der).decode("ascii")


def _good() -> None:
    case("plain", TD.svid(PATH))
    case("with DNS names", TD.svid(PATH, dns_names=["models", "models.registry.internal"]))
    case("without extended key usage", TD.svid(PATH, extended_key_usage=None))
    case("without basic constraints", TD.svid(PATH, ca=None))
    case("digitalSignature alone", TD.svid(PATH, key_usage=frozenset({"digital_signature"})))
    case("no subject, SAN critical", TD.svid(PATH, subject=name(""), san_critical=True))
    case("subject and SAN critical", TD.svid(PATH, san_critical=True))
    case("root in the chain", [*TD.svid(PATH).chain, TD.authority.der])
    case("of another trust domain", OTHER.svid(PATH), identity=f"spiffe://other.org{PATH}")
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    case("unknown extension", TD.svid(PATH, extensions=[(extension, False)]))
    case("unknown critical extension", TD.svid(PATH, extensions=[(extension, True)]), "chain_untrusted")
    any_usage = [*(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH), ExtendedKeyUsageOID.CODE_SIGNING]
    case("more extended key usages", TD.svid(PATH, extended_key_usage=any_usage))
    case("serial number with its top bit set", TD.svid(PATH, serial=0xF0 << 120))


def _encoding() -> None:
    good = TD.svid(PATH).chain[0]
    case("no certificate", [], "chain_empty")
    case("empty certificate", [b""], "malformed_certificate")
    case("truncated certificate", [good[:-1]], "malformed_certificate")
    case("byte after the certificate", [good + b"\0"], "malformed_certificate")
    case("PEM", [b"-----BEGIN CERTIFICATE-----\n"], "malformed_certificate")
    case("not a certificate", [b"\x30\x03\x02\x01\x00"], "malformed_certificate")
    case("junk after a good leaf", [good, b"\x30\x00"], "malformed_certificate")
    for title, size, expect in (("15 KiB", 15, "ok"), ("17 KiB", 17, "malformed_certificate")):
        filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), b"\x04\x00" * (512 * size))
        case(f"certificate of {title}", TD.svid(PATH, extensions=[(filler, False)]), expect)
    case("extension twice", [_twice("2.5.29.15", "2.5.29.99", bytes.fromhex("03020780"))], "malformed_certificate")
    case("SAN twice", [_twice("2.5.29.17", "2.5.29.99", _san(f"spiffe://td{PATH}"))], "malformed_certificate")
    marked = TD.svid(PATH, serial=0x7A7B7C7D).leaf
    for title, serial, expect in (
        ("of four octets", "7a7b7c7e", "ok"),
        ("that is negative", "fa7b7c7d", "malformed_certificate"),
    ):
        chain = [_changed(marked, bytes.fromhex("02047a7b7c7d"), bytes.fromhex("0204" + serial))]
        case(f"serial number {title}", chain, expect)
    one = TD.svid(PATH, serial=1).leaf
    version = bytes.fromhex("a003020102")
    zero = _changed(one, version + bytes.fromhex("020101"), version + bytes.fromhex("020100"))
    case("serial number 1", [_changed(one, version, version)])
    case("serial number 0", [zero], "malformed_certificate")
    flipped = bytearray(good)
    flipped[-1] ^= 1
    case("signature with one bit changed", [bytes(flipped)], "chain_untrusted")
    renamed = good.replace(b"/svc/models", b"/svc/modelz")
    case("signed for another ID", [renamed], "chain_untrusted")


def _san(uri: str) -> bytes:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]).public_bytes()


def _twice(oid: str, placeholder: str, value: bytes) -> bytes:
    """Return a leaf with an extension that stands in it twice, which no builder writes."""
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier(placeholder), value)
    leaf = TD.svid(PATH, extensions=[(extra, True)]).leaf
    old, new = (bytes([0x06, 3, 0x55, 0x1D, int(each.rpartition(".")[2])]) for each in (placeholder, oid))
    return _changed(leaf, old, new)


def _changed(leaf: x509.Certificate, old: bytes, new: bytes) -> bytes:
    """Return the certificate with some bytes replaced by as many others, and signed again."""
    tbs = leaf.tbs_certificate_bytes.replace(old, new)
    signature = TD.authority.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    return _der(0x30, tbs + algorithm + _der(0x03, b"\0" + signature))


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _names() -> None:
    case("no SAN", TD.svid(PATH, uris=[]), "uri_san_missing")
    case("DNS SAN alone", TD.svid(PATH, uris=[], dns_names=["models"]), "uri_san_missing")
    case("two URI SANs", TD.svid(PATH, uris=[f"spiffe://td{PATH}", "spiffe://td/b"]), "uri_san_multiple")
    case("the same URI SAN twice", TD.svid(PATH, uris=[f"spiffe://td{PATH}"] * 2), "uri_san_multiple")
    case(
        "a URI SAN of another scheme beside",
        TD.svid(PATH, uris=[f"spiffe://td{PATH}", "https://x"]),
        "uri_san_multiple",
    )
    case("32 names", TD.svid(PATH, dns_names=[f"n{i}" for i in range(31)]))
    case("33 names", TD.svid(PATH, dns_names=[f"n{i}" for i in range(32)]), "too_many_sans")
    addresses = [
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.RFC822Name("a@td"),
        x509.DirectoryName(name("x")),
    ]
    both = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://td{PATH}"), *addresses])
    case("names of every kind", TD.svid(PATH, uris=[], extensions=[(both, False)]))
    longest = "spiffe://td/" + "a" * 2036
    case("ID of 2048 bytes", TD.svid(PATH, uris=[longest]), identity=longest)
    for title, uri in {
        "ID of 2049 bytes": longest + "a",
        "another scheme": f"https://td{PATH}",
        "upper-case scheme": f"SPIFFE://td{PATH}",
        "upper-case trust domain": f"spiffe://TD{PATH}",
        "percent-encoding": "spiffe://td/%61",
        "trailing slash": f"spiffe://td{PATH}/",
        "slash alone": "spiffe://td/",
        "dot segment": "spiffe://td/segment/./a",
        "dot dot segment": "spiffe://td/segment/../a",
        "empty segment": "spiffe://td//a",
        "port": f"spiffe://td:443{PATH}",
        "user": f"spiffe://user@td{PATH}",
        "query": f"spiffe://td{PATH}?x=1",
        "fragment": f"spiffe://td{PATH}#x",
        "no trust domain": f"spiffe://{PATH}",
        "empty URI": "",
    }.items():
        case(f"URI SAN: {title}", TD.svid(PATH, uris=[uri]), "spiffe_id_invalid")
    case("ID without a path", TD.svid(""), "spiffe_id_root_path")
    case("no subject, SAN not critical", TD.svid(PATH, subject=name("")), "san_not_critical")


def _leaf() -> None:
    usage = {"digital_signature"}
    ca = {"key_cert_sign", "crl_sign"}
    case("leaf with cA", TD.svid(PATH, ca=True), "leaf_is_ca")
    case("CA with an ID of a workload", TD.svid(PATH, ca=True, key_usage=frozenset(ca)), "leaf_is_ca")
    case("root as a leaf", [TD.authority.der], "spiffe_id_root_path")
    case("no key usage", TD.svid(PATH, key_usage=None), "key_usage_missing")
    case("key usage not critical", TD.svid(PATH, key_usage_critical=False), "key_usage_not_critical")
    case("no digitalSignature", TD.svid(PATH, key_usage=frozenset({"key_agreement"})), "digital_signature_missing")
    case("keyCertSign", TD.svid(PATH, key_usage=frozenset(usage | {"key_cert_sign"})), "key_cert_sign_set")
    case("cRLSign", TD.svid(PATH, key_usage=frozenset(usage | {"crl_sign"})), "crl_sign_set")
    for title, usages in {
        "serverAuth alone": [ExtendedKeyUsageOID.SERVER_AUTH],
        "clientAuth alone": [ExtendedKeyUsageOID.CLIENT_AUTH],
        "codeSigning alone": [ExtendedKeyUsageOID.CODE_SIGNING],
        "anyExtendedKeyUsage alone": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE],
    }.items():
        case(title, TD.svid(PATH, extended_key_usage=usages), "eku_incomplete")


def _rsa(bits: int) -> rsa.RSAPublicKey:
    """Return a key of that size that nobody holds: of a leaf only the size is looked at."""
    return rsa.RSAPublicNumbers(e=65537, n=(1 << (bits - 1)) + 1).public_key()


def _keys() -> None:
    case("P-384 key", TD.svid(PATH, key=ec.generate_private_key(ec.SECP384R1())))
    case("Ed25519 key", TD.svid(PATH, key=ed25519.Ed25519PrivateKey.generate()))
    for bits, expect in ((1024, "unsupported_key"), (2047, "unsupported_key"), (2048, "ok"), (8192, "ok")):
        case(f"RSA key of {bits} bits", TD.svid(PATH, public_key=_rsa(bits)), expect)
    case("RSA key of 8193 bits", TD.svid(PATH, public_key=_rsa(8193)), "unsupported_key")
    case("P-521 key", TD.svid(PATH, key=ec.generate_private_key(ec.SECP521R1())), "unsupported_key")
    case("secp256k1 key", TD.svid(PATH, key=ec.generate_private_key(ec.SECP256K1())), "unsupported_key")
    case("Ed448 key", TD.svid(PATH, key=ed448.Ed448PrivateKey.generate()), "unsupported_key")
    for title, key in {
        "P-384 root": ec.generate_private_key(ec.SECP384R1()),
        "RSA root": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "Ed25519 root": ed25519.Ed25519PrivateKey.generate(),
    }.items():
        domain = SimulatedTrustDomain("td")
        domain.rotate(key=key)
        case(title, domain.svid(PATH), bundles=domain.roots_by_name())


def _roots() -> None:
    rotated = SimulatedTrustDomain("td")
    before, after = rotated.svid(PATH), (rotated.rotate(), rotated.svid(PATH))[1]
    case("old authority after a rotation", before, bundles=rotated.roots_by_name())
    case("new authority after a rotation", after, bundles=rotated.roots_by_name())
    rotated.forget(rotated.roots[0])
    case("old authority after its root left", before, "chain_untrusted", bundles=rotated.roots_by_name())
    case("no bundle of the trust domain", TD.svid(PATH), "unknown_trust_domain", bundles=OTHER.roots_by_name())
    case("bundle without roots", TD.svid(PATH), "unknown_trust_domain", bundles={"td": []})
    case("no bundle at all", TD.svid(PATH), "unknown_trust_domain", bundles={})
    federated = OTHER.svid(PATH, uris=[f"spiffe://td{PATH}"])
    case("our ID under a federated root", federated, "chain_untrusted")
    case(
        "our ID under a federated root, root in the chain",
        [*federated.chain, OTHER.authority.der],
        "authority_id_mismatch",
    )
    ours = TD.svid(PATH, uris=[f"spiffe://other.org{PATH}"])
    case("federated ID under our root", ours, "chain_untrusted")
    same_name = SimulatedTrustDomain("td")
    same_name.roots.clear()
    same_name.rotate(subject=TD.authority.certificate.subject)
    case("foreign authority with the name of ours", same_name.svid(PATH), "chain_untrusted")
    both = {"td": [same_name.authority.der, TD.authority.der]}
    case("two roots of one name", TD.svid(PATH), bundles=both)
    case("self-signed", _self_signed(), "chain_untrusted")
    plain = SimulatedTrustDomain("td")
    plain.roots.clear()
    plain.rotate(uris=[], key_usage=None)
    case("root as OpenSSL makes them, without key usage", plain.svid(PATH), bundles=plain.roots_by_name())
    bare = SimulatedTrustDomain("td")
    bare.rotate(uris=[])
    case("root without a SPIFFE ID", bare.svid(PATH), bundles=bare.roots_by_name())


def _self_signed() -> list[bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    stranger = SimulatedTrustDomain("td")
    stranger.roots.clear()
    root = stranger.rotate(key=key, subject=name("workload"), ca=False, key_usage=frozenset({"digital_signature"}))
    return [stranger.svid(PATH, key=key).chain[0], root.der][:1]


def _below(depth: int, **fields: Any) -> Authority:
    issuer = TD.authority
    for _ in range(depth):
        issuer = TD.intermediate(issuer, **fields)
    return issuer


def _intermediates() -> None:
    for depth in (1, 2, 6):
        case(f"{depth} intermediates", TD.svid(PATH, issuer=_below(depth)))
    case("7 intermediates", TD.svid(PATH, issuer=_below(7)), "chain_too_long")
    two = TD.svid(PATH, issuer=_below(2)).chain
    case("intermediates in another order", [two[0], two[2], two[1]])
    case("intermediate missing", [two[0], two[2]], "chain_untrusted")
    case("all intermediates missing", [two[0]], "chain_untrusted")
    case("a CA that is not needed", [*TD.svid(PATH).chain, _below(1).der])
    case("intermediate without a SPIFFE ID", TD.svid(PATH, issuer=_below(1, uris=[])))
    for title, uri in {
        "with a path": "spiffe://td/ca",
        "of another trust domain": "spiffe://other.org",
        "that is none": "https://td",
    }.items():
        case(f"intermediate with an ID {title}", TD.svid(PATH, issuer=_below(1, uris=[uri])), "authority_id_mismatch")
    case("workload as an issuer", _issued_by_leaf(), "authority_id_mismatch")
    for title, fields in {
        "without cA": {"ca": False},
        "without basic constraints": {"ca": None},
        "without keyCertSign": {"key_usage": frozenset({"digital_signature"})},
        "for servers alone": {"extended_key_usage": [ExtendedKeyUsageOID.SERVER_AUTH]},
    }.items():
        case(f"intermediate {title}", TD.svid(PATH, issuer=_below(1, **fields)), "chain_untrusted")
    case("intermediate without key usage", TD.svid(PATH, issuer=_below(1, key_usage=None)))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    case("intermediate for servers and clients", TD.svid(PATH, issuer=_below(1, extended_key_usage=usages)))
    weak = _below(1, key=ec.generate_private_key(ec.SECP521R1()))
    case("intermediate with a P-521 key", TD.svid(PATH, issuer=weak), "chain_untrusted")
    case("path length 0, no CA below", TD.svid(PATH, issuer=_below(1, path_length=0)))
    limited = TD.intermediate(_below(1, path_length=0))
    case("path length 0, a CA below", TD.svid(PATH, issuer=limited), "chain_untrusted")
    root = SimulatedTrustDomain("td")
    root.rotate(path_length=0)
    case("path length 0 of the root, no CA below", root.svid(PATH), bundles=root.roots_by_name())
    case(
        "path length 0 of the root, a CA below",
        root.svid(PATH, issuer=root.intermediate()),
        "chain_untrusted",
        bundles=root.roots_by_name(),
    )
    critical = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    unknown = _below(1, extensions=[(critical, True)])
    case("intermediate with an unknown critical extension", TD.svid(PATH, issuer=unknown), "chain_untrusted")


def _issued_by_leaf() -> list[bytes]:
    workload = TD.svid("/segment/a/x", key_usage=frozenset({"digital_signature"}), subject=name("a workload"))
    return TD.svid(PATH, issuer=Authority(workload.leaf, workload.key)).chain


def _constraints() -> None:
    for title, constraint in {
        "permitted URI": x509.NameConstraints([x509.UniformResourceIdentifier("td")], None),
        "excluded URI": x509.NameConstraints(None, [x509.UniformResourceIdentifier("other.org")]),
    }.items():
        for critical in (True, False):
            kind = "critical" if critical else "not critical"
            authority = _below(1, extensions=[(constraint, critical)])
            chain = TD.svid(PATH, issuer=authority)
            case(f"name constraints: {title}, {kind}", chain, "name_constraints_unsupported")
    dns = x509.NameConstraints([x509.DNSName("a.example")], [x509.DNSName("b.a.example")])
    authority = _below(1, extensions=[(dns, True)])
    for title, names, expect in (
        ("no DNS names", [], "ok"),
        ("the permitted name", ["a.example"], "ok"),
        ("a name below the permitted one", ["x.a.example"], "ok"),
        ("another name", ["c.example"], "chain_untrusted"),
        ("a name that only ends alike", ["xa.example"], "chain_untrusted"),
        ("the excluded name", ["b.a.example"], "chain_untrusted"),
        ("a name below the excluded one", ["a.example", "x.b.a.example"], "chain_untrusted"),
    ):
        case(f"DNS name constraints: {title}", TD.svid(PATH, issuer=authority, dns_names=names), expect)
    uri = x509.NameConstraints([x509.UniformResourceIdentifier("td")], None)
    constrained = SimulatedTrustDomain("td")
    constrained.rotate(extensions=[(uri, True)])
    roots = constrained.roots_by_name()
    case("name constraints of the root", constrained.svid(PATH), "name_constraints_unsupported", bundles=roots)


def _times() -> None:
    good = TD.svid(PATH)
    case("at its first second", good, at=NOW - 10)
    case("one second early", good, at=NOW - 11)
    case("five minutes early", good, at=NOW - 310)
    case("five minutes and a second early", good, "not_yet_valid", at=NOW - 311)
    case("at its last second", good, at=NOW + 3600)
    case("one second late", good, "expired", at=NOW + 3601)
    for title, fields, expect in (
        ("has expired", {"expires": NOW - 1}, "expired"),
        ("expires now", {"expires": NOW}, "ok"),
        ("is not yet valid", {"starts": NOW + 301}, "not_yet_valid"),
        ("begins in five minutes", {"starts": NOW + 300}, "ok"),
        ("is valid from now", {"starts": NOW}, "ok"),
    ):
        not_after = min(fields.get("expires", NOW + 3600), NOW + 3600)
        case(f"intermediate {title}", TD.svid(PATH, issuer=_below(1, **fields)), expect, not_after=not_after)
        domain = SimulatedTrustDomain("td")
        domain.rotate(**fields)
        case(f"root {title}", domain.svid(PATH), expect, bundles=domain.roots_by_name(), not_after=not_after)
    soon = {"starts": NOW + 200}
    case("begins in time", TD.svid(PATH, issuer=_below(1, expires=NOW + 200), **soon), not_after=NOW + 200)
    case(
        "begins when its intermediate has ended", TD.svid(PATH, issuer=_below(1, expires=NOW + 199), **soon), "expired"
    )
    ending = SimulatedTrustDomain("td")
    ending.rotate(expires=NOW + 199)
    case("begins when its root has ended", ending.svid(PATH, **soon), "expired", bundles=ending.roots_by_name())
    short = TD.svid(PATH, issuer=_below(1, expires=NOW + 60))
    case("intermediate that ends before the leaf", short, not_after=NOW + 60)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = name("reissued")
    old = _below(1, key=key, subject=subject, expires=NOW - 1)
    new = _below(1, key=key, subject=subject)
    chain = TD.svid(PATH, issuer=old).chain
    case("an expired and a valid certificate of one intermediate", [chain[0], old.der, new.der])
    far = TD.svid(PATH, expires=2_524_608_000)
    case("notAfter in 2050", far, not_after=NOW + 24 * 3600)


def _revocations() -> None:
    serial = 0x0A << 112 | 5
    text = format(serial, "x")
    good = TD.svid(PATH, serial=serial)
    case("revoked by serial", good, "revoked_serial", revocations=[{"serial": text}])
    case("revoked by serial with leading zeros", good, "revoked_serial", revocations=[{"serial": "0" + text}])
    case("another serial revoked", good, revocations=[{"serial": format(serial + 1, "x")}])
    high = TD.svid(PATH, serial=0xF0 << 120)
    case(
        "revoked by a serial whose top bit is set", high, "revoked_serial", revocations=[{"serial": f"{0xF0 << 120:x}"}]
    )
    root, other = TD.authority.authority_id, OTHER.authority.authority_id
    case("root revoked", good, "revoked_authority", revocations=[{"authority_id": root}])
    case("another authority revoked", good, revocations=[{"authority_id": other}])
    below = _below(2)
    deep = TD.svid(PATH, issuer=below)
    case("intermediate revoked", deep, "revoked_authority", revocations=[{"authority_id": below.authority_id}])
    case("root above intermediates revoked", deep, "revoked_authority", revocations=[{"authority_id": root}])
    pattern = "spiffe://td/segment/registry/**"
    for title, of, before, expect in (
        ("issued before", pattern, NOW + 1, "revoked_id"),
        ("issued in that second", pattern, NOW, "ok"),
        ("issued after", pattern, NOW - 1, "ok"),
        ("another ID", "spiffe://td/segment/inference/**", NOW + 1, "ok"),
        ("another trust domain", "spiffe://other.org/**", NOW + 1, "ok"),
    ):
        case(f"pattern revoked: {title}", good, expect, revocations=[{"pattern": of, "issued_before": before}])
    many = [{"serial": "1"}, {"authority_id": other}, {"pattern": pattern, "issued_before": NOW + 1}]
    case("last of several revocations", good, "revoked_id", revocations=many)
    late = TD.svid(PATH, expires=NOW - 1)
    case("expired and revoked", late, "expired", revocations=[{"serial": format(late.leaf.serial_number, "x")}])


def _hash(authority: Authority) -> str:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(authority.key.public_key().public_bytes(encoding, form)).hexdigest()


def _listed() -> None:
    ca = _below(1)
    below = TD.svid(PATH, issuer=ca)
    own = {_hash(ca): ["registry"]}
    case("no list of intermediates", below)
    case("an empty list and no intermediate", TD.svid(PATH), listed={})
    case("intermediate listed for the segment", below, listed=own)
    case("intermediate listed for two segments", below, listed={_hash(ca): ["inference", "registry"]})
    case("intermediate listed, and others", below, listed={**own, _hash(_below(1)): ["inference"]})
    case("intermediate listed for another segment", below, "segment_not_listed", listed={_hash(ca): ["inference"]})
    case("intermediate listed for no segment", below, "segment_not_listed", listed={_hash(ca): []})
    case("intermediate not listed", below, "intermediate_not_listed", listed={_hash(_below(1)): ["registry"]})
    case("intermediate and an empty list", below, "intermediate_not_listed", listed={})
    for title, path in {
        "of another segment": "/segment/inference/x",
        "of an agent": "/spire/agent/join_token/x",
        "of the server": "/spire/server",
        "in no segment": "/other",
        "below another segment's name": "/segment/registry2/x",
    }.items():
        case(f"ID {title} below a listed intermediate", TD.svid(path, issuer=ca), "segment_not_listed", listed=own)
    deeper = TD.intermediate(ca)
    below_both = TD.svid(PATH, issuer=deeper)
    both = {**own, _hash(deeper): ["registry"]}
    case("an intermediate that is not listed below one that is", below_both, "intermediate_not_listed", listed=own)
    case("two intermediates, both listed", below_both, listed=both)
    narrow = {**own, _hash(deeper): ["inference"]}
    case("two intermediates, one for another segment", below_both, "segment_not_listed", listed=narrow)
    twin = TD.intermediate(key=ca.key)
    case("another certificate of a listed key", TD.svid(PATH, issuer=twin), listed=own)
    case("a CA that is not needed and not listed", [*TD.svid(PATH).chain, _below(1).der], listed={})
    case("root in the chain and an empty list", [*TD.svid(PATH).chain, TD.authority.der], listed={})
    case("intermediate of the broker's own", below, listed={_hash(ca): ["*"]})
    agent = TD.svid("/spire/agent/join_token/x", issuer=ca)
    agent_id = "spiffe://td/spire/agent/join_token/x"
    case("agent below an intermediate of the broker's own", agent, identity=agent_id, listed={_hash(ca): ["*"]})
    middle = {_hash(ca): ["*"], _hash(deeper): ["registry"]}
    case("listed below an intermediate of the broker's own", below_both, listed=middle)
    narrow_middle = {_hash(ca): ["*"], _hash(deeper): ["inference"]}
    case("for another segment below an own one", below_both, "segment_not_listed", listed=narrow_middle)
    own_deeper = {_hash(deeper): ["*"]}
    case("one of the broker's own below another that is not listed", below_both, listed=own_deeper)
    case("not listed below one of the broker's own", below_both, "intermediate_not_listed", listed={_hash(ca): ["*"]})
    deepest = TD.intermediate(deeper)
    below_all = TD.svid(PATH, issuer=deepest)
    both_kinds = {**own_deeper, _hash(deepest): ["registry"]}
    case("listed below an own one below another that is not listed", below_all, listed=both_kinds)
    foreign = OTHER.svid(PATH, issuer=OTHER.intermediate())
    case("intermediate of another trust domain", foreign, identity=f"spiffe://other.org{PATH}", listed={})
    revoked = [{"serial": format(below.leaf.serial_number, "x")}]
    case("revoked below a listed intermediate", below, "revoked_serial", revocations=revoked, listed=own)
