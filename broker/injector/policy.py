# SPDX-License-Identifier: Apache-2.0
"""The injector as a MutatingAdmissionPolicy: the API server makes the webhook's patch by itself.

It needs Kubernetes 1.36, and the guards (`guards`): a policy that mutates refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from firedoor.broker.injector import cel, containers
from firedoor.segments import well_known

_GROUP: Final = "admissionregistration.k8s.io"
API: Final = f"{_GROUP}/v1"
NAME: Final = "firedoor-injector"
# Namespaces whose pods have no sidecar, whatever they say: who injects must not wait for it.
_NEVER: Final = (cel.NAMESPACE, "kube-system", "kube-node-lease")
PARAM_KIND: Final = {"apiVersion": "v1", "kind": "ConfigMap"}
PARAM_REF: Final = {"name": cel.PARAMETERS, "namespace": cel.NAMESPACE, "parameterNotFoundAction": "Deny"}


def injector() -> list[dict[str, Any]]:
    """Return the policy and its bindings."""
    spec = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "paramKind": PARAM_KIND,
        "matchConstraints": {"resourceRules": [pods("CREATE")]},
        "matchConditions": [
            {"name": "known-wish", "expression": _READABLE},
            {"name": "one-segment", "expression": _ONE_SEGMENT},
        ],
        "variables": [*cel.wanted(), *cel.probes(), _env(), _has_sidecar()],
        # One: each further mutation would see what the one before it has made.
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _patch()}}],
    }
    policy = {"apiVersion": API, "kind": "MutatingAdmissionPolicy", "metadata": {"name": NAME}, "spec": spec}
    return [policy, *bindings("MutatingAdmissionPolicyBinding", NAME, {"paramRef": PARAM_REF})]


def pods(*operations: str, resources: Iterable[str] = ("pods",)) -> dict[str, Any]:
    """Return the rule that matches pods."""
    return {"apiGroups": [""], "apiVersions": ["v1"], "operations": list(operations), "resources": list(resources)}


ASKED: Final = {"key": well_known.INJECT, "operator": "In", "values": ["enabled"]}
NOT_REFUSED: Final = {"key": well_known.INJECT, "operator": "NotIn", "values": ["disabled"]}


def bindings(
    kind: str,
    policy: str,
    more: dict[str, Any],
    *,
    inside: Sequence[Mapping[str, Any]] = (NOT_REFUSED,),
    elsewhere: Sequence[Mapping[str, Any]] = (ASKED,),
) -> list[dict[str, Any]]:
    """Bind a policy to the pods of labelled namespaces, but those that say no; and to pods that say yes elsewhere.

    Where a sidecar is required, it is bound to all, whatever they say.
    """
    made = []
    required = well_known.REQUIRED
    for name, namespaces, words, own in (
        ("namespaces", "In", ["enabled"], inside),
        ("required", "In", [required], ()),
        ("pods", "NotIn", ["enabled", required], elsewhere),
    ):
        selectors = {
            "namespaceSelector": {
                "matchExpressions": [
                    {"key": well_known.INJECT, "operator": namespaces, "values": words},
                    {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": list(_NEVER)},
                ]
            },
            "objectSelector": {"matchExpressions": [dict(one) for one in own]},
        }
        spec = {"policyName": policy, **more, "matchResources": selectors}
        made.append({"apiVersion": API, "kind": kind, "metadata": {"name": f"{policy}-{name}"}, "spec": spec})
    return made


# Guards refuse the others, with a sentence.
_READABLE: Final = f"object.metadata.?labels[?'{well_known.INJECT}'].orValue('enabled') == 'enabled'"


_ONE_SEGMENT: Final = (
    f"object.metadata.?annotations[?'{well_known.SEGMENT}'].or(object.metadata.?labels[?'{well_known.SEGMENT}'])"
    f" == object.metadata.?labels[?'{well_known.SEGMENT}'].or(object.metadata.?annotations[?'{well_known.SEGMENT}'])"
)


def _has_sidecar() -> dict[str, str]:
    """Whether it comes with one; the guards say whether it is ours."""
    names = ", ".join(cel.quoted(one) for one in sorted(well_known.CONTAINERS))
    return {"name": "has_sidecar", "expression": f"variables.init.exists(c, c.name in [{names}])"}


def _patch() -> str:
    noted = " + ".join(
        (
            _noted(
                "labels", {well_known.SEGMENT: "variables.segment", well_known.ENFORCING: "string(variables.captured)"}
            ),
            _noted("annotations", {well_known.STATUS: _STATUS}),
        )
    )
    return f"(variables.has_sidecar ? [] : {_probes()} + {_rest()}) + {noted}"


def _env() -> dict[str, str]:
    """Write the sidecar's environment."""
    declared = f"variables.captured && variables.repeated.size() > 0 ? [['{containers.PROBES}', variables.probes]] : []"
    pairs = f"(variables.settings + ({declared}))"
    return {"name": "env", "expression": f"{pairs}.map(s, {{'name': s[0], 'value': s[1]}})"}


def _add(path: str, value: str) -> str:
    return f"JSONPatch{{op: 'add', path: {path}, value: {value}}}"


def _listed(*operations: str) -> str:
    return f"[{', '.join(operations)}]"


def _append(owner: str, path: str, field: str, value: str) -> str:
    """Write a list of one operation, that adds a value to a list which may not be there."""
    more, first = _add(f"{path} + '/{field}/-'", value), _add(f"{path} + '/{field}'", f"[{value}]")
    return f"[{owner}.?{field}.orValue([]).size() > 0 ? {more} : {first}]"


def _probes() -> str:
    asked = [
        f"(p.probe.?{way}.hasValue() ? [JSONPatch{{op: 'remove', path: p.path + '/{way}'}}] : [])"
        for way in ("tcpSocket", "grpc")
    ]
    asked.append(
        _listed(_add("p.path + '/httpGet'", cel.ASKED), _add("p.path + '/timeoutSeconds'", f"{cel.SECONDS} + 1"))
    )
    return f"(variables.captured ? variables.repeated.map(p, {' + '.join(asked)}).flatten() : [])"


def _rest() -> str:
    mount, variable = containers.auth_mount(), containers.auth_variable()
    mounted = f"x.of.?volumeMounts.orValue([]).exists(m, m.mountPath == {cel.quoted(mount['mountPath'])})"
    known = f"x.of.?env.orValue([]).exists(v, v.name == {cel.quoted(variable['name'])})"
    shown = (
        f"({mounted} ? [] : {_append('x.of', 'x.path', 'volumeMounts', cel.literal(mount))})"
        f" + ({known} ? [] : {_append('x.of', 'x.path', 'env', cel.literal(variable))})"
    )
    return " + ".join(
        [
            f"variables.labelled.map(x, {shown}).flatten()",
            f"(variables.captured ? {_first(captured=True)} : {_first(captured=False)})",
            f"(object.spec.?volumes.orValue([]).size() > 0 ? [] : {_listed(_add(_VOLUMES, '[]'))})",
            _listed(*(_add("'/spec/volumes/-'", cel.literal(one)) for one in cel.volumes())),
        ]
    )


def _first(*, captured: bool) -> str:
    """Put our init containers before the others."""
    ours = [cel.literal(one) for one in cel.init_containers(captured=captured)]
    each = _listed(*(_add("'/spec/initContainers/0'", one) for one in reversed(ours)))
    return f"((variables.init.size() > 0 ? [] : {_listed(_add(_INIT, '[]'))}) + {each})"


def _noted(kind: str, values: Mapping[str, str]) -> str:
    there, path = f"object.metadata.?{kind}.orValue({{}}).size() > 0", f"/metadata/{kind}"
    empty = _add(cel.quoted(path), "dyn({})")
    noted = [_add(cel.quoted(f"{path}/{key.replace('/', '~1')}"), value) for key, value in values.items()]
    return f"({there} ? [] : [{empty}]) + {_listed(*noted)}"


_INIT: Final = "'/spec/initContainers'"
_VOLUMES: Final = "'/spec/volumes'"
_STATUS: Final = (
    """'{"version":1,"identity":"' + variables.identity + '","captured":' + string(variables.captured) + '}'"""
)
