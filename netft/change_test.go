package netft

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lunar/netft/detector"
)

// changes are what an administrator does to a running node's network; each leaves it, in the end, with one that works.
var changes = []struct {
	name string
	do   func(*lab, *labNode)
}{
	{"IPv6 off and on", func(_ *lab, n *labNode) {
		n.Sysctl("ipv6/conf/all/disable_ipv6", "1")
		time.Sleep(2 * detector.Fast().Threshold())
		n.Sysctl("ipv6/conf/all/disable_ipv6", "0")
	}},
	{"interface renamed", func(_ *lab, n *labNode) { n.rename("netA", "lan"); n.rename("lan", "netA") }},
	{"interface made anew", func(l *lab, n *labNode) {
		l.hub.Must(func() error {
			return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: port(n.number, 0)}})
		})
		l.plug(n, 0)
		n.Address("netA", "10.1.0.1/24")
	}},
	{"another MTU", func(_ *lab, n *labNode) { n.MTU("netA", 1300); n.MTU("netA", 1280); n.MTU("netA", 1500) }},
	{"addresses taken away", func(_ *lab, n *labNode) {
		n.NoAddress("netA", "10.1.0.1/24")
		time.Sleep(2 * detector.Fast().Threshold())
		n.Address("netA", "10.1.0.1/24")
	}},
	{"cluster address taken away", func(_ *lab, n *labNode) {
		n.NoAddress("lunar0", clusterAddress(1).String()+"/128")
	}},
	{"cluster interface deleted", func(_ *lab, n *labNode) {
		n.Must(func() error { return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lunar0"}}) })
	}},
	{"all routes flushed", func(_ *lab, n *labNode) {
		n.Must(func() error {
			list, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, 0)
			for i := range list {
				_ = netlink.RouteDel(&list[i]) // some are the kernel's
			}
			return err
		})
	}},
}

func (n *labNode) rename(from, to string) {
	n.Must(func() error {
		l, err := netlink.LinkByName(from)
		if err != nil {
			return err
		}
		return netlink.LinkSetName(l, to)
	})
}

// TestChangesUnderWay does all that to a node of two with one network: in the end all is as before, and data flows.
func TestChangesUnderWay(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 1)
		a := l.nodes[0]
		l.start(o)
		l.healthy(1)
		for _, c := range changes {
			began := time.Now()
			c.do(l, a)
			l.healthy(1)
			until(t, 10*time.Second, c.name+": the route", func() bool { return a.via(2) == "netA" && l.nodes[1].via(1) == "netA" })
			s := newStream(t, a, l.nodes[1])
			s.flows()
			s.stop()
			t.Logf("%s: well after %v", c.name, time.Since(began).Round(time.Millisecond))
		}
	})
}
