# SPDX-License-Identifier: Apache-2.0
"""Capture: what a network namespace sends and receives goes through its sidecar, though its programs know of none.

Pure: `settings` reads the configuration, `rules` makes the ruleset of it, `listing` compares that with what the kernel
lists, `privileges` says which programs could go round. `nft` alone reaches the kernel, by nftables' own program.
"""

from firedoor.sidecar.capture.listing import differences
from firedoor.sidecar.capture.rules import Ruleset, make
from firedoor.sidecar.capture.settings import Capture, Exclusion

__all__ = ["Capture", "Exclusion", "Ruleset", "differences", "make"]
