// SPDX-License-Identifier: Apache-2.0
package cgo

import (
	"sync"
	"testing"
)

func TestTwice(t *testing.T) {
	var wait sync.WaitGroup
	for i := 0; i < 8; i++ {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			if Twice(i) != 2*i {
				t.Error(i)
			}
		}(i)
	}
	wait.Wait()
}
