# SPDX-License-Identifier: Apache-2.0
"""Write the seeds of the Rust fuzz targets: `python -m tests.fuzz.make_corpus`.

Most come from the shared vectors. What is signed is fixed with the files in mtls/fuzz/data, the certificates of
`svid_leaf` and the requests of `csr`, so it is written only when its files are not there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from firedoor import mtls
from firedoor.certs import KeyType, generate_key
from firedoor.wire import control_pb2 as pb

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors"
DATA = HERE.parents[1] / "mtls" / "fuzz" / "data"


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def write(target: str, inputs: Iterable[bytes]) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(inputs):
        (folder / f"seed-{number:03}").write_bytes(content)


def spiffe_ids() -> list[bytes]:
    return [case["id"].encode() for case in read("spiffe_ids/rules.json")["cases"]]


def patterns() -> Iterable[bytes]:
    for case in read("policy/id_patterns.json")["patterns"]:
        for other in [*case.get("matches", [])[:1], *case.get("differs", [])[:1]] or [""]:
            yield f"{case['pattern']}\n{other}".encode()
    for case in read("policy/path_patterns.json")["patterns"]:
        if len(case["pattern"]) < 100:
            for other in [*case.get("matches", [])[:1], *case.get("differs", [])[:1]] or [""]:
                yield f"{case['pattern']}\n{other}".encode()


def tables() -> Iterable[bytes]:
    cases = read("policy/tables.json")
    return [bytes.fromhex(case["bytes"]) for case in [*cases["tables"], *cases["refused"]]]


def targets() -> list[bytes]:
    return [case["target"].encode() for case in read("policy/paths.json")["cases"] if len(case["target"]) < 1000]


# After the first byte: 0 and 1 HTTP/1.1, 2 and 3 HTTP/2; the odd ones at a gRPC listener.
HEADS = (
    "0GET /models/a%20b?x=../y\nHost: models.internal:9000\nCookie: a=1\nCookie: b=2",
    "0GET /a\nHost: h\nHost: h",
    "0GET http://h/a\nHost: h",
    "0POST /uploads/a\nHost: h\nContent-Length: 4\nContent-Length: 4\nTransfer-Encoding: chunked",
    "0GET /a\nHost: h\nConnection: close, X-Hop, host\nX-Hop: 1\nTE: trailers, gzip\nKeep-Alive: 5",
    "0GET /a\nHost: h\nUpgrade: websocket\nConnection: upgrade",
    "0GET /a\nHost: h\nX-Forwarded-Client-Cert: URI=spiffe://td/admin\nx_spiffe_id: spiffe://td/admin",
    "0OPTIONS *\nHost: h",
    "0CONNECT h:443\nHost: h:443",
    "0GET /a#b\nHost: [::1]:80",
    "2GET models.internal /models/a\nhost: MODELS.internal",
    "2GET u@h /a",
    "2HEAD h /a;x=1/%2F?\nte: trailers",
    "2POST h /p.S/M\ncontent-type: application/grpc",
    "3POST h /p.S/M\ncontent-type: application/grpc+proto\nte: trailers\ngrpc-timeout: 1S",
    "3POST h /p.S/%4d\ncontent-type: application/grpc",
    "3GET h /p.S/M\ncontent-type: application/grpc-web",
    "1POST /p.S/M\nHost: h\nContent-Type: application/grpc",
)


def messages() -> list[bytes]:
    generation = pb.Generation(epoch=1, number=2)
    state = pb.SvidState(entry_id="e", not_after=1_800_000_000, authority_id="ab" * 20)
    hello = pb.Hello(versions=[1], features=["x"], running=generation, view_hash=b"h" * 32, agent_version="1.0")
    kinds = [
        pb.FromSidecar(hello=hello),
        pb.FromSidecar(ack=pb.Ack(generation=generation, view_hash=b"h" * 32, svids=[state] * 3)),
        pb.FromSidecar(nack=pb.Nack(generation=generation, code="unknown_part", error="a sentence")),
    ]
    return [kind.SerializeToString() for kind in kinds]


def certificates() -> list[bytes]:
    """One good leaf, whose root becomes the target's, and those that break a rule of their own."""
    cases = read("svid/cases.json")["cases"]
    good = next(case for case in cases if case["name"] == "plain")
    DATA.mkdir(exist_ok=True)
    (DATA / "leaf.der").write_bytes(base64.b64decode(good["chain"][0]))
    (root,) = good["bundles"]["td"]
    (DATA / "root.der").write_bytes(base64.b64decode(root))
    leaves = [base64.b64decode(case["chain"][0]) for case in cases if case["chain"]]
    bad = [leaf for leaf in dict.fromkeys(leaves) if len(leaf) < 4096 and not passes(leaf, base64.b64decode(root))]
    return [base64.b64decode(good["chain"][0]), *bad]


def passes(leaf: bytes, root: bytes) -> bool:
    """Say whether a leaf, without what may stand behind it, is a good one below the root."""
    leaf = leaf[: 4 + int.from_bytes(leaf[2:4])]
    try:
        mtls.verify_svid([leaf], {"td": [root]}, at=1_800_000_000)
    except mtls.VerifyError:
        return False
    return True


def requests() -> Iterable[bytes]:
    """A request of each kind of key, which become the target's, and some that nobody signed."""
    names = [x509.UniformResourceIdentifier("spiffe://td/a"), x509.DNSName("a.internal"), x509.RFC822Name("a@b")]
    keys = {"p256": generate_key(KeyType.EC_P256), "p384": generate_key(KeyType.EC_P384)}
    keys |= {"rsa": generate_key(KeyType.RSA_2048)}
    for name, key in [*keys.items(), ("ed25519", ed25519.Ed25519PrivateKey.generate())]:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        algorithm = None if name == "ed25519" else hashes.SHA256()
        der = builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)
        (DATA / f"request-{name}.der").write_bytes(der)
        yield from (der, der[:-1] + bytes([der[-1] ^ 1]))


def dns_messages() -> list[bytes]:
    """The vectors, and an answer to the query that the target knows."""
    answer = bytes.fromhex("123481800001000100000000016100000100 01c00c000100010000003c000401020304")
    return [*(bytes.fromhex(case["message"]) for case in read("dns/messages.json")["cases"]), answer]


if __name__ == "__main__":
    write("spiffe_id", spiffe_ids())
    write("pattern", patterns())
    write("policy_table", tables())
    write("request_target", targets())
    write("control_message", messages())
    write("dns_message", dns_messages())
    write("http_head", [head.replace("\n", "\r\n").encode() for head in HEADS])
    if not (DATA / "leaf.der").exists():
        write("svid_leaf", certificates())
    if not (DATA / "request-p256.der").exists():
        write("csr", requests())
