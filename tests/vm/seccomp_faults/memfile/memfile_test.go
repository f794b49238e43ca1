// SPDX-License-Identifier: Apache-2.0

// Package memfile makes a file in memory, as packages do that hand data to a child.
package memfile

import (
	"syscall"
	"testing"
	"unsafe"
)

const memfdCreate = 319

func TestFileInMemory(t *testing.T) {
	name := []byte("report\x00")
	descriptor, _, errno := syscall.Syscall(memfdCreate, uintptr(unsafe.Pointer(&name[0])), 1, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if _, err := syscall.Write(int(descriptor), []byte("text")); err != nil {
		t.Fatal(err)
	}
	syscall.Close(int(descriptor))
}
