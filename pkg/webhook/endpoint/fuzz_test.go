package endpoint_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/idna"

	"github.com/arsmedicatech/webhooks/pkg/webhook"
	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// Whatever an endpoint asks for, the time to wait is within bounds.
func FuzzParseRetryAfter(f *testing.F) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	for _, value := range []string{
		"", "0", "120", " 5 ", "-1", "1.5", "+1", "99999999999999999999", "Tue, 01 Sep 2026 12:02:00 GMT", "Mon, 31 Aug 2026 12:00:00 GMT",
		"Tuesday, 01-Sep-26 12:02:00 GMT", "Tue Sep  1 12:02:00 2026", "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "\x00",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		d, ok := endpoint.ParseRetryAfter(value, now)
		if d < 0 || d > endpoint.MaxRetryAfter || !ok && d != 0 {
			t.Fatalf("%q: %s, %t", value, d, ok)
		}
	})
}

// Whatever the URL, the fields and the body, an endpoint reads that one request, as net/http would have written it, and
// nothing more.
func FuzzPost(f *testing.F) {
	for _, one := range []struct{ url, name, value, body string }{
		{"http://clinic.example", "X-Event-Type", "appointment.created", "{}"},
		{"http://clinic.example:8080/a%20b/../c?d=e&f=%zz", "User-Agent", "x", ""},
		{"http://[2606:4700::1]/?", "X-A", " spaces ", "\r\n\r\nPOST / HTTP/1.1\r\n"},
		{"http://bücher.example/ü?ü=\xff", "X-A", "ü", "body"},
		{"http://clinic.example//other.example/", "Host", "other.example", ""},
		{"http://clinic.example/", "X-A", "a\r\nX-B: c", ""},
		{"http://clinic.example/", "Content-Length", "1", "ab"},
		{"http://CLINIC.example.:080/", "x-a", "", "b"},
		{"http://BÜCHER。example:80", "user-agent", "x", "b"},
	} {
		f.Add(one.url, one.name, one.value, []byte(one.body))
	}
	f.Fuzz(func(t *testing.T, url, name, value string, body []byte) {
		received := make(chan []byte, 1)
		dial := func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				var all bytes.Buffer
				if request, err := http.ReadRequest(bufio.NewReader(io.TeeReader(theirs, &all))); err == nil {
					_, _ = io.Copy(io.Discard, request.Body) // reread finds what is wrong
				}
				_, _ = io.WriteString(theirs, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				_, _ = io.Copy(&all, theirs)
				received <- all.Bytes()
			}()
			return ours, nil
		}
		client, err := endpoint.New(endpoint.Config{Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if !strings.HasPrefix(url, "http:") {
			return // it is not sent, or over TLS
		}
		header := endpoint.Header{{name, value}, {"X-Twice", "1"}, {"X-Twice", "2"}}
		got := client.Post(t.Context(), endpoint.Request{URL: url, Header: header, Body: body})
		if got.Class == endpoint.ClassInvalid {
			if client.CheckURL(url) == nil && client.Post(t.Context(), endpoint.Request{URL: url}).Class == endpoint.ClassInvalid {
				t.Fatalf("%q can be registered and is not sent to", url)
			}
			return
		}
		expect(t, got, 200, "")
		want, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			t.Fatalf("%q is sent and no URL: %v", url, err)
		}
		if name := want.URL.Hostname(); !isASCII(name) { // net/http's Host would not be folded
			ascii, err := idna.Lookup.ToASCII(name)
			if err != nil {
				t.Fatalf("%q is sent to and no name: %v", url, err)
			}
			want.Host = ascii + want.Host[len(name):]
		}
		want.Header.Set("User-Agent", webhook.UserAgent)
		want.Header[http.CanonicalHeaderKey(name)] = []string{value}
		want.Header["X-Twice"] = append(want.Header["X-Twice"], "1", "2")
		var written bytes.Buffer
		if err := want.Write(&written); err != nil {
			t.Fatalf("net/http does not write a request to %q: %v", url, err)
		}
		if a, b := reread(t, <-received), reread(t, written.Bytes()); a != b {
			t.Fatalf("the endpoint reads\n%s\ninstead of\n%s", a, b)
		}
	})
}

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 })
}

// reread returns what an endpoint makes of the bytes of a request, as text in a
// fixed order, with what comes after it.
func reread(t *testing.T, raw []byte) string {
	t.Helper()
	in := bufio.NewReader(bytes.NewReader(raw))
	r, err := http.ReadRequest(in)
	if err != nil {
		t.Fatalf("read %q: %v", raw, err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("read the body of %q: %v", raw, err)
	}
	rest, _ := io.ReadAll(in)
	if r.UserAgent() == "" {
		r.Header.Del("User-Agent") // net/http leaves it out
	}
	return fmt.Sprintf("%s %s %s %s %v %q %q", r.Method, r.RequestURI, r.Proto, r.Host, r.Header, body, rest)
}

// A URL that is taken can be made a request of, leads to no forbidden address
// that it names itself, and an error never repeats it.
func FuzzCheckURL(f *testing.F) {
	for _, raw := range []string{
		"", "https://clinic.example/webhooks?key=value", "http://user:password@clinic.example", "http://127.0.0.1", "http://[::1]:80/", "http://0x7f.1/",
		"http://2130706433/", "http://localhost./", "http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/", "http://[fe80::1%25eth0]/",
		"http://clinic.example:0/", "http://clinic.example:65536/", "ftp://clinic.example", "//clinic.example", "http://clinic.example/#f",
		"http://clinic.example/\r\nX: y", "http://%31%32%37.0.0.1/", "http://８.8.8.8/", "http://a..b/",
	} {
		f.Add(raw)
	}
	client, err := endpoint.New(endpoint.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	f.Fuzz(func(t *testing.T, raw string) {
		if err := client.CheckURL(raw); err != nil {
			if len(raw) > 64 && strings.Contains(err.Error(), raw) {
				t.Fatalf("the error repeats the URL: %v", err)
			}
			return
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, raw, nil)
		if err != nil {
			t.Fatalf("no request can be made of %q: %v", raw, err)
		}
		if u := request.URL; u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Fragment != "" {
			t.Fatalf("%q is taken", raw)
		}
		if addr, err := netip.ParseAddr(request.URL.Hostname()); err == nil {
			if addr = addr.Unmap(); addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
				t.Fatalf("%q leads to %s", raw, addr)
			}
		}
		if again, err := url.Parse(request.URL.String()); err != nil || again.Host != request.URL.Host {
			t.Fatalf("%q is read differently when written again", raw)
		}
	})
}
