"""A bash completion script, made from the parser."""

from __future__ import annotations

import argparse

_TEMPLATE = """\
# source <({prog} --completion-bash)
_{name}() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    COMPREPLY=()
    case "$before" in
{cases}
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "{flags}" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _{name} {prog}
"""


def bash_completion(parser: argparse.ArgumentParser) -> str:
    """A script for bash: flags, the values of those that have choices, and file names."""
    flags: list[str] = []
    cases: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
        if not action.option_strings or action.nargs == 0:
            continue
        names = "|".join(action.option_strings)
        if action.metavar == "FILE":
            reply = 'compgen -f -- "$word"'
        elif action.choices is not None:
            reply = f'compgen -W "{" ".join(map(str, action.choices))}" -- "$word"'
        else:
            reply = ""
        cases.append(f"        {names}) COMPREPLY=({f'$({reply})' if reply else ''}); return ;;")
    return _TEMPLATE.format(
        prog=parser.prog,
        name=parser.prog.replace("-", "_"),
        cases="\n".join(cases),
        flags=" ".join(flags),
    )
