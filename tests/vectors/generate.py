# SPDX-License-Identifier: Apache-2.0
"""Write the shared vectors: `python tests/vectors/generate.py [svid] [jwt_svid] [compiled]`.

Tests in both languages read what is committed; run this after adding a case. IDs and patterns come out the same each
time. Keys and signatures do not, so certificates and tokens are written only when `svid` and `jwt_svid` are given; and
what policies compile to is taken from the compiler, so that is written only when `compiled` is given.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.vectors import make_compiled, make_ids, make_jwts, make_paths, make_svids, make_tables  # noqa: E402


def write(path: str, value: object) -> None:
    target = HERE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")


def main(arguments: list[str]) -> None:
    for name, cases in make_ids.spiffe_ids().items():
        write(f"spiffe_ids/{name}.json", {"cases": cases})
    write("policy/id_patterns.json", make_ids.id_patterns())
    if "svid" in arguments:
        write("svid/cases.json", {"cases": make_svids.svids()})
    if "jwt_svid" in arguments:
        write("jwt_svid/cases.json", make_jwts.jwt_svids())
    if "compiled" in arguments:
        for name, value in make_compiled.all_compiled().items():
            write(f"policy/compiled/{name}.json", value)
    write("policy/paths.json", make_paths.paths())
    write("policy/path_patterns.json", make_paths.path_patterns())
    write("policy/tables.json", make_tables.tables())


if __name__ == "__main__":
    main(sys.argv[1:])
