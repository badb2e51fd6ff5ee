"""The code by which a shell completes the options of a script: `SCRIPT --print-completion SHELL`."""

import argparse

from storage.extra import require_extra

SHELLS = ("bash", "zsh", "tcsh")
COMPLETION = f"print code that completes the options in a shell: {', '.join(SHELLS)}"
"""help text of --print-completion"""
PATHS = {"DIR", "FILE", "FILES", "FOLDER", "IMAGES", "MASKS", "OBSERVATIONS", "PATH", "RUN_OR_MODEL", "SOURCE"}
"""metavars of options whose values are files or folders"""
PYTHON_IN_BASH = """
# python SCRIPT.py ... is completed as SCRIPT.py ...
_python_script() {
  local spec; spec=$(complete -p "$(basename -- "${COMP_WORDS[1]}")" 2>/dev/null) || return
  [[ $COMP_CWORD -gt 1 && $spec =~ -F\\ ([^ ]+) ]] || return
  COMP_WORDS=("${COMP_WORDS[@]:1}") COMP_CWORD=$((COMP_CWORD - 1))
  "${BASH_REMATCH[1]}" "${COMP_WORDS[0]}" "$2" "$3"
}
complete -o bashdefault -o default -F _python_script python python3"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The code by which `shell` completes the options of a parser and their values; in bash also behind `python`.

    Raises ValueError for an unknown shell, and if shtab is not installed.
    """
    if shell not in SHELLS:
        raise ValueError(f"print-completion={shell} is not a known shell; give one of: {', '.join(SHELLS)}")
    require_extra("shtab", "completion", "--print-completion")
    import shtab

    for action in parser._actions:
        if action.metavar in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell) + (PYTHON_IN_BASH if shell == "bash" else "")
