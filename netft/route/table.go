package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// tries is how often a change is begun anew when others change the table meanwhile.
	tries = 5
	// retransmit is the least time after which TCP sends again on our routes, in ms, instead of
	// 200: when a network is lost, connections go on that much sooner. It is above the 40 ms for
	// which a receiver delays its acknowledgement.
	retransmit = 50
)

// table is what the kernel has: our routes, and the metrics that foreign routes to the same peers have.
type table struct {
	ours    map[netip.Addr][]netlink.Route
	foreign map[netip.Addr][]int
}

func (k *Keeper) family() int {
	if k.cluster.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func (k *Keeper) list(family int) ([]netlink.Route, error) {
	for range tries {
		list, err := k.handle.RouteListFiltered(family, &netlink.Route{}, 0)
		if err == nil {
			return list, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("route: list routes: %w", err)
		}
	}
	return nil, fmt.Errorf("route: list routes: %w", netlink.ErrDumpInterrupted)
}

func (k *Keeper) read() (table, error) {
	t := table{map[netip.Addr][]netlink.Route{}, map[netip.Addr][]int{}}
	list, err := k.list(k.family())
	for _, r := range list {
		peer, ok := destination(r)
		switch {
		case !ok:
		case r.Protocol == Protocol:
			t.ours[peer] = append(t.ours[peer], r)
		default:
			t.foreign[peer] = append(t.foreign[peer], r.Priority)
		}
	}
	return t, err
}

// destination is where a host route goes.
func destination(r netlink.Route) (netip.Addr, bool) {
	if r.Dst == nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	ones, bits := r.Dst.Mask.Size()
	return a.Unmap(), ok && ones == bits
}

// free is the lowest metric from the wanted one on which no foreign route to the peer has.
func (t table) free(r Route) int {
	metric := int(r.Metric)
	for slices.Contains(t.foreign[r.Peer], metric) {
		metric++
	}
	return metric
}

// reconcile makes the kernel's table hold what is wanted.
func (k *Keeper) reconcile() error {
	t, err := k.read()
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range k.wanted {
		if err := k.place(t, r); err != nil {
			failed = append(failed, err)
		}
		delete(t.ours, r.Peer)
	}
	for _, old := range t.ours {
		failed = append(failed, k.remove(old))
	}
	return errors.Join(failed...)
}

// place puts one route into the table, then removes the others to that peer.
func (k *Keeper) place(t table, r Route) error {
	for range tries {
		want := k.kernelRoute(r, t.free(r))
		old := t.ours[r.Peer]
		if i := slices.IndexFunc(old, func(o netlink.Route) bool { return same(o, want) }); i >= 0 {
			return k.remove(slices.Delete(slices.Clone(old), i, i+1))
		}
		inPlace := slices.IndexFunc(old, func(o netlink.Route) bool { return o.Priority == want.Priority })
		err := k.put(want, inPlace >= 0)
		if err == nil {
			left := old
			if inPlace >= 0 {
				left = slices.Delete(slices.Clone(old), inPlace, inPlace+1)
			}
			return errors.Join(k.remove(left), k.release(old))
		}
		if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("route: to %s via %s on interface %d: %w", r.Peer, r.Via, r.Index, err)
		}
		if t, err = k.read(); err != nil { // a foreign route came meanwhile
			return err
		}
	}
	return fmt.Errorf("route: to %s: others change the routes to it all the time", r.Peer)
}

// put adds a route, or replaces the one of the same destination and metric at a stroke.
func (k *Keeper) put(r netlink.Route, inPlace bool) error {
	if inPlace {
		return k.handle.RouteReplace(&r)
	}
	return k.handle.RouteAdd(&r)
}

func (k *Keeper) remove(routes []netlink.Route) error {
	var failed []error
	for _, r := range routes {
		r.Flags = 0 // what the kernel says of the link is no part of what to delete
		if err := k.handle.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("route: delete that to %s: %w", r.Dst, err))
		}
	}
	return errors.Join(failed...)
}

func (k *Keeper) kernelRoute(r Route, metric int) netlink.Route {
	out := netlink.Route{
		Dst: host(r.Peer), LinkIndex: r.Index, Src: k.cluster.AsSlice(), Protocol: Protocol, Priority: metric,
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, RtoMin: retransmit, RtoMinLock: true,
	}
	if r.Via.Is4() == r.Peer.Is4() {
		out.Gw = r.Via.AsSlice()
	} else {
		out.Via = &netlink.Via{AddrFamily: nl.FAMILY_V6, Addr: r.Via.AsSlice()}
	}
	if !r.Via.IsLinkLocalUnicast() || r.Via.Is4() {
		out.Flags = int(netlink.FLAG_ONLINK) // the subnets of the two nodes may differ
	}
	return out
}

// same tells whether the kernel's route is the wanted one.
func same(got, want netlink.Route) bool {
	return got.LinkIndex == want.LinkIndex && got.Priority == want.Priority && got.Gw.Equal(want.Gw) &&
		got.Src.Equal(want.Src) && sameVia(got.Via, want.Via) && got.RtoMin == want.RtoMin && len(got.MultiPath) == 0
}

func sameVia(a, b netlink.Destination) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Equal(b)
}

// dropStrangers removes routes of ours from an earlier process that had another address.
func (k *Keeper) dropStrangers() error {
	var old []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := k.list(family)
		if err != nil && family == k.family() {
			return err
		}
		for _, r := range list {
			if r.Protocol == Protocol && !r.Src.Equal(k.cluster.AsSlice()) {
				old = append(old, r)
			}
		}
	}
	return k.remove(old)
}
