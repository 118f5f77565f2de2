# SPDX-License-Identifier: Apache-2.0
"""Write the CustomResourceDefinitions: run by hand after a change of what they are written from. A test asks for it."""

from pathlib import Path
from typing import Any

import yaml

from firedoor.broker.kubernetes.identity_resource import identity_definition
from firedoor.segments.resources import definitions

_DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
# Helm installs those of the chart.
FOLDERS = (_DEPLOY / "kubernetes/crds", _DEPLOY / "helm/firedoor/crds")


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[Path, str]:
    """Return what each file holds."""
    head = "# SPDX-License-Identifier: Apache-2.0\n# Written by .ci/crds.py.\n"
    written = {one["spec"]["names"]["plural"]: one for one in (*definitions(), identity_definition())}
    return {folder / f"{name}.yaml": head + _yaml(one) for name, one in written.items() for folder in FOLDERS}


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, width=120)


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
