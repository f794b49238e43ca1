// SPDX-License-Identifier: Apache-2.0

// Package wrong fails by itself in every way that tests do; no limit of the machine has a part in it.
package wrong

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestAssertion(t *testing.T) {
	if got := 1 + 2; got != 4 {
		t.Fatalf("got %d, want 4", got)
	}
}

func TestPanic(t *testing.T) { panic("no such state") }

func TestNilMap(t *testing.T) {
	var ages map[string]int
	ages["ann"] = 3
}

func TestNilPointer(t *testing.T) {
	var server *struct{ address string }
	t.Log(server.address)
}

func TestIndex(t *testing.T) {
	items := []int{1}
	i := len(os.Args) + 5
	t.Log(items[i])
}

func TestDeadlock(t *testing.T) {
	// Only a test binary whose every goroutine waits says "all goroutines are asleep": -test.timeout keeps one awake.
	var lock sync.Mutex
	lock.Lock()
	lock.Lock()
}

func TestTimeout(t *testing.T) { time.Sleep(time.Hour) }

func TestContextDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	select {
	case <-ctx.Done():
		t.Fatal("wait for the event:", ctx.Err())
	case <-make(chan bool):
	}
}

func TestFlaky(t *testing.T) {
	done := make(chan bool)
	go func() {
		time.Sleep(300 * time.Millisecond)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(50 * time.Millisecond):
		t.Fatal("not done within 50 ms")
	}
}

func TestExit(t *testing.T) { os.Exit(1) }

func TestExitThree(t *testing.T) { os.Exit(3) }

func TestKillsItself(t *testing.T) {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	time.Sleep(time.Second)
}

func TestAbortsItself(t *testing.T) {
	syscall.Kill(os.Getpid(), syscall.SIGABRT)
	time.Sleep(time.Second)
}

func TestKillsChild(t *testing.T) {
	child := exec.Command("/bin/sleep", "20")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	child.Process.Kill()
	if err := child.Wait(); err != nil {
		t.Fatal("worker:", err)
	}
}

func TestChildTimesOut(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := exec.CommandContext(ctx, "/bin/sleep", "20").Run(); err != nil {
		t.Fatal("worker:", err)
	}
}

func TestMissingProgram(t *testing.T) {
	if err := exec.Command("/usr/lib/corpus/no-such-program").Run(); err != nil {
		t.Fatal(err)
	}
}

func TestMissingInPath(t *testing.T) {
	if err := exec.Command("corpus-no-such-program").Run(); err != nil {
		t.Fatal(err)
	}
}

func TestNotExecutable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Fatal(err)
	}
}

func TestNoInterpreter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Fatal(err)
	}
}

func TestNoFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("echo hello\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Fatal(err)
	}
}

// TestBusy executes a program that it still has open for writing.
func TestBusy(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Fatal(err)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := os.ReadFile("testdata/fixture.json"); err != nil {
		t.Fatal(err)
	}
}

func TestIsDirectory(t *testing.T) {
	if _, err := os.ReadFile(t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func TestNotEmpty(t *testing.T) {
	directory := t.TempDir()
	os.WriteFile(filepath.Join(directory, "file"), nil, 0o644)
	if err := os.Remove(directory); err != nil {
		t.Fatal(err)
	}
}

func TestExists(t *testing.T) {
	if err := os.Mkdir(t.TempDir(), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestModeDenies is run by an ordinary user.
func TestModeDenies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	if err := os.WriteFile(path, []byte("x"), 0o000); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
}

// TestShadow reads what only root may read, as an ordinary user.
func TestShadow(t *testing.T) {
	if _, err := os.ReadFile("/etc/shadow"); err != nil {
		t.Fatal(err)
	}
}

func TestWritesToEtc(t *testing.T) {
	if err := os.WriteFile("/etc/corpus", nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLowersOwnLimit(t *testing.T) {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 24, Max: 24}); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 64; i++ {
		file, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		defer file.Close()
	}
}

func TestLowersLimitForAMoment(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 24, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	for i := 0; i < 64; i++ {
		file, err := os.Open("/etc/passwd")
		if err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		defer file.Close()
	}
}

func TestGivesUpRightsForAMoment(t *testing.T) {
	if err := syscall.Setresuid(-1, 65534, -1); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setresuid(-1, 0, -1)
	if _, err := os.ReadFile("/etc/shadow"); err != nil {
		t.Fatal(err)
	}
}

func TestMountsForAMoment(t *testing.T) {
	place := t.TempDir()
	if err := syscall.Mount("none", place, "tmpfs", 0, "size=4096"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(place, 0)
	if err := os.WriteFile(filepath.Join(place, "file"), make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOwnCgroup(t *testing.T) {
	group := filepath.Join("/sys/fs/cgroup/pids", "triaged-own-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); syscall.Rmdir(group) != nil && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
	})
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/bin/sh", "-c", "echo $$ >"+group+"/cgroup.procs; /bin/true | /bin/true").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestOwnNetwork(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 9))")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLowersFileSize(t *testing.T) {
	if err := syscall.Setrlimit(1, &syscall.Rlimit{Cur: 4096, Max: 4096}); err != nil { // RLIMIT_FSIZE
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "file"), make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestShellLowersLimit(t *testing.T) {
	out, err := exec.Command("/bin/sh", "-c", "ulimit -n 4; exec cat /etc/passwd /etc/group 3</dev/null").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestRefusedConnection(t *testing.T) {
	if _, err := net.Dial("tcp4", "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
}

func TestAddressInUse(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if _, err := net.Listen("tcp4", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
}

func TestForeignAddress(t *testing.T) {
	if _, err := net.Listen("tcp4", "192.0.2.1:0"); err != nil {
		t.Fatal(err)
	}
}

func TestClosedFile(t *testing.T) {
	file, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if _, err := file.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestBrokenPipe(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	if _, err := out.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

func TestBadArgument(t *testing.T) {
	if err := syscall.Unshare(0x1); err != nil {
		t.Fatal("unshare:", err)
	}
}

func TestNameTooLong(t *testing.T) {
	if err := os.WriteFile(filepath.Join(t.TempDir(), strings.Repeat("n", 300)), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTooManyArguments(t *testing.T) {
	if err := exec.Command("/bin/true", strings.Repeat("x", 200<<10)).Run(); err != nil {
		t.Fatal(err)
	}
}

func TestFailsAndChatters(t *testing.T) {
	fmt.Println("worker: fork/exec /bin/sh: resource temporarily unavailable (injected)")
	t.Fatal("the retry policy gave up after 3 attempts:", syscall.EAGAIN)
}

func TestErrorsByHand(t *testing.T) {
	t.Fatal("open store:", &os.PathError{Op: "open", Path: "/data/store", Err: syscall.EMFILE})
}

// TestHandlesRefusalAndFails is refused something, goes on, and fails for another reason.
func TestHandlesRefusalAndFails(t *testing.T) {
	if err := syscall.Sethostname([]byte("other")); err == nil {
		t.Fatal("sethostname was allowed")
	}
	if got := strings.ToUpper("a"); got != "a" {
		t.Fatalf("got %q, want %q", got, "a")
	}
}

func TestChildFails(t *testing.T) {
	if out, err := exec.Command("/bin/sh", "-c", "echo no luck >&2; exit 7").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLeak(t *testing.T) {
	before := 2
	for i := 0; i < 100; i++ {
		go func() { select {} }()
	}
	if err := leaked(before); err != nil {
		t.Fatal(err)
	}
}

func leaked(before int) error {
	if count := len(goroutines()); count > before {
		return fmt.Errorf("%d goroutines leaked", count-before)
	}
	return nil
}

func goroutines() []struct{} { return make([]struct{}, 102) }

func TestManySubtests(t *testing.T) {
	for i := 0; i < 100; i++ {
		t.Run(fmt.Sprint("case", i), func(t *testing.T) {
			if i%10 == 3 {
				t.Errorf("case %d: not equal", i)
			}
		})
	}
}

func TestStackOverflow(t *testing.T) {
	var down func(int) int
	down = func(n int) int { return down(n+1) + 1 }
	down(0)
}

func TestMarksItself(t *testing.T) {
	if err := errors.Join(errors.New("first"), errors.New("second")); err != nil {
		t.Fatal(err)
	}
}

func TestWaitsForNobody(t *testing.T) {
	if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil {
		t.Fatal("wait:", err)
	}
}

func TestSignalsNobody(t *testing.T) {
	child := exec.Command("/bin/true")
	child.Run()
	if err := syscall.Kill(child.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal("kill:", err)
	}
}
