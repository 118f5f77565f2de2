# SPDX-License-Identifier: Apache-2.0
"""Reading segment and flow documents from a file or a folder on the command line."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from firedoor.certs import TrustDomain
from firedoor.certs.errors import CertsError
from firedoor.cli.errors import UsageError
from firedoor.segments import Document, Finding, PolicyErrors, PolicySet, load

SUFFIXES = (".yaml", ".yml")


def add_policy(leaf: argparse.ArgumentParser, *, domain: bool = True) -> None:
    """Declare where the documents are and, for who reads them here and not at the broker, what {td} stands for."""
    leaf.add_argument("path", metavar="PATH", help="the policy: a file, or a folder of .yaml files")
    if domain:
        leaf.add_argument("--trust-domain", metavar="TD", help="what {td} stands for")


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


def read_policy(options: argparse.Namespace) -> PolicySet:
    """Read the policy that `add_policy` declares."""
    return loaded(read_documents(options.path), trust_domain(options.trust_domain))


def loaded(documents: list[Document], domain: TrustDomain) -> PolicySet:
    """Return the policy of documents. Raise UsageError with every error of one that cannot be used."""
    try:
        return load(documents, domain)
    except PolicyErrors as errors:
        raise unusable(errors.findings) from None


def unusable(findings: Iterable[Finding]) -> UsageError:
    """Return what ends a command whose policy has these errors."""
    return UsageError("the policy cannot be used:\n  " + "\n  ".join(map(str, findings)))
