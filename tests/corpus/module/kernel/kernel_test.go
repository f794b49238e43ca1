// SPDX-License-Identifier: Apache-2.0

// Package kernel uses what few programs use: tracing, BPF, rings, keys, watches.
package kernel

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

func call(number uintptr, arguments ...uintptr) (uintptr, syscall.Errno) {
	var all [6]uintptr
	copy(all[:], arguments)
	value, _, errno := syscall.Syscall6(number, all[0], all[1], all[2], all[3], all[4], all[5])
	return value, errno
}

// needed fails the test if the call failed, and closes what it opened.
func needed(t *testing.T, name string, number uintptr, arguments ...uintptr) {
	t.Helper()
	fd, errno := call(number, arguments...)
	if errno != 0 {
		t.Fatalf("%s: %v", name, errno)
	}
	syscall.Close(int(fd))
}

func TestTraced(t *testing.T) {
	runtime.LockOSThread()
	child := exec.Command("/bin/true")
	child.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := child.Start(); err != nil {
		t.Fatal("start traced:", err)
	}
	child.Wait()
	syscall.PtraceDetach(child.Process.Pid)
	child.Process.Wait()
}

// TestAttach attaches to a process that is no descendant: a brother, as a debugger's test does.
func TestAttach(t *testing.T) {
	runtime.LockOSThread()
	victim, err := exec.Command("/bin/sh", "-c", "sleep 20 </dev/null >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, digit := range victim[:len(victim)-1] {
		pid = pid*10 + int(digit-'0')
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(10 * time.Millisecond) {
		if program, err := os.Readlink("/proc/" + itoa(pid) + "/exe"); err == nil && filepath.Base(program) == "sleep" {
			break
		}
	}
	if err := syscall.PtraceAttach(pid); err != nil {
		t.Fatalf("ptrace attach: %v", err)
	}
	syscall.Wait4(pid, nil, 0, nil)
	syscall.PtraceDetach(pid)
}

func itoa(number int) string {
	if number < 10 {
		return string(rune('0' + number))
	}
	return itoa(number/10) + string(rune('0'+number%10))
}

// event is perf_event_attr of version 0.
type event struct {
	kind, size                             uint32
	config, period, sampleType, read, bits uint64
	wakeup, breakpoint                     uint32
	address                                uint64
}

func TestPerf(t *testing.T) {
	attributes := event{kind: 1, size: 64} // software: cpu clock, of the kernel too
	needed(t, "perf_event_open", syscall.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&attributes)), ^uintptr(0), 0, ^uintptr(0), 0)
}

func TestPerfOwn(t *testing.T) {
	attributes := event{kind: 1, size: 64, bits: 1<<5 | 1<<6} // without kernel and hypervisor
	needed(t, "perf_event_open", syscall.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&attributes)), 0, ^uintptr(0), ^uintptr(0), 0)
}

func TestBPF(t *testing.T) {
	attributes := struct{ kind, key, value, entries, flags uint32 }{2, 4, 4, 1, 0} // array map
	needed(t, "bpf: create map", 321, 0, uintptr(unsafe.Pointer(&attributes)), unsafe.Sizeof(attributes))
}

func TestRing(t *testing.T) {
	var parameters [120]byte
	needed(t, "io_uring_setup", 425, 4, uintptr(unsafe.Pointer(&parameters[0])))
}

func TestUserfault(t *testing.T) {
	needed(t, "userfaultfd", 323, syscall.O_CLOEXEC)
}

func TestFanotify(t *testing.T) {
	needed(t, "fanotify_init", syscall.SYS_FANOTIFY_INIT, 4, 0) // FAN_CLASS_CONTENT
}

func TestMemfd(t *testing.T) {
	name, _ := syscall.BytePtrFromString("corpus")
	needed(t, "memfd_create", 319, uintptr(unsafe.Pointer(name)), 0)
}

func TestPidfd(t *testing.T) {
	needed(t, "pidfd_open", 434, uintptr(os.Getpid()), 0)
}

func TestOpenat2(t *testing.T) {
	name, _ := syscall.BytePtrFromString("/etc/passwd")
	how := struct{ flags, mode, resolve uint64 }{0, 0, 0}
	at := -100 // AT_FDCWD
	needed(t, "openat2", 437, uintptr(at), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&how)), 24)
}

func TestPersonality(t *testing.T) {
	if _, errno := call(syscall.SYS_PERSONALITY, 0x0040000); errno != 0 { // ADDR_NO_RANDOMIZE
		t.Fatal("personality:", errno)
	}
}

func TestKeyring(t *testing.T) {
	kind, _ := syscall.BytePtrFromString("user")
	name, _ := syscall.BytePtrFromString("corpus")
	payload := []byte("secret")
	const process = -2
	ring := process
	if _, errno := call(syscall.SYS_ADD_KEY, uintptr(unsafe.Pointer(kind)), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&payload[0])), uintptr(len(payload)), uintptr(ring)); errno != 0 {
		t.Fatal("add_key:", errno)
	}
}

func TestManyKeys(t *testing.T) {
	runtime.LockOSThread()
	kind, _ := syscall.BytePtrFromString("user")
	payload := []byte("secret")
	const process = -2
	ring := process
	for i := 0; i < 400; i++ {
		name, _ := syscall.BytePtrFromString("corpus-" + itoa(i))
		if _, errno := call(syscall.SYS_ADD_KEY, uintptr(unsafe.Pointer(kind)), uintptr(unsafe.Pointer(name)),
			uintptr(unsafe.Pointer(&payload[0])), uintptr(len(payload)), uintptr(ring)); errno != 0 {
			t.Fatalf("add_key %d: %v", i, errno)
		}
	}
}

func TestManyWatchers(t *testing.T) {
	for i := 0; i < 200; i++ {
		fd, err := syscall.InotifyInit1(0)
		if err != nil {
			t.Fatalf("watcher %d: %v", i, err)
		}
		defer syscall.Close(fd)
	}
}

func TestManyWatches(t *testing.T) {
	fd, err := syscall.InotifyInit1(0)
	if err != nil {
		t.Fatal("inotify_init:", err)
	}
	defer syscall.Close(fd)
	directory := t.TempDir()
	for i := 0; i < 100; i++ {
		path := filepath.Join(directory, itoa(i))
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.InotifyAddWatch(fd, path, syscall.IN_MODIFY); err != nil {
			t.Fatalf("watch %d: %v", i, err)
		}
	}
}

func TestAsynchronousIO(t *testing.T) {
	var context uintptr
	if _, errno := call(syscall.SYS_IO_SETUP, 100000, uintptr(unsafe.Pointer(&context))); errno != 0 {
		t.Fatal("io_setup:", errno)
	}
	call(syscall.SYS_IO_DESTROY, context)
}

func TestManyEpollWatches(t *testing.T) {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 100; i++ {
		epoll, err := syscall.EpollCreate1(0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(epoll)
		if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fds[0], &syscall.EpollEvent{Events: syscall.EPOLLIN}); err != nil {
			t.Fatalf("epoll watch %d: %v", i, err)
		}
	}
}

func TestClock(t *testing.T) {
	var now syscall.Timeval
	if err := syscall.Gettimeofday(&now); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Settimeofday(&now); err != nil {
		t.Fatal("set the clock:", err)
	}
}

func TestKernelLog(t *testing.T) {
	buffer := make([]byte, 4096)
	if _, err := syscall.Klogctl(3, buffer); err != nil { // SYSLOG_ACTION_READ_ALL
		t.Fatal("read the kernel log:", err)
	}
}
