// SPDX-License-Identifier: Apache-2.0

// Package healthy passes, and takes long enough to be looked at when asked to.
package healthy

import (
	"os"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	if duration, err := time.ParseDuration(os.Getenv("TAKE")); err == nil {
		time.Sleep(duration)
	}
	if 1+2 != 3 {
		t.Fatal("no sum")
	}
}
