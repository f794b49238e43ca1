// SPDX-License-Identifier: Apache-2.0

// Package nobuild does not compile.
package nobuild

import "testing"

func TestNothing(t *testing.T) {
	var count int = "three"
}
