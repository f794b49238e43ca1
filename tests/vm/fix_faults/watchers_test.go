// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"os"
	"syscall"
	"testing"
)

func TestWatchers(t *testing.T) {
	for i := 0; i < 16; i++ {
		watcher, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
		if err != nil {
			t.Fatal(os.NewSyscallError("inotify_init1", err))
		}
		defer syscall.Close(watcher)
	}
}
