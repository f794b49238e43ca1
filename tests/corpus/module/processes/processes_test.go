// SPDX-License-Identifier: Apache-2.0

// Package processes starts programs and threads, uses the CPU, and asks for a better place on it.
package processes

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const workers = 64

func TestSpawnWorkers(t *testing.T) {
	for i := 0; i < workers; i++ {
		worker := exec.Command("/bin/sleep", "30")
		if err := worker.Start(); err != nil {
			t.Fatalf("start worker %d: %v", i, err)
		}
		t.Cleanup(func() {
			worker.Process.Kill()
			worker.Wait()
		})
	}
}

// TestSpawnMany is for limits that are no smaller than some hundred tasks.
func TestSpawnMany(t *testing.T) {
	for i := 0; i < 500; i++ {
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

func TestThreads(t *testing.T) {
	begin, end := make(chan bool), make(chan bool)
	for i := 0; i < workers; i++ {
		go func() {
			runtime.LockOSThread()
			begin <- true
			<-end
		}()
	}
	for i := 0; i < workers; i++ {
		<-begin
	}
	close(end)
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func burn(amount time.Duration, until <-chan struct{}) bool {
	for begun := cpuTime(); cpuTime()-begun < amount; {
		select {
		case <-until:
			return false
		default:
		}
		for i := 0; i < 100000; i++ {
			_ = i * i
		}
	}
	return true
}

// TestDeadline does little, and gives itself several times as long as that takes on a busy machine.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if !burn(400*time.Millisecond, ctx.Done()) {
		t.Fatal("compute:", ctx.Err())
	}
}

func TestCompute(t *testing.T) {
	burn(5*time.Second, nil)
}

// TestTwoAtOnce computes on two CPUs what one alone cannot do in time.
func TestTwoAtOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	begun, done := cpuTime(), make(chan bool)
	for i := 0; i < 2; i++ {
		go func() {
			for ctx.Err() == nil && cpuTime()-begun < 4*time.Second {
				for j := 0; j < 100000; j++ {
					_ = j * j
				}
			}
			done <- true
		}()
	}
	<-done
	<-done
	if ctx.Err() != nil {
		t.Fatal("compute:", ctx.Err())
	}
}

func TestNice(t *testing.T) {
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, -5); err != nil {
		t.Fatal("setpriority -5:", err)
	}
}

func TestRealTime(t *testing.T) {
	const fifo = 1
	priority := int32(10)
	runtime.LockOSThread()
	if _, _, errno := syscall.Syscall(syscall.SYS_SCHED_SETSCHEDULER, 0, fifo, uintptr(unsafe.Pointer(&priority))); errno != 0 {
		t.Fatal("sched_setscheduler FIFO 10:", errno)
	}
}

// TestQueuedSignals queues real-time signals that it blocks.
func TestQueuedSignals(t *testing.T) {
	runtime.LockOSThread()
	const rtmin, block = 34, 0
	set := uint64(1) << (rtmin - 1)
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, block, uintptr(unsafe.Pointer(&set)), 0, 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	info := struct {
		signo, errno, code, pad int32
		fields                  [28]int32
	}{signo: rtmin, code: -1} // SI_QUEUE
	for i := 0; i < 100; i++ {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_TGSIGQUEUEINFO, uintptr(os.Getpid()), uintptr(syscall.Gettid()), rtmin,
			uintptr(unsafe.Pointer(&info)), 0, 0)
		if errno != 0 {
			t.Fatalf("queue signal %d: %v", i, errno)
		}
	}
}

// TestKillStranger sends a signal to a process of somebody else, whose id is in a file.
func TestKillStranger(t *testing.T) {
	text, err := os.ReadFile(os.Getenv("STRANGER"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatal("signal the stranger:", err)
	}
}

func TestRaiseLimit(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Max += 1000
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("raise the hard limit of open files to %d: %v", limit.Max, err)
	}
}

// TestManyOpenAllowed wants more open files than fs.nr_open grants to anybody.
func TestManyOpenAllowed(t *testing.T) {
	limit := syscall.Rlimit{Cur: 100000, Max: 100000}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal("set the limit of open files to 100000:", err)
	}
}
