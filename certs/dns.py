# SPDX-License-Identifier: Apache-2.0
"""DNS names as they may stand in an SVID, for clients that check nothing else. firedoor itself never looks at them.

>>> check_dns_name("models.registry.internal")
>>> check_dns_name("10.0.0.1")
Traceback (most recent call last):
...
firedoor.certs.errors.IssueError: a DNS name in the certificate must be lower-case labels, the first of them perhaps *
"""

from __future__ import annotations

import re
from typing import Final

from firedoor.certs.errors import IssueError

MAX_DNS_NAME: Final = 253  # RFC 1035 section 3.1, without the root's dot.

_NAME: Final = re.compile(
    r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)


def check_dns_name(name: str) -> None:
    """Raise IssueError unless a certificate may hold the name.

    What ends in a number is an address (WHATWG URL, section 3.5), and an address proves nothing.
    """
    last = name.rpartition(".")[2]
    if len(name) > MAX_DNS_NAME or not _NAME.fullmatch(name) or last.isdigit():
        raise IssueError("bad_dns_name")
