# SPDX-License-Identifier: Apache-2.0
"""The Rust core: everything that faces the network, behind a few coarse calls.

Sockets, TLS, verification and decisions live in Rust; Python publishes what they run on and reads what happened. One
`Core` holds all threads and sockets of a process::

    core = mtls.Core()
    private = mtls.private_address()
    server.add_insecure_port(private)
    core.publish(mtls.Material(trust_domain="prod.example", bundles={"prod.example": [root]}, svids=[svid]))
    front = core.tls_front(listen="0.0.0.0:8081", as_id="spiffe://prod.example/spire/server", backend=private)
    caller = front.caller(context.peer())  # in an RPC of that server

Rules: a `Material` is checked whole when it is published, and the last good one stays when it is refused. Who calls is
told by `Front.caller` alone, never by anything that was sent. No call runs per connection or per request.
"""

from firedoor.mtls._mtls import (
    Caller,
    CallerUnknown,
    ClientRule,
    Connector,
    ControlClient,
    ControlServer,
    Core,
    Decision,
    DnsRelay,
    Engine,
    Front,
    Listener,
    ListenError,
    Material,
    MaterialError,
    MtlsError,
    Revocation,
    SigningKey,
    Svid,
    TableError,
    VerifyError,
    WebFront,
    canonical_path,
    check_dns_pattern,
    check_path_pattern,
    check_pattern,
    check_spiffe_id,
    match_pattern,
    private_address,
    read_csr,
    verify_svid,
)

# The core's answer to no certificate at all, once it has read all roots.
_ROOTS_WERE_READ = "chain_empty"


def check_roots(trust_domain: str, roots: list[bytes]) -> None:
    """Check that the core reads every one of these certificates (DER) as an authority's. Raise MtlsError.

    One that it refuses would keep the whole `Material` from being published, revocations and policy too; whoever takes
    another trust domain's bundle asks this first.
    """
    try:
        verify_svid([], {trust_domain: roots}, at=0)
    except VerifyError as error:
        if error.code != _ROOTS_WERE_READ:
            raise


__all__ = [
    "Caller",
    "CallerUnknown",
    "ClientRule",
    "Connector",
    "ControlClient",
    "ControlServer",
    "Core",
    "Decision",
    "DnsRelay",
    "Engine",
    "Front",
    "ListenError",
    "Listener",
    "Material",
    "MaterialError",
    "MtlsError",
    "Revocation",
    "SigningKey",
    "Svid",
    "TableError",
    "VerifyError",
    "WebFront",
    "canonical_path",
    "check_dns_pattern",
    "check_path_pattern",
    "check_pattern",
    "check_roots",
    "check_spiffe_id",
    "match_pattern",
    "private_address",
    "read_csr",
    "verify_svid",
]
