# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp run`: a command under a profile."""
from __future__ import annotations

import argparse
import os
import signal
import sys

from triaged.cli import seccomp_data as data
from triaged.cli.seccomp_check import setting_of
from triaged.errors import ConfigError
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.seccomp.compiler import compiled
from triaged.seccomp.syscalls import audit_arch_of, native_arch, number_of


def shell_status(wait_status: int) -> int:
    """The exit status as a shell has it: 128 and the signal's number where a signal ended the command."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def run_run(args: argparse.Namespace) -> int:
    """Runs the command; its exit status. Raises TriagedError."""
    setting = setting_of(args)
    native = native_arch()
    if setting.arch != native:
        raise ConfigError("--arch", 0, f"this machine is {native}: a filter for {setting.arch} cannot be tried here")
    policies = [data.resolved(data.read_profile(name), setting) for name in args.profile]
    filters = [LoadedFilter(compiled(policy).packed(), args.log) for policy in policies]
    execve = number_of(native, "execve") or 0
    for name, policy in zip(args.profile, policies, strict=True):
        answer = policy.action(audit_arch_of(native), execve)
        if not answer.is_allowed:
            print(f"triagectl: {name}: execve {answer.effect}: no command can start under this profile", file=sys.stderr)
    with Command(args.command_line, filters, number_of(native, "seccomp") or 0) as command:
        # As a shell: the command gets the keyboard's signals, and its status is waited for.
        old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
        for number in (signal.SIGTERM, signal.SIGHUP):  # sent to us, they are meant for it
            old[number] = signal.signal(number, lambda received, _: os.kill(command.pid, received))
        try:
            command.start()
            status = command.wait()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
        print("triagectl: ended by SIGSYS (bad system call): the profile kills or traps a call that it made", file=sys.stderr)
    return shell_status(status)
