"""`modelplane completion bash|zsh|fish`. The script asks `modelplane completion candidates -- WORD...` at each Tab."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from modelplane.commandline import CommandLine
from modelplane.errors import OptionError

_BASH = """\
_modelplane() {
  local found
  COMPREPLY=()
  mapfile -t found < <(modelplane completion candidates -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  if [[ ${found[0]-} == ":files" ]]; then
    compopt -o default
    return
  fi
  local one
  for one in "${found[@]}"; do
    COMPREPLY+=("$(printf '%q' "$one")")
  done
}
complete -F _modelplane modelplane
"""
_ZSH = """\
#compdef modelplane
_modelplane() {
  local -a found
  found=("${(@f)$(modelplane completion candidates -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ "${found[1]}" == ":files" ]]; then
    _files
  elif [[ -n "${found[1]}" ]]; then
    compadd -- "${found[@]}"
  fi
}
compdef _modelplane modelplane
"""
_FISH = """\
function __modelplane_candidates
  set -l words (commandline -opc) (commandline -ct)
  set -l found (modelplane completion candidates -- $words[2..-1] 2>/dev/null)
  if test "$found[1]" = ":files"
    __fish_complete_path (commandline -ct)
  else
    printf '%s\\n' $found
  end
end
complete -c modelplane -f -a '(__modelplane_candidates)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "completion",
        [],
        usage="bash|zsh|fish",
        arguments={"SHELL": "bash, zsh or fish"},
        description="Print a script that completes commands, flags, and the names of models and instances, which it\n"
        "asks of the registry if that answers within a second.",
        examples=(
            "source <(modelplane completion bash)",
            "modelplane completion zsh > ~/.zfunc/_modelplane",
            "modelplane completion fish > ~/.config/fish/completions/modelplane.fish",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print the script, or what may stand next."""
    if list(argv[:2]) == ["candidates", "--"]:
        from modelplane.completing import candidates

        sys.stdout.write("".join(f"{one}\n" for one in candidates(list(argv[2:]))))
        return 0
    shell = command_line().parse(argv).arguments.get("SHELL", "")
    if shell not in _SCRIPTS:
        raise OptionError(
            f"{f'no script for {shell!r}' if shell else 'say for which shell'}; there are bash, zsh, fish"
        )
    sys.stdout.write(_SCRIPTS[shell])
    return 0
