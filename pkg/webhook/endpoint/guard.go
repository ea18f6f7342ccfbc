package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"code.dny.dev/ssrf"
)

// ErrRefused is wrapped by the error of a POST or a check whose address is not allowed.
var ErrRefused = errors.New("the address is not allowed")

// guard decides which addresses may be dialled. The library's lists are made from IANA's registries of special-purpose
// addresses; of IPv6 only the global unicast range is left, so that IPv4-mapped and -compatible, NAT64, unique local,
// link-local and multicast addresses are out, and within it 6to4 and Teredo are out too.
type guard struct{ policy *ssrf.Guardian }

// alsoDenied are public addresses that lead inside.
var alsoDenied = []netip.Prefix{
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, from every virtual machine
}

// nat64 addresses are IPv4 addresses in disguise.
var nat64 = ssrf.IPv6NAT64Prefix

func newGuard(allow []netip.Prefix) *guard {
	var allow4, allow6 []netip.Prefix
	for _, network := range allow {
		if network.Addr().Is4() {
			allow4 = append(allow4, network)
		} else {
			allow6 = append(allow6, network)
		}
	}
	return &guard{ssrf.New(
		ssrf.WithAnyPort(),
		ssrf.WithAllowedV4Prefixes(allow4...),
		ssrf.WithAllowedV6Prefixes(allow6...),
		ssrf.WithDeniedV4Prefixes(alsoDenied...),
	)}
}

// control is called by the dialler for each socket, with the address that it is about to connect to.
func (g *guard) control(_ context.Context, network, address string, conn syscall.RawConn) error {
	if err := g.policy.Safe(network, address, conn); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return g.check(netip.MustParseAddrPort(address).Addr())
}

func (g *guard) check(addr netip.Addr) error {
	if err := g.policy.SafeAddr(addr); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if nat64.Contains(addr) { // allowed as such, but that does not allow 64:ff9b::127.0.0.1
		b := addr.As16()
		return g.check(netip.AddrFrom4([4]byte(b[12:])))
	}
	return nil
}
