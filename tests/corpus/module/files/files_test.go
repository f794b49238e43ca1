// SPDX-License-Identifier: Apache-2.0

// Package files opens, writes, links and executes files, and looks into /proc.
package files

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestManyFiles(t *testing.T) {
	for i := 0; i < 400; i++ {
		file, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		defer file.Close()
	}
}

func TestManyConnections(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			defer connection.Close()
		}
	}()
	for i := 0; i < 200; i++ {
		connection, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer connection.Close()
	}
}

func TestManyPipes(t *testing.T) {
	for i := 0; i < 200; i++ {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatalf("pipe %d: %v", i, err)
		}
		defer in.Close()
		defer out.Close()
	}
}

func TestExport(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "export"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := 0; i < 30; i++ {
		if _, err := file.Write(make([]byte, 1<<20)); err != nil {
			t.Fatalf("MiB %d: %v", i, err)
		}
	}
}

func TestManySmallFiles(t *testing.T) {
	directory := t.TempDir()
	for i := 0; i < 200; i++ {
		if err := os.WriteFile(filepath.Join(directory, fmt.Sprint(i)), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGolden(t *testing.T) {
	if err := os.WriteFile("golden.new", []byte("x"), 0o644); err != nil {
		t.Fatal("update golden file:", err)
	}
	os.Remove("golden.new")
}

func TestHelper(t *testing.T) {
	helper := filepath.Join(t.TempDir(), "helper")
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(helper, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(helper).Run(); err != nil {
		t.Fatal("helper:", err)
	}
}

// TestForeign starts a program of another architecture, as cross-compiled tests do.
func TestForeign(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	self[18], self[19] = 183, 0 // e_machine: AArch64
	program := filepath.Join(t.TempDir(), "foreign")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(program).Run(); err != nil {
		t.Fatal("foreign program:", err)
	}
}

func TestOwnStatus(t *testing.T) {
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		t.Fatal(err)
	}
}

func TestFirstProcess(t *testing.T) {
	if _, err := os.ReadFile("/proc/1/cmdline"); err != nil {
		t.Fatal(err)
	}
}

func TestSystemSetting(t *testing.T) {
	value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", value, 0o644); err != nil {
		t.Fatal("set forwarding:", err)
	}
}

func TestDeviceNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "full")
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|7); err != nil {
		t.Fatal("make a device node:", err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}

func TestOpenFull(t *testing.T) {
	file, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}

func TestHardLink(t *testing.T) {
	target := os.Getenv("LINK_TARGET")
	link := filepath.Join(filepath.Dir(target), fmt.Sprint("link-", os.Getpid()))
	if err := os.Link(target, link); err != nil {
		t.Fatal(err)
	}
	os.Remove(link)
}

func TestReadThroughLink(t *testing.T) {
	if _, err := os.ReadFile(os.Getenv("LINK_TARGET")); err != nil {
		t.Fatal(err)
	}
}

func TestRewrite(t *testing.T) {
	file, err := os.OpenFile(os.Getenv("LINK_TARGET"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}

// TestGroupCanWrite checks what a test of shared directories checks.
func TestGroupCanWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shared")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o664)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o664 {
		t.Fatalf("mode of the shared file: got %v, want -rw-rw-r--", info.Mode())
	}
}

// TestSetuidHelper runs a helper with the set-user-id bit and looks whom it runs as.
func TestSetuidHelper(t *testing.T) {
	out, err := exec.Command(os.Getenv("SETUID_HELPER"), "-u").Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != "0\n" {
		t.Fatalf("the set-user-id helper runs as user %s, not as root", out)
	}
}

func TestCoreDump(t *testing.T) {
	directory := t.TempDir()
	victim := exec.Command("/bin/sh", "-c", "kill -QUIT $$")
	victim.Dir = directory
	if err := victim.Run(); err == nil {
		t.Fatal("the victim lives")
	}
	found, _ := filepath.Glob(filepath.Join(directory, "core*"))
	if len(found) == 0 {
		t.Fatalf("no core file in %s", directory)
	}
}

func TestPipeSize(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	const setPipeSize = 1031
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, out.Fd(), setPipeSize, 4<<20); errno != 0 {
		t.Fatal("a pipe of 4 MiB:", errno)
	}
}

func TestManyPipeSizes(t *testing.T) {
	const setPipeSize = 1031
	for i := 0; i < 20; i++ {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		defer out.Close()
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, out.Fd(), setPipeSize, 256<<10); errno != 0 {
			t.Fatalf("F_SETPIPE_SZ of pipe %d: %v", i, errno)
		}
	}
}

func TestReadSecret(t *testing.T) {
	file, err := os.Open(os.Getenv("SECRET"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.ReadAll(file); err != nil {
		t.Fatal(err)
	}
}

func TestTouchForeign(t *testing.T) {
	if err := os.Chmod(os.Getenv("SECRET"), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestCacheDirectory(t *testing.T) {
	directory, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(directory, "corpus"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestSaveInTime writes what a disk takes in a moment, and gives itself some seconds for it.
func TestSaveInTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	file, err := os.Create(filepath.Join(t.TempDir(), "saved"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := 0; i < 24; i++ {
		if _, err := file.Write(make([]byte, 256<<10)); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatal("save:", ctx.Err())
		}
	}
}
