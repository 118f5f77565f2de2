# SPDX-License-Identifier: Apache-2.0
"""What the shells offer, asked of the shells themselves."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firedoor.cli import tree
from firedoor.cli.main import COMMANDS
from tests.waiting import PATIENCE

# Line typed so far, what is among the offers, what is not.
CASES = [
    ("", {"entry", "svid", "completion"}, {"create", "--help"}),
    ("ent", {"entry"}, {"svid"}),
    ("entry ", {"create", "update", "delete"}, {"fetch", "entry"}),
    ("entry up", {"update"}, {"create"}),
    ("svid fetch ", {"x509"}, {"watch"}),
    ("entry update --dns", {"--dns-name"}, {"--hint"}),
    ("entry update --", {"--admin", "--no-admin", "--server"}, {"--strict"}),
    ("entry list --output ", {"text", "json"}, {"--server"}),
    ("entry list --output j", {"json"}, {"text"}),
    ("broker run --key-manager ", {"disk", "memory"}, {"run"}),
    ("bundle show --format ", {"spiffe", "pem"}, {"text"}),
    ("completion ", {"bash", "zsh", "fish"}, {"entry"}),
]
HARNESS = {
    "bash": """
        source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _firedoor; printf '%s\\n' "${COMPREPLY[@]}" """,
    # Completion runs only in an interactive zsh; these stand for what it gives to the function.
    "zsh": """
        compdef() { : }; _files() { : }; compadd() { shift; print -l -- "$@" }
        source "$1"; shift; words=("$@"); CURRENT=$#; _firedoor""",
    "fish": 'source $argv[1]; complete -C (string join " " -- $argv[2..-1])',
}


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for name in HARNESS:
        command = [sys.executable, "-m", "firedoor.cli", "completion", name]
        (folder / name).write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return folder


def offers(name: str, script: Path, line: str) -> set[str]:
    command = [shell(name), *{"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name], "-c", HARNESS[name]]
    typed = ["firedoor", *line.split(" ")]
    words = [str(script), *typed] if name == "fish" else [name, str(script), *typed]
    ran = subprocess.run([*command, *words], capture_output=True, text=True, timeout=PATIENCE, cwd=script.parent)
    assert ran.stderr == "", ran.stderr
    found = {one.partition("\t")[0] for one in ran.stdout.splitlines()}
    # zsh itself leaves out what does not begin as the word that was typed.
    return {one for one in found if one.startswith(typed[-1])} if name == "zsh" else found


@pytest.mark.parametrize("name", HARNESS)
@pytest.mark.parametrize(("line", "among", "not_among"), CASES, ids=[case[0] or "nothing" for case in CASES])
def test_what_is_offered(name: str, line: str, among: set[str], not_among: set[str], scripts: Path) -> None:
    found = offers(name, scripts / name, line)
    assert among <= found
    assert not found & not_among


def test_bash_completes_every_word_and_flag(scripts: Path) -> None:
    for command in tree.read().walk():
        line = " ".join(command.path[1:])
        words = {word.path[-1] for word in command.words}
        assert words <= offers("bash", scripts / "bash", f"{line} " if line else "")
    leaf = next(one for one in tree.read().walk() if one.path == ("firedoor", "svid", "watch"))
    flags = {name for flag in leaf.flags for name in flag.names}
    assert flags | {"--help"} == offers("bash", scripts / "bash", "svid watch -")


@pytest.mark.parametrize("name", HARNESS)
def test_the_shell_takes_the_script(name: str, scripts: Path) -> None:
    ran = subprocess.run([shell(name), "-n", str(scripts / name)], capture_output=True, text=True, timeout=PATIENCE)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_as_json() -> None:
    command = [sys.executable, "-m", "firedoor.cli", "completion", "bash", "--output", "json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["shell"] == "bash"
    assert "complete -o default -F _firedoor firedoor" in answer["script"]


def test_the_tree_has_every_command_with_an_example() -> None:
    leaves = [one for one in tree.read().walk() if not one.words]
    assert {one.path[1] for one in leaves} == {name for name, _ in COMMANDS}
    for leaf in leaves:
        assert leaf.summary
        assert leaf.example.lstrip().startswith("$ "), leaf.path
        assert "--output" in {name for flag in leaf.flags for name in flag.names}, leaf.path


@pytest.mark.parametrize("top", tree.read().words, ids=lambda top: top.path[1])
def test_the_overview_names_what_is_below_a_command(top: tree.Command) -> None:
    named = set(re.findall(r"[a-z]+", top.summary))
    assert {word.path[2] for word in top.words} <= named
