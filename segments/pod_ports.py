# SPDX-License-Identifier: Apache-2.0
"""What a pod says arrives at it, by its annotation `firedoor.dev/ports`: `9000/http, 5432/tcp/audit`. Pure.

`audit` takes connections without TLS, in audit mode. Where nothing is captured a port of the sidecar's own stands
behind `=`. What a pod may ask for the injector says, and refuses the rest; whoever reads it later leaves the rest out.

>>> PodPort.parse("5432/tcp/audit")
PodPort(port=5432, protocol='tcp', audit=True, listen=0)
>>> [PodPort.parse(word) for word in port_words("9000/http=19000, 9000/udp")]
[PodPort(port=9000, protocol='http', audit=False, listen=19000), None]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

# As many as a pod may name.
MAX_PORTS: Final = 64
_PORT: Final = re.compile(r"([1-9][0-9]{0,4})/(tcp|http|grpc)(/audit)?(?:=([1-9][0-9]{0,4}))?")
_MAX_PORT: Final = 65535


@final
@dataclass(frozen=True, slots=True)
class PodPort:
    """One port of the app; `listen` is the sidecar's for it where nothing is captured, 0 where it is."""

    port: int
    protocol: str
    audit: bool
    listen: int

    @classmethod
    def parse(cls, word: str) -> PodPort | None:
        """Read one of the annotation's words; None when it is none."""
        matched = _PORT.fullmatch(word)
        if matched is None or int(matched[1]) > _MAX_PORT or int(matched[4] or 0) > _MAX_PORT:
            return None
        return cls(int(matched[1]), matched[2], bool(matched[3]), int(matched[4] or 0))


def port_words(text: str) -> list[str]:
    """Split the annotation."""
    return [word for one in text.split(",") if (word := one.strip())]
