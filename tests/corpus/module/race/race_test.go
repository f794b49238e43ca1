// SPDX-License-Identifier: Apache-2.0

// Package race has a data race.
package race

import "testing"

func TestCounter(t *testing.T) {
	count, done := 0, make(chan bool)
	for i := 0; i < 2; i++ {
		go func() {
			for j := 0; j < 1000; j++ {
				count++
			}
			done <- true
		}()
	}
	<-done
	<-done
	t.Log(count)
}
