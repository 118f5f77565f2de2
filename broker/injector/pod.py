# SPDX-License-Identifier: Apache-2.0
"""A pod in, the same pod with its sidecar out. Pure; nothing that the pod had is lost.

Again gives the same: a pod that has the sidecar is left as it is, once it is known to be the one that would be
injected. What could go round the sidecar is refused, with a sentence that says what to change.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from firedoor.broker.injector import containers, wishes
from firedoor.broker.injector.demands import NO_WAY_OUT, Demands, check, holds_users
from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.broker.injector.probes import Rewritten
from firedoor.broker.injector.settings import InjectorRules
from firedoor.certs.pod_token import is_namespace, is_object_name
from firedoor.cluster.objects import mapping
from firedoor.segments import well_known

# What lets a container take the rules away, send what they do not see, or read files and memory of the node, in which
# the sidecar's keys are.
ROUND: Final = frozenset(
    {
        *("ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO"),
        *("BPF", "PERFMON", "DAC_READ_SEARCH"),
    }
)
# Container runtimes raise letters as Unicode has it: NET_ADMIN with a dotless i (U+0131) is a capability, too.
CAPABILITY: Final = "[A-Za-z0-9_]+"
_CAPABILITY: Final = re.compile(CAPABILITY)
ODD: Final = "is given a capability with another name than of letters A to Z, digits and _"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Injected:
    """The pod as it is to be, and what whoever deploys it should know."""

    pod: dict[str, Any]
    warnings: tuple[str, ...]


def inject(
    pod: Mapping[str, Any], namespace: str, rules: InjectorRules, trust_domain: str, demands: Demands
) -> Injected:
    """Return the pod with its sidecar; unchanged when it has one, or wants none and may. Raise InjectionRefused."""
    made: dict[str, Any] = copy.deepcopy(dict(pod))
    spec = made.get("spec")
    if not isinstance(spec, dict) or not is_namespace(namespace) or not _is_pod(made, spec):
        raise InjectionRefused("this is no pod in a namespace")
    if wishes.opted_out(pod):
        if demands.required:
            raise InjectionRefused(NO_WAY_OUT)
        return Injected(made, ())
    if any(one.get("name") in well_known.CONTAINERS for one in _containers(spec)):
        _check_ours(made, spec, namespace, rules, trust_domain, demands)
        return Injected(made, ())
    return _inject(made, spec, namespace, rules, trust_domain, demands)


def _inject(
    made: dict[str, Any],
    spec: dict[str, Any],
    namespace: str,
    rules: InjectorRules,
    trust_domain: str,
    demands: Demands,
) -> Injected:
    """Put the sidecar into a pod that has none."""
    asked = wishes.read(made, namespace)
    check(demands, asked)
    account = spec.get("serviceAccountName") or "default"
    if not isinstance(account, str) or not is_object_name(account):
        raise InjectionRefused("its serviceAccountName is no name of a service account")
    _check(spec, rules, demands, captured=asked.captured)
    found = Rewritten([], _warnings(spec, asked))
    if asked.captured:
        for label, one in _labelled(spec):
            found.rewrite(one, label)
    spiffe_id = containers.identity(trust_domain, asked, namespace, account)
    env = containers.environment(rules, trust_domain, asked, spiffe_id, found.declared)
    for one in _containers(spec):
        _show_socket(one)
    spec["initContainers"] = [
        *containers.init_containers(rules, env, captured=asked.captured),
        *(spec.get("initContainers") or []),
    ]
    spec["volumes"] = [*(spec.get("volumes") or []), *containers.volumes(rules)]
    _note(made, spiffe_id, asked)
    return Injected(made, tuple(found.warnings))


def _is_pod(pod: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether what is read or written here has the shape that API servers give it."""
    metadata = pod.get("metadata", {})
    whole = isinstance(metadata, dict) and isinstance(spec.get("containers"), list)
    return (
        whole
        and all(isinstance(metadata.get(key) or {}, dict) for key in ("labels", "annotations"))
        and all(_are_objects(spec.get(key)) for key in ("containers", "initContainers", "volumes"))
        and all(_is_container(one) for one in _containers(spec))
    )


def _is_container(one: Mapping[str, Any]) -> bool:
    capabilities = mapping(mapping(one.get("securityContext")).get("capabilities"))
    return all(_are_objects(one.get(key)) for key in ("env", "volumeMounts", "ports")) and all(
        isinstance(capabilities.get(key) or [], list) for key in ("add", "drop")
    )


def _are_objects(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, dict) for one in value))


def _containers(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("initContainers", "containers"):
        found = spec.get(kind)
        for one in found if isinstance(found, list) else ():
            if isinstance(one, dict):
                yield one


def _labelled(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each container with a name for its probes: containers' own names are too long for that."""
    for kind, letter in (("initContainers", "i"), ("containers", "c")):
        found = spec.get(kind)
        for number, one in enumerate(found if isinstance(found, list) else ()):
            if isinstance(one, dict):
                yield f"{letter}{number}", one


def _check(spec: Mapping[str, Any], rules: InjectorRules, demands: Demands, *, captured: bool) -> None:
    """Refuse what a sidecar cannot be beside."""
    if spec.get("hostNetwork") is True:
        way_out = "" if demands.required else f", or label it {well_known.INJECT}: disabled"
        raise InjectionRefused(
            "it uses the node's network (hostNetwork: true), which no sidecar of one pod can stand before; "
            f"take that away{way_out}"
        )
    taken = {str(one.get("name")) for one in spec.get("volumes") or () if isinstance(one, dict)} & containers.VOLUMES
    if taken:
        raise InjectionRefused(f"its volume {min(taken)} has a name that the sidecar's volumes have")
    _check_tokens(spec, rules.audience)
    if spec.get("shareProcessNamespace") is True or spec.get("hostPID") is True:
        raise InjectionRefused(
            "its containers see each other's processes (shareProcessNamespace or hostPID), the sidecar's keys too"
        )
    whole = mapping(spec.get("securityContext"))
    for one in _containers(spec):
        _check_container(one, whole, rules, captured=captured)
    if holds_users(demands, rules):
        _check_users(spec, rules, captured=captured)


def _check_tokens(spec: Mapping[str, Any], audience: str) -> None:
    """Refuse a token in a pod's other volumes by which one could attest as its sidecar does."""
    for volume in spec.get("volumes") or ():
        sources = mapping(mapping(volume).get("projected")).get("sources")
        for source in sources if isinstance(sources, list) else ():
            if mapping(mapping(source).get("serviceAccountToken")).get("audience") == audience:
                raise InjectionRefused(
                    f"volume {str(volume.get('name', ''))[:63]} projects a token for {audience}, which proves who the "
                    "pod is: that is its sidecar's alone"
                )


def _check_container(one: Mapping[str, Any], whole: Mapping[str, Any], rules: InjectorRules, *, captured: bool) -> None:
    own, name = mapping(one.get("securityContext")), str(one.get("name", ""))[:63]
    user = own.get("runAsUser", whole.get("runAsUser"))
    if user == rules.uid:
        raise InjectionRefused(f"container {name} runs as user {rules.uid}, the sidecar's own, which passes the rules")
    mounts = [mount for mount in one.get("volumeMounts") or () if isinstance(mount, dict)]
    if any(m.get("name") in (containers.STATE, containers.TOKEN) for m in mounts):
        raise InjectionRefused(f"container {name} mounts a volume of the sidecar's, with what proves who the pod is")
    if any(m.get("name") == containers.AUTH and m.get("readOnly") is not True for m in mounts):
        raise InjectionRefused(f"container {name} mounts {containers.AUTH} to write to; it needs readOnly: true")
    if not captured:
        return
    added = _capabilities(own, "add")
    if not all(map(_CAPABILITY.fullmatch, _named(own, "add"))):
        raise InjectionRefused(f"container {name} {ODD}")
    if own.get("privileged") is True or added & ROUND:
        what = "privileged" if own.get("privileged") is True else f"the capability {min(added & ROUND)}"
        raise InjectionRefused(f"container {name} could go round its sidecar: it is given {what}")


def _check_users(spec: Mapping[str, Any], rules: InjectorRules, *, captured: bool) -> None:
    """Refuse containers whose user only their image names, and those that may become another."""
    whole = mapping(spec.get("securityContext"))
    for one in _containers(spec):
        user = mapping(one.get("securityContext")).get("runAsUser", whole.get("runAsUser"))
        if not isinstance(user, int):
            name = str(one.get("name", ""))[:63]
            raise InjectionRefused(
                f"container {name} has no runAsUser, so that its image names the user, which may be the sidecar's: "
                f"set runAsUser, for it or for the pod, to a number other than {rules.uid}"
            )
    loose = _root_warnings(spec) if captured else ()
    if loose:
        raise InjectionRefused(loose[0])


def _capabilities(own: Mapping[str, Any], key: str) -> set[str]:
    return {_raised(one).removeprefix("CAP_") for one in _named(own, key)}


def _drops_all(own: Mapping[str, Any]) -> bool:
    """Whether no capability is left: to a runtime CAP_ALL is one that it does not know."""
    return "ALL" in map(_raised, _named(own, "drop"))


def _named(own: Mapping[str, Any], key: str) -> list[str]:
    return [str(each) for each in mapping(own.get("capabilities")).get(key) or ()]


def _raised(name: str) -> str:
    """Raise letters of ASCII, as the guards do."""
    return name.upper() if name.isascii() else name


def _root_warnings(spec: Mapping[str, Any]) -> list[str]:
    """Name the containers that could become the sidecar's user.

    Whoever they run as: of the capabilities that a container has not dropped, a program of its image gets those that
    the image gives its file (capabilities(7)), also for a user that is not root and where no privilege is gained.
    """
    found = []
    for one in _containers(spec):
        own = mapping(one.get("securityContext"))
        # Of what was dropped, what is added is there.
        stays = _drops_all(own) and "SETUID" not in _capabilities(own, "add")
        if own.get("allowPrivilegeEscalation") is not False or not stays:
            name = str(one.get("name", ""))[:63]
            found.append(
                f"container {name} may become the sidecar's user and go round it: set allowPrivilegeEscalation: false "
                "and drop the capabilities ALL"
            )
    return found


def _warnings(spec: Mapping[str, Any], asked: wishes.Wishes) -> list[str]:
    if not asked.captured:
        return [f"not enforcing: the app can be reached past its sidecar ({well_known.CAPTURE}: none)"]
    passes = [well_known.EXCLUDE] if asked.exclude else []
    passes += [well_known.UDP] if asked.udp_passes else []
    return [f"not all is enforced: something passes by the sidecar ({key})" for key in passes] + _root_warnings(spec)


def _check_ours(
    pod: dict[str, Any],
    spec: dict[str, Any],
    namespace: str,
    rules: InjectorRules,
    trust_domain: str,
    demands: Demands,
) -> None:
    """Refuse a pod whose containers are called as ours and are others: it has no sidecar. Else note what it is."""
    bare = copy.deepcopy(pod)
    for kind, names in (("initContainers", well_known.CONTAINERS), ("volumes", containers.VOLUMES)):
        bare["spec"][kind] = [x for x in bare["spec"].get(kind) or () if x.get("name") not in names]
    if any(one.get("name") in well_known.CONTAINERS for one in _containers(bare["spec"])):
        raise InjectionRefused("one of its containers has a name that only the sidecar's init containers have")
    first = (spec.get("initContainers") or [{}])[0].get("image")
    if first in rules.accepted_images:
        # All of it is of one version, this or that.
        rules = replace(rules, image=first)
    wanted = _inject(bare, bare["spec"], namespace, rules, trust_domain, demands).pod
    ours = [one for one in wanted["spec"]["initContainers"] if one["name"] in well_known.CONTAINERS]
    present = (spec.get("initContainers") or [])[: len(ours)]
    volumes = {one.get("name"): one for one in spec.get("volumes") or ()}
    same = _is(_comparable(present), _comparable(ours)) and all(map(_plain, present))
    if not same or not all(_is(volumes.get(one["name"]), one) for one in containers.volumes(rules)):
        raise InjectionRefused(
            "it comes with a sidecar that is not the one which would be injected now: take the init containers "
            f"{', '.join(sorted(well_known.CONTAINERS))} and their volumes out of it"
        )
    pod["metadata"] = wanted["metadata"]


def _plain(one: Mapping[str, Any]) -> bool:
    """Whether what it may use up is no device, and no file lies over one of its own."""
    resources = mapping(one.get("resources"))
    limits = mapping(resources.get("limits")), mapping(resources.get("requests"))
    return (
        one.get("terminationMessagePath", containers.MESSAGE) == containers.MESSAGE
        and not resources.get("claims")
        and not any("/" in name for each in limits for name in each)
    )


def _comparable(found: list[Any]) -> list[Any]:
    """Leave out what they may use up, the service account's mount, and the probes, which are rewritten by now."""
    return [
        {
            **{key: value for key, value in one.items() if key != "resources"},
            "env": [v for v in one.get("env") or () if v.get("name") != containers.PROBES],
            "volumeMounts": [m for m in one.get("volumeMounts") or () if m.get("mountPath") != containers.ACCOUNT],
        }
        for one in found
    ]


def _is(found: object, wanted: object) -> bool:
    """Whether it is what is wanted and nothing else, but for the defaults that API servers add."""
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() - wanted.keys() <= containers.DEFAULTED
            and all(key in found and _is(found[key], value) for key, value in wanted.items())
        )
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(_is(one, other) for one, other in zip(found, wanted, strict=True))  # type: ignore[call-overload]
    return type(found) is type(wanted) and found == wanted


def _show_socket(one: dict[str, Any]) -> None:
    """Show a program of the pod where its identity is, unless it says that itself."""
    mounts, variables = list(one.get("volumeMounts") or []), list(one.get("env") or [])
    if not any(isinstance(m, dict) and m.get("mountPath") == containers.AUTH_FOLDER for m in mounts):
        one["volumeMounts"] = [*mounts, containers.auth_mount()]
    variable = containers.auth_variable()
    if not any(isinstance(v, dict) and v.get("name") == variable["name"] for v in variables):
        one["env"] = [*variables, variable]


def _note(pod: dict[str, Any], spiffe_id: str, asked: wishes.Wishes) -> None:
    """Write down what was done: for people, and so that it is done once. Exported packet filters go by the segment."""
    metadata = pod.setdefault("metadata", {})
    enforcing = "true" if asked.captured else "false"
    own = {well_known.SEGMENT: asked.segment, well_known.ENFORCING: enforcing}
    metadata["labels"] = {**(metadata.get("labels") or {}), **own}
    status = {"version": _VERSION, "identity": spiffe_id, "captured": asked.captured}
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        well_known.STATUS: json.dumps(status, separators=(",", ":")),
    }
