# SPDX-License-Identifier: Apache-2.0
"""Identity-based access for AI infrastructure: SPIFFE identities bound to segments, enforced at both ends.

The packages below this one, floor by floor: `certs` and `segments` (pure), `wire` (contracts), `mtls` (the Rust
core), `broker` and `sidecar` (the two programs), `cli` (the `firedoor` command).

>>> import firedoor
>>> firedoor.__version__.count(".")
2
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
