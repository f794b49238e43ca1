// SPDX-License-Identifier: Apache-2.0

// Package cgofault starts threads by the C library, as every program with cgo does.
package cgofault

/*
static int one(void) { return 1; }
*/
import "C"

// One is what C says.
func One() int { return int(C.one()) }
