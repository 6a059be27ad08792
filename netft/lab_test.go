package netft

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"lunar/netft/detector"
	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperMode); mode != "" {
		os.Exit(helperMain(mode))
	}
	goleak.VerifyTestMain(m)
}

// lab is some nodes, each in its own network namespace, on networks which are bridges in another one.
type lab struct {
	t     *testing.T
	nodes []*labNode
	hub   *netnstest.Namespace
}

type labNode struct {
	*netnstest.Namespace
	lab    *lab
	number uint16
	fabric *Fabric
	// published are the interfaces that the others were told of.
	published []network.Interface

	mu       sync.Mutex // guards verdicts
	verdicts []Verdict
}

var labKey = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// newLab has nodes 1 to n, each with the interfaces netA, netB and so on, 10.N.0.number/24.
func newLab(t *testing.T, n, networks int) *lab {
	t.Helper()
	l := &lab{t: t, hub: netnstest.New(t)}
	for i := range networks {
		l.hub.Must(func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = bridge(i)
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return err
			}
			return netlink.LinkSetUp(&netlink.Device{LinkAttrs: attrs})
		})
	}
	for i := range n {
		node := &labNode{Namespace: netnstest.New(t), lab: l, number: uint16(i + 1)}
		l.nodes = append(l.nodes, node)
		for k := range networks {
			l.plug(node, k)
			node.Address(iface(k), fmt.Sprintf("10.%d.0.%d/24", k+1, node.number))
		}
	}
	return l
}

func bridge(i int) string { return fmt.Sprintf("bridge%d", i) }

func iface(i int) string { return "net" + string(rune('A'+i)) }

// port is a node's end of a network in the hub.
func port(number uint16, i int) string { return fmt.Sprintf("p%d-%d", number, i) }

func (l *lab) plug(n *labNode, i int) {
	netnstest.Cable(l.hub, port(n.number, i), n.Namespace, iface(i))
	l.hub.Must(func() error {
		p, err := netlink.LinkByName(port(n.number, i))
		if err != nil {
			return err
		}
		b, err := netlink.LinkByName(bridge(i))
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(p, b)
	})
}

func clusterAddress(number uint16) netip.Addr { return network.ClusterAddress("lab", number) }

// start starts every node and tells each of the others.
func (l *lab) start(o Options) {
	l.t.Helper()
	for _, n := range l.nodes {
		n.start(o)
	}
	l.introduce()
}

func (n *labNode) options(o Options) Options {
	o.Name, o.Number, o.Cluster = fmt.Sprintf("node%d", n.number), n.number, clusterAddress(n.number)
	o.Key, o.Incarnation = labKey, uint64(time.Now().UnixNano())
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("LUNAR_NETFT_LOG") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", o.Name)
	}
	o.Verdict = func(v Verdict) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.verdicts = append(n.verdicts, v)
	}
	return o
}

func (n *labNode) start(o Options) {
	n.lab.t.Helper()
	n.Must(func() (err error) {
		n.fabric, err = Start(context.Background(), n.options(o))
		return err
	})
	n.lab.t.Cleanup(n.stop)
	if o.BPF && n.fabric.Method() != MethodKernel {
		n.lab.t.Skipf("heartbeats by the kernel: %s", n.fabric.Method())
	}
}

// stop may be called twice.
func (n *labNode) stop() {
	if err := n.fabric.Close(); err != nil {
		n.lab.t.Error(err)
	}
}

func (n *labNode) peer() Peer {
	return Peer{Name: fmt.Sprintf("node%d", n.number), Number: n.number, Cluster: clusterAddress(n.number), Interfaces: n.fabric.Interfaces()}
}

// publish tells the others of nodes whose interfaces changed, as the cluster's database does.
func (l *lab) publish() {
	for _, n := range l.nodes {
		if !slices.EqualFunc(n.published, n.fabric.Interfaces(), network.Interface.Equal) {
			l.introduce()
			return
		}
	}
}

// introduce tells each node of the others.
func (l *lab) introduce() {
	l.t.Helper()
	for _, n := range l.nodes {
		n.published = n.fabric.Interfaces()
	}
	for _, n := range l.nodes {
		var peers []Peer
		for _, o := range l.nodes {
			if o != n {
				peers = append(peers, o.peer())
			}
		}
		if err := n.fabric.SetPeers(peers); err != nil {
			l.t.Fatal(err)
		}
	}
}

// until polls with a bound.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	limit = max(limit, time.Minute) // the machine may be busy with other things
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

// healthy waits until all paths are up, of all nodes.
func (l *lab) healthy(networks int) {
	l.t.Helper()
	until(l.t, 20*time.Second, "all paths up", func() bool {
		l.publish()
		for _, n := range l.nodes {
			if !n.allUp(2 * networks * (len(l.nodes) - 1)) {
				return false
			}
		}
		return true
	})
}

func (n *labNode) allUp(want int) bool {
	paths := n.fabric.Paths()
	up := 0
	for _, p := range paths {
		if p.State == detector.Up && p.Health == detector.Healthy {
			up++
		}
	}
	return up == want && len(paths) == want
}

// count is how many verdicts of these kinds there were.
func (n *labNode) count(kinds ...detector.Kind) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.verdicts {
		for _, k := range kinds {
			if v.Kind == k {
				count++
			}
		}
	}
	return count
}

// blameless fails the test if a node was suspected that lives. On a machine which did not let the heartbeats' thread run
// in time the verdicts may be right.
func (l *lab) blameless() {
	l.t.Helper()
	late := uint64(0)
	for _, n := range l.nodes {
		late += n.fabric.Counters().LateTicks
	}
	for _, n := range l.nodes {
		got := n.count(detector.NodeLost, detector.DaemonStalled)
		switch {
		case got != 0 && late == 0:
			l.t.Errorf("node %d: %d verdicts on nodes that live", n.number, got)
		case got != 0:
			l.t.Logf("node %d: %d verdicts on nodes that live, after %d late ticks", n.number, got, late)
		}
	}
}

func (n *labNode) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.verdicts = nil
}

// via is the interface by which the kernel would send to a node's cluster address.
func (n *labNode) via(to uint16) (name string) {
	_ = n.Do(func() error {
		routes, err := netlink.RouteGet(net.IP(clusterAddress(to).AsSlice()))
		if err != nil || len(routes) == 0 {
			return err
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil {
			name = l.Attrs().Name
		}
		return err
	})
	return name
}

// deaf makes the switch drop, silently, what others send to a node over a network; what it sends passes. The switch
// is told that the node is where another one is.
func (l *lab) deaf(n *labNode, i int, on bool) {
	l.t.Helper()
	var mac net.HardwareAddr
	n.Must(func() error {
		own, err := netlink.LinkByName(iface(i))
		if err == nil {
			mac = own.Attrs().HardwareAddr
		}
		return err
	})
	other := l.nodes[0]
	if other == n {
		other = l.nodes[1]
	}
	l.hub.Must(func() error {
		p, err := netlink.LinkByName(port(other.number, i))
		if err != nil {
			return err
		}
		entry := &netlink.Neigh{
			LinkIndex: p.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
			Flags: netlink.NTF_MASTER | ntfSticky, HardwareAddr: mac,
		}
		if !on {
			return netlink.NeighDel(entry)
		}
		return netlink.NeighSet(entry)
	})
}

// stream is a TCP connection between two nodes' cluster addresses, with a byte to and fro all the time.
type stream struct {
	t        *testing.T
	conn     net.Conn
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex // guards all below
	longest time.Duration
	rounds  int
	err     error
	closing bool
}

func newStream(t *testing.T, from, to *labNode) *stream {
	t.Helper()
	s := &stream{t: t}
	address := netip.AddrPortFrom(clusterAddress(to.number), 9000).String()
	to.Must(func() (err error) { s.listener, err = net.Listen("tcp", address); return err })
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c, err := s.listener.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	from.Must(func() (err error) { s.conn, err = net.DialTimeout("tcp", address, 5*time.Second); return err })
	s.wg.Add(1)
	go s.run()
	t.Cleanup(s.stop)
	return s
}

func (s *stream) run() {
	defer s.wg.Done()
	b := []byte{0}
	for last := time.Now(); ; last = time.Now() {
		_, err := s.conn.Write(b)
		if err == nil {
			_, err = io.ReadFull(s.conn, b)
		}
		s.mu.Lock()
		s.rounds++
		s.longest = max(s.longest, time.Since(last))
		if err != nil && !s.closing {
			s.err = err
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// turn is how often a byte came back, and the longest wait since the last call.
func (s *stream) turn() (rounds int, longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		s.t.Errorf("the connection broke: %v", s.err)
	}
	rounds, longest = s.rounds, s.longest
	s.longest = 0
	return rounds, longest
}

// flows waits until bytes go to and fro.
func (s *stream) flows() {
	s.t.Helper()
	s.mu.Lock()
	before := s.rounds
	s.mu.Unlock()
	until(s.t, 10*time.Second, "bytes over the connection", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.rounds > before+5 || s.err != nil
	})
}

func (s *stream) stop() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	_ = s.conn.Close()
	_ = s.listener.Close()
	s.wg.Wait()
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ntfSticky keeps a switch from learning better, NTF_STICKY of linux/neighbour.h.
const ntfSticky = 0x40

// MTU sets that of an interface.
func (n *labNode) MTU(name string, mtu int) {
	n.Must(func() error {
		return netlink.LinkSetMTU(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: name}}, mtu)
	})
}
