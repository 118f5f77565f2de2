# SPDX-License-Identifier: Apache-2.0
"""Write what the chart has of deploy/kubernetes, and what deploy/kubernetes has of the chart; `--check` writes nothing.

Run by hand after a change of either; helm is asked for the second, and must be on the PATH or given: `--helm PROGRAM`.
A test asks for both.
"""

import argparse
import subprocess
import sys
from pathlib import Path

_DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
_KUBERNETES, _CHART = _DEPLOY / "kubernetes", _DEPLOY / "helm/firedoor"
_COPIED = ("guards.yaml", "injector-policy.yaml", "controllers.yaml", "pod-certificates.yaml")
_TEMPLATE = "helm template firedoor deploy/helm/firedoor --namespace firedoor-system --set trustDomain=example.org"
_INJECTOR = (
    f"{_TEMPLATE} --set broker.cluster=prod --set injector.enabled=true"
    " --show-only templates/injector.yaml --show-only templates/rbac.yaml"
)
_NODE = (
    f"{_TEMPLATE} --set broker.cluster=prod --set nodes.enabled=true"
    " --show-only templates/nodes.yaml --show-only templates/node-socket.yaml"
)
_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: firedoor-system\n"


def copies() -> dict[Path, str]:
    """Return what each file of the chart holds that is one of deploy/kubernetes."""
    found = {_CHART / "files" / name: (_KUBERNETES / name).read_text() for name in _COPIED}
    return found | {_CHART / "crds" / path.name: path.read_text() for path in sorted((_KUBERNETES / "crds").iterdir())}


def rendered(helm: str) -> dict[Path, str]:
    """Return what each manifest holds that the chart writes."""
    return {
        _KUBERNETES / "broker.yaml": _ran(helm, _TEMPLATE, _NAMESPACE),
        _KUBERNETES / "injector.yaml": _ran(helm, _INJECTOR, ""),
        _KUBERNETES / "node.yaml": _ran(helm, _NODE, ""),
    }


def _ran(helm: str, command: str, first: str) -> str:
    ran = subprocess.run([helm, *command.split()[1:]], capture_output=True, text=True, cwd=_DEPLOY.parent, check=True)
    said = command.replace(" --set broker", " \\\n#   --set broker", 1)
    return f"# SPDX-License-Identifier: Apache-2.0\n# {said}\n{first}{ran.stdout}"


def main() -> int:
    """Write them, or say which are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--helm", default="helm")
    options = parser.parse_args()
    files = copies() | rendered(options.helm)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(path.relative_to(_DEPLOY.parent))
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
