# SPDX-License-Identifier: Apache-2.0
"""Write the admission policies: run by hand after a change of broker/injector. A test asks for it."""

from pathlib import Path
from typing import Any

import yaml

from firedoor.broker.injector import guards, policy

FOLDER = Path(__file__).resolve().parent.parent / "deploy/kubernetes"
_GUARDS = """\
# What the API server itself refuses where sidecars are wanted (docs/kubernetes.md). Needs the definitions in crds/, and
# the ConfigMap firedoor-injector.
"""
_INJECTOR = """\
# The injector without a webhook (docs/injection.md). Needs Kubernetes 1.36, guards.yaml, and the ConfigMap
# firedoor-injector.
"""


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Keep long expressions on one line: folding takes blanks for breaks, and back."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if len(value) > 100 else None)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    """Keep a list of words on one line."""
    words = all(isinstance(one, str) for one in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=words)


def _mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.Node:
    """Keep what selects, and what is referred to, on one line."""
    short = bool(value.keys() & {"operator", "apiGroups"}) or value.keys() in ({"apiVersion", "kind"}, {"name"})
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=short)


_Plain.add_representer(str, _text)
_Plain.add_representer(list, _list)
_Plain.add_representer(dict, _mapping)


def files() -> dict[Path, str]:
    """Return what each file holds."""
    written = {
        "guards.yaml": (_GUARDS, guards.guards()),
        "injector-policy.yaml": (_INJECTOR, [*policy.injector(), *guards.warnings()]),
    }
    head = "# SPDX-License-Identifier: Apache-2.0\n# Written by .ci/admission.py from broker/injector.\n"
    return {FOLDER / name: head + said + _yaml(objects) for name, (said, objects) in written.items()}


def _yaml(objects: list[dict[str, Any]]) -> str:
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=160)


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
