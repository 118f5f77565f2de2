# SPDX-License-Identifier: Apache-2.0
"""SoftHSM2, a whole PKCS#11 token in software: a folder with a token of the test's own.

with softhsm(folder) as token:
    Pkcs11KeyManager(token.rules, "owner")
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firedoor.broker.keys.settings import Pkcs11Rules

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
MISSING = "SoftHSM2 is not installed: apt-get install softhsm2"
LABEL, PIN = "firedoor", "5678"


def module() -> Path | None:
    """Return SoftHSM2's library."""
    return next((Path(path) for path in MODULES if Path(path).exists()), None)


@dataclass(frozen=True)
class Token:
    """A token in a folder, which can be taken away and put back."""

    folder: Path
    rules: Pkcs11Rules

    @property
    def flags(self) -> dict[str, str]:
        """What a broker is told."""
        return {
            "key_manager_pkcs11_module": str(self.rules.module),
            "key_manager_pkcs11_token": self.rules.token,
            "key_manager_pkcs11_pin_file": str(self.rules.pin_file),
        }

    def take_away(self) -> None:
        (self.folder / "tokens").rename(self.folder / "away")

    def put_back(self) -> None:
        (self.folder / "away").rename(self.folder / "tokens")


@contextlib.contextmanager
def softhsm(folder: Path) -> Iterator[Token]:
    """Make a token; this process's SoftHSM2 sees it, and nothing else."""
    library, tool = module(), shutil.which("softhsm2-util")
    if library is None or tool is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    (folder / "tokens").mkdir(parents=True)
    configuration, pin = folder / "softhsm2.conf", folder / "pin"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    pin.touch(mode=0o600)
    pin.write_text(f"{PIN}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        words = [tool, "--init-token", "--free", "--label", LABEL, "--so-pin", "12345678", "--pin", PIN]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        yield Token(folder, Pkcs11Rules(library, LABEL, pin))
