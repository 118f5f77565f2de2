# SPDX-License-Identifier: Apache-2.0
"""How files look: one licence line, a length that can be read, links that lead somewhere, one version, all packaged."""

import re
import subprocess
import tomllib
from pathlib import Path

import firedoor

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {".py", ".pyi", ".rs", ".proto", ".sh", ".toml", ".yaml", ".yml"}
MAX_LINES = 700
# Nothing that is told of one machine or one registry has a place in the tree. A path of Vault's API has /root/ inside.
MACHINE = re.compile(r"(?<![\w}])/root/|/home/\w|https?://[\w.-]*(artifactory|nexus|mirror)", re.IGNORECASE)


def tracked() -> list[Path]:
    """Return what git knows, or in an unpacked source archive every file."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [p for p in (ROOT / name for name in names) if p.is_file()]


def hand_written() -> list[Path]:
    return [p for p in tracked() if "_generated" not in p.parts and "vectors" not in p.parts]


def test_every_source_says_its_licence_first() -> None:
    for path in hand_written():
        if path.suffix not in SOURCE or not path.stat().st_size:
            continue
        lines = path.read_text().splitlines()
        head = lines[1] if lines[0].startswith("#!") else lines[0]
        assert head.endswith("SPDX-License-Identifier: Apache-2.0"), f"{path.relative_to(ROOT)}"


def test_no_file_is_too_long() -> None:
    for path in hand_written():
        if path.suffix in SOURCE:
            lines = path.read_text().count("\n")
            assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


def test_nothing_names_a_machine() -> None:
    for path in hand_written():
        if path.suffix in SOURCE | {".md"} and path != Path(__file__):
            found = MACHINE.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_links_in_documents_lead_somewhere() -> None:
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_python_and_rust_have_one_version() -> None:
    cargo = tomllib.loads((ROOT / "mtls/Cargo.toml").read_text())
    assert cargo["workspace"]["package"]["version"] == firedoor.__version__


def test_every_package_is_in_the_wheel() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = set()
    for name in ("broker", "certs", "cli", "cluster", "mtls", "segments", "sidecar", "wire"):
        for marker in (ROOT / name).rglob("__init__.py"):
            if "target" not in marker.parts:
                there.add("firedoor." + ".".join(marker.parent.relative_to(ROOT).parts))
    assert set(tools["packages"]) == there | {"firedoor"}
    assert {k: v for k, v in tools["package-dir"].items() if k != "firedoor"} == {
        name: name.removeprefix("firedoor.").replace(".", "/") for name in there
    }


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    names = {re.split(r"[<>=\[; ]", w)[0] for w in wanted} - {"firedoor"}
    crates = set(tomllib.loads((ROOT / "mtls/Cargo.toml").read_text())["workspace"]["dependencies"])
    text = (ROOT / "docs/dependencies.md").read_text()
    missing = [n for n in sorted(names | {c for c in crates if not c.startswith("firedoor")}) if f"`{n}`" not in text]
    assert not missing, f"docs/dependencies.md gives no reason for {missing}"
