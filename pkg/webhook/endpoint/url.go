package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// maxURL is how many bytes a URL may have.
const maxURL = 2048

// What is wrong with a URL. None of these repeats it: its query may hold secrets.
var (
	errLongURL       = fmt.Errorf("the URL is longer than %d bytes", maxURL)
	errUnreadableURL = errors.New("the URL is not valid")
	errSpaceInURL    = errors.New("the URL contains spaces or control characters")
	errScheme        = errors.New("the URL must begin with http:// or https://")
	errUserinfo      = errors.New("the URL must not contain a user name or password")
	errFragment      = errors.New("the URL must not have a fragment (#)")
	errNoHost        = errors.New("the URL must name a host")
	errPort          = errors.New("the URL's port must be a number from 1 to 65535")
	errHost          = errors.New("the URL's host is not a valid name or IP address")
	errNumericHost   = errors.New("the URL's host looks like an IP address but is not written in the usual form")
	errPrivateHost   = fmt.Errorf("the URL must lead to the public internet: %w", ErrRefused)
)

// CheckURL says in one sentence what keeps a URL from being an endpoint. It resolves nothing: a name that leads to a
// forbidden address is only found out, and refused, when it is dialled. The error never repeats parts of the URL.
func (c *Client) CheckURL(raw string) error {
	u, err := parse(raw)
	if err != nil {
		return err
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		if c.guard.check(addr) != nil {
			return errPrivateHost
		}
		return nil
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // always loopback, see RFC 6761
		v4, v6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
		if c.guard.check(v4) != nil && c.guard.check(v6) != nil {
			return errPrivateHost
		}
	}
	return nil
}

// checkText and checkParts check a URL before and after it was parsed. They run before a POST too: a stored URL may be
// older than a rule here.
func checkText(raw string) error {
	switch {
	case len(raw) > maxURL:
		return errLongURL
	case strings.ContainsFunc(raw, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return errSpaceInURL
	case strings.Contains(raw, "#"):
		return errFragment
	}
	return nil
}

func checkParts(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return errScheme
	case u.User != nil:
		return errUserinfo
	case u.Hostname() == "":
		return errNoHost
	}
	if _, port, found := strings.Cut(u.Host[strings.LastIndexByte(u.Host, ']')+1:], ":"); found {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errPort
		}
	}
	return checkHost(u.Hostname())
}

func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return errHost
		}
		return nil
	}
	name := strings.TrimSuffix(host, ".")
	if len(name) > 253 {
		return errHost
	}
	var last string
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInName) {
			return errHost
		}
		last = label
	}
	// 127.1, 2130706433 and 0x7f.0.0.1 are addresses to some resolvers. No name of the internet ends like that.
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || !strings.ContainsFunc(last, notDigit) {
		return errNumericHost
	}
	return nil
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

func notInName(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		return false
	}
	return true
}
