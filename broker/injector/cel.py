# SPDX-License-Identifier: Apache-2.0
"""What the admission policies are told in CEL, of what the injector does in Python.

The API server's own policies read `params`, a ConfigMap with the injector's settings, and `variables`, which are here.
Values are written from the very objects that `containers` makes, so that there is one description of a sidecar.
Differential tests hold the two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from firedoor.broker.injector import containers, exclusions
from firedoor.broker.injector.probes import MOST, MOST_SECONDS, PROBE_PORT
from firedoor.broker.injector.settings import InjectorRules
from firedoor.segments import well_known


class Cel(str):
    """An expression, where `literal` finds it."""

    __slots__ = ()


# The ConfigMap, and where it is.
PARAMETERS: Final = "firedoor-injector"
NAMESPACE: Final = "firedoor-system"
# The sidecar's user, as a number.
UID: Final = Cel("int(params.data.uid)")
# Stands for the user in what `containers` writes; nobody's.
_ANY_UID: Final = 2**31 - 1
_RULES: Final = InjectorRules(
    listen="",
    names=(),
    cluster="",
    image=Cel("params.data.image"),
    broker=(),
    bundle_config_map=Cel("params.data.bundle_config_map"),
    audience=Cel("params.data.audience"),
    uid=_ANY_UID,
    strict_users="",
    accepted_images=(),
    webhook="",
)


def parameters(rules: InjectorRules, trust_domain: str) -> dict[str, str]:
    """Return the data of the ConfigMap that the policies read."""
    return {
        "trust_domain": trust_domain,
        "cluster": rules.cluster,
        "image": rules.image,
        "broker": ",".join(rules.broker),
        "bundle_config_map": rules.bundle_config_map,
        "audience": rules.audience,
        "uid": str(rules.uid),
        "strict_users": rules.strict_users,
        "accepted_images": ",".join(rules.accepted_images),
    }


def literal(value: object) -> str:
    """Write a value; mappings and lists hold values of one type in Kubernetes' CEL, or `dyn`."""
    if isinstance(value, Cel):
        return f"dyn({value})"
    if value is True or value is False:
        return "dyn(true)" if value else "dyn(false)"
    if isinstance(value, str):
        return f"dyn({quoted(value)})"
    if isinstance(value, int):
        return f"dyn({UID if value == _ANY_UID else value})"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{quoted(key)}: {literal(each)}" for key, each in value.items())
        return f"dyn({{{inner}}})"
    if isinstance(value, list | tuple):
        return f"dyn([{', '.join(literal(each) for each in value)}])"
    raise TypeError(f"no value of CEL: {value!r}")


def quoted(text: str) -> str:
    """Write a text."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def init_containers(*, captured: bool) -> list[dict[str, Any]]:
    """Return what is put first, with expressions for what the settings and the pod say."""
    found = containers.init_containers(_RULES, (), captured=captured)
    return [{**one, "env": Cel("variables.env")} for one in found]


def volumes() -> list[dict[str, Any]]:
    """Return the volumes, with expressions for what the settings say."""
    return containers.volumes(_RULES)


def _variable(name: str, expression: str) -> dict[str, str]:
    return {"name": name, "expression": " ".join(expression.split())}


def basis() -> list[dict[str, str]]:
    """Return the variables that the others are made of."""
    return [
        _variable("labels", "object.metadata.?labels.orValue({})"),
        _variable("notes", "object.metadata.?annotations.orValue({})"),
        _variable("captured", f"variables.notes[?'{well_known.CAPTURE}'].orValue('') == ''"),
        _variable("init", "object.spec.?initContainers.orValue([])"),
    ]


def wanted() -> list[dict[str, str]]:
    """Return the variables of what a pod asks for; both policies have them."""
    return [
        *basis(),
        _variable(
            "segment",
            f"variables.notes[?'{well_known.SEGMENT}'].orValue("
            f"variables.labels[?'{well_known.SEGMENT}'].orValue(request.namespace))",
        ),
        _variable(
            "identity",
            "'spiffe://' + params.data.trust_domain + '/segment/' + variables.segment + '/ns/' + request.namespace"
            " + '/sa/' + object.spec.?serviceAccountName.orValue('default')",
        ),
        _variable("ports", _words(well_known.PORTS, ",")),
        _variable("exclusions", _words(well_known.EXCLUDE, ";")),
        # Guards refuse the others, with a sentence.
        _variable("excluded", f"variables.exclusions.filter(w, w.matches(r'^{exclusions.PATTERN}$'))"),
        _variable("dns", _words(well_known.DNS, ",")),
        _variable("settings", _SETTINGS),
    ]


def demanded() -> list[dict[str, str]]:
    """Return the variables of what the namespace demands; guards have them, whoever injects."""
    label = "namespaceObject.metadata.?labels[?'{}'].orValue('')".format
    left = f"{label(well_known.CAPTURE)} in {{}}"
    return [
        _variable("required", f"{label(well_known.INJECT)} == '{well_known.REQUIRED}'"),
        _variable("may_exclude", f"!variables.required || {left.format([well_known.EXCLUSIONS, well_known.OPTIONAL])}"),
        _variable("may_leave", f"!variables.required || {left.format([well_known.OPTIONAL])}"),
        # A word that nobody knows is the strictest.
        _variable(
            "strict",
            "params.data.strict_users != 'nowhere' && (variables.required || params.data.strict_users != 'required')",
        ),
    ]


def _words(key: str, separator: str) -> str:
    return f"variables.notes[?'{key}'].orValue('').split('{separator}').map(w, w.trim()).filter(w, w != '')"


_INBOUND: Final = (
    """'[' + variables.ports.map(w, '{"name":"p' + w.find('^[0-9]+') + '","as":"' + variables.identity +"""
    """ '","listen":"0.0.0.0:' + w.find('[0-9]*$') + '","service_port":' + w.find('^[0-9]+') + ',"protocol":"' +"""
    """ w.find('tcp|http|grpc') + '","app":{"address":"127.0.0.1:' + w.find('^[0-9]+') + '"}}').join(',') + ']'"""
)
_PORTS: Final = (
    """'[' + variables.ports.map(w, '{"port":' + w.find('^[0-9]+') + ',"protocol":"' + w.find('tcp|http|grpc') +"""
    """ '"' + (w.contains('/audit') ? ',"plaintext":"audit"' : '') + '}').join(',') + ']'"""
)


# Where they are in an exclusion; the rest of it is the reason.
_HEAD: Final = "w.substring(0, w.indexOf(': '))"
EXCLUDED_PORTS: Final = f"{_HEAD}.find(' [0-9,]+( |$)').trim()"
EXCLUDED_ADDRESSES: Final = f"{_HEAD}.find(' (from|to) .*$').trim().find('[^ ]*$')"
_EXCLUDED: Final = (
    """'[' + variables.excluded.map(w, '{"direction":"' + w.find('^[a-z]+') + '","protocol":"' +"""
    """ w.split(' ')[1] + '"' +"""
    f""" ({EXCLUDED_PORTS} == '' ? '' : ',"ports":[' + {EXCLUDED_PORTS} + ']') +"""
    f""" ({EXCLUDED_ADDRESSES} == '' ? '' : ',"addresses":["' + {EXCLUDED_ADDRESSES}.split(',').join('","') + '"]') +"""
    """ ',"reason":"' + w.substring(w.indexOf(': ') + 2) + '"}').join(',') + ']'"""
)
_DNS_NAMES: Final = """variables.dns == ['none'] ? '[]' : '["' + variables.dns.join('","') + '"]'"""


def _settings() -> str:
    """Write the list of [name, value] of the sidecar's environment, but for the probes."""
    fixed = containers.settings(_RULES, Cel("params.data.trust_domain"))
    fixed |= {"BROKER": Cel("params.data.broker"), "K8S_POD_CLUSTER": Cel("params.data.cluster")}
    always = ", ".join(_pair(key, value) for key, value in fixed.items())
    captured = [
        _pair("CAPTURE_UID", Cel("params.data.uid")),
        _pair("CAPTURE_AS", Cel("variables.identity")),
        _pair("CAPTURE_CLIENTS", "network-namespace"),
    ]
    some = [
        ("CAPTURE_UDP", f"variables.notes[?'{well_known.UDP}'].orValue('') != ''", "'pass'"),
        ("CAPTURE_PORTS", "variables.ports.size() > 0", _PORTS),
        ("CAPTURE_EXCLUDE", "variables.excluded.size() > 0", _EXCLUDED),
        ("CAPTURE_DNS_NAMES", "variables.dns.size() > 0", _DNS_NAMES),
    ]
    asked = " + ".join(f"({condition} ? [{_pair(key, Cel(value))}] : [])" for key, condition, value in some)
    inbound = f"variables.ports.size() > 0 ? [{_pair('INBOUND', Cel(_INBOUND))}] : []"
    outbound = f"variables.notes[?'{well_known.OUTBOUND}'].orValue('') != '' ? " + (
        f"[{_pair('OUTBOUND', Cel(f'variables.notes[{quoted(well_known.OUTBOUND)}]'))}] : []"
    )
    return f"[{always}] + (variables.captured ? [{', '.join(captured)}] + {asked} : ({inbound}) + ({outbound}))"


def _pair(key: str, value: str) -> str:
    written = f"string({value})" if isinstance(value, Cel) else quoted(value)
    return f"['{containers.ENVIRONMENT}{key}', {written}]"


_SETTINGS: Final = _settings()


def probes() -> list[dict[str, str]]:
    """Return the variables of the kubelet's probes: which the sidecar repeats, and how it is told of them."""
    kinds = ", ".join(_probe_of(kind) for kind in ("startup", "readiness", "liveness"))
    labelled = " + ".join(
        f"{there}.transformList(i, c, {{'name': dyn('{letter}' + string(i)),"
        f" 'path': dyn('/spec/{field}/' + string(i)), 'of': dyn(c)}})"
        for there, letter, field in (
            ("variables.init", "i", "initContainers"),
            ("object.spec.containers", "c", "containers"),
        )
    )
    # Which has no other host, and a port that is known.
    asks = "p.probe.?{0}.hasValue() && p.probe.{0}.?host.orValue('') == '' && p.port.size() > 0"
    kept = f"variables.asked.filter(p, {asks.format('httpGet')} || {asks.format('tcpSocket')} || "
    kept += "p.probe.?grpc.hasValue() && p.port.size() > 0)"
    return [
        _variable("labelled", labelled),
        _variable("all_probes", f"variables.labelled.map(x, [{kinds}].flatten()).flatten()"),
        _variable("asked", f"variables.all_probes.map(p, {_WITH_PORT})"),
        _variable("repeated", f"{kept}.transformList(i, p, i < {MOST}, p)"),
        _variable("probes", f"'[' + variables.repeated.map(p, {_TOLD}).join(',') + ']'"),
    ]


def _probe_of(kind: str) -> str:
    """Write a list with one probe of container `x`, or none."""
    return (
        f"(x.of.?{kind}Probe.hasValue() ? [{{'name': dyn(x.name + '-{kind}'),"
        f" 'path': dyn(x.path + '/{kind}Probe'), 'of': x.of, 'probe': dyn(x.of.{kind}Probe)}}] : [])"
    )


# A port is a number, or the name of one of the container's own.
_PORT: Final = (
    "p.probe.?httpGet.port.or(p.probe.?tcpSocket.port).or(p.probe.?grpc.port).optMap(n, type(n) == int ?"
    " [int(n)].filter(m, m > 0 && m <= 65535)"
    " : p.of.?ports.orValue([]).filter(o, has(o.name) && o.name == n).map(o, int(o.containerPort))).orValue([])"
)
_WITH_PORT: Final = f"{{'name': p.name, 'path': p.path, 'probe': p.probe, 'port': dyn({_PORT})}}"
# RE2 counts no further than 1000.
_HTTP: Final = (
    "p.probe.httpGet.?scheme.orValue('HTTP') == 'HTTP' &&"
    " (p.probe.httpGet.?path.orValue('') == '' || p.probe.httpGet.path.matches('^/[!-~]*$')"
    " && p.probe.httpGet.path.size() <= 1024)"
)
_PATH: Final = (
    "(p.probe.httpGet.?path.orValue('') == '' ? '/' :"
    r""" p.probe.httpGet.path.replace('\\', '\\\\').replace('"', '\\"'))"""
)
_SERVICE: Final = "p.probe.grpc.?service.orValue('')"
SECONDS: Final = (
    f"(p.probe.?timeoutSeconds.orValue(1) < 1 ? 1 : p.probe.?timeoutSeconds.orValue(1) > {MOST_SECONDS}"
    f" ? {MOST_SECONDS} : int(p.probe.?timeoutSeconds.orValue(1)))"
)
_TCP_TOLD: Final = """'"tcp":{"port":' + string(p.port[0]) + '}'"""
_TOLD: Final = (
    """'{"name":"' + p.name + '",' + (p.probe.?httpGet.hasValue() ? ("""
    f"""{_HTTP} ? '"http":{{"port":' + string(p.port[0]) + ',"path":"' + {_PATH} + '"}}' : {_TCP_TOLD})"""
    f""" : p.probe.?tcpSocket.hasValue() ? {_TCP_TOLD}"""
    f""" : '"grpc":{{"port":' + string(p.port[0]) + ({_SERVICE} != '' && {_SERVICE}.size() <= 255"""
    f""" && {_SERVICE}.matches('^[A-Za-z0-9_.]*$') ? ',"service":"' + {_SERVICE} + '"' : '') + '}}')"""
    f""" + ',"seconds":' + string({SECONDS}) + '}}'"""
)
# Where a kubelet asks instead.
ASKED: Final = f"dyn({{'path': dyn('/probe/' + p.name), 'port': dyn({PROBE_PORT}), 'scheme': dyn('HTTP')}})"
