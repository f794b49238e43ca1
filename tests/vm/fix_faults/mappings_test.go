// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"os"
	"syscall"
	"testing"
)

// Every other page of a range gets another protection: the kernel cannot merge them.
func TestManyMappings(t *testing.T) {
	size := os.Getpagesize()
	pages := 4000
	memory, err := syscall.Mmap(-1, 0, pages*size, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	page := 0
	for err == nil && page < pages {
		err = syscall.Mprotect(memory[page*size:(page+1)*size], syscall.PROT_READ)
		page += 2
	}
	// Before anything is said: the runtime needs mappings of its own.
	syscall.Munmap(memory)
	if err != nil {
		t.Fatalf("mapping %d: %v", page, err)
	}
}
