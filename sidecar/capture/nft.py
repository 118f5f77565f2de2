# SPDX-License-Identifier: Apache-2.0
"""nftables' own program, `nft`, by JSON: a transaction is written as a whole or not at all.

It is looked for where root's programs are, not along a PATH that somebody else has set.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from firedoor.sidecar.capture import rules
from firedoor.sidecar.capture.rules import Ruleset
from firedoor.sidecar.errors import CaptureFailed, ToolMissing

PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
SECONDS = 30

# What nft says (as of 1.0.6 and 1.1), and what that means.
_MEANINGS = (
    (
        "not compiled-in",
        "this nft was built without JSON; install one with it (Debian's, Fedora's and Alpine's have it)",
    ),
    ("Operation not permitted", "CAP_NET_ADMIN in this network namespace is needed: run as root, or as an init step"),
    (
        "Operation not supported",
        "this kernel has no nftables, or not all that the rules need (nf_tables, nft_nat, nft_ct)",
    ),
    ("Protocol not supported", "this kernel has no nftables (CONFIG_NF_TABLES)"),
    (
        "No such file or directory",
        "this kernel lacks what the rules need (nft_ct, nft_redir, nft_fib_inet, nft_reject)",
    ),
)


class Nft:
    """The table of one network namespace: this process's, or the one that `enter` enters before nft starts."""

    def __init__(self, enter: Callable[[], None] | None = None) -> None:
        """Find the program. Raise ToolMissing."""
        self._program = tool("nft", "nftables")
        self._enter = enter

    def write(self, ruleset: Ruleset) -> None:
        """Put exactly this in place of what is there of ours. Raise CaptureFailed; nothing is changed then."""
        self.run(ruleset.replacing())

    def remove(self) -> bool:
        """Take all of it away; return whether there was any. Raise CaptureFailed."""
        there = self.present()
        if there:
            self.run(rules.removing())
        return there

    def present(self) -> bool:
        """Return whether our table is there. Raise CaptureFailed, too when rules cannot be read or written here."""
        return self.has(rules.FAMILY, rules.TABLE)

    def has(self, family: str, name: str) -> bool:
        """Return whether there is such a table. Raise CaptureFailed."""
        tables = (item.get("table", {}) for item in self._ask("list", "tables").get("nftables", []))
        return any(one.get("family") == family and one.get("name") == name for one in tables)

    def listed(self) -> dict[str, Any] | None:
        """Return what the kernel lists of our table; None when there is none. Raise CaptureFailed."""
        return self._ask("list", "table", rules.FAMILY, rules.TABLE) if self.present() else None

    def run(self, transaction: dict[str, Any]) -> None:
        """Have the kernel take a transaction. Raise CaptureFailed."""
        self._call(("-f", "-"), json.dumps(transaction))

    def _ask(self, *words: str) -> dict[str, Any]:
        text = self._call(words, "")
        try:
            found = json.loads(text or "{}")
        except ValueError:
            raise CaptureFailed("nft lists something that is not JSON") from None
        return found if isinstance(found, dict) else {}

    def _call(self, words: Sequence[str], text: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words; what is configured comes as JSON of numbers
                [self._program, "-j", *words],
                input=text,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env={"PATH": PATH, "LC_ALL": "C"},
                # This process has one thread.
                preexec_fn=self._enter,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise CaptureFailed(f"nft does not run: {error}") from error
        if done.returncode:
            raise CaptureFailed(_sentence(done.stderr))
        return done.stdout


def tool(name: str, package: str) -> str:
    """Return a program's path. Raise ToolMissing."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise ToolMissing(f"{name} is not installed: install {package}")
    return found


def _sentence(said: str) -> str:
    meaning = next((meaning for words, meaning in _MEANINGS if words in said), "nft refused the rules")
    return f"{meaning} ({' '.join(said.split())[:300]})"
