# SPDX-License-Identifier: Apache-2.0
"""Decisions of the engine, asked from Python: the binding's own cost is in the figure."""

from collections.abc import Iterator

from bench.timing import per_call
from firedoor.certs import TrustDomain
from firedoor.mtls import Engine
from firedoor.segments import Document, compile_table, load, table_bytes

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


def table(segments: int) -> bytes:
    """Compile a ring of segments, each with a flow to the next."""
    texts = [SEGMENT.format(n=n) for n in range(segments)]
    texts += [FLOW.format(n=n, to=(n + 1) % segments) for n in range(segments)]
    return table_bytes(compile_table(load([Document("bench.yaml", "".join(texts))], TrustDomain.parse("td"))))


def rows() -> Iterator[tuple[str, float]]:
    """Yield a row for each size of policy."""
    for segments in (10, 1000):
        engine = Engine(table(segments))
        question = {
            "source": "spiffe://td/segment/s3/host/h/svc/x",
            "destination": "spiffe://td/segment/s4/host/h/svc/y",
            "port": 9000,
            "protocol": "http",
            "method": "GET",
            "path": "/models/llama/weights.bin",
            "time": 1_800_000_000,
        }
        assert engine.decide(**question).allowed
        yield f"decide, {segments} segments and flows", per_call(lambda e=engine, q=question: e.decide(**q))
