package netft

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/netft/beat"
	"lunar/netft/detector"
	"lunar/netft/heartbeat"
	"lunar/netft/network"
)

// crowd is simulated peers on one node of the lab: each has an address of its own on each network, beats and answers.
type crowd struct {
	t       *testing.T
	key     beat.Key
	members []*member
	ports   []*crowdPort
	end     chan struct{}
	wg      sync.WaitGroup
	// interval is what the members beat at, in ns.
	interval time.Duration
}

type member struct {
	number uint16
	dead   atomic.Bool
}

type crowdPort struct {
	crowd    *crowd
	of       *member
	conn     *net.UDPConn
	to       netip.AddrPort
	network  uint16
	mute     atomic.Bool // it drops what it would send, and hears
	sequence uint64
}

const firstMember = 100

func crowdAddress(i, k int) string { return fmt.Sprintf("10.%d.0.%d", k+1, firstMember+i) }

// newCrowd puts n peers on node 1; observed is node 2's. ids are the networks' numbers in heartbeats.
func newCrowd(t *testing.T, host *labNode, n int, ids []uint16, interval time.Duration) *crowd {
	t.Helper()
	c := &crowd{t: t, key: beat.NewKey(labKey), end: make(chan struct{}), interval: interval}
	for i := range n {
		m := &member{number: uint16(firstMember + i)}
		c.members = append(c.members, m)
		for k, id := range ids {
			p := &crowdPort{crowd: c, of: m, network: id, to: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", k+1)), Port)}
			host.Must(func() (err error) {
				p.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(crowdAddress(i, k)), Port: Port})
				return err
			})
			c.ports = append(c.ports, p)
		}
	}
	for _, p := range c.ports {
		c.wg.Add(1)
		go p.answers()
	}
	c.wg.Add(1)
	go c.beats()
	t.Cleanup(func() {
		close(c.end)
		for _, p := range c.ports {
			_ = p.conn.Close()
		}
		c.wg.Wait()
	})
	return c
}

func (c *crowd) beats() {
	defer c.wg.Done()
	tick := time.NewTicker(c.interval / 8)
	defer tick.Stop()
	for share := 0; ; share = (share + 1) % 8 {
		select {
		case <-c.end:
			return
		case <-tick.C:
		}
		for i := share; i < len(c.ports); i += 8 {
			p := c.ports[i]
			p.sequence++
			p.send(&beat.Message{Kind: beat.Beat, Sequence: p.sequence, Sent: uint64(heartbeat.Now())})
		}
	}
}

func (p *crowdPort) send(m *beat.Message) {
	if p.of.dead.Load() || p.mute.Load() {
		return
	}
	m.From, m.To, m.Network, m.Family, m.Incarnation = p.of.number, 2, p.network, beat.IPv4, 7
	var b [beat.Size]byte
	p.crowd.key.Seal(&b, m)
	_, _ = p.conn.WriteToUDPAddrPort(b[:], p.to)
}

func (p *crowdPort) answers() {
	defer p.crowd.wg.Done()
	b := make([]byte, 200)
	for {
		n, err := p.conn.Read(b)
		if err != nil {
			return
		}
		var m beat.Message
		if p.crowd.key.Open(b[:n], &m) == nil && m.Kind == beat.Beat {
			p.send(&beat.Message{Kind: beat.Answer, Sequence: m.Sequence, Echo: m.Sent, Sent: uint64(heartbeat.Now())})
		}
	}
}

// TestManyPeers watches 64 simulated peers over 3 networks. Some die, some lose two networks: only the dead are lost, in
// time. It tells what the observer's process costs.
func TestManyPeers(t *testing.T) {
	n := 24
	if os.Getenv("LUNAR_NETFT_ROUNDS") != "" {
		n = 64
	}
	both(t, func(t *testing.T, o Options) {
		l := newLab(t, 2, 3)
		host, watcher := l.nodes[0], l.nodes[1]
		for k := range 3 {
			var addresses []string
			for i := range n {
				addresses = append(addresses, crowdAddress(i, k)+"/24")
			}
			host.Address(iface(k), addresses...)
		}
		ob := startObserver(t, watcher, o.BPF)
		first := ob.ask(nil)
		if o.BPF && first.Method != MethodKernel {
			t.Skip(first.Method)
		}
		peers, ids := crowdPeers(n, first.Peer)
		c := newCrowd(t, host, n, ids, o.Profile.Interval)
		ob.ask(peers)
		until(t, 30*time.Second, "all paths up", func() bool { return ob.ask(nil).Up == 3*n })
		before, start := ob.ask(nil), time.Now()
		time.Sleep(time.Duration(rounds()) * time.Second)
		after := ob.ask(nil)
		t.Logf("%d peers × 3 networks, %v: %.2f %% of a CPU, %d suspicions", n, o.Profile.Interval,
			100*float64(after.CPU-before.CPU)/float64(time.Since(start)), after.Suspect-before.Suspect)
		if after.Suspect != before.Suspect {
			t.Errorf("%d suspicions of healthy peers", after.Suspect-before.Suspect)
		}
		died := map[uint16]time.Duration{}
		for i, m := range c.members {
			switch i % 4 {
			case 0:
				died[m.number] = heartbeat.Now()
				m.dead.Store(true)
			case 1:
				c.ports[3*i].mute.Store(true)
				c.ports[3*i+1].mute.Store(true)
			}
		}
		verdictsInTime(t, ob, died, o.Profile)
	})
}

func verdictsInTime(t *testing.T, ob *observer, died map[uint16]time.Duration, p detector.Profile) {
	t.Helper()
	var last report
	until(t, 10*time.Second, "the dead are lost", func() bool { last = ob.ask(nil); return len(last.Lost) >= len(died) })
	time.Sleep(p.Period)
	last = ob.ask(nil)
	longest := time.Duration(0)
	for number, at := range last.Lost {
		when, dead := died[number]
		if !dead {
			t.Errorf("node %d is lost, and lives on one network", number)
			continue
		}
		longest = max(longest, at-when)
	}
	t.Logf("%d nodes lost, the last after %v; threshold %v", len(last.Lost), longest, p.Threshold())
	if limit := p.Threshold() + p.Period + 5*time.Second; longest > limit { // of a busy machine
		t.Errorf("lost after %v, want at most %v", longest, limit)
	}
}

// crowdPeers are the peers as node 2 is told of them, and the numbers that it gives the networks.
func crowdPeers(n int, watcher Peer) ([]Peer, []uint16) {
	var peers []Peer
	nodes := []network.Node{{Number: 2, Name: watcher.Name, Interfaces: watcher.Interfaces}}
	for i := range n {
		p := Peer{Name: fmt.Sprintf("sim%d", i), Number: uint16(firstMember + i), Cluster: clusterAddress(uint16(firstMember + i))}
		for k := range 3 {
			p.Interfaces = append(p.Interfaces, network.Interface{
				Index: k + 1, Name: iface(k), MTU: 1500, Up: true, Carrier: true,
				Addresses: []netip.Prefix{netip.MustParsePrefix(crowdAddress(i, k) + "/24")},
			})
		}
		peers = append(peers, p)
		nodes = append(nodes, network.Node{Number: p.Number, Name: p.Name, Interfaces: p.Interfaces})
	}
	p := makePlan(2, network.Group(nodes, nil).Networks, peers)
	ids := make([]uint16, 3)
	for k := range ids {
		for _, t := range p.targets {
			if t.Remote.String() == crowdAddress(0, k) {
				ids[k] = t.Network
			}
		}
	}
	return peers, ids
}
