// SPDX-License-Identifier: Apache-2.0

// Package userns starts a program in a user namespace of its own.
package userns

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestUserNamespace(t *testing.T) {
	// A suite has more tests than one.
	if pause, err := time.ParseDuration(os.Getenv("TAKE")); err == nil {
		time.Sleep(pause)
	}
	command := exec.Command("/bin/true")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	if err := command.Run(); err != nil {
		t.Fatal(err)
	}
}
