# SPDX-License-Identifier: Apache-2.0
"""What the API server itself refuses where sidecars are wanted, whoever changed a pod: ValidatingAdmissionPolicies.

They come after everything that changes a pod, and say what the injector says. `firedoor-labels`, `firedoor-bindings`,
`firedoor-tokens` and `firedoor-exec` look at all pods, the others at those that the injector looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from firedoor.broker.injector import cel, containers, demands, exclusions, sentences, wishes
from firedoor.broker.injector.policy import API, PARAM_KIND, PARAM_REF, bindings, pods
from firedoor.segments import well_known
from firedoor.segments.model import API_VERSION
from firedoor.segments.names import NAME

_KEPT: Final = (
    ("labels", well_known.SEGMENT),
    ("labels", well_known.INJECT),
    ("labels", well_known.ENFORCING),
    ("annotations", well_known.SEGMENT),
)
# What its sidecar was told as the pod was made: directory and inventory read it later.
_TOLD: Final = wishes.KNOWN - {well_known.SEGMENT}
# Kinds of volumes that are the pod's own, or cannot be written to whatever a mount says.
_HARMLESS: Final = ("configMap", "secret", "downwardAPI", "projected", "image", "emptyDir", "ephemeral")
Validation = dict[str, str]


def guards() -> list[dict[str, Any]]:
    """Return the policies and their bindings."""
    return [*_labels(), *_bindings(), *_tokens(), *_entered(), *_forwarded(), *_created(), *_changed(), *_volumes()]


def warnings() -> list[dict[str, Any]]:
    """Return what warns of what the webhook warns of, where there is none."""
    variables = [
        *cel.basis(),
        _own_init(),
        _apps(sentences.CREATED),
        _variable("loose", sentences.each(sentences.MAY_BECOME, sentences.BECOMES)),
    ]
    spec = {
        **_matching(pods("CREATE")),
        "variables": variables,
        "validations": [
            _refused(
                "variables.captured",
                f"not enforcing: the app can be reached past its sidecar ({well_known.CAPTURE}: none)",
            ),
            *(
                _refused(
                    f"!variables.captured || variables.notes[?'{key}'].orValue('').trim() == ''",
                    f"not all is enforced: something passes by the sidecar ({key})",
                )
                for key in (well_known.EXCLUDE, well_known.UDP)
            ),
            _first("loose"),
        ],
    }
    return _policy("firedoor-warnings", spec, {"validationActions": ["Warn"]})


def _policy(
    name: str, spec: dict[str, Any], more: dict[str, Any] | None = None, **bound: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    whole = {"apiVersion": API, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec}
    given = {"validationActions": ["Deny"]} | (more or {})
    return [whole, *bindings("ValidatingAdmissionPolicyBinding", name, given, **bound)]


def _matching(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": list(rules)}}


def _refused(expression: str, message: str) -> Validation:
    """Refuse what an expression does not hold for, with a sentence."""
    return {"expression": expression, "message": message}


def _told(expression: str, message: str) -> Validation:
    """The same, with a sentence that is an expression too."""
    return {"expression": expression, "messageExpression": message}


def _first(variable: str) -> Validation:
    """Refuse what a variable has sentences about."""
    return _told(f"variables.{variable}.size() == 0", f"variables.{variable}[0]")


def _variable(name: str, expression: str) -> dict[str, str]:
    return {"name": name, "expression": expression}


# Labels


def _labels() -> list[dict[str, Any]]:
    """What a pod said of itself stays: packet filters, certificates and exceptions go by it."""
    kept = [
        _refused(
            f"object.metadata.?{kind}[?'{key}'] == oldObject.metadata.?{kind}[?'{key}']",
            f"metadata.{kind}[{key}]: it stays as it was when the pod was made; make the pod anew",
        )
        for kind, key in _KEPT
    ]
    same = "object.metadata.?annotations[?k] == oldObject.metadata.?annotations[?k]"
    kept.append(
        _refused(
            f"{sentences.words(_TOLD)}.all(k, {same})",
            "metadata.annotations: what its sidecar was told stays as it was when the pod was made; make the pod anew",
        )
    )
    spec = {**_matching(pods("UPDATE", resources=("pods", "pods/status"))), "validations": kept}
    return _everywhere("firedoor-labels", spec)


def _bindings() -> list[dict[str, Any]]:
    """Who binds a pod to a node may give it labels and annotations, too."""
    given = [
        _refused(
            f"!object.metadata.?{kind}[?'{key}'].hasValue()",
            f"metadata.{kind}[{key}]: it is said as the pod is made, and not as it is bound to a node",
        )
        for kind, key in _KEPT
    ]
    given.append(
        _refused(
            f"!{sentences.words(_TOLD)}.exists(k, object.metadata.?annotations[?k].hasValue())",
            "metadata.annotations: a sidecar is told as the pod is made, and not as it is bound to a node",
        )
    )
    spec = {**_matching(pods("CREATE", resources=("pods/binding", "bindings"))), "validations": given}
    return _everywhere("firedoor-bindings", spec)


_NO_KUBELET: Final = "!('system:nodes' in request.userInfo.?groups.orValue([]))"


def _tokens() -> list[dict[str, Any]]:
    """Who asks for a token of a pod that its sidecar attests with: a kubelet, which puts it into that pod.

    Without the settings none is refused: it is about all tokens of a cluster.
    """
    spec = {
        **_matching(pods("CREATE", resources=("serviceaccounts/token",))),
        "paramKind": PARAM_KIND,
        "matchConditions": [{"name": "no-kubelet", "expression": _NO_KUBELET}],
        "validations": [
            _told(
                "!(params.data.audience in object.spec.?audiences.orValue([]))",
                "'spec.audiences: a token for ' + params.data.audience + ' proves who a pod is: kubelets ask for it,"
                " and nobody else'",
            )
        ],
    }
    return _everywhere("firedoor-tokens", spec, {"paramRef": {**PARAM_REF, "parameterNotFoundAction": "Allow"}})


# What an operator asks a sidecar, and nothing besides: no shell, and no other program.
_ASKS: Final = (
    "object.?command.orValue([]).size() >= 3 && object.command[0] == 'firedoor' && object.command[1] == 'sidecar'"
    " && object.command[2] == 'status'"
)


def _entered() -> list[dict[str, Any]]:
    """Who runs a program in a sidecar has its keys, and is its user, which the rules let by."""
    spec = {
        **_matching(pods("CONNECT", resources=("pods/exec", "pods/attach"))),
        "validations": [
            _refused(
                f"!(object.?container.orValue('') in [{sentences.OURS}])"
                f" || request.?subResource.orValue('') == 'exec' && {_ASKS}",
                "container: who runs a program in a sidecar has its keys and passes its rules; it is asked by"
                " `firedoor sidecar status` alone",
            )
        ],
    }
    return _everywhere("firedoor-exec", spec)


def _forwarded() -> list[dict[str, Any]]:
    """A kubelet connects from inside of the pod, where nothing is captured."""
    spec = {
        **_matching(pods("CONNECT", resources=("pods/portforward",))),
        "variables": [one for one in cel.demanded() if one["name"] in ("required", "may_exclude")],
        "validations": [
            _refused(
                "variables.may_exclude",
                "ports: its namespace requires that all is captured, and what is forwarded passes by the sidecar; have"
                f" the namespace labelled {well_known.CAPTURE}: {well_known.EXCLUSIONS}",
            )
        ],
    }
    return _everywhere("firedoor-port-forward", spec)


def _everywhere(name: str, spec: dict[str, Any], more: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    whole = {"apiVersion": API, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec}
    bound = {"policyName": name, "validationActions": ["Deny"], **(more or {})}
    kind = "ValidatingAdmissionPolicyBinding"
    return [whole, {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": bound}]


# Pods that are made


def _created() -> list[dict[str, Any]]:
    spec = {
        **_matching(pods("CREATE")),
        "paramKind": PARAM_KIND,
        "variables": [
            *cel.wanted(),
            *cel.demanded(),
            _own_init(),
            _apps(sentences.CREATED),
            *(_variable(name, expression) for name, expression in sentences.SENTENCES.items()),
            _variable("tokens", sentences.TOKENS),
            *_sidecar(),
        ],
        "validations": [
            *_wishes(),
            *_demands(),
            *_pod(),
            *_has_sidecar(),
            *(_first(name) for name in sentences.SENTENCES),
            _first("tokens"),
            *_is_ours(),
        ],
    }
    return _policy("firedoor-pods", spec, {"paramRef": PARAM_REF})


def _wishes() -> list[Validation]:
    """What `wishes` refuses."""
    label = f"variables.labels[?'{well_known.INJECT}'].orValue('enabled')"
    words = sentences.words(wishes.KNOWN)
    unknown = f"variables.notes.map(k, k).filter(k, k.startsWith('{well_known.PREFIX}') && !(k in {words}))"
    known = ", ".join(sorted(wishes.KNOWN))
    captured = f"variables.notes[?'{well_known.CAPTURE}'].orValue('')"
    outbound = f"variables.notes[?'{well_known.OUTBOUND}'].orValue('')"
    bad_ports = "variables.ports.filter(w, !(w.matches(r'^{0}$') && {1}))"
    numbers = "w.split('/')[0].size() <= 5 && int(w.find('^[0-9]+')) <= 65535"
    listened = f"{numbers} && int(w.find('[0-9]+$')) <= 65535"
    plain = bad_ports.format("[1-9][0-9]{0,4}/(tcp|http|grpc)(/audit)?", numbers)
    own = bad_ports.format("[1-9][0-9]{0,4}/(tcp|http|grpc)=[1-9][0-9]{0,4}", listened)
    said = f"variables.labels[?'{well_known.SEGMENT}'].orValue(variables.segment) == variables.segment"
    distinct = "variables.ports.map(w, w.find('{0}')).distinct().size() == variables.ports.size()"
    note = "metadata.annotations[{}]".format
    odd = f"variables.exclusions.filter(w, !(w.matches(r'^{exclusions.PATTERN}$') && ({_PASSES})))"
    names = f"variables.dns.filter(w, !(w.matches(r'^{wishes.DNS_NAME}$') && w.size() <= 253))"
    return [
        _refused(
            f"{label} in ['enabled', 'disabled']",
            f"metadata.labels[{well_known.INJECT}]: it must be enabled or disabled",
        ),
        _told(
            f"{unknown}.size() == 0",
            f"'metadata.annotations: there is no annotation ' + {unknown}[0] + '; known are {known}'",
        ),
        _refused(f"{captured} in ['', 'none']", f"{note(well_known.CAPTURE)}: it has one value: none"),
        _refused("variables.ports.size() <= 64", f"{note(well_known.PORTS)}: it names more than 64 ports"),
        _told(
            f"!variables.captured || {plain}.size() == 0",
            f"'{note(well_known.PORTS)}: ' + {plain}[0]"
            " + ' must be PORT/PROTOCOL, such as 9000/http; tcp, http or grpc'",
        ),
        _told(
            f"variables.captured || {own}.size() == 0",
            f"'{note(well_known.PORTS)}: ' + {own}[0] + ' must be PORT/PROTOCOL=PORT, such as 9000/http=19000,"
            " where nothing is captured'",
        ),
        _refused(
            f"{distinct.format('^[0-9]+')} && (variables.captured || {distinct.format('[0-9]*$')})",
            f"{note(well_known.PORTS)}: it names a port twice",
        ),
        _refused(
            f"!variables.captured || {outbound} == ''",
            f"{note(well_known.OUTBOUND)}: it is for pods with {well_known.CAPTURE}: none;"
            " else all that leaves is captured",
        ),
        _refused(
            f"{outbound} == '' || {outbound}.trim().startsWith('[') && {outbound}.size() <= 16384",
            f"{note(well_known.OUTBOUND)}: it must be a list of listeners in YAML, in brackets, up to 16 KiB",
        ),
        *(
            _refused(
                f"variables.captured || !({cel.quoted(key)} in variables.notes)",
                f"{note(key)}: it is for pods that are captured, and this one has {well_known.CAPTURE}: none",
            )
            for key in wishes.CAPTURED
        ),
        _refused(
            f"variables.notes[?'{well_known.UDP}'].orValue('') in ['', 'pass']",
            f"{note(well_known.UDP)}: it has one value: pass",
        ),
        _refused(
            f"variables.exclusions.size() <= {exclusions.MOST}",
            f"{note(well_known.EXCLUDE)}: it has more than {exclusions.MOST} exclusions",
        ),
        _told(
            f"{odd}.size() == 0",
            f"'{note(well_known.EXCLUDE)}: ' + {odd}[0] + ' must say what passes and why, as `inbound tcp 9100 from"
            " 10.0.0.0/8: metrics`, with ports that are some and networks with no bits after their length'",
        ),
        _refused(
            f"variables.dns.size() <= {wishes.MAX_NAMES}",
            f"{note(well_known.DNS)}: it has more than {wishes.MAX_NAMES} names",
        ),
        _told(
            f"{names}.size() == 0",
            f"'{note(well_known.DNS)}: ' + {names}[0] + ' must be a name such as s3.example.org, or **.example.org'",
        ),
        _refused(
            f"variables.segment.matches('^{NAME}$')",
            f"{note(well_known.SEGMENT)}: it is no name of a segment",
        ),
        _refused(said, f"metadata.labels[{well_known.SEGMENT}]: it is not what the annotation of that name says"),
    ]


def _demands() -> list[Validation]:
    """What `demands` refuses."""
    note = "metadata.annotations[{}]: ".format
    return [
        _refused(
            f"!variables.required || variables.labels[?'{well_known.INJECT}'].orValue('enabled') != 'disabled'",
            f"metadata.labels[{well_known.INJECT}]: {demands.NO_WAY_OUT}",
        ),
        _refused(
            "variables.may_leave || variables.captured", note(well_known.CAPTURE) + demands.not_left(well_known.CAPTURE)
        ),
        *(
            _refused(
                f"variables.may_exclude || {given}",
                note(key) + demands.not_left(key),
            )
            for key, given in (
                (well_known.EXCLUDE, "variables.exclusions.size() == 0"),
                (well_known.UDP, f"variables.notes[?'{well_known.UDP}'].orValue('') == ''"),
            )
        ),
    ]


_PORTS: Final = cel.EXCLUDED_PORTS
_ADDRESSES: Final = cel.EXCLUDED_ADDRESSES
# Of an exclusion that reads as one: what it names is there.
_PASSES: Final = (
    f"({_PORTS} != '' || {_ADDRESSES} != '')"
    f" && ({_PORTS} == '' || {_PORTS}.split(',').all(p, int(p) <= 65535))"
    f" && ({_ADDRESSES} == '' || {_ADDRESSES}.split(',').all(a,"
    " isIP(a) || isCIDR(a) && cidr(a).masked() == cidr(a)))"
)


_WAY_OUT: Final = f"(variables.required ? '' : ', or label it {well_known.INJECT}: disabled')"


def _pod() -> list[Validation]:
    """What `pod` refuses of a pod as a whole."""
    return [
        _told(
            "!object.spec.?hostNetwork.orValue(false)",
            "\"spec.hostNetwork: it uses the node's network (hostNetwork: true), which no sidecar of one pod can stand"
            f' before; take that away" + {_WAY_OUT}',
        ),
        *(
            _refused(
                f"!object.spec.?{key}.orValue(false)",
                f"spec.{key}: its containers see each other's processes ({key}), the sidecar's keys too",
            )
            for key in ("shareProcessNamespace", "hostPID")
        ),
    ]


def _own_init() -> dict[str, str]:
    """How many init containers are ours, at the front."""
    return _variable(
        "own_init",
        f"object.spec.?initContainers.orValue([]).exists(c, c.name in [{sentences.OURS}])"
        " ? (variables.captured ? 2 : 1) : 0",
    )


def _apps(expression: str) -> dict[str, str]:
    return _variable("apps", expression)


# The sidecar


def _sidecar() -> list[dict[str, str]]:
    """Write which fields of the sidecar are not as they would be injected."""
    both, one = (
        " + ".join(_strange(wanted, place) for place, wanted in enumerate(cel.init_containers(captured=captured)))
        for captured in (True, False)
    )
    names = _names_at("true"), _names_at("false")
    volumes = " + ".join(
        f"(object.spec.?volumes.orValue([]).exists(v, v == {cel.literal(_stored(one))}) ? []"
        f" : ['spec.volumes: {one['name']}'])"
        for one in cel.volumes()
    )
    first = "variables.init[0].?image.orValue('')"
    return [
        # All of it is of one version, this or that.
        _variable(
            "image",
            f"{first} in params.data.accepted_images.split(',') && {first} != '' ? {first} : params.data.image",
        ),
        _variable("has_sidecar", f"variables.captured ? {names[0]} : {names[1]}"),
        _variable("strange", f"variables.has_sidecar ? ((variables.captured ? {both} : {one}) + {volumes}) : []"),
    ]


def _names_at(captured: str) -> str:
    ours = [one["name"] for one in cel.init_containers(captured=captured == "true")]
    each = [f"variables.init[{place}].name == '{name}'" for place, name in enumerate(ours)]
    return f"(variables.init.size() >= {len(ours)} && {' && '.join(each)})"


def _has_sidecar() -> list[Validation]:
    return [
        _told(
            "variables.has_sidecar",
            "'spec.initContainers: it has no sidecar in front; let the injector put it there'" + f" + {_WAY_OUT}",
        )
    ]


def _is_ours() -> list[Validation]:
    return [
        _told(
            "variables.strange.size() == 0",
            "variables.strange[0] + ': it comes with a sidecar that is not the one which would be injected now:"
            " take the init containers " + ", ".join(sorted(well_known.CONTAINERS)) + " and their volumes out of it'",
        ),
        _told(
            f"variables.labels[?'{well_known.SEGMENT}'].orValue('') == variables.segment",
            f"'metadata.labels[{well_known.SEGMENT}]: it must be ' + variables.segment"
            " + ', the segment of its identity'",
        ),
        _told(
            f"variables.labels[?'{well_known.ENFORCING}'].orValue('') == string(variables.captured)",
            f"'metadata.labels[{well_known.ENFORCING}]: it must be \"' + string(variables.captured) + '\"'",
        ),
    ]


def _strange(wanted: dict[str, Any], place: int) -> str:
    """Write the list of the fields of an init container that differ; what it is given to use up may."""
    found, at = f"variables.init[{place}]", f"spec.initContainers[{place}]"
    fields = {**{key: value for key, value in wanted.items() if key not in ("env", "volumeMounts", "resources")}}
    if "startupProbe" in fields:
        fields["startupProbe"] = {**fields["startupProbe"], "successThreshold": 1}
    keys = sentences.words((*wanted, "volumeMounts", *containers.CONTAINER_DEFAULTS))
    tests = {key: f"{found}.?{key}.orValue(dyn('')) == {cel.literal(value)}" for key, value in fields.items()}
    tests["env"] = (
        f"{found}.?env.orValue([]).all(v, !has(v.valueFrom)) && {found}.?env.orValue([])"
        f".filter(v, v.name != '{containers.PROBES}')"
        ".map(v, [string(v.name), string(v.?value.orValue(''))]) == variables.settings"
    )
    tests["image"] = f"{found}.?image.orValue('') == variables.image"
    mounts = cel.literal(wanted.get("volumeMounts", []))
    tests["volumeMounts"] = (
        f"{found}.?volumeMounts.orValue([]).filter(m, m.mountPath != '{containers.ACCOUNT}') == {mounts}"
    )
    message = cel.quoted(containers.MESSAGE)
    tests["terminationMessagePath"] = f"{found}.?terminationMessagePath.orValue({message}) == {message}"
    # Devices are called DOMAIN/NAME, and come with files and variables of their own.
    devices = "exists(k, k.contains('/'))"
    tests["resources"] = (
        f"{found}.?resources.claims.orValue([]).size() == 0 && !{found}.?resources.limits.orValue({{}}).{devices}"
        f" && !{found}.?resources.requests.orValue({{}}).{devices}"
    )
    each = [f"({test} ? '' : '{at}.{key}')" for key, test in tests.items()]
    each.append(f"({found}.all(k, k in {keys}) ? '' : '{at}')")
    return f"[{', '.join(each)}].filter(f, f != '')"


def _stored(volume: dict[str, Any]) -> dict[str, Any]:
    """Return a volume with what an API server adds."""
    return {
        key: {**value, "defaultMode": 420} if key in ("projected", "configMap") else value
        for key, value in volume.items()
    }


# Pods that run


_RULED: Final = (
    f"oldObject.?status.initContainerStatuses.orValue([]).exists(s, s.name == '{well_known.CAPTURE_CONTAINER}'"
    " && s.?state.terminated.exitCode.orValue(1) == 0)"
)


def _joining_strictly() -> list[dict[str, str]]:
    """Hold whoever joins a pod that has a sidecar; what joined before the namespace's label came may stay."""
    strict = [one for one in cel.demanded() if one["name"] in ("required", "strict")]
    ours = f"object.spec.?initContainers.orValue([]).exists(c, c.name in [{sentences.OURS}])"
    joins = "request.?subResource.orValue('') == 'ephemeralcontainers'"
    return [strict[0], _variable("strict", f"{joins} && {ours} && {strict[1]['expression']}")]


def _changed() -> list[dict[str, Any]]:
    ours = f"{{}}.spec.?initContainers.orValue([]).filter(c, c.name in [{sentences.OURS}]).map(c, c.image)"
    target = sentences.each(
        f"x.of.?targetContainerName.orValue('') in [{sentences.OURS}]",
        '".targetContainerName: container " + string(x.of.name) + " would see the sidecar\'s processes, its keys too"',
    )
    spec = {
        **_matching(pods("UPDATE", resources=("pods", "pods/ephemeralcontainers"))),
        "paramKind": PARAM_KIND,
        "variables": [
            _variable(
                "captured",
                f"object.spec.?initContainers.orValue([]).exists(c, c.name == '{well_known.CAPTURE_CONTAINER}')",
            ),
            *_joining_strictly(),
            _apps(sentences.JOINING),
            _variable("targets", target),
            *(_variable(name, expression) for name, expression in sentences.SENTENCES.items()),
        ],
        "validations": [
            _refused(
                f"{ours.format('object')} == {ours.format('oldObject')}",
                "spec.initContainers: the image of its sidecar stays; make the pod anew",
            ),
            _first("targets"),
            *(_first(name) for name in sentences.SENTENCES),
            # A kubelet starts those that join before the init containers.
            _refused(
                f"request.?subResource.orValue('') != 'ephemeralcontainers' || !variables.captured || {_RULED}",
                "spec.ephemeralContainers: its rules are not written yet; "
                f"wait until {well_known.CAPTURE_CONTAINER} has ended",
            ),
        ],
    }
    return _policy("firedoor-running-pods", spec, {"paramRef": PARAM_REF})


# Volumes


def _volumes() -> list[dict[str, Any]]:
    """Hold pods to a Segment that says `volumes: read-only`, with a sidecar or without.

    What a pod says of its segment stays as it was when it was made.
    """
    segment = (
        f"object.metadata.?annotations[?'{well_known.SEGMENT}'].orValue("
        f"object.metadata.?labels[?'{well_known.SEGMENT}'].orValue(request.namespace))"
    )
    harmless = " || ".join(f"has(v.{kind})" for kind in _HARMLESS)
    lasting = f"object.spec.?volumes.orValue([]).filter(v, !({harmless})).map(v, v.name)"
    mounts = "x.of.?volumeMounts.orValue([]).filter(m, m.name in variables.lasting && !m.?readOnly.orValue(false))"
    devices = "x.of.?volumeDevices.orValue([]).size() > 0"
    reason = "segment ' + params.metadata.name + ' has volumes: read-only'"
    spec = {
        **_matching(pods("CREATE"), pods("UPDATE", resources=("pods/ephemeralcontainers",))),
        "paramKind": {"apiVersion": API_VERSION, "kind": "Segment"},
        "matchConditions": [
            {"name": "read-only", "expression": "params.spec.?volumes.orValue('') == 'read-only'"},
            {
                "name": "of-the-segment",
                "expression": f"{segment} == params.metadata.name",
            },
        ],
        "variables": [
            _variable("init", "object.spec.?initContainers.orValue([])"),
            _variable("own_init", "0"),
            _apps(f"{sentences.CREATED} + {sentences.JOINING}"),
            _variable("lasting", lasting),
            _variable(
                "written",
                sentences.each(
                    f"{mounts}.size() > 0", f"'.volumeMounts: ' + {mounts}[0].name + ' needs readOnly: true: {reason}"
                ),
            ),
            _variable("devices", sentences.each(devices, f"'.volumeDevices: a device can be written to: {reason}")),
        ],
        "validations": [_first("written"), _first("devices")],
    }
    every = {"selector": {}, "parameterNotFoundAction": "Allow"}
    labelled = {"key": well_known.SEGMENT, "operator": "Exists"}
    return _policy("firedoor-volumes", spec, {"paramRef": every}, inside=(), elsewhere=(labelled,))
