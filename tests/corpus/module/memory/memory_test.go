// SPDX-License-Identifier: Apache-2.0

// Package memory allocates, maps, locks and shares memory.
package memory

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"
)

// fill touches every page, so that it is there.
func fill(size int) [][]byte {
	var blocks [][]byte
	for i := 0; i < size>>20; i++ {
		block := make([]byte, 1<<20)
		for j := 0; j < len(block); j += 4096 {
			block[j] = 1
		}
		blocks = append(blocks, block)
	}
	return blocks
}

func TestFillCache(t *testing.T) {
	t.Logf("%d MiB", len(fill(400<<20)))
}

// TestFillAll wants more than the whole machine has; where there is no swap, somebody has to die.
func TestFillAll(t *testing.T) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		t.Fatal(err)
	}
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB", len(fill(int(info.Totalram)*int(info.Unit)+1<<28)))
}

func TestOpenIndex(t *testing.T) {
	t.Log("a table is mapped that is rarely used")
	data, err := syscall.Mmap(-1, 0, 1<<30, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal("map the index, 1 GiB:", err)
	}
	syscall.Munmap(data)
}

func TestLockSecrets(t *testing.T) {
	secrets, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mlock(secrets); err != nil {
		t.Fatal("lock secrets:", err)
	}
}

// TestManyMappings maps pages whose protection differs, which the kernel cannot merge.
func TestManyMappings(t *testing.T) {
	for i := 0; i < 70000; i++ {
		protection := syscall.PROT_READ
		if i%2 == 1 {
			protection |= syscall.PROT_WRITE
		}
		_, _, errno := syscall.RawSyscall6(syscall.SYS_MMAP, 0, 4096, uintptr(protection), syscall.MAP_PRIVATE|syscall.MAP_ANON, ^uintptr(0), 0)
		if errno != 0 {
			t.Fatalf("map page %d: %v", i, errno)
		}
	}
}

func TestMapZero(t *testing.T) {
	const fixed = 0x10
	_, _, errno := syscall.Syscall6(syscall.SYS_MMAP, 0, 4096, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON|fixed, ^uintptr(0), 0)
	if errno != 0 {
		t.Fatal("map page zero:", errno)
	}
}

func TestHugePages(t *testing.T) {
	const huge = 0x40000
	_, err := syscall.Mmap(-1, 0, 2<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|huge)
	if err != nil {
		t.Fatal("map a huge page:", err)
	}
}

// TestSharedMemory does what a database's test does: a file of some megabytes in /dev/shm.
func TestSharedMemory(t *testing.T) {
	path := filepath.Join("/dev/shm", "corpus-segment")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	defer file.Close()
	for i := 0; i < 16; i++ {
		if _, err := file.Write(make([]byte, 1<<20)); err != nil {
			t.Fatalf("MiB %d: %v", i, err)
		}
	}
}

// TestPosixQueue makes a queue of ten messages more than are granted by default.
func TestPosixQueue(t *testing.T) {
	name, _ := syscall.BytePtrFromString("corpus-queue")
	attributes := struct{ flags, maximum, size, current, reserved0, reserved1, reserved2, reserved3 int64 }{maximum: 20, size: 64}
	fd, _, errno := syscall.Syscall6(syscall.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), syscall.O_CREAT|syscall.O_RDWR, 0o600,
		uintptr(unsafe.Pointer(&attributes)), 0, 0)
	if errno != 0 {
		t.Fatal("mq_open:", errno)
	}
	syscall.Close(int(fd))
	syscall.Syscall(syscall.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
}

// TestBigPosixQueue makes a queue within the limits of queues that may be more than a user's share.
func TestBigPosixQueue(t *testing.T) {
	name, _ := syscall.BytePtrFromString("corpus-big-queue")
	attributes := struct{ flags, maximum, size, current, reserved0, reserved1, reserved2, reserved3 int64 }{maximum: 10, size: 8192}
	fd, _, errno := syscall.Syscall6(syscall.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), syscall.O_CREAT|syscall.O_RDWR, 0o600,
		uintptr(unsafe.Pointer(&attributes)), 0, 0)
	if errno != 0 {
		t.Fatal("mq_open:", errno)
	}
	syscall.Close(int(fd))
	syscall.Syscall(syscall.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
}
