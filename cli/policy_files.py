# SPDX-License-Identifier: Apache-2.0
"""Reading segment and flow documents from a file or a folder on the command line."""

from collections.abc import Iterable
from pathlib import Path

from firedoor.certs import TrustDomain
from firedoor.certs.errors import CertsError
from firedoor.cli.errors import UsageError
from firedoor.segments import Document, Finding

SUFFIXES = (".yaml", ".yml")


def read_documents(path: str) -> list[Document]:
    """Return the documents of a file, or of every YAML file in a folder, in the order of their names."""
    top = Path(path)
    try:
        files = sorted(p for p in top.iterdir() if p.suffix in SUFFIXES) if top.is_dir() else [top]
        if not files:
            raise UsageError(f"{path} holds no file that ends in .yaml or .yml")
        return [Document(str(file), file.read_text(encoding="utf-8")) for file in files]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def trust_domain(name: str | None) -> TrustDomain:
    """Parse `--trust-domain`."""
    if not name:
        raise UsageError("--trust-domain is needed with a local policy: it is what {td} stands for")
    try:
        return TrustDomain.parse(name)
    except CertsError as error:
        raise UsageError(f"--trust-domain {name!r}: {error}") from None


def unusable(findings: Iterable[Finding]) -> UsageError:
    """Return what ends a command whose policy has these errors."""
    return UsageError("the policy cannot be used:\n  " + "\n  ".join(map(str, findings)))
