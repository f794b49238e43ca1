// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestSandbox(t *testing.T) {
	sandboxed := exec.Command("/bin/true")
	sandboxed.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := sandboxed.Run(); err != nil {
		t.Fatal(err)
	}
}
