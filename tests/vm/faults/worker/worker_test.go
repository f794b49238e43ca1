// SPDX-License-Identifier: Apache-2.0

// Package worker starts more processes at once than a small pids.max has room for.
package worker

import (
	"os/exec"
	"testing"
)

func TestSpawnWorkers(t *testing.T) {
	for i := 0; i < 64; i++ {
		worker := exec.Command("/bin/sleep", "5")
		if err := worker.Start(); err != nil {
			t.Fatalf("start worker %d: %v", i, err)
		}
		t.Cleanup(func() {
			worker.Process.Kill()
			worker.Wait()
		})
	}
}
