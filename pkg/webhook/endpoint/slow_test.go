package endpoint_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// TestSlow runs on a network in memory and in virtual time, with the default time-outs: 10 s for the head, 2 s for the
// body.
func TestSlow(t *testing.T) {
	const (
		whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
		head  = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
	)
	tests := []struct {
		name string
		dial func(context.Context) error // before there is a connection
		// handle is called when a request's head has been read.
		handle func(net.Conn)
		https  bool

		status int
		class  string
		answer string
		takes  time.Duration
	}{
		{
			name: "connects never", dial: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "connects late", dial: wait(9 * time.Second), handle: say(whole),
			status: 200, answer: "hello", takes: 9 * time.Second,
		},
		{
			name: "connects late and answers late", dial: wait(6 * time.Second), handle: after(6*time.Second, say(whole)),
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "answers in the last moment", handle: after(10*time.Second-1, say(whole)),
			status: 200, answer: "hello", takes: 10*time.Second - 1,
		},
		{
			name: "answers never", handle: block,
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "shakes hands never", handle: block, https: true,
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "trickles the head", handle: trickle(time.Second, whole),
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "trickles interim answers", handle: trickle(time.Second, strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50)),
			class: endpoint.ClassTimeout, takes: 10 * time.Second,
		},
		{
			name: "stops within the body", handle: then(say(head+"hello"), block),
			status: 200, answer: "hello", takes: 2 * time.Second,
		},
		{
			// The head has left its writer one moment, the body's bytes come 300, 600, … 1800 ms later.
			name: "trickles the body", handle: then(say(head), after(0, trickle(300*time.Millisecond, "hello, world"))),
			status: 200, answer: "hello,", takes: 2 * time.Second,
		},
		{
			name: "stops within a chunk", handle: then(say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), block),
			status: 200, answer: "hello", takes: 2 * time.Second,
		},
		{
			name: "does not say how long the body is", handle: then(say("HTTP/1.1 200 OK\r\n\r\nhello"), block),
			status: 200, answer: "hello", takes: 2 * time.Second,
		},
		{
			name: "is late with the head and slow with the body", handle: after(9*time.Second, then(say(head+"hello"), block)),
			status: 200, answer: "hello", takes: 11 * time.Second,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var servers sync.WaitGroup
				t.Cleanup(servers.Wait)
				client := newClient(t, endpoint.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					if test.dial != nil {
						if err := test.dial(ctx); err != nil {
							return nil, err
						}
					}
					ours, theirs := net.Pipe()
					servers.Go(func() {
						defer theirs.Close()
						if test.https || readHead(bufio.NewReader(theirs)) {
							test.handle(theirs)
						}
					})
					return ours, nil
				}})
				url := "http://slow.example"
				if test.https {
					url = "https://slow.example"
				}
				start := time.Now()
				got := client.Post(t.Context(), endpoint.Request{URL: url})
				expect(t, got, test.status, test.class)
				if string(got.Answer) != test.answer {
					t.Errorf("got the answer %q, want %q", got.Answer, test.answer)
				}
				if took := time.Since(start); took != test.takes {
					t.Errorf("took %v, want %v", took, test.takes)
				}
			})
		})
	}
}

// deadlineless is a connection on which the time for reading alone can't be limited.
type deadlineless struct{ net.Conn }

func (deadlineless) SetReadDeadline(time.Time) error { return errors.New("can't be set") }

// A body is not read without a limit of its own; the head says what counts.
func TestBodyWithoutDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var server sync.WaitGroup
		t.Cleanup(server.Wait)
		client := newClient(t, endpoint.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			server.Go(func() {
				defer theirs.Close()
				if readHead(bufio.NewReader(theirs)) {
					then(say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"), block)(theirs)
				}
			})
			return deadlineless{ours}, nil
		}})
		start := time.Now()
		got := client.Post(t.Context(), endpoint.Request{URL: "http://slow.example"})
		expect(t, got, 200, "")
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v, want no waiting", took)
		}
	})
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newClient(t, endpoint.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go block(theirs)
			return ours, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		got := client.Post(ctx, endpoint.Request{URL: "http://slow.example"})
		expect(t, got, 0, endpoint.ClassCancelled)
		if got.Latency != time.Second {
			t.Errorf("took %v, want 1s", got.Latency)
		}
		got = client.Post(ctx, endpoint.Request{URL: "http://slow.example"})
		expect(t, got, 0, endpoint.ClassCancelled)

		// A deadline of the caller is the caller's business, too.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got = client.Post(ctx, endpoint.Request{URL: "http://slow.example"})
		expect(t, got, 0, endpoint.ClassCancelled)
	})
}

func wait(d time.Duration) func(context.Context) error {
	return func(context.Context) error { time.Sleep(d); return nil }
}

func after(d time.Duration, do func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) { time.Sleep(d); do(conn) }
}

// trickle writes a byte at a time, pausing before each.
func trickle(pause time.Duration, text string) func(net.Conn) {
	return func(conn net.Conn) {
		for i := range len(text) {
			time.Sleep(pause)
			if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
				return
			}
		}
		block(conn)
	}
}
