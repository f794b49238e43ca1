// SPDX-License-Identifier: Apache-2.0

//go:build !386

package memory

import (
	"syscall"
	"testing"
)

// System V's calls: 32-bit programs make one call, ipc(), of all of them.

func TestSharedSegment(t *testing.T) {
	id, _, errno := syscall.Syscall(syscall.SYS_SHMGET, 0, 8<<20, 0o600|01000) // IPC_PRIVATE, IPC_CREAT
	if errno != 0 {
		t.Fatal("shmget 8 MiB:", errno)
	}
	syscall.Syscall(syscall.SYS_SHMCTL, id, 0, 0)
}

func TestManySegments(t *testing.T) {
	for i := 0; i < 20; i++ {
		id, _, errno := syscall.Syscall(syscall.SYS_SHMGET, 0, 4096, 0o600|01000)
		if errno != 0 {
			t.Fatalf("shmget segment %d: %v", i, errno)
		}
		t.Cleanup(func() { syscall.Syscall(syscall.SYS_SHMCTL, id, 0, 0) })
	}
}

func TestManySemaphores(t *testing.T) {
	for i := 0; i < 20; i++ {
		id, _, errno := syscall.Syscall(syscall.SYS_SEMGET, 0, 1, 0o600|01000)
		if errno != 0 {
			t.Fatalf("semget %d: %v", i, errno)
		}
		t.Cleanup(func() { syscall.Syscall(syscall.SYS_SEMCTL, id, 0, 0) })
	}
}

func TestMessageQueues(t *testing.T) {
	for i := 0; i < 20; i++ {
		id, _, errno := syscall.Syscall(syscall.SYS_MSGGET, 0, 0o600|01000, 0)
		if errno != 0 {
			t.Fatalf("msgget %d: %v", i, errno)
		}
		t.Cleanup(func() { syscall.Syscall(syscall.SYS_MSGCTL, id, 0, 0) })
	}
}
