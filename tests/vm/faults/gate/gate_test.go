// SPDX-License-Identifier: Apache-2.0

// Package gate makes a system call that a seccomp filter may refuse.
package gate

import (
	"syscall"
	"testing"
)

func TestSwapoff(t *testing.T) {
	_, _, errno := syscall.Syscall(syscall.SYS_SWAPOFF, 0, 0, 0)
	t.Logf("swapoff: %v", errno)
}
