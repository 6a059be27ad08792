package netft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lunar/netft/detector"
	"lunar/netft/heartbeat"
)

// TestColdStart starts again without the cluster's database: the routes come from the file.
func TestColdStart(t *testing.T) {
	l := newLab(t, 2, 1)
	a, b := l.nodes[0], l.nodes[1]
	o := Options{Profile: detector.Fast(), StateFile: filepath.Join(t.TempDir(), "peers")}
	a.start(o)
	b.start(Options{Profile: o.Profile})
	l.introduce()
	l.healthy(1)
	a.stop()
	if via := a.via(2); via != "" {
		t.Errorf("a route by %s is left after Close", via)
	}
	if err := a.fabric.SetPeers(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("SetPeers after Close: %v", err)
	}
	a.start(o)
	until(t, 10*time.Second, "route from the file", func() bool { return a.via(2) == "netA" })
	l.healthy(1)
	until(t, 10*time.Second, "the peer's word of the restart", func() bool { return b.count(detector.NodeRestarted) == 1 })
}

// TestAddressMoves changes a node's addresses without a word to its peer, as when it comes back with other network cards.
// The peer learns them from its heartbeats, and the route follows.
func TestAddressMoves(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 1)
		a, b := l.nodes[0], l.nodes[1]
		l.start(o)
		l.healthy(1)
		b.NoAddress("netA", "10.1.0.2/24")
		b.Address("netA", "10.1.0.77/24")
		a.forget4("netA") // until then the old one works: the frames reach the node, and its kernel answers
		until(t, 20*time.Second, "the new address", func() bool { return a.reaches(detector.IPv4, "10.1.0.77") })
	})
}

// TestNewCards starts a node again whose network cards are others than before, so that all its link-local addresses
// are: it knows its peers from the file, and its heartbeats tell them where it is.
func TestNewCards(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 2)
		a, b := l.nodes[0], l.nodes[1]
		a.start(o)
		o.StateFile = filepath.Join(t.TempDir(), "peers")
		b.start(o)
		l.introduce()
		l.healthy(2)
		b.stop()
		for i := range 2 {
			b.Must(func() error {
				card, err := netlink.LinkByName(iface(i))
				if err != nil {
					return err
				}
				return errors.Join(netlink.LinkSetDown(card),
					netlink.LinkSetHardwareAddr(card, net.HardwareAddr{2, 0xca, 0x7d, 0, 0, byte(i + 1)}), netlink.LinkSetUp(card))
			})
			b.NoAddress(iface(i), fmt.Sprintf("10.%d.0.2/24", i+1))
			b.Address(iface(i), fmt.Sprintf("10.%d.0.99/24", i+1))
		}
		b.start(o)
		until(t, 20*time.Second, "the peer's word of the new addresses", func() bool {
			return a.reaches(detector.IPv4, "10.1.0.99") && a.reaches(detector.IPv6, "fe80::ca:7dff:fe00:1")
		})
		s := newStream(t, b, a)
		s.flows()
	})
}

// forget4 drops what the node knows of its IPv4 neighbours.
func (n *labNode) forget4(name string) {
	n.Must(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		list, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
		for i := range list {
			err = errors.Join(err, netlink.NeighDel(&list[i]))
		}
		return err
	})
}

// reaches tells that a path to the other node goes to the address, and is up.
func (n *labNode) reaches(f detector.Family, address string) bool {
	return slices.ContainsFunc(n.fabric.Paths(), func(p PathStats) bool {
		return p.Family == f && p.Remote.String() == address && p.State == detector.Up
	})
}

// TestProbeMTU finds what a network carries.
func TestProbeMTU(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 1)
		a := l.nodes[0]
		l.start(o)
		l.healthy(1)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1500); err != nil {
			t.Error(err)
		}
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1501); !errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("more than the own MTU: %v", err)
		}
		l.nodes[1].MTU("netA", 1400)
		if err := a.fabric.ProbeMTU(ctx, 2, "netA", 1450); !errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("more than the peer's MTU: %v", err)
		}
		if err := a.fabric.ProbeMTU(ctx, 2, "nowhere", 1400); err == nil || errors.Is(err, heartbeat.ErrTooBig) {
			t.Errorf("a network that is not there: %v", err)
		}
	})
}

func TestOptionsValidate(t *testing.T) {
	good := Options{Name: "n", Number: 1, Incarnation: 1, Key: labKey}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"name": func(o *Options) { o.Name = "" }, "number": func(o *Options) { o.Number = 0 },
		"incarnation": func(o *Options) { o.Incarnation = 0 }, "key": func(o *Options) { o.Key = [16]byte{} },
		"profile": func(o *Options) { o.Profile.Missed = 1 },
	} {
		o := good
		change(&o)
		if _, err := Start(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSetPeersRefuses(t *testing.T) {
	f := &Fabric{o: Options{Number: 1}}
	many := []Peer{{Name: "me", Number: 1}, {Name: "none"}, {Name: "two", Number: 2}, {Name: "twice", Number: 2}}
	for i := range MaxPeers {
		many = append(many, Peer{Name: "n", Number: uint16(100 + i)})
	}
	good, err := f.usable(many)
	if len(good) != MaxPeers || err == nil {
		t.Errorf("%d peers, %v", len(good), err)
	}
}
