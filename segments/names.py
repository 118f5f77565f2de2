# SPDX-License-Identifier: Apache-2.0
"""Names that people give: of segments, flows and services, of listeners and probes. Pure.

>>> is_name("mcp-search"), is_name("-a"), is_name("A")
(True, False, False)
"""

from __future__ import annotations

import re
from typing import Final

# A DNS label (RFC 1123), so that it fits into labels and names of a cluster; schemas and CEL take it as it is here.
NAME: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(NAME)


def is_name(text: str) -> bool:
    """Say whether something may be called so."""
    return _NAME.fullmatch(text) is not None
