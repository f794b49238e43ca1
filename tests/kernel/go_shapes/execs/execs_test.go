// SPDX-License-Identifier: Apache-2.0
package execs

import (
	"os/exec"
	"testing"
)

func TestEcho(t *testing.T) {
	out, err := exec.Command("/bin/echo", "hello").Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != "hello\n" {
		t.Fatalf("%q", out)
	}
}
