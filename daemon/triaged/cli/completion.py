# SPDX-License-Identifier: Apache-2.0
"""`triagectl completion`: completion scripts for bash, zsh and fish, made from the parser itself.

What a value may be is told by its metavar, so that a new option is completed without a line here.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers

SHELLS = ("bash", "zsh", "fish")
# The metavar of a value -> what the shell offers for it. Others are not completed.
_KINDS = {
    "ID": "findings", "RULE": "rules", "UNIT": "units", "PID": "pids", "FILE": "files", "PROFILE": "files", "DIR": "directories",
    "BUS": "buses",
}
_BUSES = ("system", "session")
_HEAD = "Made from triagectl's command line by 'triagectl completion {shell}'; do not edit."


@dataclass(frozen=True)
class Value:
    """What may stand in a place: the words `choices`, or a `kind` that the shell looks up, or (both empty) anything."""

    choices: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Option:
    """An option under all its names; `value` is None if it takes none."""

    names: tuple[str, ...]
    summary: str
    value: Value | None
    metavar: str = ""


@dataclass(frozen=True)
class Node:
    """A command, or the program itself: `path` are the command's words after the program's name."""

    path: tuple[str, ...]
    summary: str
    options: tuple[Option, ...]
    positionals: tuple[tuple[str, Value], ...]
    children: tuple[Node, ...]

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl completion`."""
    parser = subparsers.add_parser(
        "completion", help="print the completion script of a shell",
        description="Prints a script that makes the shell complete triagectl's commands, options, findings, rules and units. "
                    "The packages install it; by hand: source <(triagectl completion bash).",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    print(script(args.shell), end="")
    return ExitStatus.FINE


def script(shell: str) -> str:
    """The completion script of a shell."""
    from triaged.cli.commands import build_parser

    root = tree(build_parser())
    return {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](root)


def tree(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), summary: str = "") -> Node:
    """What the parser accepts, command by command."""
    options, positionals, children = [], [], []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            children = [tree(below, (*path, name), summaries.get(name, "")) for name, below in action.choices.items()]
        elif action.option_strings:
            value = None if action.nargs == 0 else _value(action)
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            options.append(Option(tuple(action.option_strings), _plain(action.help), value, metavar if value else ""))
        else:
            name = action.metavar if isinstance(action.metavar, str) else action.dest
            positionals.append((name, _value(action)))
    return Node(path, summary, tuple(options), tuple(positionals), tuple(children))


def _plain(text: str | None) -> str:
    return (text or "").replace("%%", "%")


def _value(action: argparse.Action) -> Value:
    if action.choices is not None:
        return Value(tuple(str(choice) for choice in action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    kind = _KINDS.get(metavar.rstrip("."), "")
    return Value(_BUSES) if kind == "buses" else Value(kind=kind)


def _names(options: Sequence[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


def bash_script(root: Node) -> str:
    """For bash, with or without the bash-completion package."""
    specs, values = [], []
    for node in root.walk():
        path = " ".join(node.path)
        children = " ".join(child.path[-1] for child in node.children)
        kinds = " ".join(
            "+".join(value.choices) if value.choices else f"@{value.kind or 'nothing'}" for _, value in node.positionals
        )
        specs.append(f'        "{path}") children="{children}" options="{_names(node.options)}" places="{kinds}" ;;')
        for option in node.options:
            if option.value is None:
                continue
            offer = "+".join(option.value.choices) if option.value.choices else f"@{option.value.kind or 'nothing'}"
            patterns = "|".join(f'"{path}:{name}"' for name in option.names)
            values.append(f'        {patterns}) offer="{offer}" ;;')
    return f"""\
# SPDX-License-Identifier: Apache-2.0
# {_HEAD.format(shell="bash")}

# What a command takes: its commands, its options, and what stands in its places.
_triagectl_spec()
{{
    children="" options="" places=""
    case $1 in
{chr(10).join(specs)}
    esac
}}

# What an option of a command takes; nothing set where it takes no value.
_triagectl_value()
{{
    offer=""
    case $1:$2 in
{chr(10).join(values)}
    esac
}}

# Fills COMPREPLY with what fits: words joined by +, or a @kind that is looked up now.
_triagectl_offer()
{{
    local found="" word
    case $1 in
        @findings) found=$("$program" list --quiet --state all 2>/dev/null) ;;
        @rules) found=$("$program" rules --quiet 2>/dev/null) ;;
        @units) found=$(systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null | cut -d' ' -f1) ;;
        @pids) found=$(cd /proc && printf '%s\\n' [0-9]*) ;;
        @files) mapfile -t COMPREPLY < <(compgen -f -- "$2"); compopt -o filenames 2>/dev/null; return ;;
        @directories) mapfile -t COMPREPLY < <(compgen -d -- "$2"); compopt -o filenames 2>/dev/null; return ;;
        @*) ;;
        *) found=${{1//+/$'\n'}} ;;
    esac
    # Not compgen -W: it would expand what a unit's name contains.
    while IFS= read -r word; do
        [[ -n $word && $word == "$2"* ]] && printf -v word %q "$word" && COMPREPLY+=("$word")
    done <<<"$found"
}}

_triagectl()
{{
    local program=${{COMP_WORDS[0]}} current=${{COMP_WORDS[COMP_CWORD]}} path="" place=0 index word waiting=""
    local children options places offer
    COMPREPLY=()
    _triagectl_spec ""
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${{COMP_WORDS[index]}}
        if [[ $word == "=" ]]; then
            continue
        elif [[ -n $waiting ]]; then
            waiting=""
        elif [[ $word == -* ]]; then
            _triagectl_value "$path" "$word"
            waiting=$offer
        elif [[ " $children " == *" $word "* ]]; then
            path=${{path:+$path }}$word
            _triagectl_spec "$path"
        else
            place=$((place + 1))
        fi
    done
    [[ $current == "=" ]] && current=""
    if [[ -n $waiting ]]; then
        _triagectl_offer "$waiting" "$current"
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif [[ -n $children ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$children" -- "$current")
    else
        local -a each
        read -r -a each <<<"$places"
        [[ ${{#each[@]}} -gt 0 && $place -lt ${{#each[@]}} ]] && _triagectl_offer "${{each[place]}}" "$current"
    fi
    return 0
}}
complete -F _triagectl triagectl
"""


# Two underscores: a command may be called "rules" too.
_ZSH_KINDS = {
    "findings": "_triagectl__findings", "rules": "_triagectl__rules", "units": "_triagectl__units", "pids": "_pids",
    "files": "_files", "directories": "_files -/",
}


def _zsh_text(text: str) -> str:
    for character in ("\\", "[", "]", ":"):
        text = text.replace(character, "\\" + character)
    return text.replace("'", "'\\''")


def _zsh_value(value: Value) -> str:
    return f"({' '.join(value.choices)})" if value.choices else _ZSH_KINDS.get(value.kind, " ")


def _zsh_arguments(node: Node) -> list[str]:
    out = []
    for option in node.options:
        tail = "" if option.value is None else f":{_zsh_text(option.metavar.lower())}:{_zsh_value(option.value)}"
        together = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
        for name in option.names:
            equals = "=" if option.value is not None and name.startswith("--") else ""
            out.append(f"'{together}{name}{equals}[{_zsh_text(option.summary)}]{tail}'")
    for name, value in node.positionals:
        out.append(f"':{_zsh_text(name.lower())}:{_zsh_value(value)}'")
    return out


def _zsh_function(node: Node) -> str:
    name = "_".join(("_triagectl", *node.path)).replace("-", "_")
    arguments = _zsh_arguments(node)
    if not node.children:
        return f"{name}() {{\n    _arguments -s \\\n        " + " \\\n        ".join(arguments) + "\n}\n"
    described = "\n".join(f"        '{child.path[-1]}:{_zsh_text(child.summary)}'" for child in node.children)
    calls = "\n".join(
        f"                {child.path[-1]}) {'_'.join(('_triagectl', *child.path)).replace('-', '_')} ;;" for child in node.children
    )
    return f"""\
{name}() {{
    local curcontext="$curcontext" state line
    local -a commands
    commands=(
{described}
    )
    _arguments -C -s \\
        {(" " + chr(92) + chr(10) + "        ").join(arguments)} \\
        '1:command:->command' \\
        '*::argument:->argument'
    case $state in
        command) _describe -t commands command commands ;;
        argument)
            case $line[1] in
{calls}
            esac ;;
    esac
}}
"""


def zsh_script(root: Node) -> str:
    """For zsh: a #compdef file, to be called _triagectl on $fpath; it may be sourced too."""
    functions = "\n".join(_zsh_function(node) for node in reversed(tuple(root.walk())))
    return f"""\
#compdef triagectl
# SPDX-License-Identifier: Apache-2.0
# {_HEAD.format(shell="zsh")}

_triagectl__findings() {{
    local -a found
    found=(${{(f)"$(_call_program findings triagectl list --quiet --state all 2>/dev/null)"}})
    compadd -a found
}}

_triagectl__rules() {{
    local -a found
    found=(${{(f)"$(_call_program rules triagectl rules --quiet 2>/dev/null)"}})
    compadd -a found
}}

_triagectl__units() {{
    local -a found
    found=(${{${{(f)"$(_call_program units systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null)"}}%% *}})
    compadd -a found
}}

{functions}
if [[ $funcstack[1] == _triagectl ]]; then
    _triagectl "$@"
else
    compdef _triagectl triagectl
fi
"""


_FISH_KINDS = {
    "findings": "(triagectl list --quiet --state all 2>/dev/null)",
    "rules": "(triagectl rules --quiet 2>/dev/null)",
    "units": "(systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null | string replace -r ' .*' '')",
    "pids": "(__fish_complete_pids)",
    "directories": "(__fish_complete_directories)",
}


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_value(value: Value) -> str:
    """The arguments of `complete` for a value: -r with files, or -x with what is offered."""
    if value.kind == "files":
        return " -r -F"
    offered = " ".join(value.choices) if value.choices else _FISH_KINDS.get(value.kind, "")
    return f" -x -a {_fish_text(offered)}" if offered else " -x"


def _fish_lines(node: Node) -> list[str]:
    here = _fish_text(f"__triagectl_at '{' '.join(node.path)}'")
    lines = [
        f"complete -c triagectl -n {here} -f -a {child.path[-1]} -d {_fish_text(child.summary)}" for child in node.children
    ]
    for option in node.options:
        names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
        value = "" if option.value is None else _fish_value(option.value)
        lines.append(f"complete -c triagectl -n {here}{names}{value} -d {_fish_text(option.summary)}")
    for _, place in node.positionals:
        offered = _fish_value(place).replace(" -x", " -f").replace(" -r -F", " -F")
        lines.append(f"complete -c triagectl -n {here}{offered}")
    return lines


def fish_script(root: Node) -> str:
    """For fish."""
    lines = [line for node in root.walk() for line in _fish_lines(node)]
    valued = [
        f"'{' '.join(node.path)}:{name}'"
        for node in root.walk() for option in node.options if option.value for name in option.names
    ]
    commands = [f"'{' '.join(node.path)}:{child.path[-1]}'" for node in root.walk() for child in node.children]
    return f"""\
# SPDX-License-Identifier: Apache-2.0
# {_HEAD.format(shell="fish")}

function __triagectl_at -d 'Whether the command line so far names this command' -a wanted
    set -l path ''
    set -l is_value no
    for word in (commandline -opc)[2..-1]
        if test $is_value = yes
            set is_value no
            continue
        end
        switch "$path:$word"
            case {" ".join(valued)}
                set is_value yes
            case {" ".join(commands)}
                set path (string trim -- "$path $word")
        end
    end
    test "$path" = "$wanted"
end

complete -c triagectl -f
{chr(10).join(lines)}
"""
