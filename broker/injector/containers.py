# SPDX-License-Identifier: Apache-2.0
"""What is added to a pod: the step that writes the rules, the sidecar, and their volumes.

The sidecar is a native one (an init container that stays), so that it is ready before anything of the pod starts, and
ends after it. It has no capability, a root file system that nobody writes, and a user of its own. The step before it
has CAP_NET_ADMIN, writes the rules and is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from firedoor.broker.injector.settings import InjectorRules
from firedoor.broker.injector.wishes import Wishes
from firedoor.segments.well_known import CAPTURE_CONTAINER, SIDECAR_CONTAINER

STATE: Final = "firedoor-state"
AUTH: Final = "firedoor-auth"
TOKEN: Final = "firedoor-token"  # noqa: S105 - a volume
BUNDLE: Final = "firedoor-bundle"
VOLUMES: Final = frozenset({STATE, AUTH, TOKEN, BUNDLE})
# What an API server writes into what is ours, or others may: it changes nothing about what runs.
CONTAINER_DEFAULTS: Final = frozenset(
    {"imagePullPolicy", "resizePolicy", "resources", "terminationMessagePath", "terminationMessagePolicy"}
)
DEFAULTED: Final = CONTAINER_DEFAULTS | {"defaultMode", "successThreshold"}
# Where it says why it ended. A kubelet puts an empty file there, over whatever there is.
MESSAGE: Final = "/dev/termination-log"
# Where it shows each container its service account.
ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
# Where programs of the pod find the auth socket.
AUTH_FOLDER: Final = "/run/firedoor.dev"
AUTH_SOCKET: Final = f"{AUTH_FOLDER}/auth.sock"
_STATE_FOLDER: Final = "/var/lib/firedoor"
_ADMIN_SOCKET: Final = f"{_STATE_FOLDER}/run/admin.sock"
_TOKEN_FOLDER: Final = "/var/run/secrets/firedoor.dev"  # noqa: S105
_BUNDLE_FOLDER: Final = "/etc/firedoor"
# The kubelet brings the next when four fifths are over; the API server gives none for less.
_TOKEN_SECONDS: Final = 600
ENVIRONMENT: Final = "FIREDOOR_SIDECAR_"
# The variable that declares the probes.
PROBES: Final = f"{ENVIRONMENT}CAPTURE_PROBES"


def identity(trust_domain: str, wishes: Wishes, namespace: str, account: str) -> str:
    """Return the pod's SPIFFE ID."""
    return f"spiffe://{trust_domain}/segment/{wishes.segment}/ns/{namespace}/sa/{account}"


def environment(
    rules: InjectorRules, trust_domain: str, wishes: Wishes, spiffe_id: str, probes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the sidecar's configuration; the step before it reads the same."""
    found = {
        **settings(rules, trust_domain),
        **(_captured(rules, wishes, spiffe_id, probes) if wishes.captured else _listeners(wishes, spiffe_id)),
    }
    return [{"name": ENVIRONMENT + key, "value": value} for key, value in found.items()]


def settings(rules: InjectorRules, trust_domain: str) -> dict[str, str]:
    """Return what every sidecar is told, whatever its pod asks for; in this order."""
    return {
        "TRUST_DOMAIN": trust_domain,
        "BROKER": ",".join(rules.broker),
        "BOOTSTRAP_BUNDLE": f"{_BUNDLE_FOLDER}/bundle.json",
        "K8S_POD_CLUSTER": rules.cluster,
        "K8S_POD_TOKEN": f"{_TOKEN_FOLDER}/token",
        "WORKLOAD": "pod",
        "AUTH_SOCKET": AUTH_SOCKET,
        "ADMIN_SOCKET": _ADMIN_SOCKET,
        "DATA_DIR": f"{_STATE_FOLDER}/data",
        "RECORDS_PATH": "stdout",
        "LOG_FORMAT": "json",
    }


def _captured(
    rules: InjectorRules, wishes: Wishes, spiffe_id: str, probes: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    ports = [
        {"port": one.port, "protocol": one.protocol, **({"plaintext": "audit"} if one.audit else {})}
        for one in wishes.ports
    ]
    excluded = [one.setting() for one in wishes.exclude]
    names = {} if wishes.names is None else {"CAPTURE_DNS_NAMES": _json(wishes.names)}
    lists = {"CAPTURE_PORTS": ports, "CAPTURE_EXCLUDE": excluded}
    return {
        "CAPTURE_UID": str(rules.uid),
        "CAPTURE_AS": spiffe_id,
        "CAPTURE_CLIENTS": "network-namespace",
        **({"CAPTURE_UDP": "pass"} if wishes.udp_passes else {}),
        **{key: _json(value) for key, value in lists.items() if value},
        **names,
        **({"CAPTURE_PROBES": _json(list(probes))} if probes else {}),
    }


def _listeners(wishes: Wishes, spiffe_id: str) -> dict[str, str]:
    inbound = [
        {
            "name": f"p{one.port}",
            "as": spiffe_id,
            "listen": f"0.0.0.0:{one.listen}",
            "service_port": one.port,
            "protocol": one.protocol,
            "app": {"address": f"127.0.0.1:{one.port}"},
        }
        for one in wishes.ports
    ]
    found = {"INBOUND": _json(inbound)} if inbound else {}
    return {**found, **({"OUTBOUND": wishes.outbound} if wishes.outbound else {})}


def init_containers(
    rules: InjectorRules, environment: Sequence[Mapping[str, Any]], *, captured: bool
) -> list[dict[str, Any]]:
    """Return what starts before all else, in order."""
    sidecar: dict[str, Any] = {
        "name": SIDECAR_CONTAINER,
        "image": rules.image,
        "command": ["firedoor", "sidecar", "run"],
        "env": list(environment),
        "restartPolicy": "Always",
        # It is ready when it has attested, has its SVIDs and a generation, and its listeners are bound.
        "startupProbe": {
            "exec": {"command": ["firedoor", "sidecar", "status", "--admin-socket", _ADMIN_SOCKET]},
            "periodSeconds": 2,
            "timeoutSeconds": 10,
            "failureThreshold": 150,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}},
        "securityContext": _restricted(rules.uid),
        "volumeMounts": [
            {"name": STATE, "mountPath": _STATE_FOLDER},
            {"name": AUTH, "mountPath": AUTH_FOLDER},
            {"name": TOKEN, "mountPath": _TOKEN_FOLDER, "readOnly": True},
            {"name": BUNDLE, "mountPath": _BUNDLE_FOLDER, "readOnly": True},
        ],
    }
    return [_capture(rules, environment), sidecar] if captured else [sidecar]


def _capture(rules: InjectorRules, environment: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": CAPTURE_CONTAINER,
        "image": rules.image,
        "command": ["firedoor", "capture", "apply"],
        "env": list(environment),
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        # Only root has what is added: a capability of a container does not reach another user.
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _restricted(uid: int) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": uid,
        "runAsNonRoot": True,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def volumes(rules: InjectorRules) -> list[dict[str, Any]]:
    """Return the volumes; all but the bundle are this pod's alone."""
    token = {"audience": rules.audience, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    return [
        {"name": STATE, "emptyDir": {}},
        {"name": AUTH, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": BUNDLE, "configMap": {"name": rules.bundle_config_map}},
    ]


def auth_mount() -> dict[str, Any]:
    """Return what shows a program of the pod the auth socket."""
    return {"name": AUTH, "mountPath": AUTH_FOLDER, "readOnly": True}


def auth_variable() -> dict[str, Any]:
    """Return what tells a program of the pod where it is."""
    return {"name": "SPIFFE_ENDPOINT_SOCKET", "value": f"unix://{AUTH_SOCKET}"}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
