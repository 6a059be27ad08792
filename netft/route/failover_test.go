package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cuts are the ways in which a network goes; detect is how long the test takes to notice, as heartbeats would.
var cuts = []struct {
	name   string
	detect time.Duration
	do     func(a, b *machine)
}{
	{"carrier", 0, func(_, b *machine) { b.Down("eth0") }},
	{"interface", 0, func(a, _ *machine) {
		a.Must(func() error { return netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}) })
	}},
	{"silently", 300 * time.Millisecond, func(a, b *machine) {
		a.deafen()
		b.deafen()
	}},
	{"unresolved", 300 * time.Millisecond, func(a, b *machine) {
		a.vanish()
		b.vanish()
		a.unlearn()
		b.unlearn()
	}},
}

// vanish has nobody on eth0 find the machine: its address there is gone.
func (m *machine) vanish() {
	m.t.Helper()
	m.Must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for i := range list {
			err = errors.Join(err, netlink.AddrDel(l, &list[i]))
		}
		return err
	})
}

// unlearn forgets where the peer is on eth0, as the kernel does when the carrier goes: what is sent there waits in
// the neighbour's queue, and TCP sends nothing again that waits in a queue of this machine.
func (m *machine) unlearn() {
	m.t.Helper()
	r := m.keeper.wanted[0]
	m.Must(func() error {
		err := netlink.NeighDel(&netlink.Neigh{LinkIndex: r.Index, IP: r.Via.AsSlice()})
		if errors.Is(err, unix.ENOENT) {
			return nil // gone with the address
		}
		return err
	})
}

// deafen sends what goes to the peer over eth0 to a MAC that nobody has.
func (m *machine) deafen() {
	m.t.Helper()
	r := m.keeper.wanted[0]
	m.Must(func() error {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: r.Index, IP: r.Via.AsSlice(), State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0xde, 0xad, 0, 0, byte(m.number)}})
	})
}

// TestConnectionsOutliveTheirNetwork talks both ways over the network that goes.
func TestConnectionsOutliveTheirNetwork(t *testing.T) {
	for _, k := range kinds {
		for _, cut := range cuts {
			t.Run(k.name+" "+cut.name, func(t *testing.T) {
				a, b := machines(t, k)
				a.set(a.to(k, b, 0, 1000))
				b.set(b.to(k, a, 0, 1000))
				over1a, over1b := a.to(k, b, 1, 1100), b.to(k, a, 1, 1100)
				there, back := talk(a.dial(b.listen())), talk(b.dial(a.listen()))
				there.rounds(t, 50)
				back.rounds(t, 50)
				before := sent(a, "eth1")
				cut.do(a, b)
				time.Sleep(cut.detect)
				a.set(over1a)
				b.set(over1b)
				there.rounds(t, 50)
				back.rounds(t, 50)
				stallThere, stallBack := there.stop(t), back.stop(t)
				if sent(a, "eth1") < before+50 {
					t.Error("the traffic did not go over the other network")
				}
				// Half, since what is under way when the network is cut may still arrive.
				if cut.detect > 0 && max(stallThere, stallBack) < cut.detect/2 {
					t.Errorf("no stall before the routes moved: the network was not cut")
				}
				t.Logf("stall %v and %v, of which %v until the routes moved", stallThere, stallBack, cut.detect)
				if bound := 3*cut.detect + 10*time.Second; stallThere > bound || stallBack > bound {
					t.Errorf("longer than %v", bound)
				}
			})
		}
	}
}

// talker sends and waits for the answer, without end, and knows the longest wait.
type talker struct {
	c     net.Conn
	round chan struct{}
	quit  chan struct{}
	done  chan error
	worst time.Duration // read after done
}

func talk(c net.Conn) *talker {
	w := &talker{c: c, round: make(chan struct{}), quit: make(chan struct{}), done: make(chan error, 1)}
	go w.run()
	return w
}

func (w *talker) run() {
	for {
		began := time.Now()
		if err := echo(w.c, began.Add(patience)); err != nil {
			w.done <- err
			close(w.round)
			return
		}
		w.worst = max(w.worst, time.Since(began))
		select {
		case w.round <- struct{}{}:
		case <-w.quit:
			w.done <- nil
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// rounds waits for so many answers.
func (w *talker) rounds(t *testing.T, count int) {
	t.Helper()
	for range count {
		if _, going := <-w.round; !going {
			t.Fatalf("the connection broke: %v", <-w.done)
		}
	}
}

func (w *talker) stop(t *testing.T) time.Duration {
	t.Helper()
	close(w.quit)
	if err := <-w.done; err != nil {
		t.Fatalf("the connection broke: %v", err)
	}
	return w.worst
}

// sent counts the packets that left by an interface.
func sent(m *machine, name string) uint64 {
	m.t.Helper()
	var count uint64
	m.Must(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			count = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return count
}

// TestNoMomentWithoutARoute sends all the time while the route is changed, with the same metric and with others. The
// peer has no other route to it, so a moment without one is an error to the sender.
func TestNoMomentWithoutARoute(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			a, b := machines(t, k)
			ways := []Route{a.to(k, b, 0, 1000), a.to(k, b, 1, 1000), a.to(k, b, 1, 900), a.to(k, b, 0, 1100)}
			a.set(ways[0])
			f := a.flood(b.cluster)
			changes, deadline := 0, time.Now().Add(patience)
			for changes < 200 || f.count.Load() < 2000 && f.going() && time.Now().Before(deadline) {
				a.set(ways[changes%len(ways)])
				changes++
			}
			count, err := f.stop()
			if err != nil {
				t.Fatalf("after %d datagrams: %v", count, err)
			}
			t.Logf("%d datagrams during %d changes", count, changes)
		})
	}
}

type flood struct {
	quit  chan struct{}
	done  chan struct{}
	count atomic.Int64
	err   error
}

// flood sends datagrams until the first error or stop.
func (m *machine) flood(to netip.Addr) *flood {
	m.t.Helper()
	var c *net.UDPConn
	m.Must(func() (err error) { c, err = net.ListenUDP("udp", nil); return err })
	f := &flood{quit: make(chan struct{}), done: make(chan struct{})}
	go f.run(c, netip.AddrPortFrom(to, 9))
	return f
}

func (f *flood) run(c *net.UDPConn, to netip.AddrPort) {
	defer close(f.done)
	defer c.Close()
	for f.err == nil {
		select {
		case <-f.quit:
			return
		default:
		}
		// IPv4's lookup passes over a route that is replaced while it looks (fib_dead), and may find no other. The next one does.
		if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
			_, f.err = c.WriteToUDPAddrPort([]byte("x"), to)
		}
		f.count.Add(1)
	}
}

func (f *flood) going() bool {
	select {
	case <-f.done:
		return false
	default:
		return true
	}
}

func (f *flood) stop() (int64, error) {
	close(f.quit)
	<-f.done
	if f.err != nil {
		return f.count.Load(), errors.Join(fmt.Errorf("a moment without a route"), f.err)
	}
	return f.count.Load(), nil
}
