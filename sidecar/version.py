# SPDX-License-Identifier: Apache-2.0
"""What this sidecar tells its server about itself."""

import importlib.metadata


def _installed() -> str:
    try:
        return importlib.metadata.version("firedoor")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


VERSION = f"firedoor {_installed()}"
