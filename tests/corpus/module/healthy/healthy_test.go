// SPDX-License-Identifier: Apache-2.0

// Package healthy passes, although much of what it asks for is refused: it expects that.
package healthy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	if 1+2 != 3 {
		t.Fatal("no sum")
	}
}

// TestExpectsRefusal checks that a process without privileges may not do what only root may.
func TestExpectsRefusal(t *testing.T) {
	if err := syscall.Sethostname([]byte("other")); !errors.Is(err, syscall.EPERM) {
		t.Fatalf("sethostname: got %v, want EPERM", err)
	}
}

func TestSkipsWithoutPrivilege(t *testing.T) {
	if err := syscall.Mount("tmpfs", t.TempDir(), "tmpfs", 0, ""); errors.Is(err, syscall.EPERM) {
		t.Skip("mount:", err)
	}
}

func TestFallsBack(t *testing.T) {
	if _, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP); err != nil {
		if _, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMissingFileIsHandled(t *testing.T) {
	if _, err := os.Open("/no/such/file"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := exec.Command("/no/such/program").Run(); err == nil {
		t.Fatal("a program that does not exist ran")
	}
}

func TestServer(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if _, err := http.Get(server.URL); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedConnectionIsHandled(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	if _, err := net.Dial("tcp4", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
}

func TestManyCommands(t *testing.T) {
	for i := 0; i < 50; i++ {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParallelWork(t *testing.T) {
	var group sync.WaitGroup
	for i := 0; i < 50; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			runtime.Gosched()
		}()
	}
	group.Wait()
}

func TestFiles(t *testing.T) {
	for i := 0; i < 50; i++ {
		if err := os.WriteFile(filepath.Join(t.TempDir(), "file"), []byte("text"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLimitIsReached sets its own limit, reaches it, and is content.
func TestLimitIsReached(t *testing.T) {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	small := syscall.Rlimit{Cur: 32, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	for i := 0; i < 64; i++ {
		file, err := os.Open("/etc/passwd")
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) {
				t.Fatal(err)
			}
			return
		}
		defer file.Close()
	}
	t.Fatal("64 files are open under a limit of 32")
}

func TestChattersAboutErrors(t *testing.T) {
	// Words of a program under test; nothing failed.
	fmt.Println("worker: fork/exec /bin/sh: resource temporarily unavailable (injected)")
	fmt.Println("store: too many open files (injected)")
	t.Log("retry: operation not permitted (injected)")
}

func TestHugeOutput(t *testing.T) {
	line := strings.Repeat("x", 200) + "\n"
	for i := 0; i < 20000; i++ {
		os.Stdout.WriteString(line)
	}
}

func TestSlow(t *testing.T) {
	time.Sleep(1500 * time.Millisecond)
}

func TestDeepRecursion(t *testing.T) {
	var down func(int) int
	down = func(n int) int {
		var space [1024]byte
		if n == 0 {
			return int(space[n])
		}
		return down(n-1) + int(space[n%1024])
	}
	down(50000)
}

func TestUsesCPU(t *testing.T) {
	var usage syscall.Rusage
	for usage.Utime.Nano() < int64(1500*time.Millisecond) {
		syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
		for i := 0; i < 100000; i++ {
			_ = i * i
		}
	}
}
