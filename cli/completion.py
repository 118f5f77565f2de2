# SPDX-License-Identifier: Apache-2.0
"""Shell scripts that complete `firedoor`, written from the parsers. A script holds everything and runs no Python."""

from collections.abc import Iterator

from firedoor.cli.tree import Command

_BASH = """\
# firedoor, for bash: source <(firedoor completion bash)
_firedoor() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at= below= flags= i
  for ((i = 0; i < COMP_CWORD; i++)); do
    [[ $i == 0 || " $below " == *" ${{COMP_WORDS[i]}} "* ]] || continue
    if [[ $i == 0 ]]; then at=firedoor; else at+=" ${{COMP_WORDS[i]}}"; fi
    below=
    case $at in
{words}
    esac
  done
  case "$at $prev" in
{values}
  esac
  case $at in
{flags}
  esac
  [[ $cur == -* ]] && below=$flags
  COMPREPLY=($(compgen -W "$below" -- "$cur"))
}}
complete -o default -F _firedoor firedoor
"""

_ZSH = """\
#compdef firedoor
# firedoor, for zsh: source <(firedoor completion zsh)
_firedoor() {{
  local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}} at= below= flags= i
  for ((i = 1; i < CURRENT; i++)); do
    [[ $i == 1 || " $below " == *" ${{words[i]}} "* ]] || continue
    if [[ $i == 1 ]]; then at=firedoor; else at+=" ${{words[i]}}"; fi
    below=
    case $at in
{words}
    esac
  done
  case "$at $prev" in
{values}
  esac
  case $at in
{flags}
  esac
  if [[ $cur == -* ]]; then compadd -- ${{=flags}}
  elif [[ -n $below ]]; then compadd -- ${{=below}}
  else _files; fi
}}
if [[ $funcstack[1] == _firedoor ]]; then _firedoor "$@"; else compdef _firedoor firedoor; fi
"""

_FISH = """\
# firedoor, for fish: firedoor completion fish | source
function __firedoor_at
    set -l typed (commandline -opc)
    set -l want (string split ' ' -- $argv[2])
    test (count $typed) -ge (count $want); or return 1
    test "$typed[1..$(count $want)]" = "$argv[2]"; or return 1
    test $argv[1] = leaf; or test (count $typed) -eq (count $want)
end
{lines}
"""


def bash(top: Command) -> str:
    """Return the script for bash 4 and later."""
    return _BASH.format(
        words=_words(top), values=_values(top, "COMPREPLY=($(compgen -W '{}' -- \"$cur\"))"), flags=_flags(top)
    )


def zsh(top: Command) -> str:
    """Return the script for zsh."""
    return _ZSH.format(words=_words(top), values=_values(top, "compadd -- {}"), flags=_flags(top))


def fish(top: Command) -> str:
    """Return the script for fish 3 and later."""
    return _FISH.format(lines="\n".join(_fish_lines(top)))


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def _words(top: Command) -> str:
    groups = [(" ".join(one.path), [word.path[-1] for word in one.words] or _places(one)) for one in top.walk()]
    return "\n".join(f"      '{path}') below='{' '.join(words)}' ;;" for path, words in groups if words)


def _places(leaf: Command) -> list[str]:
    """Return the fixed values of what stands without a flag."""
    return [choice for argument in leaf.arguments if not argument.names for choice in argument.choices]


def _flags(top: Command) -> str:
    lines = []
    for command in top.walk():
        names = ["--help", *(name for flag in command.flags for name in flag.names)]
        lines.append(f"    '{' '.join(command.path)}') flags='{' '.join(names)}' ;;")
    return "\n".join(lines)


def _values(top: Command, fixed: str) -> str:
    """What follows a flag: one of its fixed values, else a file or whatever the person types."""
    lines = []
    for command in top.walk():
        for flag in command.flags:
            if flag.metavar:
                patterns = "|".join(f"'{' '.join(command.path)} {name}'" for name in flag.names)
                does = fixed.format(" ".join(flag.choices)) if flag.choices else _files(fixed)
                lines.append(f"    {patterns}) {does}; return ;;")
    return "\n".join(lines)


def _files(fixed: str) -> str:
    # bash completes files by itself (`-o default`) where nothing is offered.
    return "_files" if fixed.startswith("compadd") else "COMPREPLY=()"


def _fish_lines(top: Command) -> Iterator[str]:
    yield "complete -c firedoor -n 'not __firedoor_at leaf firedoor' -f"
    for command in top.walk():
        path = " ".join(command.path)
        if command.words:
            yield f"complete -c firedoor -n '__firedoor_at exact \"{path}\"' -f"
        for word in command.words:
            at = f"-n '__firedoor_at exact \"{path}\"'"
            yield f"complete -c firedoor {at} -a {word.path[-1]} -d {_quoted(word.summary)}"
        for choice in _places(command):
            yield f"complete -c firedoor -n '__firedoor_at exact \"{path}\"' -f -a {choice}"
        for flag in command.flags:
            names = " ".join(f"-l {name[2:]}" for name in flag.names if name.startswith("--"))
            value = "-x -a " + _quoted(" ".join(flag.choices)) if flag.choices else "-r" if flag.metavar else ""
            at = f"-n '__firedoor_at leaf \"{path}\"'"
            yield f"complete -c firedoor {at} {names} {value} -d {_quoted(flag.help)}".replace("  ", " ")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
