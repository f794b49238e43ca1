// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"os"
	"testing"
	"time"
)

func openMany(count int) error {
	for i := 0; i < count; i++ {
		file, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer file.Close()
	}
	return nil
}

func TestManyFiles(t *testing.T) {
	if err := openMany(wanted(t, "FILES", 600)); err != nil {
		t.Fatal(err)
	}
}

// A run that takes long: it tries again and again, says each time how it went, and ends when it is told to.
func TestManyFilesForLong(t *testing.T) {
	says := os.Getenv("SAYS")
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		said := "enough"
		if err := openMany(wanted(t, "FILES", 600)); err != nil {
			said = err.Error()
		}
		if err := os.WriteFile(says, []byte(said+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(says + ".stop"); err == nil {
			return
		}
	}
	t.Fatal("nobody told it to end")
}
