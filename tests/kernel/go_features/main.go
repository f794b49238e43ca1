// SPDX-License-Identifier: Apache-2.0

// Command features does what some packages do besides what every test run does, and prints the error as a test would show it.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

func start(attributes *syscall.SysProcAttr) error {
	command := exec.Command("/bin/true")
	command.SysProcAttr = attributes
	return command.Run()
}

func call(number uintptr) error {
	if _, _, errno := syscall.Syscall6(number, 0, 0, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

var features = map[string]func() error{
	"user-namespace": func() error { return start(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}) },
	"namespaces": func() error {
		for _, flag := range []uintptr{syscall.CLONE_NEWNS, syscall.CLONE_NEWNET, syscall.CLONE_NEWPID} {
			if err := start(&syscall.SysProcAttr{Cloneflags: flag}); err != nil {
				return err
			}
		}
		return nil
	},
	"unshare":     func() error { return start(&syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWUSER}) },
	"cgroup-fd":   func() error { return start(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: -1}) },
	"ptrace":      func() error { return start(&syscall.SysProcAttr{Ptrace: true}) },
	"chroot":      func() error { return start(&syscall.SysProcAttr{Chroot: "/"}) },
	"mount":       func() error { return syscall.Mount("none", "/does/not/exist", "tmpfs", 0, "") },
	"setns":       func() error { return call(308) },
	"memfd":       func() error { return call(319) },
	"perf":        func() error { return call(298) },
	"bpf":         func() error { return call(321) },
	"io-uring":    func() error { return call(425) },
	"userfaultfd": func() error { return call(323) },
	"keyring":     func() error { return call(250) },
}

func main() {
	runtime.LockOSThread()
	fmt.Println(features[os.Args[1]]())
}
