package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

// ours is an entry of machine.routes.
func ours(index int, metric int) string { return fmt.Sprintf("%d/%d/%d", index, metric, Protocol) }

func TestSetReplacesAndCloseTakesBack(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			eth0, eth1 := a.Link("eth0"), a.Link("eth1")
			a.set(a.to(k, b, 0, 1000))
			a.expectRoutes(b.cluster, ours(eth0, 1000))
			a.set(a.to(k, b, 1, 1100))
			a.expectRoutes(b.cluster, ours(eth1, 1100))
			a.set(a.to(k, b, 0, 1100)) // in place
			a.expectRoutes(b.cluster, ours(eth0, 1100))
			a.set()
			a.expectRoutes(b.cluster)
			a.set(a.to(k, b, 1, network.MaxMetric))
			a.expectRoutes(b.cluster, ours(eth1, network.MaxMetric))
			if err := a.keeper.Close(); err != nil {
				t.Fatal(err)
			}
			a.expectRoutes(b.cluster)
			if err := a.Do(func() error { _, err := netlink.LinkByName(network.ClusterInterface); return err }); err == nil {
				t.Fatal("the interface is still there")
			}
			if err := a.keeper.Set(nil, nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("Set after Close: %v", err)
			}
		})
	}
}

func TestForeignRoutesAreLeftAlone(t *testing.T) {
	for _, k := range kinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			eth0, eth1 := a.Link("eth0"), a.Link("eth1")
			other := k.cluster("test", 9)
			foreign := func(to netip.Addr, metric int) netlink.Route {
				r := a.keeper.kernelRoute(Route{Peer: to, Via: a.to(k, b, 1, 1).Via, Index: eth1}, metric)
				r.Protocol = unix.RTPROT_STATIC
				return r
			}
			theirs := []netlink.Route{foreign(b.cluster, 1000), foreign(b.cluster, 5000), foreign(other, 700)}
			a.Must(func() error {
				var err error
				for _, r := range theirs {
					err = errors.Join(err, netlink.RouteAdd(&r))
				}
				return err
			})
			is := func(metric int) string { return fmt.Sprintf("%d/%d/%d", eth1, metric, unix.RTPROT_STATIC) }
			a.set(a.to(k, b, 0, 1000))
			a.expectRoutes(b.cluster, ours(eth0, 1001), is(1000), is(5000))
			a.set(a.to(k, b, 0, 1001), Route{Peer: other, Via: a.to(k, b, 0, 1).Via, Index: eth0, Metric: 700})
			a.expectRoutes(b.cluster, ours(eth0, 1001), is(1000), is(5000))
			a.expectRoutes(other, ours(eth0, 701), is(700))
			a.set(a.to(k, b, 0, 5000))
			a.expectRoutes(b.cluster, ours(eth0, 5001), is(1000), is(5000))
			a.set()
			a.expectRoutes(b.cluster, is(1000), is(5000))
			a.expectRoutes(other, is(700))
			if err := a.keeper.Close(); err != nil {
				t.Fatal(err)
			}
			// The kernel takes routes whose source address went with it; these have ours as theirs.
			if k.cluster("test", 1).Is6() {
				a.expectRoutes(b.cluster, is(1000), is(5000))
			}
		})
	}
}

// crash ends a Keeper as kill -9 would: nothing is taken back.
func crash(k *Keeper) {
	k.mu.Lock()
	k.closed = true
	k.cancel()
	k.mu.Unlock()
	<-k.done
	k.free()
}

func TestStartAfterACrash(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			eth0, eth1 := a.Link("eth0"), a.Link("eth1")
			gone := k.cluster("test", 77)
			a.set(a.to(k, b, 0, 1000), Route{Peer: gone, Via: a.to(k, b, 0, 1).Via, Index: eth0, Metric: 1000})
			b.set(b.to(k, a, 0, 1000))
			c := a.dial(b.listen())
			crash(a.keeper)
			a.keeper = a.newKeeper()
			a.expectRoutes(b.cluster, ours(eth0, 1000)) // in use until Set says otherwise
			if err := echo(c, time.Now().Add(patience)); err != nil {
				t.Fatalf("a connection did not outlive the crash: %v", err)
			}
			a.set(a.to(k, b, 1, 1100))
			a.expectRoutes(b.cluster, ours(eth1, 1100))
			a.expectRoutes(gone)
			// The cluster was made anew: another address, and none of the old one's routes.
			crash(a.keeper)
			a.cluster = k.cluster("another", 1)
			a.keeper = a.newKeeper()
			a.expectRoutes(b.cluster)
			if got := a.addresses(); len(got) != 1 || got[0] != a.cluster {
				t.Fatalf("addresses %v, want %s", got, a.cluster)
			}
		})
	}
}

// addresses are those of lunar0.
func (m *machine) addresses() []netip.Addr {
	m.t.Helper()
	var out []netip.Addr
	m.Must(func() error {
		l, err := netlink.LinkByName(network.ClusterInterface)
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range list {
			ip, _ := netip.AddrFromSlice(a.IP)
			out = append(out, ip.Unmap())
		}
		return err
	})
	return out
}

func TestWhatOthersDeleteIsPutBack(t *testing.T) {
	for _, k := range kinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			eth0 := a.Link("eth0")
			a.set(a.to(k, b, 0, 1000))
			a.Must(func() error {
				r := a.keeper.kernelRoute(a.keeper.wanted[0], 1000)
				return netlink.RouteDel(&r)
			})
			a.expectRoutes(b.cluster, ours(eth0, 1000))
			a.Must(func() error {
				return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: network.ClusterInterface}})
			})
			a.expectRoutes(b.cluster, ours(eth0, 1000))
			poll(t, "the cluster address", func() bool {
				return a.Do(func() error { _, err := netlink.LinkByName(network.ClusterInterface); return err }) == nil &&
					len(a.addresses()) == 1
			})
			a.Down("eth0")
			a.expectRoutes(b.cluster)
			a.Up("eth0")
			a.expectRoutes(b.cluster, ours(eth0, 1000))
		})
	}
}

func poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

func TestAnInterfaceDisappearsUnderARoute(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	over0, over1 := a.to(k, b, 0, 1000), a.to(k, b, 1, 1100)
	a.set(over0)
	a.Must(func() error { return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}) })
	a.expectRoutes(b.cluster)
	err := a.keeper.Set([]Route{over0}, nil)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), b.cluster.String()) {
		t.Fatalf("a route over an interface that is gone: %v", err)
	}
	a.set(over1)
	a.expectRoutes(b.cluster, ours(a.Link("eth1"), 1100))
	netnstest.Cable(a.Namespace, "eth0", b.Namespace, "eth0")
	a.equip(k, 0)
	b.equip(k, 0)
	a.set(a.to(k, b, 0, 1000))
	a.expectRoutes(b.cluster, ours(a.Link("eth0"), 1000))
}

func TestBadRoutesAreRefusedAndOthersHold(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	good := a.to(k, b, 0, 1000)
	bad := []Route{
		{Peer: netip.MustParseAddr("169.254.1.1"), Via: good.Via, Index: good.Index, Metric: 1},
		{Peer: a.cluster, Via: good.Via, Index: good.Index, Metric: 1},
		{Peer: b.cluster, Via: netip.MustParseAddr("10.0.0.2"), Index: good.Index, Metric: 1},
		{Peer: b.cluster, Index: good.Index, Metric: 1},
		{Peer: b.cluster, Via: good.Via, Index: good.Index},
		good,
	}
	for _, r := range bad {
		if err := a.keeper.Set([]Route{good, r}, nil); err == nil {
			t.Errorf("taken: %+v", r)
		}
		a.expectRoutes(b.cluster, ours(good.Index, 1000))
	}
	a.Must(func() error {
		for _, address := range []netip.Addr{{}, netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1")} {
			if _, err := Start(address, a.keeper.log); err == nil {
				return fmt.Errorf("taken: %s", address)
			}
		}
		return nil
	})
}

func TestAForeignInterfaceOfOurName(t *testing.T) {
	n := netnstest.New(t)
	n.Must(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: network.ClusterInterface}})
	})
	n.Must(func() error {
		if _, err := Start(network.ClusterAddress("c", 1), nil); !errors.Is(err, ErrForeignInterface) {
			return fmt.Errorf("it is used: %w", err)
		}
		_, err := netlink.LinkByName(network.ClusterInterface)
		return err
	})
}

// TestIPv6OffByDefault has a machine that turns IPv6 off on new interfaces.
func TestIPv6OffByDefault(t *testing.T) {
	n := netnstest.New(t)
	n.Sysctl("ipv6/conf/default/disable_ipv6", "1")
	m := &machine{Namespace: n, t: t, cluster: network.ClusterAddress("c", 1)}
	m.start(kinds[0])
	if got := m.addresses(); len(got) != 1 || got[0] != m.cluster {
		t.Fatal(got)
	}
}

// TestStrictReversePathFilter has peers that answer each other by different networks.
func TestStrictReversePathFilter(t *testing.T) {
	k := kinds[1]
	a, b := machines(t, k)
	for _, m := range []*machine{a, b} {
		m.Sysctl("ipv4/conf/all/rp_filter", "1")
		m.Sysctl("ipv4/conf/eth0/rp_filter", "1")
	}
	a.set(a.to(k, b, 0, 1000))
	b.set(b.to(k, a, 1, 1000))
	if err := echo(a.dial(b.listen()), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if err := a.keeper.Close(); err != nil {
		t.Fatal(err)
	}
	a.Must(func() error {
		for name, want := range map[string]string{"eth0": "1", "eth1": "0"} {
			if got := readFilter(name); got != want {
				return fmt.Errorf("rp_filter of %s is %s, was %s", name, got, want)
			}
		}
		return nil
	})
}

// echo sends a few bytes and waits until they are back.
func echo(c net.Conn, deadline time.Time) error {
	var sent, got [16]byte
	copy(sent[:], time.Now().String())
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(sent[:]); err != nil {
		return err
	}
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if got != sent {
		return os.ErrInvalid
	}
	return nil
}
