# SPDX-License-Identifier: Apache-2.0
# Made from triagectl's command line by 'triagectl completion bash'; do not edit.

# What a command takes: its commands, its options, and what stands in its places.
_triagectl_spec()
{
    children="" options="" places=""
    case $1 in
        "") children="scan status list show watch fix undo dismiss check inspect explain run seccomp log rules completion" options="-h --help --version --bus --color" places="" ;;
        "scan") children="" options="-h --help --policy --strict --json --bus --color" places="" ;;
        "status") children="" options="-h --help --json --bus --color" places="" ;;
        "list") children="" options="-h --help --state --kind --severity --rule --unit -q --quiet --json --bus --color" places="" ;;
        "show") children="" options="-h --help --json --bus --color" places="@findings" ;;
        "watch") children="" options="-h --help -n --number --json --bus --color" places="" ;;
        "fix") children="" options="-h --help --lasting --preview --yes --json --bus --color" places="@findings @nothing" ;;
        "undo") children="" options="-h --help --json --bus --color" places="@findings @nothing" ;;
        "dismiss") children="" options="-h --help --why --bus --color" places="@findings" ;;
        "check") children="" options="-h --help --policy --list --pid --strict --all --json --junit --bus --color" places="" ;;
        "inspect") children="" options="-h --help --json --bus --color" places="@nothing" ;;
        "explain") children="" options="-h --help --pid --arguments --path --json --bus --color" places="@nothing" ;;
        "run") children="" options="-h --help --report --junit --annotate --exit-infra --slice --no-trace --ask -q --quiet --bus --color" places="@nothing" ;;
        "seccomp") children="check dump disasm run record merge" options="-h --help --bus --color" places="" ;;
        "seccomp check") children="" options="-h --help --workload --toolchain --arch --caps --kernel --runtime --fix -v --verbose --json" places="@files" ;;
        "seccomp dump") children="" options="-h --help --workload --toolchain --call -o --output --json" places="@pids" ;;
        "seccomp disasm") children="" options="-h --help --arch --caps --kernel --runtime" places="@nothing" ;;
        "seccomp run") children="" options="-h --help --profile --log --arch --caps --kernel --runtime" places="@nothing" ;;
        "seccomp record") children="" options="-h --help -o --output --format --base --bare --method --deny --runs --tries --no-verify --timeout --workload" places="@nothing" ;;
        "seccomp merge") children="" options="-h --help -o --output" places="@files" ;;
        "log") children="" options="-h --help --finding --rule --since --directory -n --lines -f --follow -x --explain --json --bus --color" places="@units" ;;
        "rules") children="" options="-h --help -q --quiet --json --bus --color" places="@rules" ;;
        "completion") children="" options="-h --help --bus --color" places="bash+zsh+fish" ;;
    esac
}

# What an option of a command takes; nothing set where it takes no value.
_triagectl_value()
{
    offer=""
    case $1:$2 in
        ":--bus") offer="system+session" ;;
        ":--color") offer="auto+always+never" ;;
        "scan:--policy") offer="@nothing" ;;
        "scan:--bus") offer="system+session" ;;
        "scan:--color") offer="auto+always+never" ;;
        "status:--bus") offer="system+session" ;;
        "status:--color") offer="auto+always+never" ;;
        "list:--state") offer="open+fixed+resolved+dismissed+expired+all" ;;
        "list:--kind") offer="hit+headroom+risk" ;;
        "list:--severity") offer="critical+error+warning+notice+info" ;;
        "list:--rule") offer="@rules" ;;
        "list:--unit") offer="@units" ;;
        "list:--bus") offer="system+session" ;;
        "list:--color") offer="auto+always+never" ;;
        "show:--bus") offer="system+session" ;;
        "show:--color") offer="auto+always+never" ;;
        "watch:-n"|"watch:--number") offer="@nothing" ;;
        "watch:--bus") offer="system+session" ;;
        "watch:--color") offer="auto+always+never" ;;
        "fix:--bus") offer="system+session" ;;
        "fix:--color") offer="auto+always+never" ;;
        "undo:--bus") offer="system+session" ;;
        "undo:--color") offer="auto+always+never" ;;
        "dismiss:--why") offer="@nothing" ;;
        "dismiss:--bus") offer="system+session" ;;
        "dismiss:--color") offer="auto+always+never" ;;
        "check:--policy") offer="@nothing" ;;
        "check:--pid") offer="@pids" ;;
        "check:--junit") offer="@files" ;;
        "check:--bus") offer="system+session" ;;
        "check:--color") offer="auto+always+never" ;;
        "inspect:--bus") offer="system+session" ;;
        "inspect:--color") offer="auto+always+never" ;;
        "explain:--pid") offer="@pids" ;;
        "explain:--arguments") offer="@nothing" ;;
        "explain:--path") offer="@files" ;;
        "explain:--bus") offer="system+session" ;;
        "explain:--color") offer="auto+always+never" ;;
        "run:--report") offer="@files" ;;
        "run:--junit") offer="@files" ;;
        "run:--annotate") offer="github+gitlab" ;;
        "run:--exit-infra") offer="@nothing" ;;
        "run:--slice") offer="@nothing" ;;
        "run:--bus") offer="system+session" ;;
        "run:--color") offer="auto+always+never" ;;
        "seccomp:--bus") offer="system+session" ;;
        "seccomp:--color") offer="auto+always+never" ;;
        "seccomp check:--workload") offer="@nothing" ;;
        "seccomp check:--toolchain") offer="@nothing" ;;
        "seccomp check:--arch") offer="@nothing" ;;
        "seccomp check:--caps") offer="@nothing" ;;
        "seccomp check:--kernel") offer="@nothing" ;;
        "seccomp check:--runtime") offer="docker+podman+containerd+cri-o" ;;
        "seccomp check:--fix") offer="@files" ;;
        "seccomp dump:--workload") offer="@nothing" ;;
        "seccomp dump:--toolchain") offer="@nothing" ;;
        "seccomp dump:--call") offer="@nothing" ;;
        "seccomp dump:-o"|"seccomp dump:--output") offer="@files" ;;
        "seccomp disasm:--arch") offer="@nothing" ;;
        "seccomp disasm:--caps") offer="@nothing" ;;
        "seccomp disasm:--kernel") offer="@nothing" ;;
        "seccomp disasm:--runtime") offer="docker+podman+containerd+cri-o" ;;
        "seccomp run:--profile") offer="@files" ;;
        "seccomp run:--arch") offer="@nothing" ;;
        "seccomp run:--caps") offer="@nothing" ;;
        "seccomp run:--kernel") offer="@nothing" ;;
        "seccomp run:--runtime") offer="docker+podman+containerd+cri-o" ;;
        "seccomp record:-o"|"seccomp record:--output") offer="@files" ;;
        "seccomp record:--format") offer="oci+systemd" ;;
        "seccomp record:--base") offer="@files" ;;
        "seccomp record:--method") offer="auto+tracefs+audit+ptrace" ;;
        "seccomp record:--deny") offer="@nothing" ;;
        "seccomp record:--runs") offer="@nothing" ;;
        "seccomp record:--tries") offer="@nothing" ;;
        "seccomp record:--timeout") offer="@nothing" ;;
        "seccomp record:--workload") offer="@nothing" ;;
        "seccomp merge:-o"|"seccomp merge:--output") offer="@files" ;;
        "log:--finding") offer="@findings" ;;
        "log:--rule") offer="@rules" ;;
        "log:--since") offer="@nothing" ;;
        "log:--directory") offer="@directories" ;;
        "log:-n"|"log:--lines") offer="@nothing" ;;
        "log:--bus") offer="system+session" ;;
        "log:--color") offer="auto+always+never" ;;
        "rules:--bus") offer="system+session" ;;
        "rules:--color") offer="auto+always+never" ;;
        "completion:--bus") offer="system+session" ;;
        "completion:--color") offer="auto+always+never" ;;
    esac
}

# Fills COMPREPLY with what fits: words joined by +, or a @kind that is looked up now.
_triagectl_offer()
{
    local found="" word
    case $1 in
        @findings) found=$("$program" list --quiet --state all 2>/dev/null) ;;
        @rules) found=$("$program" rules --quiet 2>/dev/null) ;;
        @units) found=$(systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null | cut -d' ' -f1) ;;
        @pids) found=$(cd /proc && printf '%s\n' [0-9]*) ;;
        @files) mapfile -t COMPREPLY < <(compgen -f -- "$2"); compopt -o filenames 2>/dev/null; return ;;
        @directories) mapfile -t COMPREPLY < <(compgen -d -- "$2"); compopt -o filenames 2>/dev/null; return ;;
        @*) ;;
        *) found=${1//+/$'
'} ;;
    esac
    # Not compgen -W: it would expand what a unit's name contains.
    while IFS= read -r word; do
        [[ -n $word && $word == "$2"* ]] && printf -v word %q "$word" && COMPREPLY+=("$word")
    done <<<"$found"
}

_triagectl()
{
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} path="" place=0 index word waiting=""
    local children options places offer
    COMPREPLY=()
    _triagectl_spec ""
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ $word == "=" ]]; then
            continue
        elif [[ -n $waiting ]]; then
            waiting=""
        elif [[ $word == -* ]]; then
            _triagectl_value "$path" "$word"
            waiting=$offer
        elif [[ " $children " == *" $word "* ]]; then
            path=${path:+$path }$word
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
        [[ ${#each[@]} -gt 0 && $place -lt ${#each[@]} ]] && _triagectl_offer "${each[place]}" "$current"
    fi
    return 0
}
complete -F _triagectl triagectl
