// SPDX-License-Identifier: Apache-2.0
package plain

import (
	"sync"
	"testing"
)

func TestGoroutines(t *testing.T) {
	var wait sync.WaitGroup
	sums := make([]int, 8)
	for i := range sums {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for n := 0; n < 200000; n++ {
				sums[i] += n & i
			}
		}()
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
