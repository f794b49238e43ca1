// SPDX-License-Identifier: Apache-2.0
package cgo

import (
	"sync"
	"testing"
)

func TestTwice(t *testing.T) {
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			if Twice(i) != 2*i {
				t.Error(i)
			}
		}()
	}
	wait.Wait()
}
