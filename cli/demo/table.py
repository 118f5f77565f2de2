# SPDX-License-Identifier: Apache-2.0
"""The rows of the table, each denial near its twin that is allowed."""

from dataclasses import dataclass, replace

from firedoor.cli.demo import cut, peers
from firedoor.cli.demo.asks import Who, at_auth_socket, by, straight
from firedoor.cli.demo.kept import Kept
from firedoor.cli.demo.rows import Denial, Row, Verdict
from firedoor.cli.demo.world import LLM_PORT, MIRROR_PORT, MODELS_PORT, TOOLS_PORT, UPLOAD_PORT

# Where each outbound listener leads, and the program there. `astray` is led to the wrong one.
_MODELS = f"registry:{MODELS_PORT}"
_LISTENERS = {
    "models": (_MODELS, "models"),
    "upload": (f"registry:{UPLOAD_PORT}", "models"),
    "mirror": (f"registry:{MIRROR_PORT}", "models"),
    "astray": (_MODELS, "tools"),
    "tools": (f"mcp-tools:{TOOLS_PORT}", "tools"),
    "llm": (f"inference:{LLM_PORT}", "llm"),
}
# At another port than the flow's, by an identity that has flows to others.
_ELSEWHERE = ("no_flow", "port_not_named")
_NO_ANSWER, _ALERT = "no answer", "TLS alert"


def table(kept: Kept) -> list[Row]:
    """Return all rows; the one that must wait comes last."""
    return [*_store(), *_others(), *_tools(), *_model(), *_opaque(), *_straight(kept), *_local(), _expired(kept)]


@dataclass(frozen=True)
class _Through:
    """A segment's client at one of its outbound listeners."""

    user: str
    listener: str

    def allows(self, action: str, do: str, **more: str) -> Row:
        return self._row(action, "allowed", do, ("403", "no_flow"), more)

    def refuses(self, action: str, do: str, saw: str, *reasons: str, **more: str) -> Row:
        return self._row(action, "denied", do, (saw, *reasons), more)

    def _row(self, action: str, expected: Verdict, do: str, refusal: tuple[str, ...], more: dict[str, str]) -> Row:
        to, app = _LISTENERS[self.listener]
        ask = by(self.user, do, self.listener, signed=to.startswith("registry:"), **more)
        saw, *reasons = refusal
        return Row(self.user, to, action, expected, ask, app, Denial(self.user, self.listener, saw, tuple(reasons)))


def _store() -> list[Row]:
    """What the registry's flow names and what it does not: methods, paths, and paths that are written otherwise."""
    models = _Through("inference", "models")
    ambiguous = ("/models/../secrets/key", "/models/%2e%2E/secrets/key", "/models/x%2F..%2F..%2Fsecrets")
    return [
        models.allows("S3 GET", "s3_get"),
        models.refuses("S3 PUT: method not named", "s3_put", "403", "action_not_named"),
        models.refuses("S3 GET: path not named", "s3_get", "403", "action_not_named", what="secret"),
        models.allows("GET /models/llm%2Fweights.bin", "plain", method="GET", target="/models/llm%2Fweights.bin"),
        *(models.refuses(f"GET {it}", "plain", "400", "bad_request", method="GET", target=it) for it in ambiguous),
    ]


def _others() -> list[Row]:
    """The same store by other identities and at other ports."""
    upload = _Through("training", "upload")
    return [
        upload.allows("S3 PUT", "s3_put"),
        upload.refuses("S3 GET: method not named", "s3_get", "403", "action_not_named"),
        _Through("training", "models").refuses("S3 GET", "s3_get", "403", *_ELSEWHERE),
        _Through("mcp-tools", "models").refuses("S3 GET", "s3_get", "403", "no_flow"),
        _Through("inference", "upload").refuses("S3 GET, other port", "s3_get", "403", *_ELSEWHERE),
        _Through("inference", "astray").refuses("right address, wrong identity", "s3_get", "503", "unexpected_id"),
    ]


def _tools() -> list[Row]:
    tools = _Through("inference", "tools")
    return [
        tools.allows("MCP call", "mcp"),
        tools.refuses("POST /admin", "plain", "403", "action_not_named", method="POST", target="/admin"),
        _Through("training", "tools").refuses("MCP call", "mcp", "403", "no_flow"),
    ]


def _model() -> list[Row]:
    llm = _Through("mcp-tools", "llm")
    return [
        llm.allows("gRPC Health/Check", "health"),
        llm.refuses("gRPC Health/List", "health", "PERMISSION_DENIED", "action_not_named", method="List"),
        llm.allows("gRPC Health/Watch, a stream", "watch"),
        cut.row(_LISTENERS["llm"][0]),
    ]


def _opaque() -> list[Row]:
    """Opaque TCP: decided on once a connection, whatever is said over it."""
    return [
        _Through("inference", "mirror").allows("S3 GET in opaque TCP", "s3_get"),
        _Through("training", "mirror").refuses("S3 GET in opaque TCP", "s3_get", _NO_ANSWER, *_ELSEWHERE),
    ]


def _straight(kept: Kept) -> list[Row]:
    """Clients that come to the registry's inbound listener without a sidecar."""
    own, climbs = "TLS, its own SVID", "/models/%2e%2e/secrets/key"
    return [
        _welcome(own, lambda _: kept.inference),
        _stopped("inference, no sidecar", f"{own}, PUT", lambda _: kept.inference, "403", "action_not_named", "PUT"),
        _stopped("inference, no sidecar", f"{own}, %2e%2e", lambda _: kept.inference, "400", "bad_request", to=climbs),
        _stopped("training, no sidecar", own, lambda _: kept.training, "403", "port_not_named"),
        _stopped("anybody", "TLS, no certificate", lambda _: None, _ALERT, "no_certificate"),
        _stopped("anybody", "no TLS", None, _NO_ANSWER, "handshake_failed"),
        _stopped("a stranger", "inference's ID, self-signed", lambda _: kept.forged, _ALERT, "chain_untrusted"),
        _stopped("elsewhere.example", "SVID of that domain", lambda _: kept.foreign, _ALERT, "unknown_trust_domain"),
        _welcome("an SVID of seconds", kept.fresh),
    ]


def _expired(kept: Kept) -> Row:
    row = _stopped("inference, no sidecar", "that SVID, expired", kept.expired, _ALERT, "expired")
    return replace(row, wait=kept.seconds_to_expiry)


def _welcome(action: str, who: Who) -> Row:
    denial = Denial("registry", "models", "403", ("no_flow",))
    return Row("inference, no sidecar", _MODELS, action, "allowed", straight(who), "models", denial)


def _stopped(
    source: str, action: str, who: Who | None, saw: str, reason: str, method: str = "GET", to: str = peers.MODEL
) -> Row:
    denial = Denial("registry", "models", saw, (reason,))
    return Row(source, _MODELS, action, "denied", straight(who, method, to), "models", denial)


def _local() -> list[Row]:
    """What other local users get of inference's sockets."""
    auth, out = "inference's auth socket", "inference's outbound"
    fetch, theirs = "fetch X.509-SVID", "user of training"
    denial = Denial("inference", "models", _NO_ANSWER, ("client_not_entitled",))
    foreign = by("training", "s3_get", "models", owner="inference", signed=True)
    return [
        Row("user of inference", auth, fetch, "allowed", at_auth_socket("inference", "inference")),
        Row(theirs, auth, fetch, "denied", at_auth_socket("training", "inference"), needs_users=True),
        Row(theirs, out, "S3 GET", "denied", foreign, "models", denial, needs_users=True),
    ]
