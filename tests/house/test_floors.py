# SPDX-License-Identifier: Apache-2.0
"""The floors, from the imports: a lower one never imports a higher one, broker and sidecar never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "certs": {"certs"},
    "wire": {"wire"},
    "mtls": {"mtls"},
    "segments": {"segments", "certs", "wire"},
    # Both ask a cluster: the broker an API server, a node's sidecar that or a kubelet.
    "cluster": {"cluster"},
    "broker": {"broker", "certs", "cluster", "segments", "wire", "mtls"},
    "sidecar": {"sidecar", "certs", "cluster", "segments", "wire", "mtls"},
    "client": {"client", "certs", "wire"},
    "cli": {"cli", "broker", "certs", "client", "cluster", "mtls", "segments", "sidecar", "wire"},
}
# No socket, clock, file or environment below these.
PURE = ("certs", "segments")
IMPURE_MODULES = {
    "asyncio",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
# What `import firedoor` may cost an application: the bare package's dependencies.
BARE = {"cryptography", "google", "grpc"}
EXTRAS_FREE = ("certs", "wire", "client")


def imports(path: Path) -> set[str]:
    """Return the full names of all that a module imports, lazily or under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def floor_of(name: str) -> str | None:
    """Return the folder that an imported name of ours lies in."""
    parts = name.split(".")
    # Python loads the outermost package before any of ours, so that its version costs nobody anything.
    if parts[0] != "firedoor" or name == "firedoor.__version__":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "client"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_only_lower_floors(folder: str) -> None:
    for path in modules(folder):
        used = {floor for floor in map(floor_of, imports(path)) if floor}
        assert used <= MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {sorted(used - MAY_IMPORT[folder])}"


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "tests", "bench"])
def test_nobody_imports_a_bare_folder_name(folder: str) -> None:
    for path in modules(folder):
        bare = {name.split(".")[0] for name in imports(path)} & set(MAY_IMPORT)
        assert not bare, f"{path.relative_to(ROOT)} imports {bare}; write firedoor.{min(bare)}"


@pytest.mark.parametrize("folder", PURE)
def test_pure_packages_import_no_world(folder: str) -> None:
    for path in modules(folder):
        world = {name.split(".")[0] for name in imports(path)} & IMPURE_MODULES
        assert not world, f"{path.relative_to(ROOT)} imports {world}"


@pytest.mark.parametrize("folder", EXTRAS_FREE)
def test_what_an_application_imports_needs_no_extra(folder: str) -> None:
    import sys

    for path in modules(folder):
        if path.name == "generate.py":  # run by hand, to make the stubs
            continue
        tops = {name.split(".")[0] for name in imports(path)}
        others = tops - set(sys.stdlib_module_names) - BARE - {"firedoor"}
        assert not others, f"{path.relative_to(ROOT)} imports {others}"
