# SPDX-License-Identifier: Apache-2.0
"""Check that every package we need may be used with Apache-2.0: Python's from their metadata, Rust's from cargo.

The list is short on purpose: a new licence is read by a person before it is added.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CDLA-Permissive-2.0",
    "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "OpenSSL", "PSF-2.0", "Python-2.0",
    "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
# What only one extra needs, used as it is and exchanged at will: all that the LGPL asks of who uses a library.
BY_NAME = {"psycopg": "LGPL-3.0-only", "psycopg-binary": "LGPL-3.0-only"}
# What metadata written before SPDX expressions says, and what it means.
SPOKEN = (
    (r"apache", "Apache-2.0"),
    (r"mozilla|mpl", "MPL-2.0"),
    (r"python software foundation|^psf", "PSF-2.0"),
    (r"\bisc\b", "ISC"),
    (r"unlicense", "Unlicense"),
    (r"\bbsd\b|^3-clause", "BSD-3-Clause"),
    (r"\bmit\b", "MIT"),
)


def main() -> int:
    """Print each package whose licence is not on the list."""
    packages = rust_packages() if "--rust" in sys.argv else python_packages()
    bad = [f"{name}: {text}" for name, text in packages if not allowed(text) and BY_NAME.get(name) != text]
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


def allowed(expression: str) -> bool:
    """Say whether one alternative of an SPDX expression needs only licences on the list."""
    for alternative in re.split(r"\s+OR\s+|/", expression.replace("(", "").replace(")", "")):
        if all(term.strip() in ALLOWED for term in re.split(r"\s+AND\s+", alternative)):
            return True
    return False


def python_packages() -> Iterator[tuple[str, str]]:
    """Yield (name, licence) of every installed distribution."""
    for found in metadata.distributions():
        info = found.metadata
        texts = [c.rpartition("::")[2] for c in info.get_all("Classifier", []) if c.startswith("License ::")]
        text = info.get("License-Expression") or spoken([info.get("License", "")[:80], *texts])
        yield info["Name"], text


def spoken(texts: list[str]) -> str:
    """Translate free text into an SPDX name; what is unknown stays as it is."""
    for pattern, name in SPOKEN:
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            return name
    return " ".join(texts) or "nothing said"


def rust_packages() -> Iterator[tuple[str, str]]:
    """Yield (name, licence) of every crate in the lock file."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    found = subprocess.run(command, cwd=ROOT / "mtls", check=True, capture_output=True)
    for package in json.loads(found.stdout)["packages"]:
        yield package["name"], package["license"] or "nothing said"


if __name__ == "__main__":
    sys.exit(main())
