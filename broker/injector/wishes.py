# SPDX-License-Identifier: Apache-2.0
"""What a pod asks for by labels and annotations. What cannot be is refused with a sentence for whoever deploys it.

| annotation | |
|---|---|
| `firedoor.dev/segment: inference` | its segment; unless it says so, its label of that name, or the namespace's name |
| `firedoor.dev/ports: "9000/http, 5432/tcp/audit"` | what arrives, by port; `audit` takes plaintext in audit mode |
| `firedoor.dev/capture.exclude: "inbound tcp 9100: metrics"` | what passes by the sidecar, and why; `;` between them |
| `firedoor.dev/udp: pass` | UDP and ICMP pass by the sidecar |
| `firedoor.dev/dns: "s3.example.org, **.cluster.local"` | the only names that may be asked for, or `none` |
| `firedoor.dev/capture: none` | no rules: listeners at ports of their own, `ports: "9000/http=19000"` |
| `firedoor.dev/outbound: '[{…}]'` | where nothing is captured, listeners for what leaves, as a sidecar is told them |

The label `firedoor.dev/inject` is `enabled` or `disabled`. What its namespace leaves to it `demands` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from firedoor.broker.injector import exclusions
from firedoor.broker.injector.exclusions import Exclusion, InjectionRefused
from firedoor.segments.names import is_name
from firedoor.segments.pod_ports import MAX_PORTS, PodPort, port_words
from firedoor.segments.well_known import (
    CAPTURE,
    DNS,
    EXCLUDE,
    INJECT,
    OUTBOUND,
    PORTS,
    PREFIX,
    SEGMENT,
    STATUS,
    UDP,
)

# For pods that are captured.
CAPTURED: Final = (EXCLUDE, UDP, DNS)
KNOWN: Final = frozenset({SEGMENT, PORTS, CAPTURE, *CAPTURED, OUTBOUND, STATUS})

MAX_NAMES: Final = 100
_MAX_NAME: Final = 253
LABEL: Final = "[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
DNS_NAME: Final = rf"(\*\*|\*|{LABEL})(\.(\*|{LABEL}))*"
_DNS_NAME: Final = re.compile(DNS_NAME)
_MAX_OUTBOUND: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a pod asks for."""

    segment: str
    ports: tuple[PodPort, ...]
    captured: bool
    outbound: str
    exclude: tuple[Exclusion, ...]
    udp_passes: bool
    # The only names that may be asked for; None: any.
    names: tuple[str, ...] | None


def opted_out(pod: Mapping[str, Any]) -> bool:
    """Say whether a pod wants no sidecar; what its namespace wants the webhook's selectors know.

    Raise InjectionRefused for a word that is neither: whoever misspells one finds out.
    """
    wish = _texts(pod, "labels").get(INJECT, "enabled")
    if wish not in ("enabled", "disabled"):
        raise InjectionRefused(f"its label {INJECT} is {wish[:63]!r}, and must be enabled or disabled")
    return wish == "disabled"


def read(pod: Mapping[str, Any], namespace: str) -> Wishes:
    """Read what a pod asks for. Raise InjectionRefused."""
    annotations = _texts(pod, "annotations")
    unknown = sorted(key for key in annotations if key.startswith(PREFIX) and key not in KNOWN)
    if unknown:
        raise InjectionRefused(f"there is no annotation {unknown[0][:100]}; known are {', '.join(sorted(KNOWN))}")
    captured = annotations.get(CAPTURE, "")
    if captured not in ("", "none"):
        raise InjectionRefused(f"{CAPTURE}: {captured[:100]!r} is none of its values, of which there is one: none")
    ports = _ports(annotations.get(PORTS, ""), captured=not captured)
    outbound = annotations.get(OUTBOUND, "")
    if outbound and not captured:
        raise InjectionRefused(f"{OUTBOUND} is for pods with {CAPTURE}: none; else all that leaves is captured")
    if outbound and (not outbound.lstrip().startswith("[") or len(outbound) > _MAX_OUTBOUND):
        raise InjectionRefused(f"{OUTBOUND} must be a list of listeners in YAML, in brackets, up to 16 KiB")
    given = sorted(key for key in CAPTURED if key in annotations)
    if given and captured:
        raise InjectionRefused(f"{given[0]} is for pods that are captured, and this one has {CAPTURE}: none")
    udp = annotations.get(UDP, "")
    if udp not in ("", "pass"):
        raise InjectionRefused(f"{UDP}: {udp[:100]!r} is none of its values, of which there is one: pass")
    return Wishes(
        segment=segment_of(pod, namespace),
        ports=ports,
        captured=not captured,
        outbound=outbound,
        exclude=exclusions.read(annotations.get(EXCLUDE, "")),
        udp_passes=bool(udp),
        names=_names(annotations.get(DNS, "")),
    )


def _names(text: str) -> tuple[str, ...] | None:
    """Read patterns of DNS names as the sidecar does: labels, `*` for exactly one, `**` for some, at the front."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if words == ("none",):
        return ()
    if len(words) > MAX_NAMES:
        raise InjectionRefused(f"{DNS} has more than {MAX_NAMES} names")
    bad = next((word for word in words if len(word) > _MAX_NAME or not _DNS_NAME.fullmatch(word)), None)
    if bad is not None:
        raise InjectionRefused(f"{DNS}: {bad[:100]!r} must be a name such as s3.example.org, or **.example.org")
    return words or None


def segment_of(pod: Mapping[str, Any], namespace: str) -> str:
    """Read the segment that a pod asks for. Packet filters go by the label, so that it says the same.

    Raise InjectionRefused.
    """
    annotations = _texts(pod, "annotations")
    labelled = _texts(pod, "labels").get(SEGMENT)
    said = annotations.get(SEGMENT, labelled if labelled is not None else namespace)
    if labelled not in (None, said):
        raise InjectionRefused(f"its annotation {SEGMENT} is {said[:63]!r}, and its label {str(labelled)[:63]!r}")
    return _segment(said)


def _segment(name: str) -> str:
    if not is_name(name):
        raise InjectionRefused(f"{SEGMENT}: {name[:100]!r} is no name of a segment")
    return name


def _ports(text: str, *, captured: bool) -> tuple[PodPort, ...]:
    named = port_words(text)
    if len(named) > MAX_PORTS:
        raise InjectionRefused(f"{PORTS} names more than {MAX_PORTS} ports")
    found = [_port(word, captured=captured) for word in named]
    for numbers in ([one.port for one in found], [one.listen for one in found if one.listen]):
        if len(set(numbers)) != len(numbers):
            raise InjectionRefused(f"{PORTS} names a port twice")
    return tuple(found)


def _port(word: str, *, captured: bool) -> PodPort:
    found = PodPort.parse(word)
    if found is None:
        raise InjectionRefused(f"{PORTS}: {word[:100]!r} must be PORT/PROTOCOL, such as 9000/http; tcp, http or grpc")
    if captured and found.listen:
        raise InjectionRefused(f"{PORTS}: {word}: `={found.listen}` is for pods with {CAPTURE}: none")
    if not captured and not found.listen:
        raise InjectionRefused(
            f"{PORTS}: {word} needs a port of the sidecar's own, as nothing is captured: {word}=1{found.port:0>4}"
        )
    if not captured and found.audit:
        raise InjectionRefused(
            f"{PORTS}: {word}: plaintext is taken where the port is captured, and not at {found.listen}"
        )
    return found


def _texts(pod: Mapping[str, Any], kind: str) -> dict[str, str]:
    metadata = pod.get("metadata")
    found = metadata.get(kind) if isinstance(metadata, dict) else None
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
