# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from situations import process

from triaged.run.process_tree import Process, ProcessTree
from triaged.run.record import Role


def tree_of(*programs: str) -> tuple[ProcessTree, list[Process]]:
    """A chain of processes, each the child of the one before, that executed these programs."""
    tree = ProcessTree(Process(100, None))
    chain = []
    for pid, program in enumerate(programs, 100):
        if pid > 100:
            tree.made(pid - 1, pid, False, 0)
        chain.append(tree.executed(pid, program, 0))
    return tree, chain


def test_without_a_workload_everything_is_under_test() -> None:
    tree, chain = tree_of("/bin/sh", "/usr/bin/python3", "/bin/ls")
    assert [tree.role_of(each) for each in chain] == [Role.TEST] * 3


def test_the_roles_of_a_go_test() -> None:
    tree, (shell, go, test, child) = tree_of("/bin/sh", "/usr/bin/go", "/tmp/b001/worker.test", "/bin/sleep")
    tree.recognise(go, "command", "")
    tree.recognise(test, "test-binary", "example.org/worker")
    tree.made(go.pid, 500, False, 0)
    compiler = tree.executed(500, "/usr/lib/go/pkg/tool/compile", 0)
    assert [tree.role_of(each) for each in (shell, go, compiler, test, child)] == [
        Role.COMMAND, Role.COMMAND, Role.BUILD, Role.TEST, Role.CHILD]
    assert [each.tested_package() for each in (go, compiler, test, child)] == ["", "", "example.org/worker", "example.org/worker"]


def test_a_child_that_has_not_executed_anything_is_what_its_parent_is() -> None:
    tree, (test,) = tree_of("/tmp/b001/worker.test")
    tree.recognise(test, "test-binary", "p")
    child = tree.made(100, 101, False, 0)
    assert child is not None
    assert (tree.role_of(child), child.exe, child.tested_package()) == (Role.TEST, test.exe, "p")


def test_a_thread_is_its_process_and_the_last_one_ends_it() -> None:
    tree, (process,) = tree_of("/bin/x")
    assert tree.made(100, 101, True, 0) is None
    assert tree.of(101) is process
    assert tree.ended(100) is None
    assert not process.has_ended
    assert tree.ended(101) is process
    assert process.has_ended
    assert tree.of(101) is None
    assert tree.of_lately(101) is process


def test_a_task_whose_making_was_missed_hangs_below_the_command() -> None:
    tree, _ = tree_of("/bin/x")
    made = tree.made(700, 701, False, 0)
    assert made is not None
    assert made.parent is not None
    assert made.parent.parent is tree.root


def test_a_shell_that_prepares_is_not_under_test_but_one_that_a_test_starts_is() -> None:
    tree, (shell, prlimit, program, inner) = tree_of("/bin/sh", "/usr/bin/prlimit", "/usr/bin/python3", "/bin/sh")
    assert [tree.is_under_test(each) for each in (shell, prlimit, program, inner)] == [False, False, True, True]
    tree, (go, test, helper) = tree_of("/usr/bin/go", "/tmp/x.test", "/bin/sh")
    tree.recognise(go, "command", "")
    tree.recognise(test, "test-binary", "p")
    assert [tree.is_under_test(each) for each in (go, test, helper)] == [False, True, True]


def test_what_ended_is_forgotten_in_the_end() -> None:
    tree, _ = tree_of("/bin/x")
    for pid in range(1000, 9000):
        tree.made(100, pid, False, 0)
        tree.ended(pid)
    assert len(tree._tasks) == 1
    assert len(tree._ended) <= 2048


def test_a_program_that_may_give_another_label_makes_the_known_one_doubtful() -> None:
    tree, (shell, launcher) = tree_of("/bin/sh", "/usr/bin/aa-exec")
    assert not launcher.may_be_relabelled
    test = tree.executed(launcher.pid, "/tmp/a.test", 0)
    assert (test.may_be_relabelled, shell.may_be_relabelled) == (True, False)
    assert not tree.label_is_of_root(test)
    test.know(process(pid=test.pid))
    assert not test.may_be_relabelled
    assert tree.label_is_of_root(test)


def test_shells_and_workloads_leave_the_label_as_it_is() -> None:
    tree, (go, test) = tree_of("/usr/bin/go", "/tmp/b001/a.test")
    assert test.may_be_relabelled
    tree, (go,) = tree_of("/usr/bin/go")
    tree.recognise(go, "command", "")
    child = tree.made(go.pid, 500, False, 0)
    assert child is not None
    tree.executed(500, "/tmp/b001/a.test", 0)
    assert not child.may_be_relabelled
    assert tree.label_is_of_root(child)
