// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"net"
	"sync"
	"testing"
	"time"
)

// A server that is slow to accept: its clients wait in the queue, if it is long enough.
func TestBurstOfClients(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var clients sync.WaitGroup
	for i := 0; i < 24; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			client, err := net.DialTimeout("tcp", listener.Addr().String(), 2*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { client.Close() })
		}()
	}
	clients.Wait()
}
