// SPDX-License-Identifier: Apache-2.0

// Package cgroupfaults does what the limits of a cgroup bound: it computes, grows, writes, maps, forks and waits.
package cgroupfaults

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// take is for how long a test goes on, from the environment.
func take(t *testing.T) time.Time {
	duration, err := time.ParseDuration(os.Getenv("TAKE"))
	if err != nil {
		t.Fatal("TAKE is not set")
	}
	return time.Now().Add(duration)
}

func TestBusy(t *testing.T) {
	until := take(t)
	for i := 1; i < runtime.GOMAXPROCS(0); i++ {
		go func() {
			for {
			}
		}()
	}
	for time.Now().Before(until) {
	}
}

// TestGrow takes 8 MiB every quarter of a second.
func TestGrow(t *testing.T) {
	until := take(t)
	var kept [][]byte
	for time.Now().Before(until) {
		page := make([]byte, 8<<20)
		for i := 0; i < len(page); i += 4096 {
			page[i] = 1
		}
		kept = append(kept, page)
		time.Sleep(250 * time.Millisecond)
	}
	t.Logf("%d MiB", len(kept)*8)
}

// TestChurn keeps 120 MiB in use, and touches all of it again and again.
func TestChurn(t *testing.T) {
	until := take(t)
	kept := make([]byte, 120<<20)
	for n := byte(0); time.Now().Before(until); n++ {
		for i := 0; i < len(kept); i += 4096 {
			kept[i] = n
		}
	}
}

func TestHold(t *testing.T) {
	time.Sleep(time.Until(take(t)))
}

// TestWrite writes to the disk, past the page cache.
func TestWrite(t *testing.T) {
	until := take(t)
	file, err := os.OpenFile(filepath.Join(os.Getenv("DIRECTORY"), "written"), os.O_CREATE|os.O_WRONLY|syscall.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	block, err := syscall.Mmap(-1, 0, 256<<10, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	for time.Now().Before(until) {
		if _, err := file.WriteAt(block, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHugePage touches a huge page in a child, which a limit of 0 ends with SIGBUS.
func TestHugePage(t *testing.T) {
	until := take(t)
	if os.Getenv("TOUCH") != "" {
		page, err := syscall.Mmap(-1, 0, 2<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_HUGETLB|syscall.MAP_NORESERVE)
		if err != nil {
			t.Fatal(err)
		}
		*(*byte)(unsafe.Pointer(&page[0])) = 1
		return
	}
	time.Sleep(2 * time.Second)
	child := exec.Command(os.Args[0], "-test.run=TestHugePage")
	child.Env = append(os.Environ(), "TOUCH=1")
	out, err := child.CombinedOutput()
	t.Logf("%v: %.200s", err, out)
	time.Sleep(time.Until(until))
}

// TestForks starts processes one after the other, each of which starts two more.
func TestForks(t *testing.T) {
	until := take(t)
	for time.Now().Before(until) {
		child := exec.Command("/bin/sh", "-c", "sleep 0.3 | sleep 0.3")
		if err := child.Run(); err != nil {
			t.Fatal(err)
		}
	}
}
