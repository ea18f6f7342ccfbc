package endpoint_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// answerAll answers every request on a connection.
func answerAll(conn net.Conn) {
	for in := bufio.NewReader(conn); readHead(in); {
		_, _ = io.WriteString(conn, fine)
	}
}

func TestConnectionIsUsedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		answer   string
		opened   int32
		patience time.Duration // for the body, if not the default
	}{
		"as a rule":                {fine, 1, 0},
		"in chunks":                {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1, 0},
		"a long answer":            {"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nok" + strings.Repeat(".", 4998), 1, 0},
		"as long as is kept":       {"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\nok" + strings.Repeat(".", 1022), 1, 0},
		"not when told so":         {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 5, 0},
		"not with more behind":     {fine + "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 5, 0},
		"not with old HTTP":        {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 5, 0},
		"not after a huge answer":  {"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\nok" + strings.Repeat(".", 199998), 5, 0},
		"not when some is missing": {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", 5, 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opened atomic.Int32
			url := serve(t, func(conn net.Conn) {
				opened.Add(1)
				for in := bufio.NewReader(conn); readHead(in); {
					_, _ = io.WriteString(conn, c.answer)
				}
			})
			client := newClient(t, endpoint.Config{BodyTimeout: c.patience})
			for range 5 {
				got := client.Post(t.Context(), endpoint.Request{URL: url})
				expect(t, got, 200, "")
				if !strings.HasPrefix(string(got.Answer), "ok") {
					t.Errorf("got the answer %.20q", got.Answer)
				}
			}
			if n := opened.Load(); n != c.opened {
				t.Errorf("5 posts opened %d connections, want %d", n, c.opened)
			}
		})
	}
}

// A connection that the endpoint has closed, or on which it has said more than it was asked, is not used again: nothing
// fails because of that, and no answer is taken for another's.
func TestIdleConnectionIsLookedAt(t *testing.T) {
	for name, spoil := range map[string]func(net.Conn){
		"closed":         func(conn net.Conn) { _ = conn.Close() },
		"reset":          reset,
		"an answer more": func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n") },
		"a time-out's": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 408 Too Late\r\nConnection: close\r\n\r\n")
			_ = conn.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next, spoilt := make(chan struct{}), make(chan struct{})
			url := serve(t, func(conn net.Conn) {
				if readHead(bufio.NewReader(conn)) {
					_, _ = io.WriteString(conn, fine)
					<-next
					spoil(conn)
					spoilt <- struct{}{}
					block(conn)
				}
			})
			client := newClient(t, endpoint.Config{})
			for range 20 {
				expect(t, client.Post(t.Context(), endpoint.Request{URL: url}), 200, "")
				next <- struct{}{}
				<-spoilt
			}
		})
	}
}

func TestConnectionsPerHost(t *testing.T) {
	const most = 3
	var open, highest atomic.Int32
	full, goOn := make(chan struct{}, 100), make(chan struct{})
	url := serve(t, func(conn net.Conn) {
		n := open.Add(1)
		defer open.Add(-1)
		for old := highest.Load(); n > old && !highest.CompareAndSwap(old, n); old = highest.Load() {
		}
		full <- struct{}{}
		<-goOn
		answerAll(conn)
	})
	client := newClient(t, endpoint.Config{ConnsPerHost: most})
	var posts sync.WaitGroup
	for range 10 * most {
		posts.Go(func() { expect(t, client.Post(t.Context(), endpoint.Request{URL: url}), 200, "") })
	}
	for range most {
		<-full
	}
	impatient, cancel := context.WithCancel(t.Context())
	posts.Go(func() {
		expect(t, client.Post(impatient, endpoint.Request{URL: url}), 0, endpoint.ClassCancelled)
		close(goOn)
	})
	cancel()
	posts.Wait()
	if n := highest.Load(); n != most {
		t.Errorf("%d connections at a time, want %d", n, most)
	}
}

// Idle connections are closed when they have been idle for long, are too many, or the client is closed.
func TestIdleConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var servers sync.WaitGroup
		t.Cleanup(servers.Wait)
		closed := make(chan string, 10)
		client := newClient(t, endpoint.Config{IdleConns: 2, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			servers.Go(func() {
				answerAll(theirs)
				closed <- address
			})
			return ours, nil
		}})
		post := func(host string) {
			t.Helper()
			expect(t, client.Post(t.Context(), endpoint.Request{URL: "http://" + host + ":1"}), 200, "")
			synctest.Wait()
		}
		wantClosed := func(want ...string) {
			t.Helper()
			synctest.Wait()
			for _, host := range want {
				select {
				case got := <-closed:
					if got != host+":1" {
						t.Errorf("the connection to %s is closed, want %s", got, host)
					}
				default:
					t.Errorf("the connection to %s is not closed", host)
				}
			}
			if len(closed) > 0 {
				t.Errorf("the connection to %s is closed", <-closed)
			}
		}
		post("a")
		time.Sleep(time.Second)
		post("b")
		time.Sleep(time.Second)
		post("a")
		post("c")
		wantClosed("b") // of three the one that was idle for longest
		time.Sleep(3 * time.Second)
		post("c")
		time.Sleep(time.Second - 1)
		wantClosed()
		time.Sleep(time.Nanosecond)
		wantClosed("a") // idle for 4 s
		time.Sleep(3*time.Second - 1)
		wantClosed()
		time.Sleep(time.Nanosecond)
		wantClosed("c")
		post("a")
		client.Close()
		wantClosed("a")
		post("a")
		wantClosed("a")
	})
}
