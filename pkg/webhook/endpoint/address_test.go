package endpoint_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arsmedicatech/webhooks/pkg/webhook/endpoint"
)

// forbidden has addresses of each kind that is not the public internet.
var forbidden = map[string][]string{
	"loopback":             {"127.0.0.1", "127.255.255.254", "::1"},
	"private":              {"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1"},
	"link-local":           {"169.254.0.1", "fe80::1", "febf::1"},
	"site-local":           {"fec0::1"},
	"metadata":             {"169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"},
	"shared (CGNAT)":       {"100.64.0.1", "100.127.255.255"},
	"unspecified":          {"0.0.0.0", "0.1.2.3", "::"},
	"multicast, broadcast": {"224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1"},
	"reserved":             {"240.0.0.1", "192.0.0.1", "4000::1", "5f00::1", "100::1"},
	"benchmarks":           {"198.18.0.1", "198.19.255.255", "2001:2::1"},
	"documentation":        {"192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"},
	"IPv4-mapped":          {"::ffff:127.0.0.1", "::ffff:8.8.8.8"},
	"IPv4-compatible":      {"::127.0.0.1", "::8.8.8.8"},
	"NAT64":                {"64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1"},
	"6to4":                 {"2002:7f00:1::", "2002:a00:1::1"},
	"Teredo":               {"2001::1", "2001:0:a00:1::80ff:fffe"},
	"in other digits":      {"１２７.0.0.1", "169。254。169。254"},
}

var public = []string{"8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"}

// TestForbiddenAddresses looks at literal addresses twice: where a URL is registered and where it is dialled.
func TestForbiddenAddresses(t *testing.T) {
	client := newClient(t, endpoint.Config{AllowNetworks: []netip.Prefix{}})
	url := func(address string) string { return "http://" + net.JoinHostPort(address, "80") + "/?hidden" }
	for kind, addresses := range forbidden {
		t.Run(kind, func(t *testing.T) {
			for _, address := range addresses {
				if err := client.CheckURL(url(address)); !errors.Is(err, endpoint.ErrRefused) {
					t.Errorf("registering %s: %v", address, err)
				}
				if strings.HasPrefix(address, "::ffff:8.") {
					continue // the dialler takes it for 8.8.8.8, and rightly so
				}
				got := client.Post(t.Context(), endpoint.Request{URL: url(address)})
				expect(t, got, 0, endpoint.ClassRefusedAddress)
			}
		})
	}
	for _, address := range public {
		if err := client.CheckURL(url(address)); err != nil {
			t.Errorf("registering %s: %v", address, err)
		}
	}
}

func TestAllowNetworks(t *testing.T) {
	client := newClient(t, endpoint.Config{AllowNetworks: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd12::/16"), netip.MustParsePrefix("64:ff9b::/96"),
	}})
	for host, allowed := range map[string]bool{
		"10.1.2.3": true, "10.2.2.3": false, "127.0.0.1": false, "localhost": false, "a.localhost.": false,
		"[fd12::1]": true, "[fd13::1]": false,
		"[64:ff9b::8.8.8.8]": true, "[64:ff9b::10.1.2.3]": true,
		"[64:ff9b::127.0.0.1]": false, // NAT64 is allowed, what it leads to is not
	} {
		if err := client.CheckURL("https://" + host); (err == nil) != allowed {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := newClient(t, endpoint.Config{AllowNetworks: loopback}).CheckURL("http://localhost:8080"); err != nil {
		t.Error(err)
	}
	if _, err := endpoint.New(endpoint.Config{AllowNetworks: []netip.Prefix{{}}}); err == nil {
		t.Error("a network that is none was accepted")
	}
}

// TestRebinding has a name that leads to a good address when it is first resolved, and inside ever after.
func TestRebinding(t *testing.T) {
	var served atomic.Int32
	url := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		w.Header().Set("Connection", "close") // or the good connection would be used again, rightly
	})
	_, port, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	for _, inside := range []string{"169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"} {
		var names resolver
		client := newClient(t, endpoint.Config{
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			Resolver:      names.start(t),
		})
		request := endpoint.Request{URL: "http://rebinding.example.:" + port + "/?hidden"}
		served.Store(0)
		names.set("127.0.0.1")
		expect(t, client.Post(t.Context(), request), 200, "")
		names.set(inside)
		expect(t, client.Post(t.Context(), request), 0, endpoint.ClassRefusedAddress)
		expect(t, client.Post(t.Context(), request), 0, endpoint.ClassRefusedAddress)
		if n := served.Load(); n != 1 {
			t.Errorf("%s: %d requests were served", inside, n)
		}
	}
}

// TestManyAddresses has a name with forbidden addresses among allowed ones. All of them are looked at, and those of the
// other family as well, which the dialler tries by itself.
func TestManyAddresses(t *testing.T) {
	url := serveHTTP(t, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	var names resolver
	client := newClient(t, endpoint.Config{
		AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Resolver:      names.start(t),
	})
	request := endpoint.Request{URL: "http://many.example.:" + port}

	names.set("10.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254", "127.0.0.2")
	expect(t, client.Post(t.Context(), request), 0, endpoint.ClassRefusedAddress)

	names.set("10.0.0.1", "::1", "127.0.0.1")
	expect(t, client.Post(t.Context(), request), 200, "")
}

func TestUnknownName(t *testing.T) {
	var names resolver
	client := newClient(t, endpoint.Config{Resolver: names.start(t)})
	got := client.Post(t.Context(), endpoint.Request{URL: "http://nowhere.example./?hidden"})
	expect(t, got, 0, endpoint.ClassDNS)

	broken := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("the name server is down")
	}}
	client = newClient(t, endpoint.Config{Resolver: broken, Timeout: time.Minute})
	got = client.Post(t.Context(), endpoint.Request{URL: "http://nowhere.example./?hidden"})
	expect(t, got, 0, endpoint.ClassDNS)
}

// resolver is a name server in memory that answers every name with the same addresses.
type resolver struct {
	mu        sync.Mutex
	addresses []netip.Addr
}

func (r *resolver) set(addresses ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addresses = nil
	for _, a := range addresses {
		r.addresses = append(r.addresses, netip.MustParseAddr(a))
	}
}

func (r *resolver) start(t *testing.T) *net.Resolver {
	var servers sync.WaitGroup
	t.Cleanup(servers.Wait)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		servers.Go(func() {
			defer theirs.Close()
			for r.answer(theirs) {
			}
		})
		return ours, nil
	}}
}

// answer reads one question in the form of DNS over TCP (RFC 1035: a length, a header of 12 bytes, the name, type and
// class), and writes the addresses of the type that was asked for.
func (r *resolver) answer(conn net.Conn) bool {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return false
	}
	query := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, query); err != nil {
		return false
	}
	end := 12
	for query[end] != 0 {
		end += 1 + int(query[end])
	}
	question := query[12 : end+5]
	wanted := binary.BigEndian.Uint16(question[len(question)-4:])

	var records []byte
	count := uint16(0)
	r.mu.Lock()
	for _, address := range r.addresses {
		kind := uint16(28) // AAAA
		if address.Is4() {
			kind = 1 // A
		}
		if kind != wanted {
			continue
		}
		data := address.AsSlice()
		records = append(records, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(data))) // the name as in the question
		records = append(records, data...)
		count++
	}
	r.mu.Unlock()

	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1}, byte(count>>8), byte(count), 0, 0, 0, 0)
	reply = append(append(reply, question...), records...)
	_, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err == nil
}
