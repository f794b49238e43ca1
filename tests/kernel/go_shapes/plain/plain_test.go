// SPDX-License-Identifier: Apache-2.0
package plain

import (
	"os"
	"sync"
	"syscall"
	"testing"
)

func TestGoroutines(t *testing.T) {
	var wait sync.WaitGroup
	sums := make([]int, 8)
	for i := range sums {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			for n := 0; n < 200000; n++ {
				sums[i] += n & i
			}
		}(i)
	}
	wait.Wait()
	if sums[0] != 0 {
		t.Fatal(sums)
	}
}

func TestParallel(t *testing.T) {
	for _, name := range []string{"a", "b", "c"} {
		t.Run(name, func(t *testing.T) { t.Parallel() })
	}
}

// TestGetpgid makes a call that no other test here makes: what a profile of theirs must refuse.
func TestGetpgid(t *testing.T) {
	if os.Getenv("SHAPES_GETPGID") == "" {
		t.Skip("only where it is asked for")
	}
	if _, err := syscall.Getpgid(0); err != nil {
		t.Fatal(err)
	}
}
