package api

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// Whoever is not a proxy of ours can say in X-Forwarded-For what they like, and so
// can those behind them.
func TestAddress(t *testing.T) {
	s := &server{cfg: Config{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	for name, c := range map[string]struct {
		remote    string
		forwarded []string
		want      string
	}{
		"alone":                       {"192.0.2.1:1", nil, "192.0.2.1"},
		"not a proxy":                 {"192.0.2.1:1", []string{"198.51.100.7"}, "192.0.2.1"},
		"a proxy":                     {"10.0.0.1:1", []string{"198.51.100.7"}, "198.51.100.7"},
		"two proxies":                 {"10.0.0.1:1", []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7"},
		"two headers":                 {"10.0.0.1:1", []string{"198.51.100.7", "10.0.0.2"}, "198.51.100.7"},
		"what a client made up":       {"10.0.0.1:1", []string{"203.0.113.9, 10.0.0.9", "198.51.100.7,10.0.0.2"}, "198.51.100.7"},
		"a proxy that says nothing":   {"10.0.0.1:1", nil, "10.0.0.1"},
		"a proxy that says nonsense":  {"10.0.0.1:1", []string{"198.51.100.7, unknown"}, "10.0.0.1"},
		"from among the proxies":      {"10.0.0.1:1", []string{"10.0.0.3"}, "10.0.0.3"},
		"IPv6":                        {"[2001:db8:1:2:3::4]:1", nil, "2001:db8:1:2::/64"},
		"IPv4 as IPv6":                {"[::ffff:10.0.0.1]:1", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		"IPv6 behind a proxy":         {"[fd00::1%eth0]:1", []string{"2001:db8:1:2::5"}, "2001:db8:1:2::/64"},
		"something that is no socket": {"@", []string{"198.51.100.7"}, "@"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/api/auth/login", nil)
		r.RemoteAddr = c.remote
		r.Header["X-Forwarded-For"] = c.forwarded
		if got := s.address(r); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
