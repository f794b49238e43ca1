# SPDX-License-Identifier: Apache-2.0
# Made from triagectl's command line by 'triagectl completion fish'; do not edit.

function __triagectl_at -d 'Whether the command line so far names this command' -a wanted
    set -l path ''
    set -l is_value no
    for word in (commandline -opc)[2..-1]
        if test $is_value = yes
            set is_value no
            continue
        end
        switch "$path:$word"
            case ':--bus' ':--color' 'scan:--policy' 'scan:--bus' 'scan:--color' 'status:--bus' 'status:--color' 'list:--state' 'list:--kind' 'list:--severity' 'list:--rule' 'list:--unit' 'list:--bus' 'list:--color' 'show:--bus' 'show:--color' 'watch:-n' 'watch:--number' 'watch:--bus' 'watch:--color' 'check:--policy' 'check:--pid' 'check:--junit' 'check:--bus' 'check:--color' 'inspect:--bus' 'inspect:--color' 'log:--finding' 'log:--rule' 'log:--since' 'log:--directory' 'log:-n' 'log:--lines' 'log:--bus' 'log:--color' 'rules:--bus' 'rules:--color' 'completion:--bus' 'completion:--color'
                set is_value yes
            case ':scan' ':status' ':list' ':show' ':watch' ':check' ':inspect' ':log' ':rules' ':completion'
                set path (string trim -- "$path $word")
        end
    end
    test "$path" = "$wanted"
end

complete -c triagectl -f
complete -c triagectl -n '__triagectl_at \'\'' -f -a scan -d 'look once at this machine, without the daemon'
complete -c triagectl -n '__triagectl_at \'\'' -f -a status -d 'how the daemon and its sources stand'
complete -c triagectl -n '__triagectl_at \'\'' -f -a list -d 'the findings of the daemon'
complete -c triagectl -n '__triagectl_at \'\'' -f -a show -d 'one finding with its evidence and fixes'
complete -c triagectl -n '__triagectl_at \'\'' -f -a watch -d 'print findings as they come'
complete -c triagectl -n '__triagectl_at \'\'' -f -a check -d 'hold policies against this machine, as a gate'
complete -c triagectl -n '__triagectl_at \'\'' -f -a inspect -d 'every limit of a process or unit, and which binds first'
complete -c triagectl -n '__triagectl_at \'\'' -f -a log -d 'what the journal says of a unit\'s findings'
complete -c triagectl -n '__triagectl_at \'\'' -f -a rules -d 'what triaged can find: the rule manual'
complete -c triagectl -n '__triagectl_at \'\'' -f -a completion -d 'print the completion script of a shell'
complete -c triagectl -n '__triagectl_at \'\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'\'' -l version -d 'show program\'s version number and exit'
complete -c triagectl -n '__triagectl_at \'\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'scan\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'scan\'' -l policy -x -d 'judge by this policy, not the configured ones; may be given again'
complete -c triagectl -n '__triagectl_at \'scan\'' -l strict -d 'exit status 2 also where any source could not look fully'
complete -c triagectl -n '__triagectl_at \'scan\'' -l json -d 'print JSON: {"findings": [...], "sources": [...]}'
complete -c triagectl -n '__triagectl_at \'scan\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'scan\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'status\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'status\'' -l json -d 'print JSON'
complete -c triagectl -n '__triagectl_at \'status\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'status\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'list\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'list\'' -l state -x -a 'open fixed resolved dismissed expired all' -d 'in which state (default: open)'
complete -c triagectl -n '__triagectl_at \'list\'' -l kind -x -a 'hit headroom risk' -d 'of which kind'
complete -c triagectl -n '__triagectl_at \'list\'' -l severity -x -a 'critical error warning notice info' -d 'this severe or worse'
complete -c triagectl -n '__triagectl_at \'list\'' -l rule -x -a '(triagectl rules --quiet 2>/dev/null)' -d 'found by this rule'
complete -c triagectl -n '__triagectl_at \'list\'' -l unit -x -a '(systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null | string replace -r \' .*\' \'\')' -d 'about this systemd unit'
complete -c triagectl -n '__triagectl_at \'list\'' -s q -l quiet -d 'print only the ids'
complete -c triagectl -n '__triagectl_at \'list\'' -l json -d 'print JSON, in the shape of \'triagectl scan --json\''
complete -c triagectl -n '__triagectl_at \'list\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'list\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'show\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'show\'' -l json -d 'print JSON'
complete -c triagectl -n '__triagectl_at \'show\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'show\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'show\'' -f -a '(triagectl list --quiet --state all 2>/dev/null)'
complete -c triagectl -n '__triagectl_at \'watch\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'watch\'' -s n -l number -x -d 'end after N findings'
complete -c triagectl -n '__triagectl_at \'watch\'' -l json -d 'print JSON, one finding a line'
complete -c triagectl -n '__triagectl_at \'watch\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'watch\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'check\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'check\'' -l policy -x -d 'hold this policy against the machine, not the configured ones; may be given again'
complete -c triagectl -n '__triagectl_at \'check\'' -l list -d 'list the policies that there are'
complete -c triagectl -n '__triagectl_at \'check\'' -l pid -x -a '(__fish_complete_pids)' -d 'judge resource limits, and parameters of the network namespace, as they are for this process'
complete -c triagectl -n '__triagectl_at \'check\'' -l strict -d 'exit status 2 also where an item is unknown'
complete -c triagectl -n '__triagectl_at \'check\'' -l all -d 'show items that pass with their reasons too'
complete -c triagectl -n '__triagectl_at \'check\'' -l json -d 'print JSON'
complete -c triagectl -n '__triagectl_at \'check\'' -l junit -r -F -d 'also write the result as JUnit XML'
complete -c triagectl -n '__triagectl_at \'check\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'check\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'inspect\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'inspect\'' -l json -d 'print JSON'
complete -c triagectl -n '__triagectl_at \'inspect\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'inspect\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'inspect\'' -f
complete -c triagectl -n '__triagectl_at \'log\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'log\'' -l finding -x -a '(triagectl list --quiet --state all 2>/dev/null)' -d 'only what is about this finding'
complete -c triagectl -n '__triagectl_at \'log\'' -l rule -x -a '(triagectl rules --quiet 2>/dev/null)' -d 'only what this rule found'
complete -c triagectl -n '__triagectl_at \'log\'' -l since -x -d 'not older than this, as for journalctl: today, --since=-1h, ...'
complete -c triagectl -n '__triagectl_at \'log\'' -l directory -x -a '(__fish_complete_directories)' -d 'read the journal files in this directory, not this machine\'s journal'
complete -c triagectl -n '__triagectl_at \'log\'' -s n -l lines -x -d 'only the last N entries'
complete -c triagectl -n '__triagectl_at \'log\'' -s f -l follow -d 'go on with new entries as they come'
complete -c triagectl -n '__triagectl_at \'log\'' -s x -l explain -d 'add the message catalog\'s explanation to each entry'
complete -c triagectl -n '__triagectl_at \'log\'' -l json -d 'print each entry\'s journal fields as JSON, one entry a line'
complete -c triagectl -n '__triagectl_at \'log\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'log\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'log\'' -f -a '(systemctl list-units --all --full --plain --no-legend --no-pager 2>/dev/null | string replace -r \' .*\' \'\')'
complete -c triagectl -n '__triagectl_at \'rules\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'rules\'' -s q -l quiet -d 'print only the names of the rules'
complete -c triagectl -n '__triagectl_at \'rules\'' -l json -d 'print JSON'
complete -c triagectl -n '__triagectl_at \'rules\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'rules\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'rules\'' -f -a '(triagectl rules --quiet 2>/dev/null)'
complete -c triagectl -n '__triagectl_at \'completion\'' -s h -l help -d 'show this help message and exit'
complete -c triagectl -n '__triagectl_at \'completion\'' -l bus -x -a 'system session' -d 'the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)'
complete -c triagectl -n '__triagectl_at \'completion\'' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal, unless $NO_COLOR is set), always, never'
complete -c triagectl -n '__triagectl_at \'completion\'' -f -a 'bash zsh fish'
