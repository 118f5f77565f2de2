# SPDX-License-Identifier: Apache-2.0
"""Write the seeds of the Rust fuzz targets: `python -m tests.fuzz.make_corpus`.

Most come from the shared vectors. The certificates of `svid_leaf` are fixed with the root and the leaf in
mtls/fuzz/data, so they are written only when that folder is empty.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firedoor import mtls
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


if __name__ == "__main__":
    write("spiffe_id", spiffe_ids())
    write("pattern", patterns())
    write("policy_table", tables())
    write("request_target", targets())
    write("control_message", messages())
    if not (DATA / "leaf.der").exists():
        write("svid_leaf", certificates())
