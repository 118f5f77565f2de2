# SPDX-License-Identifier: Apache-2.0
"""A local policy, for servers that push none: read from files as the broker would."""

from pathlib import Path

from firedoor import segments
from firedoor.certs import TrustDomain
from firedoor.segments import Document, PolicySet
from firedoor.sidecar.errors import ConfigError

SUFFIXES = (".yaml", ".yml")


def read_policy(path: Path, trust_domain: TrustDomain) -> PolicySet:
    """Read a file, or every YAML file below a folder. Raise ConfigError."""
    try:
        return segments.accept(_documents(path), trust_domain)[0]
    except segments.PolicyErrors as error:
        raise ConfigError([str(found) for found in error.findings]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: segments: the policy cannot be read: {error}"]) from error


def _documents(path: Path) -> list[Document]:
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in SUFFIXES and one.is_file())
    else:
        files = [path]
    return [Document(str(one), one.read_text(encoding="utf-8")) for one in files]
