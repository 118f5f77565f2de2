# SPDX-License-Identifier: Apache-2.0
"""The Rust core as Python sees it: coarse calls only, none of them runs per connection or per request.

Every call that can wait releases the GIL. Times are Unix seconds. Certificates are DER, keys PKCS#8 DER.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, final

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
    "check_spiffe_id",
    "match_pattern",
    "private_address",
    "read_csr",
    "verify_svid",
]

class MtlsError(Exception):
    """Base of all. `code` is stable, `str()` is a sentence for the person who must act."""

    code: str

class VerifyError(MtlsError):
    """A SPIFFE ID, SVID, chain or signing request breaks a rule; `code` names it, the same as in tests/vectors."""

class TableError(MtlsError):
    """A decision table cannot be used."""

class MaterialError(MtlsError):
    """Material was refused at publish; the last good one stays."""

class ListenError(MtlsError):
    """A listener, front or connector cannot be opened."""

class CallerUnknown(MtlsError):
    """No live connection of this front has that name."""

@final
class ClientRule:
    """What the local client of an outbound listener must be. All that is set must hold; nothing set matches nobody."""

    def __new__(
        cls,
        *,
        uid: int | None = None,
        gid: int | None = None,
        supplementary_gids: Sequence[int] = ...,
        path: str | None = None,
        sha256: str | None = None,
    ) -> ClientRule: ...

@final
class Svid:
    """An identity of ours with its key. `clients`: any one rule that matches lets a local client use it."""

    @property
    def id(self) -> str: ...
    def __new__(
        cls,
        *,
        id: str,
        chain: Sequence[bytes],
        key: bytes,
        federates_with: Sequence[str] = ...,
        clients: Sequence[ClientRule] = ...,
    ) -> Svid: ...

@final
class Revocation:
    """Exactly one of `serial`, `authority_id` (both lower-case hex), or `pattern` with `issued_before`."""

    def __new__(
        cls,
        *,
        serial: str | None = None,
        authority_id: str | None = None,
        pattern: str | None = None,
        issued_before: int | None = None,
        reason: str = ...,
    ) -> Revocation: ...

@final
class Material:
    """What the data path runs on, as one value. `table` is a firedoor.policy.v1.Table; empty denies everything.

    `tainted`: roots of the bundles that will be revoked soon; connections that hang on one take no more requests.
    `intermediates`: the whole list of CAs below our own roots, (SHA-256 of its key, segments) each; None is no list.
    """

    def __new__(
        cls,
        *,
        trust_domain: str,
        bundles: Mapping[str, Sequence[bytes]],
        tainted: Sequence[bytes] = ...,
        svids: Sequence[Svid] = ...,
        revocations: Sequence[Revocation] = ...,
        intermediates: Sequence[tuple[bytes, AbstractSet[str]]] | None = ...,
        table: bytes = ...,
        generation: tuple[int, int] = ...,
    ) -> Material: ...

@final
class Caller:
    """Who is at the other end of one connection to a front. Frozen."""

    transport: Literal["tls", "unix"]
    connection_id: int
    # TLS. `spiffe_id` is None for a peer that presented no certificate.
    spiffe_id: str | None
    serial: str | None
    not_before: int | None
    not_after: int | None
    chain_hash: bytes | None
    remote: str
    # Unix.
    pid: int | None
    uid: int | None
    gid: int | None

    def alive(self) -> bool:
        """Say whether the connection, and for Unix the very process that opened it, still lives (about 1 µs)."""

@final
class Front:
    """A listener of ours that splices to a private grpcio server."""

    # "host:port" as bound, or the socket's path.
    address: str

    def caller(self, peer: str) -> Caller:
        """Answer who speaks, from grpcio's `context.peer()`; raise CallerUnknown when the name is not live."""

    def close_callers(self, spiffe_id: str) -> int:
        """Close all connections of an identity at once and return how many there were."""

    def stop(self) -> None: ...

@final
class WebFront:
    """A listener of ours for clients without an identity: TLS 1.3, HTTP/1.1, no client certificate.

    A connection lives 15 s; of all seats one address takes an eighth at most.
    """

    # "host:port" as bound.
    address: str

    def set_certificate(self, chain: Sequence[bytes], key: bytes) -> None:
        """Serve with another certificate from the next handshake on. Raise ListenError and change nothing."""

    def stop(self) -> None: ...

@final
class Connector:
    """A private Unix socket behind which a verified mTLS connection is made."""

    path: str

    def last_error(self) -> str:
        """Say why the last connection failed; empty when it did not."""

    def stop(self) -> None: ...

@final
class ControlServer:
    """The broker's end of the control streams: fans encoded FromBroker messages out to sidecars."""

    def publish(self, views: Sequence[tuple[Sequence[str], bytes]], *, lasting: bool = True) -> None:
        """Set the latest message of each agent ID in each group; live streams get it at once, later ones on connect.

        Unless it is not lasting: then later streams get nothing before the next one.
        An older message that has not left yet is replaced, never queued behind. Nothing is sent before a stream's
        Hello. Raise MtlsError when a message is larger than 64 MiB; nothing is published then.
        """

    def drain(self, limit: int) -> list[tuple[Literal["hello", "ack", "nack", "closed"], str, int, bytes]]:
        """Return waiting events as (kind, agent ID, stream number, encoded FromSidecar).

        Of each stream there wait at most its Hello, its latest Ack or Nack, and "closed" if its Hello was drained. The
        parts of a FromSidecar have not been looked at: they may be malformed.
        """

    def restrict(self, agent_id: str, serials: Sequence[str]) -> None:
        """Say with which certificates (serials, hex) an agent may listen, until it is forgotten.

        Connections with others are broken, also those that come later, before they are told anything.
        """

    def forget(self, agent_id: str) -> int:
        """Drop an agent's view and break its connections (ban, evict); return how many streams there were.

        It may connect again, which is a new "hello".
        """

    def streams(self) -> int: ...

@final
class ControlClient:
    """The sidecar's end: keeps one stream open, reconnecting with back-off and jitter."""

    def send(self, message: bytes) -> None:
        """Send an encoded FromSidecar on the stream whose "connected" was drained last; dropped when it is over."""

    def spread(self, milliseconds: int) -> None:
        """Say over how long to come back, at random, when the server ends a stream that worked; 30 s at most."""

    def drain(self, limit: int) -> list[tuple[Literal["connected", "message", "disconnected", "unsupported"], bytes]]:
        """Return waiting events; a message carries an encoded FromBroker, the others an UTF-8 reason.

        "unsupported": the server speaks no `firedoor-control/1`.
        """

    def stop(self) -> None: ...

@final
class Listener:
    """A data-path listener."""

    name: str
    # "host:port" as bound, or "unix:path".
    address: str
    # Open exactly while the present material has an SVID for its `as`.
    open: bool

    def stop(self) -> None:
        """Stop accepting for good; connections that run go on."""

@final
class DnsRelay:
    """Takes queries by UDP and TCP and asks them of resolvers; each leaves a record."""

    # "host:port" as bound.
    addresses: list[str]

    def update(self, resolvers: Sequence[str], *, seconds: int, attempts: int) -> None:
        """Ask these ("IP:port") from the next query on, in this order; nobody when there are none.

        A round over all of them takes `seconds`, and there are `attempts` rounds. Raise ListenError and change nothing.
        """

    def stop(self) -> None:
        """Listen no more. Queries that are under way get no answer."""

@final
class Core:
    """All threads and sockets of one process."""

    def __new__(cls, *, data_threads: int = 0, record_capacity: int = 65536) -> Core: ...
    def publish(self, material: Material) -> int:
        """Check the material, make it the present one, return its revision. Raise MaterialError and change nothing."""

    def tls_front(
        self,
        *,
        listen: str,
        as_id: str,
        backend: str,
        control: ControlServer | None = None,
        client: Literal["optional", "required"] = "optional",
        anonymous: int = 64,
        anonymous_seconds: float = 60.0,
    ) -> Front:
        """Open a TLS 1.3 front as identity `as_id` (ALPN h2) before a private server of this process.

        Callers without a certificate share `anonymous` connections, an eighth of them for one address at most; more
        wait, 10 s each. Such a connection lives `anonymous_seconds` and sends 256 KiB at most.

        `backend` is a `private_address()`, or the path of a Unix socket in a 0700 folder. A program of our own user in
        another network namespace reaches the path, and can pass for a live caller there; prefer the former.
        """

    def unix_front(
        self,
        *,
        path: str,
        backend: str,
        mode: int = 0o666,
        http1_backend: str | None = None,
        workload: Literal["process", "pod"] = "process",
    ) -> Front: ...
    def web_front(
        self,
        *,
        listen: str,
        backend: str,
        as_id: str | None = None,
        certificate: tuple[Sequence[bytes], bytes] | None = None,
        most: int = 256,
    ) -> WebFront:
        """Open a web front before a private server, with the present SVID of `as_id`, or a certificate and its key.

        `most` is how many connections there may be at once. Raise ListenError.
        """

    def connector(
        self,
        *,
        path: str,
        addresses: Sequence[str],
        expect: str,
        as_id: str | None = None,
        alpn: str = "h2",
    ) -> Connector:
        """Open a private socket; each connection to it becomes mTLS to the first address that proves `expect`."""

    def control_server(self) -> ControlServer: ...
    def control_client(self, *, addresses: Sequence[str], as_id: str, expect: str) -> ControlClient: ...
    def listen(self, spec: str) -> Listener:
        """Open an inbound or outbound data-path listener from its JSON form (see `firedoor.sidecar.config`)."""

    def dns_relay(self, *, listen: Sequence[str], names: Sequence[str] | None = None) -> DnsRelay:
        """Open the DNS relay at loopback addresses; without `names` every name may be asked for.

        It asks nobody before `update`.
        """

    def listeners(self) -> str:
        """Return all data-path listeners as a JSON array: name, direction, as, address, open, reason, ..."""

    def drain_records(self, limit: int) -> bytes:
        """Return up to `limit` decision records as JSON lines."""

    def event_fd(self) -> int:
        """Return an eventfd that is readable while control events wait. Owned by the core."""

    def record_fd(self) -> int:
        """Return an eventfd that is readable while decision records wait. Owned by the core."""

    def stats(self) -> dict[str, int]: ...
    def connections(self) -> str:
        """Return the live registry as a JSON array."""

    def drain(self, seconds: float) -> bool:
        """Stop accepting, wait so long for connections to end; say whether all did."""

    def stop(self) -> None: ...

@final
class Decision:
    """The engine's answer. `flow` is None unless a flow allows it; `reason` is a stable code."""

    allowed: bool
    flow: str | None
    reason: str
    source_segment: str | None
    destination_segment: str | None
    # Flows that fit both ends and port but not the action, for explanations.
    near: list[str]

@final
class Engine:
    """One decision table, ready to be asked."""

    def __new__(cls, table: bytes) -> Engine: ...
    def segment_of(self, spiffe_id: str) -> str | None: ...
    def decide(
        self,
        *,
        source: str,
        destination: str,
        port: int,
        protocol: Literal["tcp", "http", "grpc"],
        authority: str = "",
        method: str = "",
        path: str = "",
        grpc_service: str = "",
        grpc_method: str = "",
        time: int,
    ) -> Decision: ...

@final
class SigningKey:
    """A P-256 or P-384 key in memory, as PKCS#8 DER. Raise MtlsError for one of another kind."""

    def __new__(cls, key: bytes) -> SigningKey: ...
    def sign(self, message: bytes) -> bytes:
        """Return an ECDSA signature with the hash that is as strong as the curve: SHA-256, SHA-384."""

def private_address() -> str:
    """Return a new abstract address ("unix-abstract:...") for a private server and the front before it.

    Nothing outside this network namespace reaches it. Whoever connects past the front is nobody.
    """

def check_spiffe_id(text: str) -> None:
    """Raise VerifyError unless the text is a SPIFFE ID."""

def check_pattern(text: str) -> None:
    """Raise VerifyError unless the text is an ID pattern."""

def match_pattern(pattern: str, spiffe_id: str) -> bool: ...
def verify_svid(
    chain: Sequence[bytes],
    bundles: Mapping[str, Sequence[bytes]],
    *,
    at: int,
    revocations: Sequence[Revocation] = ...,
    intermediates: Sequence[tuple[bytes, AbstractSet[str]]] | None = ...,
    table: bytes = ...,
) -> tuple[str, int]:
    """Verify a chain against the roots of its leaf's own trust domain; return (SPIFFE ID, min notAfter of the path).

    `intermediates`: as in Material, for the trust domain of `table`, which says which segment an ID is in.
    """

def canonical_path(target: str) -> list[str]:
    """Return the decoded segments of an HTTP request target's path; raise MtlsError when it is ambiguous."""

def check_dns_pattern(text: str) -> None:
    """Raise MtlsError unless the text is a pattern of DNS names: whole labels, `*` one, `**` one or more and first."""

def check_path_pattern(text: str) -> None:
    """Raise MtlsError unless the text is a path pattern of an `http` action."""

def read_csr(der: bytes) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Return the key (SubjectPublicKeyInfo), URIs and DNS names of a signing request that its holder signed.

    Sizes and kinds of keys are checked before any signature. Raise VerifyError: malformed_csr, unsupported_key or
    invalid_csr_signature.
    """
