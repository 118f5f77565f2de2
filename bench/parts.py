# SPDX-License-Identifier: Apache-2.0
"""Single steps on the way of every request and every SVID, timed from Python, the binding included."""

import os
from collections.abc import Iterator
from pathlib import Path

from bench.options import Options
from bench.progress import say
from bench.table import Table
from bench.timing import per_call
from firedoor.certs import (
    KeyType,
    SubjectKey,
    TrustBundle,
    TrustDomain,
    generate_key,
    issue_ca,
    issue_x509,
    make_csr,
    verify_x509_svid,
)
from firedoor.mtls import Engine, read_csr
from firedoor.segments import Document, accept, compile_table, load, table_bytes, view

NOW = 1_800_000_000
SEGMENT = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: s{n}}}
spec:
  {{function: bench, trust: medium, members: ["spiffe://{{td}}/segment/s{n}/**"], admission: {{entry: ["unix:uid:1"]}}}}
---
"""
FLOW = """\
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: f{n}}}
spec:
  owner: bench
  reason: bench
  from: {{segment: s{n}}}
  to: {{segment: s{to}, port: 9000}}
  allow: [{{http: {{methods: [GET, HEAD], paths: ["/models/**"]}}}}]
---
"""


SERVICE = """
apiVersion: firedoor.dev/v1alpha1
kind: Service
metadata: {{name: v{n}}}
spec:
  addresses: [{addresses}]
  ports: [{{port: 9000, protocol: http, expect: ["spiffe://{{td}}/segment/s1/**"]}}]
---
"""


def tables(_options: Options, _folder: Path) -> Iterator[Table]:
    """Return one table."""
    rows = []
    for what, seconds in (*decisions(), *directory(), *certificates()):
        say(f"parts: {what}: {seconds * 1e6:.1f} µs")
        rows.append([what, f"{seconds * 1e6:.1f}"])
    yield Table("parts", "single steps, one thread", ["what", "µs"], rows, data={what: float(us) for what, us in rows})


def ring(segments: int) -> bytes:
    """Compile a ring of segments, each with a flow to the next."""
    texts = [SEGMENT.format(n=n) for n in range(segments)]
    texts += [FLOW.format(n=n, to=(n + 1) % segments) for n in range(segments)]
    return table_bytes(compile_table(load([Document("bench.yaml", "".join(texts))], TrustDomain.parse("td"))))


def decisions() -> Iterator[tuple[str, float]]:
    """Yield a row for each size of policy."""
    for segments in (10, 1000):
        engine = Engine(ring(segments))

        def ask(engine: Engine = engine) -> bool:
            return engine.decide(
                source="spiffe://td/segment/s3/host/h/svc/x",
                destination="spiffe://td/segment/s4/host/h/svc/y",
                port=9000,
                protocol="http",
                method="GET",
                path="/models/llama/weights.bin",
                time=NOW,
            ).allowed

        assert ask()
        yield f"decide, {segments} segments and flows", per_call(ask)


def directory(services: int = 200, addresses: int = 50) -> Iterator[tuple[str, float]]:
    """Yield rows for a directory: from documents to a table, to the bytes of a view, and to a data path's engine."""
    td = TrustDomain.parse("td")
    texts = [SEGMENT.format(n=0), SEGMENT.format(n=1), FLOW.format(n=0, to=1)]
    texts += [
        SERVICE.format(n=n, addresses=", ".join(f"10.{n}.0.{host}" for host in range(addresses)))
        for n in range(services)
    ]
    document = Document("bench.yaml", "".join(texts))
    size = f"{services} services with {addresses} addresses"
    yield f"parse, lint and compile {size}", per_call(lambda: compile_table(accept([document], td)[0]))
    table = compile_table(load([document], td))

    def cut() -> bytes:
        return table_bytes(view(table, {"s0"}, []))

    yield f"cut a view of {size}", per_call(cut)
    told = cut()
    yield f"load a view of {size} into the data path", per_call(lambda: Engine(told))


def certificates() -> Iterator[tuple[str, float]]:
    """Yield a row a step of making and checking an X.509-SVID."""
    td = TrustDomain.parse("td")
    ca = issue_ca(td, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom)
    key = generate_key(KeyType.EC_P256)
    spiffe_id = td.with_path("/segment/a/x")
    csr, public_key = make_csr(key), SubjectKey.of(key.public_key())
    yield "parse a CSR and check its signature", per_call(lambda: read_csr(csr))
    yield (
        "sign an X.509-SVID, P-256",
        per_call(lambda: issue_x509(spiffe_id, public_key, ca, at=NOW, random=os.urandom)),
    )
    svid = issue_x509(spiffe_id, key.public_key(), ca, at=NOW, random=os.urandom)
    bundles = {td: TrustBundle.of(td, [ca.der])}
    yield "verify an X.509-SVID in Python", per_call(lambda: verify_x509_svid(svid.chain, bundles, NOW))
