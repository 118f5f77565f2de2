#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the development environment: `.venv` with every dependency, links to the packages, and the built extension.

Run by `make`, with any Python 3; it looks for the right interpreter itself. Three rules:

- The interpreter and the environment must be executable by other users, or the demo cannot start a workload as one
  (a Python below a 0700 home cannot). As root with a clone that others cannot enter, `.venv` is a link to a folder
  below /var/tmp.
- The packages are links into the work tree (docs/adr/0003-links-not-editable.md): a new file needs no new install.
- Nothing is done twice: each step leaves a stamp that holds the digest of its inputs.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PACKAGES = ("broker", "certs", "cli", "cluster", "mtls", "segments", "sidecar", "wire")
CANDIDATES = (
    "/usr/bin/python3",
    "/usr/local/bin/python3",
    "python3.14",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3",
)
MIN_RUST = (1, 88)


def main() -> None:
    """Run the steps that are out of date."""
    if sys.argv[1:] == ["--where"]:
        print(VENV.resolve())
        return
    if not (VENV / "bin/python").exists():
        say(1, "virtual environment")
        make_environment(find_interpreter())
    step(2, "Python dependencies", "dependencies", [ROOT / "pyproject.toml", ROOT / ".ci/constraints.txt"], install)
    link_packages()
    step(3, "Rust extension (the first build takes a few minutes)", "extension", rust_sources(), build_extension)


def say(number: int, what: str) -> None:
    """Print one line of progress."""
    print(f"[{number}/3] {what}", file=sys.stderr, flush=True)


def step(number: int, what: str, name: str, inputs: list[Path], action) -> None:
    """Run `action` unless the stamp holds the digest of `inputs`."""
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in inputs if p.exists())).hexdigest()
    stamp = VENV / "stamps" / name
    made = ROOT / "mtls/_mtls.abi3.so"
    if stamp.exists() and stamp.read_text() == digest and (name != "extension" or made.exists()):
        return
    say(number, what)
    action()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(digest)


def find_interpreter() -> str:
    """Return a Python >= 3.11 with venv, one that other users can execute if there is any."""
    missing, second_best = [], None
    for candidate in CANDIDATES:
        path = shutil.which(candidate)
        if path is None:
            continue
        probe = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys._base_executable)"
        answer = subprocess.run([path, "-c", probe], capture_output=True, text=True, check=False)
        if answer.returncode:
            missing.append(f"{path} has no venv module: install python3-venv (apt-get install python3-venv)")
            continue
        major, minor, real = answer.stdout.split(maxsplit=2)
        if (int(major), int(minor)) < (3, 11):
            missing.append(f"{path} is Python {major}.{minor}, too old")
            continue
        closed = closed_folder(Path(real.strip()).resolve())
        if closed is None:
            return path
        second_best = second_best or path
        missing.append(f"{path} lies below {closed}, which other users cannot enter")
    if second_best is not None:
        print(f"warning: {missing[0]}; the demo's rows that need other users will not run", file=sys.stderr)
        return second_best
    stop("no Python >= 3.11 with venv was found: install python3 and python3-venv", missing)
    raise AssertionError


def closed_folder(path: Path) -> Path | None:
    """Return the first folder above `path` that users in general cannot enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def make_environment(python: str) -> None:
    """Create `.venv`, elsewhere when others cannot enter the clone and we are root."""
    target = VENV
    closed = closed_folder(VENV)
    if closed is not None and os.geteuid() == 0:
        name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
        target = Path("/var/tmp") / f"firedoor-venv-{name}"  # noqa: S108 - its owner is checked below
        target.mkdir(mode=0o755, exist_ok=True)
        owner = target.lstat()
        if target.is_symlink() or owner.st_uid != 0:
            stop(f"{target} is not ours: remove it", [])
        print(f"other users cannot enter {closed}: the environment goes to {target}", file=sys.stderr)
    old = os.umask(0o022)
    subprocess.run([python, "-m", "venv", str(target)], check=True)
    os.umask(old)
    if target != VENV:
        VENV.unlink(missing_ok=True)
        VENV.symlink_to(target)


def install() -> None:
    """Install what pyproject.toml lists: the bare package's dependencies and every extra's."""
    reader = (
        "import json, sys, tomllib; p = tomllib.load(open(sys.argv[1], 'rb'))['project'];"
        "print(json.dumps(p['dependencies'] + sum(p['optional-dependencies'].values(), [])))"
    )
    python = str(VENV / "bin/python")
    listed = subprocess.run(
        [python, "-c", reader, "pyproject.toml"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    wanted = [w for w in re.findall(r'"([^"]+)"', listed.stdout) if not w.startswith("firedoor[")]
    quiet = [] if sys.stderr.isatty() else ["-q"]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    old = os.umask(0o022)
    subprocess.run([*pip, "-c", ".ci/constraints.txt", *wanted], cwd=ROOT, check=True)
    os.umask(old)


def link_packages() -> None:
    """Make `firedoor` importable: one folder of links in site-packages, and the console script."""
    site = next((VENV / "lib").glob("python3.*")) / "site-packages/firedoor"
    site.mkdir(exist_ok=True)
    wanted = {name: ROOT / name for name in PACKAGES}
    wanted |= {p.name: p for p in (ROOT / "client").iterdir() if p.name != "__pycache__"}
    for stale in {p.name for p in site.iterdir()} - set(wanted) - {"__pycache__"}:
        (site / stale).unlink()
    for name, target in wanted.items():
        link = site / name
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    script = VENV / "bin/firedoor"
    text = f"#!{VENV.resolve()}/bin/python\nimport sys\n\nfrom firedoor.cli.main import main\n\nsys.exit(main())\n"
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
        script.chmod(0o755)


def rust_sources() -> list[Path]:
    """Return what the extension is built from, in a stable order."""
    suffixes = (".rs", ".toml", ".lock", ".proto")
    found = [p for top in ("mtls", "wire/proto") for p in (ROOT / top).rglob("*") if p.suffix in suffixes]
    return sorted(p for p in found if "target" not in p.relative_to(ROOT).parts)


def build_extension() -> None:
    """Build the release profile; replace the old extension in one step, so that a running program keeps what it has."""
    check_tools()
    # As setuptools-rust does for a wheel, which then finds everything built. A second copy of the interpreter, linked
    # in, would be 2.4 MiB in every process.
    environment = {**os.environ, "PYO3_BUILD_EXTENSION_MODULE": "1", "PYO3_PYTHON": str(VENV / "bin/python")}
    words = ["cargo", "build", "--release", "-p", "firedoor-binding", "--features", "pyo3/extension-module"]
    subprocess.run(words, cwd=ROOT / "mtls", env=environment, check=True)
    fresh = ROOT / "mtls/.fresh.so"
    shutil.copy2(target_folder() / "release/lib_mtls.so", fresh)
    fresh.rename(ROOT / "mtls/_mtls.abi3.so")


def target_folder() -> Path:
    """Return cargo's output folder."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "mtls/target"))


def check_tools() -> None:
    """Stop with one sentence that names everything the build needs and does not find."""
    missing = []
    if shutil.which("cc") is None:
        missing.append("a C compiler (apt-get install gcc libc6-dev)")
    if shutil.which("cmake") is None:
        missing.append("cmake (apt-get install cmake)")
    cargo = (
        subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=False)
        if shutil.which("cargo")
        else None
    )
    if cargo is None:
        missing.append("cargo and rustc >= 1.88 (rustup gives them; Debian 12's are older)")
    else:
        version = re.search(r"(\d+)\.(\d+)", cargo.stdout)
        if version is None or (int(version[1]), int(version[2])) < MIN_RUST:
            missing.append(f"Rust >= 1.88, here is {cargo.stdout.strip()} (rustup update)")
    if missing:
        stop("the extension cannot be built, this is missing", missing)


def stop(sentence: str, details: list[str]) -> None:
    """Say what is missing and end."""
    print(f"error: {sentence}" + "".join(f"\n  - {d}" for d in details), file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        stop(f"this command failed with {failed.returncode}: {' '.join(map(str, failed.cmd))}", [])
