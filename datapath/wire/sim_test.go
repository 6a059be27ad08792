package wire

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire/wiretest"
)

var simSeed = flag.Uint64("seed", 0, "replay this seed of TestSimulation alone")

// TestSimulation runs server and clients, TLS and gRPC and all, over a network in memory that delays and
// breaks, in a time that is simulated; one seed decides what happens to them.
func TestSimulation(t *testing.T) {
	ca := wiretest.NewAuthority(t)
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		for seed := range uint64(10) {
			seeds = append(seeds, seed+1)
		}
		seeds = seeds[1:] // without the zero that stands for all
	}
	for _, seed := range seeds {
		if t.Failed() {
			return
		}
		synctest.Test(t, func(t *testing.T) { simulate(t, ca, seed) })
	}
}

// network is a listener whose connections are in memory.
type network struct {
	incoming chan net.Conn
	closed   chan struct{}

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	conns []net.Conn
	down  bool
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.incoming:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error   { close(n.closed); return nil }
func (n *network) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	n.mu.Lock()
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, errors.New("the network is down")
	}
	near, far := net.Pipe()
	select {
	case n.incoming <- far:
	case <-n.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, near)
	return &slowConn{Conn: near, n: n}, nil
}

func (n *network) below(limit int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rng.IntN(limit)
}

// cut breaks all connections, and none is made for a while.
func (n *network) cut(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	for _, c := range n.conns {
		_ = c.Close()
	}
	n.conns = nil
}

// slowConn delays what is written to it.
type slowConn struct {
	net.Conn
	n *network
}

func (c *slowConn) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(c.n.below(3000)) * time.Microsecond)
	return c.Conn.Write(p)
}

// simNode is a node that has the image attached, or not.
type simNode struct {
	name   protocol.NodeID
	c      *Client
	h      *view
	call   protocol.Call
	holder protocol.HolderID
}

type wireSim struct {
	t     *testing.T
	seed  uint64
	net   *network
	coord *ledger
	image *record
	nodes []*simNode

	mu    sync.Mutex // guards what follows
	views map[*view]bool
}

func simulate(t *testing.T, ca *wiretest.Authority, seed uint64) {
	s := &wireSim{t: t, seed: seed, coord: newLedger(5), views: map[*view]bool{},
		net: &network{incoming: make(chan net.Conn), closed: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 4))}}
	s.coord.returned = func(r protocol.Recall) { s.everyoneWaits(r.Range) }
	s.image = s.coord.image(t, "a", 64)
	sv, err := NewServer(ServerOptions{TLS: ca.Config(t, "n1"), Log: quiet(), Limits: Limits{Window: 2000},
		Lookup: func(string, uint64) (Coordinator, error) { return s.coord, nil }})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- sv.Serve(s.net) }()
	for i := range 3 {
		name := protocol.NodeID(fmt.Sprintf("n%d", i+2))
		c, err := Dial(ClientOptions{Address: "memory", TLS: ca.Config(t, string(name)), Volume: "v", Epoch: 5, Node: name, Incarnation: 1,
			Data: noData{}, Dial: s.net.dial, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		s.nodes = append(s.nodes, &simNode{name: name, c: c})
	}
	s.run()
	for _, n := range s.nodes {
		_ = n.c.Close()
	}
	limit, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(sv.Stop(limit), <-served); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
}

// run has every node come and go, the coordinator change ranges and the network break, at once.
func (s *wireSim) run() {
	var all sync.WaitGroup
	for _, n := range s.nodes {
		all.Go(func() { s.live(n) })
	}
	for worker := range 2 {
		all.Go(func() {
			for range 25 {
				s.change(int64(worker))
			}
		})
	}
	all.Go(func() {
		for range 12 {
			time.Sleep(time.Duration(s.net.below(400)) * time.Millisecond)
			s.net.cut(true)
			time.Sleep(time.Duration(s.net.below(300)) * time.Millisecond)
			s.net.cut(false)
		}
	})
	all.Wait()
	time.Sleep(5 * time.Second) // back-off, Hello, what is left to say
	s.check()
}

// live attaches and detaches the image as volume does: what did not succeed is tried again.
func (s *wireSim) live(n *simNode) {
	for range 6 {
		s.attach(n)
		time.Sleep(time.Duration(s.net.below(1500)) * time.Millisecond)
		if s.net.below(3) > 0 {
			s.detach(n)
		} else {
			s.retry(func(ctx context.Context) error { return n.c.Acknowledge(ctx, n.name, 5) })
		}
	}
}

func (s *wireSim) attach(n *simNode) {
	if n.h != nil {
		return
	}
	s.retry(func(ctx context.Context) error {
		h := &view{drain: func(ctx context.Context, _ protocol.Recall) error {
			time.Sleep(time.Duration(s.net.below(20)) * time.Millisecond)
			return ctx.Err()
		}}
		g, id, err := n.c.Attach(ctx, n.name, "a", h)
		if err != nil {
			return err
		}
		h.start(s.t, g)
		n.h, n.call, n.holder = h, g.Call, id
		s.mu.Lock()
		defer s.mu.Unlock()
		s.views[h] = true
		return nil
	})
}

func (s *wireSim) detach(n *simNode) {
	s.mu.Lock()
	delete(s.views, n.h)
	s.mu.Unlock()
	s.retry(func(ctx context.Context) error { return n.c.Detach(ctx, n.call, n.holder) })
	n.h = nil
}

func (s *wireSim) retry(try func(ctx context.Context) error) {
	for tries := 0; ; tries++ {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := try(ctx)
		cancel()
		if err == nil {
			return
		}
		if !errors.Is(err, protocol.ErrUnreachable) || tries > 100 {
			s.t.Errorf("seed %d: %v", s.seed, err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// change recalls a range of a worker's half of the image, checks RecallBeforeChange, and grants it anew.
func (s *wireSim) change(worker int64) {
	time.Sleep(time.Duration(s.net.below(100)) * time.Millisecond)
	at := layout.Range{Off: (worker*32 + int64(s.net.below(32))) * 4096, Len: 4096}
	to := []layout.Extent{{FileOff: at.Off, DevOff: int64(s.net.below(1<<20)) * 4096, Len: at.Len, State: layout.Written}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+s.net.below(2000))*time.Millisecond)
	defer cancel()
	_ = s.coord.change(ctx, s.image, at, to) // a recall that was not answered changes nothing
}

// everyoneWaits holds every view that is in use to RecallBeforeChange.
func (s *wireSim) everyoneWaits(at layout.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.views {
		if !h.waits(at) {
			s.t.Errorf("seed %d: RecallBeforeChange: %v changes while a holder may reach it", s.seed, at)
		}
	}
}

// check finds every node in agreement with the coordinator.
func (s *wireSim) check() {
	held := 0
	for _, n := range s.nodes {
		if n.h == nil {
			continue
		}
		held++
		n.h.mu.Lock()
		if n.h.refused > 0 || n.h.view.Recalls() > 0 || !slices.Equal(n.h.view.Layout.Extents(), s.image.layout.Extents()) {
			s.t.Errorf("seed %d: node %s: %d grants refused, %d recalls left, generation %d of %d", s.seed, n.name, n.h.refused,
				n.h.view.Recalls(), n.h.view.Layout.Generation, s.image.gen)
		}
		n.h.mu.Unlock()
	}
	if opens := s.coord.opens(s.image); opens != held {
		s.t.Errorf("seed %d: %d holders at the coordinator, %d nodes have it attached", s.seed, opens, held)
	}
}
