package embedded

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// counted is a connection that counts how often it is written to.
type counted struct {
	net.Conn
	writes *atomic.Int32
}

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// The replies to a pipeline come complete and in order, and in few writes.
func TestRepliesGather(t *testing.T) {
	server := miniredis.RunT(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var writes atomic.Int32
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			server.Server().ServeConn(&replies{Conn: counted{conn, &writes}})
		}
	})
	defer serving.Wait()
	defer func() { _ = listener.Close() }()
	client := redis.NewClient(&redis.Options{Addr: listener.Addr().String()})
	defer func() { _ = client.Close() }()
	for _, c := range []struct{ n, size int }{{200, 1}, {200, 100}, {1, 2 * mostWaiting}} {
		n, size := c.n, c.size
		before := writes.Load()
		pipe := client.Pipeline()
		var got []*redis.StringCmd
		value := strings.Repeat("x", size)
		for i := range n {
			pipe.Set(t.Context(), "key", fmt.Sprint(i, value), 0)
			got = append(got, pipe.Get(t.Context(), "key"))
		}
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, g := range got {
			if g.Val() != fmt.Sprint(i, value) {
				t.Fatalf("reply %d of values of %d bytes is another", i, size)
			}
		}
		// The server reads up to 4 KiB of commands at a time.
		if many := int(writes.Load() - before); many > n/4+2 {
			t.Errorf("%d writes for %d replies with %d bytes", many, 2*n, size)
		}
	}
}

// What the server says unasked waits for no next command.
func TestRepliesUnasked(t *testing.T) {
	server := miniredis.RunT(t)
	f, err := newFront(server.Server())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}()
	client := redis.NewClient(&redis.Options{Addr: f.listener.Addr().String()})
	defer func() { _ = client.Close() }()
	sub := client.Subscribe(t.Context(), "news")
	defer func() { _ = sub.Close() }()
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Publish("news", "hello")
	m, err := sub.ReceiveTimeout(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if said, ok := m.(*redis.Message); !ok || said.Payload != "hello" {
		t.Errorf("got %v", m)
	}
}
