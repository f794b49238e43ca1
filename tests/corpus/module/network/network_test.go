// SPDX-License-Identifier: Apache-2.0

// Package network listens, connects, and asks for names.
package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	defer server.Close()
	answer, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, _ := io.ReadAll(answer.Body); string(body) != "hello" {
		t.Fatalf("got %q", body)
	}
}

func TestDialOwn(t *testing.T) {
	// As in most servers: on every address of the machine.
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	connection, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	connection.Close()
}

func TestIPv6(t *testing.T) {
	listener, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}

func TestPort80(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}

func TestRawSocket(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	if err != nil {
		t.Fatal("raw socket:", err)
	}
	syscall.Close(fd)
}

func TestPing(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
	if err != nil {
		t.Fatal("ping socket:", err)
	}
	syscall.Close(fd)
}

// TestBurst connects to a server that is slow to accept.
func TestBurst(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for i := 0; i < 100; i++ {
		connection, err := net.DialTimeout("tcp4", listener.Addr().String(), 2*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer connection.Close()
	}
}

// TestManyDials keeps more connections to one address than there are ports in a small range.
func TestManyDials(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			if _, err := listener.Accept(); err != nil {
				return
			}
		}
	}()
	for i := 0; i < 50; i++ {
		connection, err := net.Dial("tcp4", "127.0.0.1:9000")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer connection.Close()
	}
}

// TestManyListeners asks for more free ports than a small range has.
func TestManyListeners(t *testing.T) {
	for i := 0; i < 50; i++ {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("listener %d: %v", i, err)
		}
		defer listener.Close()
	}
}

func TestLookupHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, "registry.corpus.example"); err != nil {
		t.Fatal(err)
	}
}

func TestLookupLocalhost(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	connection, err := (&net.Dialer{}).DialContext(ctx, "udp4", "localhost:9")
	if err != nil {
		t.Fatal(err)
	}
	connection.Close()
}

// TestOutside reaches for an address of documentation: nobody answers there, but a machine with a network has a way to it.
func TestOutside(t *testing.T) {
	connection, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		t.Fatal(err)
	}
	connection.Close()
}

func TestAddLoopbackAddress(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.BindToDevice(fd, "lo"); err != nil {
		t.Fatal(err)
	}
	const mark = 36
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, mark, 7); err != nil {
		t.Fatal("mark packets:", err)
	}
}

func TestUnixSocket(t *testing.T) {
	listener, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}
