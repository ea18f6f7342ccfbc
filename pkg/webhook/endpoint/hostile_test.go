package endpoint_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// hostile are servers that speak, or do not speak, HTTP/1.1 over TCP, one connection at a time. Cases in which time
// itself is the weapon are in slow_test.go, those with TLS in tls_test.go.
var hostile = []struct {
	name   string
	handle func(conn net.Conn) // called when the request's head has been read

	status int    // expected
	class  string // expected
	answer string // expected beginning of the answer's body
}{
	{name: "answers nothing", handle: block, class: endpoint.ClassTimeout},
	{name: "closes at once", handle: func(net.Conn) {}, class: endpoint.ClassReset},
	{name: "resets", handle: reset, class: endpoint.ClassReset},
	{name: "closes within the head", handle: say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), class: endpoint.ClassReset},
	{name: "closes within a header", handle: say("HTTP/1.1 200 OK\r\nContent-Le"), class: endpoint.ClassProtocol},
	{name: "resets within the head", handle: then(say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), reset), class: endpoint.ClassReset},
	{name: "stops within the head", handle: then(say("HTTP/1.1 200 OK\r\nContent-Le"), block), class: endpoint.ClassTimeout},
	{
		name:   "closes within the body",
		handle: say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe begin"), status: 200, answer: "the begin",
	},
	{
		name:   "breaks its chunks",
		handle: say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\nzzz\r\n"), status: 200, answer: "yes",
	},
	{
		name:   "sends a body without end",
		handle: then(say("HTTP/1.1 500 No\r\n\r\n"), repeat("all work and no play ")), status: 500, answer: "all work and no play ",
	},
	{
		name:   "sends a chunk extension without end",
		handle: then(say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;"), repeat("a=b;")), status: 200,
	},
	{
		name:   "sends a trailer without end",
		handle: then(say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n"), repeat("A: b\r\n")), status: 200, answer: "yes",
	},
	{
		name:   "sends headers without end",
		handle: then(say("HTTP/1.1 200 OK\r\n"), repeat("A: b\r\n")), class: endpoint.ClassTooLarge,
	},
	{
		name:   "sends one header without end",
		handle: then(say("HTTP/1.1 200 OK\r\nA: "), repeat("more")), class: endpoint.ClassTooLarge,
	},
	{
		name:   "sends a status line without end",
		handle: then(say("HTTP/1.1 200 "), repeat("OK")), class: endpoint.ClassTooLarge,
	},
	{
		name:   "sends a huge header",
		handle: say("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 65<<10) + "\r\n\r\n"), class: endpoint.ClassTooLarge,
	},
	{
		name:   "sends interim answers without end",
		handle: repeat("HTTP/1.1 103 Early Hints\r\n\r\n"), class: endpoint.ClassTooLarge,
	},
	{
		name:   "sends an interim answer first",
		handle: say("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 202 OK\r\nContent-Length: 0\r\n\r\n"), status: 202,
	},
	{
		name:   "switches protocols",
		handle: say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), class: endpoint.ClassProtocol,
	},
	{name: "speaks something else", handle: say("SSH-2.0-OpenSSH_9.2\r\n"), class: endpoint.ClassProtocol},
	{name: "speaks noise", handle: repeat("\x00\xff\x16\x03"), class: endpoint.ClassTooLarge},
	{name: "answers with TLS", handle: say("\x15\x03\x01\x00\x02\x02\x46"), class: endpoint.ClassProtocol},
	{name: "has a header without colon", handle: say("HTTP/1.1 200 OK\r\nno header\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "contradicts itself on length", handle: say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "has a negative length", handle: say("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "status 000", handle: say("HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "status 099", handle: say("HTTP/1.1 099 Less\r\nContent-Length: 0\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "status 999", handle: say("HTTP/1.1 999 Denied\r\nContent-Length: 0\r\n\r\n"), status: 999},
	{name: "status 99999", handle: say("HTTP/1.1 99999 More\r\nContent-Length: 0\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "status -20", handle: say("HTTP/1.1 -20 Minus\r\nContent-Length: 0\r\n\r\n"), class: endpoint.ClassProtocol},
	{name: "204 with a body", handle: say("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"), status: 204},
	{name: "304 with a body", handle: say("HTTP/1.1 304 Not Modified\r\n\r\nhello"), status: 304},
	{name: "garbage after the answer", handle: say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more"), status: 200, answer: "ok"},
	{name: "two answers", handle: say(strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 2)), status: 200},
	{name: "HTTP/1.0 until it closes", handle: say("HTTP/1.0 200 OK\r\n\r\nold"), status: 200, answer: "old"},
}

func TestHostile(t *testing.T) {
	quiet(t)
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(conn net.Conn) {
				if readHead(bufio.NewReader(conn)) {
					test.handle(conn)
				}
			})
			// The cases that must time out do so soon. The others never get near it.
			cfg := endpoint.Config{Timeout: time.Minute, BodyTimeout: time.Minute}
			if test.class == endpoint.ClassTimeout {
				cfg.Timeout = 50 * time.Millisecond
			}
			got := newClient(t, cfg).Post(t.Context(), endpoint.Request{URL: url + "/hook?secret=hidden", Body: []byte("{}")})
			expect(t, got, test.status, test.class)
			if want := test.answer; !strings.HasPrefix(string(got.Answer), want) || (want == "") != (len(got.Answer) == 0) {
				t.Errorf("got the answer %.100q, want %q", got.Answer, want)
			}
			if len(got.Answer) > 1024 {
				t.Errorf("kept %d bytes of the answer", len(got.Answer))
			}
		})
	}
}

// expect checks what holds for each result, too.
func expect(t *testing.T, got endpoint.Result, status int, class string) {
	t.Helper()
	if got.Status != status || got.Class != class {
		t.Fatalf("got status %d and class %q (%v), want %d and %q", got.Status, got.Class, got.Err, status, class)
	}
	if (got.Err == nil) != (got.Class == "") || (got.Status == 0) == (got.Class == "") {
		t.Errorf("a result is either an answer or an error: %+v", got)
	}
	if got.Err == nil {
		return
	}
	if typed, ok := errors.AsType[*endpoint.Error](got.Err); !ok || typed.Class != class {
		t.Errorf("%v is not an Error of class %s", got.Err, class)
	}
	if text := got.Err.Error(); len(text) > 300 || strings.Contains(text, "hidden") {
		t.Errorf("the error's text is too long or tells the URL: %s", text)
	}
}

func TestNobodyAccepts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client := newClient(t, endpoint.Config{Timeout: 50 * time.Millisecond})
	got := client.Post(t.Context(), endpoint.Request{URL: "http://" + listener.Addr().String()})
	expect(t, got, 0, endpoint.ClassTimeout)

	_ = listener.Close()
	got = client.Post(t.Context(), endpoint.Request{URL: "http://" + listener.Addr().String()})
	expect(t, got, 0, endpoint.ClassDial)
}

func TestCompressedAnswerIsNotExpanded(t *testing.T) {
	var bomb bytes.Buffer
	squeeze := gzip.NewWriter(&bomb)
	_, _ = io.CopyN(squeeze, zeros{}, 1<<20)
	_ = squeeze.Close()
	asked := make(chan string, 1)
	url := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Accept-Encoding")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes())
	})
	client := newClient(t, endpoint.Config{AnswerLimit: 2 * bomb.Len()})
	got := client.Post(t.Context(), endpoint.Request{URL: url})
	expect(t, got, 200, "")
	if !bytes.Equal(got.Answer, bomb.Bytes()) {
		t.Errorf("got %d bytes of answer, the server sent %d", len(got.Answer), bomb.Len())
	}
	if a := <-asked; a != "" {
		t.Errorf("asked for the encoding %q", a)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	followed := serveHTTP(t, func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	for _, location := range []string{followed, "http://169.254.169.254/latest/meta-data/", "/again", "://", ""} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			requests := 0
			url := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
				requests++
				w.Header().Set("Location", location)
				w.WriteHeader(status)
			})
			got := newClient(t, endpoint.Config{}).Post(t.Context(), endpoint.Request{URL: url, Body: []byte("{}")})
			expect(t, got, status, "")
			if requests != 1 {
				t.Errorf("%d to %q: %d requests", status, location, requests)
			}
		}
	}
}

func TestHeadersCannotBeInjected(t *testing.T) {
	url := serveHTTP(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("a request arrived: %v", r.Header) })
	client := newClient(t, endpoint.Config{})
	for _, value := range []string{"a\r\nX-Injected: yes", "a\nb", "a\rb", "a\x00b", "a\x7fb"} {
		got := client.Post(t.Context(), endpoint.Request{URL: url, Header: endpoint.Header{{"X-Event-Type", value}}})
		expect(t, got, 0, endpoint.ClassInvalid)
	}
	for _, name := range []string{"X-Event\r\nX-Injected", "", "a b", "Host", "content-length", "Transfer-Encoding", "Trailer", "Connection"} {
		got := client.Post(t.Context(), endpoint.Request{URL: url, Header: endpoint.Header{{name, "1"}}})
		expect(t, got, 0, endpoint.ClassInvalid)
	}
	for _, path := range []string{"/\r\nX-Injected:yes", "/a b", "/#hidden", "/\x00"} {
		expect(t, client.Post(t.Context(), endpoint.Request{URL: url + path}), 0, endpoint.ClassInvalid)
	}
}

// block waits until the other side has closed the connection.
func block(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// reset closes the connection with a RST.
func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// say writes the text and closes in good order. It reads the rest of the request first: closing before that would be a
// reset.
func say(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		block(conn)
	}
}

// repeat writes the text until the other side has had enough.
func repeat(text string) func(net.Conn) {
	text = strings.Repeat(text, 1+4096/len(text))
	return func(conn net.Conn) {
		for {
			if _, err := io.WriteString(conn, text); err != nil {
				return
			}
		}
	}
}

// then is say without the end.
func then(first, second func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		first(unclosed{conn})
		second(conn)
	}
}

type unclosed struct{ net.Conn }

func (unclosed) Read([]byte) (int, error) { return 0, io.EOF }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// quiet keeps net/http's complaints about unsolicited bytes out of the tests' output.
func quiet(t *testing.T) {
	log.SetOutput(io.Discard)
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
}
