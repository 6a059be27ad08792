package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lunar/netft/network"
)

const (
	// tornTries is how often a dump that changes interrupted is read again at once.
	tornTries = 5
	// askTimeout bounds a question to the kernel.
	askTimeout = 5 * time.Second
)

// errTorn says that changes interrupted every try to read a list: ask again a little later.
var errTorn = errors.New("link: interrupted by changes")

// reader asks the kernel.
type reader struct {
	handle *netlink.Handle
	family int // of ethtool; 0: this kernel has none
}

func newReader() (*reader, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("link: open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(askTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("link: set a time-out: %w", err)
	}
	return &reader{handle: h, family: ethtoolFamily()}, nil
}

func (r *reader) close() { r.handle.Close() }

// whole repeats ask while changes interrupt it.
func whole[T any](what string, ask func() ([]T, error)) ([]T, error) {
	for range tornTries {
		list, err := ask()
		if err == nil {
			return list, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("link: list %s: %w", what, err)
		}
	}
	return nil, errTorn
}

// list is the whole list, by index.
func (r *reader) list() ([]network.Interface, error) {
	links, err := whole("interfaces", r.handle.LinkList)
	if err != nil {
		return nil, err
	}
	addresses, err := whole("addresses", func() ([]netlink.Addr, error) { return r.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	routes, err := r.routes()
	if err != nil {
		return nil, err
	}
	speeds := ethtoolSpeeds(r.family)
	var out []network.Interface
	for _, l := range links {
		if a := l.Attrs(); a.Flags&net.FlagLoopback == 0 && a.Name != network.ClusterInterface {
			i := describe(a)
			i.Speed = speeds[a.Index]
			out = append(out, withRoutes(withAddresses(i, addresses, routes), routes))
		}
	}
	slices.SortFunc(out, func(a, b network.Interface) int { return cmp.Compare(a.Index, b.Index) })
	return out, nil
}

// routes are those of the main tables of both families.
func (r *reader) routes() ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		some, err := whole("routes", func() ([]netlink.Route, error) { return r.handle.RouteListFiltered(family, &netlink.Route{}, 0) })
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

func describe(a *netlink.LinkAttrs) network.Interface {
	return network.Interface{
		Index: a.Index, Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU,
		Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		IPv6Disabled: ipv6Disabled(a.Name),
	}
}

// ipv6Disabled reads the setting; a kernel without IPv6 has none.
func ipv6Disabled(name string) bool {
	value, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	return err != nil || strings.TrimSpace(string(value)) != "0"
}

// withAddresses adds the addresses that are in use, and those that another machine has.
func withAddresses(i network.Interface, addresses []netlink.Addr, routes []netlink.Route) network.Interface {
	for _, a := range addresses {
		p, ok := prefix(a.IPNet)
		if a.LinkIndex != i.Index || !ok {
			continue
		}
		switch {
		case a.Flags&unix.IFA_F_DADFAILED != 0:
			i.Duplicates = append(i.Duplicates, p)
		case usable(p, a.Flags):
			i.Addresses = append(i.Addresses, widen(p, i.Index, routes))
		}
	}
	slices.SortFunc(i.Addresses, netip.Prefix.Compare)
	slices.SortFunc(i.Duplicates, netip.Prefix.Compare)
	return i
}

// usable leaves out IPv6 addresses which are not yet known to be free, about to go, or changed each day.
func usable(p netip.Prefix, flags int) bool {
	tentative := flags&unix.IFA_F_TENTATIVE != 0 && flags&unix.IFA_F_OPTIMISTIC == 0
	return p.Addr().Is4() || !tentative && flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) == 0
}

// widen gives a single IPv6 address, as DHCPv6 assigns it, the length of the subnet that a router
// announced on the interface.
func widen(p netip.Prefix, index int, routes []netlink.Route) netip.Prefix {
	if !p.IsSingleIP() || p.Addr().Is4() {
		return p
	}
	for _, r := range routes {
		on, ok := prefix(r.Dst)
		if ok && r.LinkIndex == index && r.Gw == nil && r.Protocol == unix.RTPROT_RA && on.Bits() > 0 && on.Contains(p.Addr()) {
			return netip.PrefixFrom(p.Addr(), on.Bits())
		}
	}
	return p
}

// withRoutes tells whether default routes leave by the interface.
func withRoutes(i network.Interface, routes []netlink.Route) network.Interface {
	for _, r := range routes {
		if p, ok := prefix(r.Dst); ok && p.Bits() > 0 || r.Type != unix.RTN_UNICAST || !leavesBy(r, i.Index) {
			continue
		}
		if r.Family == netlink.FAMILY_V4 {
			i.Gateway4 = true
		} else {
			i.Gateway6 = true
		}
	}
	return i
}

func leavesBy(r netlink.Route, index int) bool {
	return r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(h *netlink.NexthopInfo) bool { return h.LinkIndex == index })
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if ok && len(n.Mask) == net.IPv4len {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok
}
