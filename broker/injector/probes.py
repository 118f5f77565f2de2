# SPDX-License-Identifier: Apache-2.0
"""A kubelet's probes, pointed at the sidecar's probe port, which repeats each as it is declared and nothing else.

A kubelet has no identity, so that what it asks never reaches a captured app. `exec` probes stay: they run inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

KINDS: Final = ("startupProbe", "readinessProbe", "livenessProbe")
PROBE_PORT: Final = 14020
# The sidecar's caps: probes in all, and the seconds that one may take.
MOST: Final = 32
MOST_SECONDS: Final = 10
_PATH: Final = re.compile(r"/[!-~]{0,1023}")
_SERVICE: Final = re.compile(r"[A-Za-z0-9_.]{0,255}")


@dataclass(slots=True)
class Rewritten:
    """The probes that the sidecar is told of, and what a person should know of the rest."""

    declared: list[dict[str, Any]]
    warnings: list[str]

    def rewrite(self, container: dict[str, Any], label: str) -> None:
        """Point a container's probes at the sidecar."""
        for kind in KINDS:
            probe = container.get(kind)
            if isinstance(probe, dict):
                self._one(container, kind, probe, f"{label}-{kind.removesuffix('Probe')}")
        hooks = container.get("lifecycle")
        for hook, what in hooks.items() if isinstance(hooks, dict) else ():
            if isinstance(what, dict) and ("httpGet" in what or "tcpSocket" in what):
                self.warnings.append(f"{_name(container)}: its {hook} hook by network does not reach it; use exec")

    def _one(self, container: dict[str, Any], kind: str, probe: dict[str, Any], name: str) -> None:
        what = self._declared(container, kind, probe)
        if what is None:
            return
        if len(self.declared) >= MOST:
            self.warnings.append(f"{_name(container)}: its {kind} is left as it is: the sidecar repeats {MOST}")
            return
        given = probe.get("timeoutSeconds")
        seconds = min(given if isinstance(given, int) and given > 0 else 1, MOST_SECONDS)
        self.declared.append({"name": name, **what, "seconds": seconds})
        rest = {key: value for key, value in probe.items() if key not in ("httpGet", "tcpSocket", "grpc")}
        get = {"path": f"/probe/{name}", "port": PROBE_PORT, "scheme": "HTTP"}
        # The sidecar's own answer takes a moment more than the app's.
        container[kind] = {**rest, "httpGet": get, "timeoutSeconds": seconds + 1}

    def _declared(self, container: Mapping[str, Any], kind: str, probe: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a probe as the sidecar's configuration has it; None for one that stays."""
        for way in ("httpGet", "tcpSocket", "grpc"):
            action = probe.get(way)
            if not isinstance(action, dict):
                continue
            if action.get("host"):
                self.warnings.append(f"{_name(container)}: its {kind} asks another host and is left as it is")
                return None
            port = _port(container, action.get("port"))
            if port is None:
                self.warnings.append(f"{_name(container)}: its {kind} names a port that no container has")
                return None
            return self._http(container, kind, action, port) if way == "httpGet" else _other(way, action, port)
        return None

    def _http(self, container: Mapping[str, Any], kind: str, action: Mapping[str, Any], port: int) -> dict[str, Any]:
        path = action.get("path") or "/"
        if action.get("scheme", "HTTP") != "HTTP" or not isinstance(path, str) or not _PATH.fullmatch(path):
            self.warnings.append(f"{_name(container)}: of its {kind} the port alone is asked: it is no plain HTTP path")
            return {"tcp": {"port": port}}
        if action.get("httpHeaders"):
            self.warnings.append(f"{_name(container)}: its {kind} is repeated without its headers")
        return {"http": {"port": port, "path": path}}


def _other(way: str, action: Mapping[str, Any], port: int) -> dict[str, Any]:
    if way == "tcpSocket":
        return {"tcp": {"port": port}}
    service = action.get("service") or ""
    fits = isinstance(service, str) and _SERVICE.fullmatch(service)
    return {"grpc": {"port": port, **({"service": service} if fits and service else {})}}


def _port(container: Mapping[str, Any], port: object) -> int | None:
    """Return a port's number; a name is one of the container's own."""
    if isinstance(port, int) and not isinstance(port, bool):
        return port if 0 < port <= 65535 else None
    ports = container.get("ports")
    for one in ports if isinstance(ports, list) else ():
        if isinstance(one, dict) and port is not None and one.get("name") == port:
            return _port(container, one.get("containerPort")) if isinstance(one.get("containerPort"), int) else None
    return None


def _name(container: Mapping[str, Any]) -> str:
    return f"container {str(container.get('name', ''))[:63]}"
