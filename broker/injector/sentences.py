# SPDX-License-Identifier: Apache-2.0
"""What guards say of containers and volumes that are not the sidecar's: sentences in CEL, none if all is well.

They read the variables `apps` (the containers, each with its place), `captured` and `strict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from firedoor.broker.injector import cel, containers
from firedoor.broker.injector.pod import CAPABILITY, ODD, ROUND
from firedoor.segments import well_known

OURS: Final = ", ".join(cel.quoted(one) for one in sorted(well_known.CONTAINERS))
# The containers that are not ours: those of a pod that is made, and those that join it later.
CREATED: Final = (
    "variables.init.transformList(i, c, i >= variables.own_init,"
    " {'at': dyn('spec.initContainers[' + string(i) + ']'), 'of': dyn(c)})"
    " + object.spec.containers.transformList(i, c,"
    " {'at': dyn('spec.containers[' + string(i) + ']'), 'of': dyn(c)})"
)
JOINING: Final = (
    "object.spec.?ephemeralContainers.orValue([]).transformList(i, c,"
    " {'at': dyn('spec.ephemeralContainers[' + string(i) + ']'), 'of': dyn(c)})"
)


def each(condition: str, sentence: str) -> str:
    """Write the sentences about the containers for which a condition holds."""
    return f"variables.apps.filter(x, {condition}).map(x, string(x.at) + {sentence})"


def words(texts: Sequence[str] | frozenset[str]) -> str:
    """Write a list of texts, in order."""
    return f"[{', '.join(cel.quoted(one) for one in sorted(texts))}]"


_NAMED: Final = "'container ' + string(x.of.name) + '"
_CAPABILITY: Final = "(a.upperAscii().startsWith('CAP_') ? a.upperAscii().substring(4) : a.upperAscii())"
_ADDED: Final = (
    f"x.of.?securityContext.capabilities.add.orValue([]).map(a, {_CAPABILITY}).filter(a, a in {words(ROUND)})"
)
_MOUNTS: Final = "x.of.?volumeMounts.orValue([])"
_SECRET: Final = words((containers.STATE, containers.TOKEN))
# Who may become another user, where a user passes.
MAY_BECOME: Final = (
    "variables.captured && (x.of.?securityContext.allowPrivilegeEscalation.orValue(true)"
    " || !x.of.?securityContext.capabilities.drop.orValue([]).exists(d, d.upperAscii() == 'ALL')"
    " || x.of.?securityContext.capabilities.add.orValue([]).exists(a, a.upperAscii() in ['SETUID', 'CAP_SETUID']))"
)
BECOMES: Final = (
    '": container " + string(x.of.name) + " may become the sidecar\'s user and go round it: set'
    ' allowPrivilegeEscalation: false and drop the capabilities ALL"'
)
# Sentences about containers, by name of the variable that holds them.
SENTENCES: Final = {
    "same_user": each(
        f"x.of.?securityContext.runAsUser.orValue(object.spec.?securityContext.runAsUser.orValue(-1)) == {cel.UID}",
        '".securityContext.runAsUser: container " + string(x.of.name) + " runs as user " + params.data.uid'
        ' + ", the sidecar\'s own, which passes the rules"',
    ),
    "unnamed_user": each(
        "variables.strict && x.of.?securityContext.runAsUser.orValue("
        "object.spec.?securityContext.runAsUser.orValue(-1)) == -1",
        '".securityContext.runAsUser: container " + string(x.of.name) + " has no runAsUser, so that its image names'
        " the user, which may be the sidecar's: set runAsUser, for it or for the pod, to a number other than \""
        " + params.data.uid",
    ),
    "may_become": each(f"variables.strict && {MAY_BECOME}", BECOMES),
    "secret_mounts": each(
        f"{_MOUNTS}.exists(m, m.name in {_SECRET})",
        '".volumeMounts: container " + string(x.of.name) + " mounts a volume of the sidecar\'s,'
        ' with what proves who the pod is"',
    ),
    "written_socket": each(
        f"{_MOUNTS}.exists(m, m.name == '{containers.AUTH}' && !m.?readOnly.orValue(false))",
        f"'.volumeMounts: ' + {_NAMED} mounts {containers.AUTH} to write to; it needs readOnly: true'",
    ),
    "privileged": each(
        "variables.captured && x.of.?securityContext.privileged.orValue(false)",
        f"'.securityContext.privileged: ' + {_NAMED} could go round its sidecar: it is given privileged'",
    ),
    "capabilities": each(
        f"variables.captured && {_ADDED}.size() > 0",
        f"'.securityContext.capabilities.add: ' + {_NAMED} could go round its sidecar: it is given the capability '"
        f" + {_ADDED}[0]",
    ),
    "odd": each(
        "variables.captured && !x.of.?securityContext.capabilities.add.orValue([])"
        f".all(a, a.matches({cel.quoted(f'^{CAPABILITY}$')}))",
        f"'.securityContext.capabilities.add: ' + {_NAMED} {ODD}'",
    ),
    "names": each(
        f"x.of.name in [{OURS}]",
        "'.name: it is a name that only the init containers of the sidecar have'",
    ),
}
# About volumes that are not the sidecar's, and hold what it attests with.
TOKENS: Final = (
    "object.spec.?volumes.orValue([]).transformList(i, v, {'at': i, 'of': dyn(v)})"
    f".filter(x, x.of.name != '{containers.TOKEN}' && x.of.?projected.sources.orValue([])"
    ".exists(s, s.?serviceAccountToken.audience.orValue('') == params.data.audience))"
    ".map(x, 'spec.volumes[' + string(x.at) + ']: volume ' + string(x.of.name) + ' projects a token for '"
    " + params.data.audience + ', which proves who the pod is: that is its sidecar\\'s alone')"
)
