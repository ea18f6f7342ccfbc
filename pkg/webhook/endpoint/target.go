package endpoint

import (
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/idna"
)

// target is what a URL says of where requests go, and how they begin.
type target struct {
	url             string // with an ASCII host
	scheme, address string // address is host:port
	host            string // names both, for pool
	begin           string // request line and Host
}

// parseTarget checks a URL and takes it apart. Its errors don't repeat it.
func parseTarget(raw string) (*target, error) {
	u, err := parse(raw)
	if err != nil {
		return nil, err
	}
	address := withPort(u.Host, u.Scheme)
	return &target{
		url: u.String(), scheme: u.Scheme, address: address, host: u.Scheme + " " + address,
		begin: "POST " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\n",
	}, nil
}

// parse reads a URL and makes all checks that need no knowledge of which addresses are allowed. A host beyond ASCII
// becomes what browsers make of it: bücher.example and BÜCHER.example are both xn--bcher-kva.example.
func parse(raw string) (*url.URL, error) {
	if err := checkText(raw); err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errUnreadableURL // err would repeat the URL, which may hold secrets
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r >= 0x80 }) {
		name, err := idna.Lookup.ToASCII(u.Hostname())
		if err != nil {
			return nil, errHost
		}
		u.Host = name + u.Host[len(u.Hostname()):] // the port
	}
	return u, checkParts(u)
}

// withPort adds the scheme's port to a host that names none.
func withPort(host, scheme string) string {
	switch {
	case strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']'):
		return host
	case scheme == "https":
		return host + ":443"
	}
	return host + ":80"
}

// targets remembers what was made of URLs, for the same ones come again and again: at most some 20 MiB of them.
type targets struct {
	mu    sync.RWMutex
	known map[string]*target
}

// mostTargets is how many are remembered; when there are more, all are forgotten. Those longer than longTarget never are.
const (
	mostTargets = 1 << 14
	longTarget  = 256
)

// get returns the target that a URL names.
func (ts *targets) get(raw string) (*target, error) {
	ts.mu.RLock()
	t := ts.known[raw]
	ts.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	t, err := parseTarget(raw)
	if err != nil || len(raw) > longTarget {
		return t, err
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.known == nil || len(ts.known) >= mostTargets {
		ts.known = map[string]*target{}
	}
	ts.known[raw] = t
	return t, nil
}
