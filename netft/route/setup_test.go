package route

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// kind is what the networks of a test have.
type kind struct {
	name    string
	cluster func(id string, number uint16) netip.Addr
	ipv4    bool
	ipv6    bool
}

var kinds = []kind{
	{"IPv6 only", network.ClusterAddress, false, true},
	{"IPv4 only", network.ClusterAddress4, true, false},
	{"both", network.ClusterAddress, true, true},
	{"IPv4 address over IPv6", network.ClusterAddress4, false, true},
}

// machine is a node: a namespace with eth0 and eth1, each on a network with the other machine.
type machine struct {
	*netnstest.Namespace
	t       *testing.T
	number  uint16
	cluster netip.Addr
	keeper  *Keeper
}

// machines are two nodes. They have addresses, and no routes yet.
func machines(t *testing.T, k kind) (a, b *machine) {
	t.Helper()
	a, b = newMachine(t, k, 1), newMachine(t, k, 2)
	for i := range 2 {
		name := fmt.Sprintf("eth%d", i)
		netnstest.Cable(a.Namespace, name, b.Namespace, name)
		for _, m := range []*machine{a, b} {
			m.equip(k, i)
		}
	}
	a.start(k)
	b.start(k)
	return a, b
}

func newMachine(t *testing.T, k kind, number uint16) *machine {
	m := &machine{Namespace: netnstest.New(t), t: t, number: number, cluster: k.cluster("test", number)}
	if !k.ipv6 {
		m.Sysctl("ipv6/conf/default/disable_ipv6", "1")
	}
	return m
}

func (m *machine) equip(k kind, i int) {
	name := fmt.Sprintf("eth%d", i)
	if k.ipv4 {
		m.Address(name, fmt.Sprintf("10.0.%d.%d/24", i, m.number))
	}
	if k.ipv6 {
		// A link-local address that the test knows, beside the kernel's own.
		m.Address(name, fmt.Sprintf("fe80::%d:%d/64", i, m.number))
	}
}

func (m *machine) start(k kind) {
	m.t.Helper()
	m.keeper = m.newKeeper()
	m.t.Cleanup(func() {
		if err := m.keeper.Close(); err != nil {
			m.t.Error(err)
		}
	})
}

func (m *machine) newKeeper() *Keeper {
	m.t.Helper()
	var k *Keeper
	m.Must(func() (err error) { k, err = Start(m.cluster, slog.New(slog.DiscardHandler)); return err })
	return k
}

// to is the route to a peer over eth0 or eth1.
func (m *machine) to(k kind, peer *machine, i int, metric uint32) Route {
	m.t.Helper()
	via := netip.MustParseAddr(fmt.Sprintf("fe80::%d:%d", i, peer.number))
	if !k.ipv6 || k.ipv4 && m.cluster.Is4() {
		via = netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", i, peer.number))
	}
	return Route{Peer: peer.cluster, Via: via, Index: m.Link(fmt.Sprintf("eth%d", i)), Metric: metric}
}

// routes are all routes to the address, as "interface index/metric/protocol".
func (m *machine) routes(to netip.Addr) []string {
	m.t.Helper()
	var out []string
	m.Must(func() error {
		family := netlink.FAMILY_V6
		if to.Is4() {
			family = netlink.FAMILY_V4
		}
		list, err := netlink.RouteListFiltered(family, &netlink.Route{}, 0)
		for _, r := range list {
			if d, ok := destination(r); ok && d == to {
				out = append(out, fmt.Sprintf("%d/%d/%d", r.LinkIndex, r.Priority, r.Protocol))
			}
		}
		return err
	})
	slices.Sort(out)
	return out
}

func (m *machine) expectRoutes(to netip.Addr, want ...string) {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got := m.routes(to)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("routes to %s: %v, want %v", to, got, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *machine) set(routes ...Route) {
	m.t.Helper()
	if err := m.keeper.Set(routes, []string{"eth0", "eth1"}); err != nil {
		m.t.Fatal(err)
	}
}

// listen takes connections on the cluster address and sends back what comes.
func (m *machine) listen() net.Addr {
	m.t.Helper()
	var l net.Listener
	m.Must(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(m.cluster, 0).String())
		return err
	})
	var serving sync.WaitGroup
	ended, end := context.WithCancel(context.Background())
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ended, func() { _ = c.Close() })
			serving.Go(func() {
				_, _ = io.Copy(c, c)
				stop()
				_ = c.Close()
			})
		}
	})
	m.t.Cleanup(func() {
		_ = l.Close()
		end()
		serving.Wait()
	})
	return l.Addr()
}

// dial connects over the routes: the source address is theirs.
func (m *machine) dial(to net.Addr) net.Conn {
	m.t.Helper()
	var c net.Conn
	m.Must(func() (err error) {
		c, err = net.DialTimeout(to.Network(), to.String(), patience)
		return err
	})
	m.t.Cleanup(func() { _ = c.Close() })
	if got := netip.MustParseAddrPort(c.LocalAddr().String()).Addr(); got != m.cluster {
		m.t.Fatalf("the connection is from %s, not from the cluster address %s", got, m.cluster)
	}
	return c
}
