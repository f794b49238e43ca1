// SPDX-License-Identifier: Apache-2.0

// Package store holds more memory than a small memory.max allows.
package store

import "testing"

func TestFillStore(t *testing.T) {
	var pages [][]byte
	for i := 0; i < 600; i++ {
		page := make([]byte, 1<<20)
		for j := 0; j < len(page); j += 4096 {
			page[j] = 1
		}
		pages = append(pages, page)
	}
	t.Logf("%d MiB", len(pages))
}
