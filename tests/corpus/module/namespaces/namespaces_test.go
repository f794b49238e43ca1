// SPDX-License-Identifier: Apache-2.0

// Package namespaces does what tests of container runtimes, sandboxes and installers do.
package namespaces

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func start(t *testing.T, attributes *syscall.SysProcAttr) {
	t.Helper()
	command := exec.Command("/bin/true")
	command.SysProcAttr = attributes
	if err := command.Run(); err != nil {
		t.Fatal(err)
	}
}

func TestUserNamespace(t *testing.T) {
	start(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER})
}

func TestMappedUserNamespace(t *testing.T) {
	start(t, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
	})
}

func TestNetworkNamespace(t *testing.T) {
	start(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
}

func TestPidNamespace(t *testing.T) {
	start(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID})
}

func TestUnshare(t *testing.T) {
	start(t, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
}

func TestUnshareUts(t *testing.T) {
	if err := syscall.Unshare(syscall.CLONE_NEWUTS); err != nil {
		t.Fatal("unshare:", err)
	}
}

func TestMount(t *testing.T) {
	directory := t.TempDir()
	if err := syscall.Mount("tmpfs", directory, "tmpfs", 0, ""); err != nil {
		t.Fatal("mount:", err)
	}
	syscall.Unmount(directory, 0)
}

func TestHostname(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		t.Fatal("sethostname:", err)
	}
}

func TestChroot(t *testing.T) {
	start(t, &syscall.SysProcAttr{Chroot: "/"})
}

func TestCredential(t *testing.T) {
	start(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234, NoSetGroups: true}})
}

func TestChown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owned")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 1234, 1234); err != nil {
		t.Fatal(err)
	}
}

func TestMknod(t *testing.T) {
	if err := syscall.Mknod(filepath.Join(t.TempDir(), "null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal("mknod:", err)
	}
}

func TestSetns(t *testing.T) {
	file, err := os.Open("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, _, errno := syscall.Syscall(308, file.Fd(), syscall.CLONE_NEWUTS, 0); errno != 0 {
		t.Fatal("setns:", errno)
	}
}

func TestNewCgroup(t *testing.T) {
	directory := os.Getenv("CGROUP")
	if err := os.Mkdir(filepath.Join(directory, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(directory, "below"))
}

func TestEnterCgroup(t *testing.T) {
	command := exec.Command("/bin/sleep", "20")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Wait()
	defer command.Process.Kill()
	if err := os.WriteFile(filepath.Join(os.Getenv("CGROUP"), "cgroup.procs"), []byte(itoa(command.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
}

func itoa(number int) string {
	if number < 10 {
		return string(rune('0' + number))
	}
	return itoa(number/10) + string(rune('0'+number%10))
}

func TestHelperRuns(t *testing.T) {
	start(t, nil)
}
