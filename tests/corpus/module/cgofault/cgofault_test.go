// SPDX-License-Identifier: Apache-2.0

package cgofault

import (
	"runtime"
	"testing"
)

func TestThreads(t *testing.T) {
	if One() != 1 {
		t.Fatal("C says something else")
	}
	done := make(chan bool)
	for i := 0; i < 8; i++ {
		go func() {
			runtime.LockOSThread()
			done <- true
		}()
	}
	for i := 0; i < 8; i++ {
		<-done
	}
}
