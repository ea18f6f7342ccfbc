package endpoint_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

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
