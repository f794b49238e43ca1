// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// wanted is how many of something a test uses: a number from the environment, or the default.
func wanted(t *testing.T, name string, otherwise int) int {
	text, found := os.LookupEnv(name)
	if !found {
		return otherwise
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func TestWorkers(t *testing.T) {
	for i := 0; i < wanted(t, "WORKERS", 55); i++ {
		worker := exec.Command("/bin/sleep", "60")
		if err := worker.Start(); err != nil {
			t.Fatalf("start worker %d: %v", i, err)
		}
		t.Cleanup(func() {
			worker.Process.Kill()
			worker.Wait()
		})
	}
}
