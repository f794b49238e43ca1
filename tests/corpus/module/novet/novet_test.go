// SPDX-License-Identifier: Apache-2.0

// Package novet compiles, and vet refuses it.
package novet

import "testing"

func TestFormat(t *testing.T) {
	t.Errorf("%d apples", "three")
}
