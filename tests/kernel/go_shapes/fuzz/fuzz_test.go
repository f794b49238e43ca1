// SPDX-License-Identifier: Apache-2.0
package fuzz

import "testing"

func reversed(text []byte) []byte {
	out := make([]byte, len(text))
	for i, b := range text {
		out[len(text)-1-i] = b
	}
	return out
}

func FuzzReverse(f *testing.F) {
	f.Add([]byte("abc"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if string(reversed(reversed(text))) != string(text) {
			t.Fatal("not the same")
		}
	})
}
