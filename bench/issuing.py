# SPDX-License-Identifier: Apache-2.0
"""Making an X.509-SVID: parse and check the request, sign the answer."""

import os
from collections.abc import Iterator

from bench.timing import per_call
from firedoor.certs import (
    KeyType,
    TrustBundle,
    TrustDomain,
    generate_key,
    issue_ca,
    issue_x509,
    make_csr,
    parse_csr,
    verify_x509_svid,
)

NOW = 1_800_000_000


def rows() -> Iterator[tuple[str, float]]:
    """Yield a row a step."""
    td = TrustDomain.parse("td")
    ca = issue_ca(td, generate_key(KeyType.EC_P256), at=NOW, random=os.urandom)
    key = generate_key(KeyType.EC_P256)
    spiffe_id = td.with_path("/segment/a/x")
    csr = make_csr(key)
    yield "parse a CSR and check its signature", per_call(lambda: parse_csr(csr))
    yield (
        "sign an X.509-SVID, P-256",
        per_call(lambda: issue_x509(spiffe_id, key.public_key(), ca, at=NOW, random=os.urandom)),
    )
    svid = issue_x509(spiffe_id, key.public_key(), ca, at=NOW, random=os.urandom)
    bundles = {td: TrustBundle.of(td, [ca.der])}
    yield "verify an X.509-SVID in Python", per_call(lambda: verify_x509_svid(svid.chain, bundles, NOW))
