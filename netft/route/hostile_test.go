package route

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

// TestIPv6OffAtRunTime turns IPv6 off on a running node, as `sysctl net.ipv6.conf.all.disable_ipv6=1` does, and on again.
func TestIPv6OffAtRunTime(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	eth0 := a.Link("eth0")
	a.set(a.to(k, b, 0, 1000))
	a.Sysctl("ipv6/conf/all/disable_ipv6", "1")
	a.expectRoutes(b.cluster)
	err := a.keeper.Set([]Route{a.to(k, b, 0, 1000)}, nil)
	if err == nil || !strings.Contains(err.Error(), "IPv6 is off on lunar0: turn it on") {
		t.Errorf("without IPv6: %v", err)
	}
	a.Sysctl("ipv6/conf/all/disable_ipv6", "0")
	a.equip(k, 0)
	a.expectRoutes(b.cluster, ours(eth0, 1000))
	if got := a.addresses(); len(got) != 1 || got[0] != a.cluster {
		t.Fatal(got)
	}
}

// TestClusterAddressTakenByHand has it back, with the routes that lean on it.
func TestClusterAddressTakenByHand(t *testing.T) {
	for _, k := range kinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			eth0 := a.Link("eth0")
			a.set(a.to(k, b, 0, 1000))
			for range 3 {
				a.Must(func() error {
					l, err := netlink.LinkByName(network.ClusterInterface)
					if err != nil {
						return err
					}
					return netlink.AddrDel(l, &netlink.Addr{IPNet: host(a.cluster)})
				})
				poll(t, "the address", func() bool { return len(a.addresses()) == 1 })
				a.expectRoutes(b.cluster, ours(eth0, 1000))
			}
			a.Down(network.ClusterInterface)
			poll(t, "the interface is up", func() bool { return a.up(network.ClusterInterface) && len(a.addresses()) == 1 })
			a.expectRoutes(b.cluster, ours(eth0, 1000))
		})
	}
}

func (m *machine) up(name string) (up bool) {
	m.Must(func() error {
		l, err := netlink.LinkByName(name)
		up = err == nil && l.Attrs().Flags&net.FlagUp != 0
		return nil
	})
	return up
}

// TestOurInterfaceIsRenamed wants another one, and no second one with the address.
func TestOurInterfaceIsRenamed(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	eth0 := a.Link("eth0")
	a.set(a.to(k, b, 0, 1000))
	a.Must(func() error {
		l, err := netlink.LinkByName(network.ClusterInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetName(l, "stolen0")
	})
	poll(t, "the address", func() bool {
		there := false
		a.Must(func() error { _, err := netlink.LinkByName(network.ClusterInterface); there = err == nil; return nil })
		return there && len(a.addresses()) == 1
	})
	a.expectRoutes(b.cluster, ours(eth0, 1000))
	if err := a.keeper.Close(); err != nil {
		t.Fatal(err)
	}
	a.Must(func() error {
		list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, l := range list {
			if l.IPNet.String() == host(a.cluster).String() {
				t.Errorf("left: %v on interface %d", l.IPNet, l.LinkIndex)
			}
		}
		return err
	})
}

// TestInterfaceOfARouteIsRenamed leaves the routes where they are, and so does another MTU.
func TestInterfaceOfARouteIsRenamed(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	eth0 := a.Link("eth0")
	a.set(a.to(k, b, 0, 1000))
	b.set(b.to(k, a, 0, 1000))
	c := a.dial(b.listen())
	a.Must(func() error {
		return netlink.LinkSetName(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: eth0, Name: "eth0"}}, "lan0")
	})
	a.expectRoutes(b.cluster, ours(eth0, 1000))
	if err := echo(c, time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	a.Must(func() error {
		l, err := netlink.LinkByIndex(eth0)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1300)
	})
	a.expectRoutes(b.cluster, ours(eth0, 1000))
	if err := echo(c, time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

// TestInterfaceIsMadeAnew has the same name and another index.
func TestInterfaceIsMadeAnew(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	a.set(a.to(k, b, 0, 1000), Route{Peer: k.cluster("test", 9), Via: a.to(k, b, 1, 1).Via, Index: a.Link("eth1"), Metric: 1100})
	a.Must(func() error { return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}) })
	a.expectRoutes(b.cluster)
	a.expectRoutes(k.cluster("test", 9), ours(a.Link("eth1"), 1100))
	netnstest.Cable(a.Namespace, "eth0", b.Namespace, "eth0")
	a.equip(k, 0)
	b.equip(k, 0)
	a.set(a.to(k, b, 0, 1000), Route{Peer: k.cluster("test", 9), Via: a.to(k, b, 1, 1).Via, Index: a.Link("eth1"), Metric: 1100})
	a.expectRoutes(b.cluster, ours(a.Link("eth0"), 1000))
}

// TestFloodOfMessages has the kernel tell of more than the Keeper's socket holds, while someone deletes our route.
func TestFloodOfMessages(t *testing.T) {
	k := kinds[0]
	a, b := machines(t, k)
	eth0 := a.Link("eth0")
	a.set(a.to(k, b, 0, 1000))
	for range 3 {
		a.Must(func() error {
			l, err := netlink.LinkByIndex(eth0)
			if err != nil {
				return err
			}
			// The Keeper pauses after a change of a link; meanwhile its socket fills, and what tells of our route is lost.
			if err := netlink.LinkSetMTU(l, 1400+l.Attrs().MTU%2); err != nil {
				return err
			}
			time.Sleep(settle / 10)
			return manyRoutes(eth0)
		})
		a.Must(func() error { r := a.keeper.kernelRoute(a.keeper.wanted[0], 1000); return netlink.RouteDel(&r) })
		a.expectRoutes(b.cluster, ours(eth0, 1000))
	}
}

// manyRoutes makes foreign routes and takes them away.
func manyRoutes(index int) error {
	for i := range 1000 {
		r := netlink.Route{LinkIndex: index, Dst: host(network.ClusterAddress("flood", uint16(i+1))), Priority: 5}
		if err := netlink.RouteAdd(&r); err != nil {
			return err
		}
		if err := netlink.RouteDel(&r); err != nil {
			return err
		}
	}
	return nil
}
