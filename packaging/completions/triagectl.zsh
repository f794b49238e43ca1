#compdef triagectl
# SPDX-License-Identifier: Apache-2.0
# Made from triagectl's command line by 'triagectl completion zsh'; do not edit.

_triagectl__findings() {
    local -a found
    found=(${(f)"$(_call_program findings triagectl list --quiet --state all 2>/dev/null)"})
    compadd -a found
}

_triagectl__rules() {
    local -a found
    found=(${(f)"$(_call_program rules triagectl rules --quiet 2>/dev/null)"})
    compadd -a found
}

_triagectl__units() {
    local -a found
    found=(${${(f)"$(_call_program units systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null)"}%% *})
    compadd -a found
}

_triagectl_completion() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':shell:(bash zsh fish)'
}

_triagectl_rules() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '(-q --quiet)-q[print only the names of the rules]' \
        '(-q --quiet)--quiet[print only the names of the rules]' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':rule:_triagectl__rules'
}

_triagectl_log() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--finding=[only what is about this finding]:id:_triagectl__findings' \
        '--rule=[only what this rule found]:rule:_triagectl__rules' \
        '--since=[not older than this, as for journalctl\: today, --since=-1h, ...]:time: ' \
        '--directory=[read the journal files in this directory, not this machine'\''s journal]:dir:_files -/' \
        '(-n --lines)-n[only the last N entries]:n: ' \
        '(-n --lines)--lines=[only the last N entries]:n: ' \
        '(-f --follow)-f[go on with new entries as they come]' \
        '(-f --follow)--follow[go on with new entries as they come]' \
        '(-x --explain)-x[add the message catalog'\''s explanation to each entry]' \
        '(-x --explain)--explain[add the message catalog'\''s explanation to each entry]' \
        '--json[print each entry'\''s journal fields as JSON, one entry a line]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':unit:_triagectl__units'
}

_triagectl_seccomp_merge() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '(-o --output)-o[where the profile goes (default\: standard output)]:file:_files' \
        '(-o --output)--output=[where the profile goes (default\: standard output)]:file:_files' \
        ':profile:_files'
}

_triagectl_seccomp_record() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '(-o --output)-o[where the profile goes (default\: standard output)]:file:_files' \
        '(-o --output)--output=[where the profile goes (default\: standard output)]:file:_files' \
        '--format=[OCI JSON, or a drop-in with SystemCallFilter=]:format:(oci systemd)' \
        '--base=[give the difference to this profile; with -o write it, extended]:profile:_files' \
        '--bare[leave out what a container runtime calls before it starts the command]' \
        '--method=[how to observe (default\: the best that is to be had)]:method:(auto tracefs audit ptrace)' \
        '--deny=[what other calls get\: an errno, or kill (default\: EPERM)]:errno: ' \
        '--runs=[how often to observe before the profile is tried]:n: ' \
        '--tries=[how often the profile is tried and corrected]:n: ' \
        '--no-verify[do not run the command again under the profile]' \
        '--timeout=[for each run (default\: 600)]:seconds: ' \
        '--workload=[name to note the calls under (default\: the command'\''s)]:name: ' \
        ':command: '
}

_triagectl_seccomp_run() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--profile=[may be given again\: filters stack]:profile:_files' \
        '--log[have refusals logged (SECCOMP_FILTER_FLAG_LOG)]' \
        '--arch=[the machine'\''s architecture (default\: this machine'\''s)]:arch: ' \
        '--caps=[the container'\''s bounding set\: none, default (what Docker gives), all, or a list\: SYS_ADMIN,BPF]:caps: ' \
        '--kernel=[the kernel\: 6.12 (default\: this one)]:version: ' \
        '--runtime=[what applies the profile (default\: docker)]:runtime:(docker podman containerd cri-o)' \
        ':command: '
}

_triagectl_seccomp_disasm() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--arch=[the machine'\''s architecture (default\: this machine'\''s)]:arch: ' \
        '--caps=[the container'\''s bounding set\: none, default (what Docker gives), all, or a list\: SYS_ADMIN,BPF]:caps: ' \
        '--kernel=[the kernel\: 6.12 (default\: this one)]:version: ' \
        '--runtime=[what applies the profile (default\: docker)]:runtime:(docker podman containerd cri-o)' \
        ':what: '
}

_triagectl_seccomp_dump() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--workload=[hold the filters against workloads, with commas, or all]:names: ' \
        '--toolchain=[needs as measured with this toolchain\: go1.19 (default\: the newest)]:go: ' \
        '--call=[only this call (may be given again)]:name: ' \
        '(-o --output)-o[write the filters to FILE.0 (the newest), FILE.1, ...]:file:_files' \
        '(-o --output)--output=[write the filters to FILE.0 (the newest), FILE.1, ...]:file:_files' \
        '--json[print JSON]' \
        ':pid:_pids'
}

_triagectl_seccomp_check() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--workload=[workloads, with commas, or all (default\: go-test)]:names: ' \
        '--toolchain=[needs as measured with this toolchain\: go1.19 (default\: the newest)]:go: ' \
        '--arch=[the machine'\''s architecture (default\: this machine'\''s)]:arch: ' \
        '--caps=[the container'\''s bounding set\: none, default (what Docker gives), all, or a list\: SYS_ADMIN,BPF]:caps: ' \
        '--kernel=[the kernel\: 6.12 (default\: this one)]:version: ' \
        '--runtime=[what applies the profile (default\: docker)]:runtime:(docker podman containerd cri-o)' \
        '--fix=[write a profile under which the workloads work to FILE]:file:_files' \
        '(-v --verbose)-v[show the calls that are allowed, too]' \
        '(-v --verbose)--verbose[show the calls that are allowed, too]' \
        '--json[print JSON]' \
        ':profile:_files'
}

_triagectl_seccomp() {
    local curcontext="$curcontext" state line
    local -a commands
    commands=(
        'check:hold a profile against what workloads need'
        'dump:what the filters of a process answer'
        'disasm:print a filter readably'
        'run:run a command under a profile'
        'record:make the smallest profile under which a command works'
        'merge:one profile that allows what any of several allows'
    )
    _arguments -C -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        '1:command:->command' \
        '*::argument:->argument'
    case $state in
        command) _describe -t commands command commands ;;
        argument)
            case $line[1] in
                check) _triagectl_seccomp_check ;;
                dump) _triagectl_seccomp_dump ;;
                disasm) _triagectl_seccomp_disasm ;;
                run) _triagectl_seccomp_run ;;
                record) _triagectl_seccomp_record ;;
                merge) _triagectl_seccomp_merge ;;
            esac ;;
    esac
}

_triagectl_run() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--report=[write the verdict to FILE as JSON, and nothing to standard error]:file:_files' \
        '--junit=[write the tests with the verdict to FILE as JUnit XML]:file:_files' \
        '--annotate=[print the verdict as annotations of a CI system]:annotate:(github gitlab)' \
        '--exit-infra=[exit status where the machine is to blame (default\: the command'\''s)]:n: ' \
        '--slice=[run the command in a scope of its own in this slice]:slice: ' \
        '--no-trace[do not trace failing system calls]' \
        '--ask[not root\: let triaged ask for a password where it needs one to trace]' \
        '(-q --quiet)-q[say nothing where the machine is not to blame]' \
        '(-q --quiet)--quiet[say nothing where the machine is not to blame]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':command: '
}

_triagectl_explain() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--pid=[the process in which it failed]:pid:_pids' \
        '--arguments=[the call'\''s arguments, as numbers (0,0x1000)]:n,n: ' \
        '--path=[the file that the call was about]:file:_files' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':question: '
}

_triagectl_inspect() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':pid|unit: '
}

_triagectl_check() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--policy=[hold this policy against the machine, not the configured ones; may be given again]:name: ' \
        '--list[list the policies that there are]' \
        '--pid=[judge resource limits, and parameters of the network namespace, as they are for this process]:pid:_pids' \
        '--strict[exit status 2 also where an item is unknown]' \
        '--all[show items that pass with their reasons too]' \
        '--json[print JSON]' \
        '--junit=[also write the result as JUnit XML]:file:_files' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)'
}

_triagectl_dismiss() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--why=[the reason, which is kept with the finding]:text: ' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':id:_triagectl__findings'
}

_triagectl_undo() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':id:_triagectl__findings' \
        ':fix: '
}

_triagectl_fix() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--lasting[take the fix that lasts over a reboot]' \
        '--preview[only show what would change]' \
        '--yes[do not ask]' \
        '--json[print JSON\: the preview, or with --yes the outcome]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':id:_triagectl__findings' \
        ':fix: '
}

_triagectl_watch() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '(-n --number)-n[end after N findings]:n: ' \
        '(-n --number)--number=[end after N findings]:n: ' \
        '--json[print JSON, one finding a line]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)'
}

_triagectl_show() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        ':id:_triagectl__findings'
}

_triagectl_list() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--state=[in which state (default\: open)]:state:(open fixed resolved dismissed expired all)' \
        '--kind=[of which kind]:kind:(hit headroom risk)' \
        '--severity=[this severe or worse]:severity:(critical error warning notice info)' \
        '--rule=[found by this rule]:rule:_triagectl__rules' \
        '--unit=[about this systemd unit]:unit:_triagectl__units' \
        '(-q --quiet)-q[print only the ids]' \
        '(-q --quiet)--quiet[print only the ids]' \
        '--json[print JSON, in the shape of '\''triagectl scan --json'\'']' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)'
}

_triagectl_status() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--json[print JSON]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)'
}

_triagectl_scan() {
    _arguments -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--policy=[judge by this policy, not the configured ones; may be given again]:name: ' \
        '--strict[exit status 2 also where any source could not look fully]' \
        '--json[print JSON\: {"findings"\: \[...\], "sources"\: \[...\]}]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)'
}

_triagectl() {
    local curcontext="$curcontext" state line
    local -a commands
    commands=(
        'scan:look once at this machine, without the daemon'
        'status:how the daemon and its sources stand'
        'list:the findings of the daemon'
        'show:one finding with its evidence and fixes'
        'watch:print findings as they come'
        'fix:preview and apply the fix of a finding'
        'undo:put back what a fix changed'
        'dismiss:say that a finding does not matter'
        'check:hold policies against this machine, as a gate'
        'inspect:every limit of a process or unit, and which binds first'
        'explain:which limit gives an error, and how each stands'
        'run:run a command, and say which of its failures are the machine'\''s'
        'seccomp:what seccomp filters refuse, and profiles that fit'
        'log:what the journal says of a unit'\''s findings'
        'rules:what triaged can find\: the rule manual'
        'completion:print the completion script of a shell'
    )
    _arguments -C -s \
        '(-h --help)-h[show this help message and exit]' \
        '(-h --help)--help[show this help message and exit]' \
        '--version[show program'\''s version number and exit]' \
        '--bus=[the message bus where the daemon is\: system, session, or an address (default\: $TRIAGED_BUS, else system)]:bus:(system session)' \
        '--color=[colours\: auto (on a terminal, unless $NO_COLOR is set), always, never]:when:(auto always never)' \
        '1:command:->command' \
        '*::argument:->argument'
    case $state in
        command) _describe -t commands command commands ;;
        argument)
            case $line[1] in
                scan) _triagectl_scan ;;
                status) _triagectl_status ;;
                list) _triagectl_list ;;
                show) _triagectl_show ;;
                watch) _triagectl_watch ;;
                fix) _triagectl_fix ;;
                undo) _triagectl_undo ;;
                dismiss) _triagectl_dismiss ;;
                check) _triagectl_check ;;
                inspect) _triagectl_inspect ;;
                explain) _triagectl_explain ;;
                run) _triagectl_run ;;
                seccomp) _triagectl_seccomp ;;
                log) _triagectl_log ;;
                rules) _triagectl_rules ;;
                completion) _triagectl_completion ;;
            esac ;;
    esac
}

if [[ $funcstack[1] == _triagectl ]]; then
    _triagectl "$@"
else
    compdef _triagectl triagectl
fi
