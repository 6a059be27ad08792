package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must come.
const patience = 10 * time.Second

// seen is what a Watcher told.
type seen struct {
	t     *testing.T
	lists chan []network.Interface
	last  []network.Interface
}

func watch(t *testing.T, n *netnstest.Namespace, w *Watcher) *seen {
	t.Helper()
	s := &seen{t: t, lists: make(chan []network.Interface, 1<<12)}
	w.log, w.changed = slog.New(slog.DiscardHandler), func(l []network.Interface) { s.lists <- l }
	n.Must(func() error { return w.start(context.Background()) })
	t.Cleanup(w.Close)
	return s
}

func watcher() *Watcher { return &Watcher{buffer: receiveBuffer, overruns: func() {}} }

// until waits for a list in which the interface fits, and returns the interface.
func (s *seen) until(what, name string, fits func(network.Interface) bool) network.Interface {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		i := slices.IndexFunc(s.last, func(i network.Interface) bool { return i.Name == name })
		if i >= 0 && fits(s.last[i]) {
			return s.last[i]
		}
		select {
		case s.last = <-s.lists:
		case <-deadline:
			s.t.Fatalf("%s: not told; last: %+v", what, s.last)
		}
	}
}

func (s *seen) untilGone(name string) {
	s.t.Helper()
	deadline := time.After(patience)
	for slices.ContainsFunc(s.last, func(i network.Interface) bool { return i.Name == name }) {
		select {
		case s.last = <-s.lists:
		case <-deadline:
			s.t.Fatalf("%s is not gone: %+v", name, s.last)
		}
	}
}

func has(prefixes ...string) func(network.Interface) bool {
	return func(i network.Interface) bool {
		return !slices.ContainsFunc(netnstest.Prefixes(prefixes...), func(p netip.Prefix) bool { return !slices.Contains(i.Addresses, p) })
	}
}

func hasNot(prefix string) func(network.Interface) bool {
	return func(i network.Interface) bool { return !slices.Contains(i.Addresses, netnstest.Prefixes(prefix)[0]) }
}

func pair(t *testing.T) (a, b *netnstest.Namespace) {
	a, b = netnstest.New(t), netnstest.New(t)
	netnstest.Cable(a, "eth0", b, "eth0")
	return a, b
}

func TestTheWholeList(t *testing.T) {
	a, _ := pair(t)
	a.Address("eth0", "10.0.0.1/24", "fd00::1/64")
	a.Must(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: network.ClusterInterface}})
	})
	s := watch(t, a, watcher())
	i := s.until("the first list", "eth0", func(i network.Interface) bool {
		return i.Running() && i.LinkLocal().IsValid() && has("10.0.0.1/24", "fd00::1/64")(i)
	})
	if i.Speed != 10000 || i.MTU != 1500 || i.MAC == "" || i.IPv6Disabled || i.Gateway() || i.Index != a.Link("eth0") {
		t.Fatalf("eth0: %+v", i)
	}
	if len(s.last) != 1 {
		t.Fatalf("interfaces that are no part of a network are told: %+v", s.last)
	}
}

func TestDefaultGateways(t *testing.T) {
	a, _ := pair(t)
	a.Address("eth0", "10.0.0.1/24", "fd00::1/64")
	s := watch(t, a, watcher())
	for _, c := range []struct {
		gateway string
		dst     *net.IPNet
		is      func(network.Interface) bool
	}{
		{"10.0.0.9", &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, func(i network.Interface) bool { return i.Gateway4 }},
		{"fd00::9", &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, func(i network.Interface) bool { return i.Gateway6 }},
	} {
		r := &netlink.Route{Dst: c.dst, Gw: net.ParseIP(c.gateway), LinkIndex: a.Link("eth0")}
		a.Must(func() error { return netlink.RouteAdd(r) })
		s.until("gateway "+c.gateway, "eth0", c.is)
		a.Must(func() error { return netlink.RouteDel(r) })
		s.until("no gateway "+c.gateway, "eth0", func(i network.Interface) bool { return !c.is(i) })
	}
}

func TestAnAddressMoves(t *testing.T) {
	a, b := pair(t)
	netnstest.Cable(a, "eth1", b, "eth1")
	a.Address("eth0", "10.0.0.1/24")
	s := watch(t, a, watcher())
	s.until("before", "eth0", has("10.0.0.1/24"))
	a.NoAddress("eth0", "10.0.0.1/24")
	a.Address("eth1", "10.0.0.1/24")
	s.until("on eth1", "eth1", has("10.0.0.1/24"))
	s.until("not on eth0", "eth0", hasNot("10.0.0.1/24"))
}

func TestIPv6Off(t *testing.T) {
	a, _ := pair(t)
	a.Address("eth0", "fd00::1/64")
	s := watch(t, a, watcher())
	s.until("on", "eth0", has("fd00::1/64"))
	a.Sysctl("ipv6/conf/eth0/disable_ipv6", "1")
	s.until("off", "eth0", func(i network.Interface) bool { return i.IPv6Disabled && len(i.Addresses) == 0 })
	a.Sysctl("ipv6/conf/eth0/disable_ipv6", "0")
	s.until("on again", "eth0", func(i network.Interface) bool { return !i.IPv6Disabled && i.LinkLocal().IsValid() })
}

func TestAnInterfaceDisappears(t *testing.T) {
	a, b := pair(t)
	s := watch(t, a, watcher())
	s.until("there", "eth0", network.Interface.Running)
	b.Must(func() error { return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}) })
	s.untilGone("eth0")
	netnstest.Cable(a, "eth0", b, "eth0")
	s.until("back", "eth0", network.Interface.Running)
}

// TestDuplicateAddress has two machines with one address: the second finds that out, and its kernel does not use it.
func TestDuplicateAddress(t *testing.T) {
	a, b := pair(t)
	b.Address("eth0", "fd00::1/64")
	s := watch(t, a, watcher())
	s.until("eth0", "eth0", network.Interface.Running)
	a.Sysctl("ipv6/conf/eth0/accept_dad", "1")
	a.Must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		address, err := netlink.ParseAddr("fd00::1/64")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, address)
	})
	i := s.until("the duplicate", "eth0", func(i network.Interface) bool { return len(i.Duplicates) == 1 })
	if !hasNot("fd00::1/64")(i) {
		t.Fatalf("an address of another is told as in use: %+v", i)
	}
}

// TestCarrierLoss prints how long the news takes. The kernel sends it at once when no link of the machine lost its
// carrier within the last second; else it may wait for a second to pass.
func TestCarrierLoss(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	b.Must(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}) })
	netnstest.Cable(a, "eth0", b, "eth0") // with another index than its peer, as the kernel takes those for stacked
	s := watch(t, a, watcher())
	s.until("carrier", "eth0", network.Interface.Running)
	began := time.Now()
	b.Down("eth0")
	i := s.until("carrier lost", "eth0", func(i network.Interface) bool { return !i.Carrier })
	t.Logf("carrier loss told after %v", time.Since(began))
	if !i.Up {
		t.Fatalf("still up by the administrator: %+v", i)
	}
	b.Up("eth0")
	s.until("carrier back", "eth0", network.Interface.Running)
}

// TestFlood changes so much that the kernel drops messages; the last list is right all the same.
func TestFlood(t *testing.T) {
	a, _ := pair(t)
	var lost atomic.Int64
	w := watcher()
	w.buffer, w.overruns = 1, func() { lost.Add(1) } // the kernel's least: 2304 bytes
	s := watch(t, a, w)
	for round := 0; lost.Load() == 0 && round < 50; round++ {
		for i := range 100 {
			a.Address("eth0", fmt.Sprintf("10.7.%d.%d/32", round, i))
		}
	}
	if lost.Load() == 0 {
		t.Fatal("the flood did not overrun the socket")
	}
	a.Address("eth0", "10.9.9.9/24")
	s.until("what came last", "eth0", has("10.9.9.9/24"))
	t.Logf("%d overruns, %d lists told", lost.Load(), len(s.lists))
}

// TestResubscribes breaks the sockets.
func TestResubscribes(t *testing.T) {
	a, _ := pair(t)
	w := watcher()
	s := watch(t, a, w)
	s.until("before", "eth0", network.Interface.Running)
	broken := make(chan *session, 1)
	told := &told{changed: func([]network.Interface) {}}
	a.Must(func() error {
		x, err := w.open(context.Background(), told)
		if err == nil {
			broken <- x
		}
		return err
	})
	x := <-broken
	x.socket.Close()
	if err := x.follow(context.Background(), told); err == nil || errors.Is(err, context.Canceled) {
		t.Fatalf("a closed socket ends with %v", err)
	}
	x.close()
	var again *session
	a.Must(func() (err error) { again, err = w.reopen(context.Background(), told); return err })
	a.Address("eth0", "10.0.0.1/24")
	select {
	case <-again.dirty:
	case <-time.After(patience):
		t.Fatal("the new subscription tells nothing")
	}
	again.close()
}

func TestCloseEndsTheCallbacks(t *testing.T) {
	a, _ := pair(t)
	var calls atomic.Int64
	var w *Watcher
	a.Must(func() (err error) {
		w, err = Watch(context.Background(), slog.New(slog.DiscardHandler), func([]network.Interface) { calls.Add(1) })
		return err
	})
	if calls.Load() == 0 {
		t.Fatal("Watch returned without a list")
	}
	w.Close()
	before := calls.Load()
	a.Address("eth0", "10.0.0.1/24")
	if calls.Load() != before {
		t.Fatal("called after Close")
	}
}

func TestForeignRoutesDoNotMatter(t *testing.T) {
	a, _ := pair(t)
	a.Address("eth0", "10.0.0.1/24")
	var sub *subscription
	a.Must(func() (err error) { sub, err = subscribe(receiveBuffer, func() {}); return err })
	defer sub.close()
	r := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 9, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}, LinkIndex: a.Link("eth0"),
		Protocol: unix.RTPROT_STATIC}
	a.Must(func() error { return netlink.RouteAdd(r) })
	a.Must(func() error { return netlink.RouteDel(r) })
	a.Must(func() error {
		return netlink.LinkSetMTU(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}, 1400)
	})
	<-sub.dirty // of the MTU, after the routes
}

func TestParseLinkModes(t *testing.T) {
	for _, bad := range [][]byte{nil, {4}, {4, 1, 0, 0, 1}, {4, 1, 0, 0, 200, 0, 1, 0}, {4, 1, 0, 0, 5, 0, 5, 0, 9}} {
		if index, speed := parseLinkModes(bad); index != 0 || speed != 0 {
			t.Errorf("%v gives %d, %d", bad, index, speed)
		}
	}
}

// TestLostAmongOthers has the kernel lose the message on an address after it told that it loses some, among many that do
// not matter.
func TestLostAmongOthers(t *testing.T) {
	a, _ := pair(t)
	eth0 := a.Link("eth0")
	lost, read := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var sub *subscription
	a.Must(func() (err error) {
		sub, err = subscribe(1, func() { once.Do(func() { close(lost); <-read }) })
		return err
	})
	defer sub.close()
	goOn := sync.OnceFunc(func() { close(read) })
	defer goOn()
	for end := time.After(patience); ; {
		a.Must(func() error { return foreignRoutes(eth0, 10) })
		select {
		case <-lost:
		case <-end:
			t.Fatal("the flood did not overrun the socket")
		default:
			continue
		}
		break
	}
	<-sub.dirty // the list is read now
	a.Must(func() error { return foreignRoutes(eth0, 10) })
	a.Address("eth0", "10.8.0.1/24")
	goOn()
	select {
	case <-sub.dirty:
	case <-time.After(patience):
		t.Fatal("nothing tells of the address")
	}
}

// foreignRoutes makes routes and takes them away.
func foreignRoutes(index, n int) error {
	for i := range n {
		r := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 9, byte(i), 0).To4(), Mask: net.CIDRMask(24, 32)}, LinkIndex: index, Scope: netlink.SCOPE_LINK}
		if err := errors.Join(netlink.RouteAdd(r), netlink.RouteDel(r)); err != nil {
			return err
		}
	}
	return nil
}
