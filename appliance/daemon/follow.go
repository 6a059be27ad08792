package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/cluster"
	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
	"lunar/datapath/wire"
	"lunar/datapath/wire/nbd"
)

// The ports on cluster.address of what nodes ask each other beside the database.
const (
	layoutPort = 3345  // layouts, by gRPC
	nbdPort    = 10809 // redirected I/O, by NBD
)

// remote is the coordinator of a volume on another node.
type remote struct {
	node        string
	epoch       uint64
	incarnation uint64 // of this node, under which it speaks
	calls       *wire.Client
	data        *nbd.DataPath
}

// dial makes the way to a coordinator; it connects by itself.
func (n *Node) dial(volumeID string, c cluster.Coordinator, address string) (_ *remote, err error) {
	self, incarnation := protocol.NodeID(n.name), n.incarnation.Load()
	r := &remote{node: c.Node, epoch: c.Epoch, incarnation: incarnation}
	tls, err := n.db.ClientTLS(c.Node)
	if err != nil {
		return nil, err
	}
	r.data, err = nbd.NewDataPath(nbd.DataPathOptions{
		Address: net.JoinHostPort(address, strconv.Itoa(nbdPort)), TLS: tls, Volume: volumeID,
		Node: self, Incarnation: incarnation, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	r.calls, err = wire.Dial(wire.ClientOptions{
		Address: net.JoinHostPort(address, strconv.Itoa(layoutPort)), TLS: tls, Volume: volumeID, Epoch: c.Epoch,
		Node: self, Incarnation: incarnation, Data: r.data, Sentinels: coordinator.Sentinels(), Log: n.log,
		Dial: n.dialer(c),
	})
	if err != nil {
		return nil, errors.Join(err, r.data.Close())
	}
	return r, nil
}

// peerSilence is how long a peer may not acknowledge what was sent to it.
const peerSilence = time.Second

// dialer opens connections to a coordinator's node; one that is refused tells that lunard has ended there.
func (n *Node) dialer(c cluster.Coordinator) func(ctx context.Context, address string) (net.Conn, error) {
	dial := wire.DialTCP(peerSilence)
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dial(ctx, address)
		if errors.Is(err, unix.ECONNREFUSED) {
			n.suspect(c.Node, c.Incarnation) //nolint:contextcheck // it outlives the connection that failed
		}
		return conn, err
	}
}

func (r *remote) close() error { return errors.Join(r.calls.Close(), r.data.Close()) }

// follow has the volume follow the coordinator that was seen last.
func (s *seat) follow(ctx context.Context) error {
	s.mu.Lock()
	seen, here := s.seen, s.here
	s.mu.Unlock()
	p, release := s.v.borrow()
	if p == nil {
		return nil
	}
	defer release()
	c := seen.Coordinator
	switch {
	case here != nil:
		return nil
	case c == nil || c.State == cluster.StateClosing:
		p.vol.Orphan()
		return nil
	case c.Node == s.node.name || !mounted(c.State):
		return nil // its own seat: news will come
	case s.remote != nil && s.remote.epoch == c.Epoch && s.remote.incarnation == s.node.incarnation.Load() && p.vol.Status().Epoch == c.Epoch && !p.vol.Status().Orphan:
		return nil
	}
	return s.followRemote(ctx, p.vol, *c)
}

func mounted(s cluster.TermState) bool { return s == cluster.StateMounted || s == cluster.StateOpen }

func (s *seat) followRemote(ctx context.Context, vol *volume.Volume, c cluster.Coordinator) error {
	address, ok := s.node.addressOf(c.Node)
	if !ok {
		return fmt.Errorf("volume %s: its coordinator %s is no member that is known here", s.name(), c.Node)
	}
	limited, cancel := s.whileSeen(ctx, c)
	defer cancel()
	was := s.remote
	if was.is(c, s.node.incarnation.Load()) {
		return s.followBy(limited, vol, c, was)
	}
	if was != nil && was.epoch == c.Epoch {
		// A Hello of another incarnation ends at the coordinator what this node holds: nothing may be under
		// way by it then.
		if err := vol.Suspend(limited, volume.InitialisingLayout); err != nil {
			return err
		}
		defer vol.Resume(volume.InitialisingLayout)
	}
	next, err := s.node.dial(s.v.id, c, address)
	if err != nil {
		return fmt.Errorf("volume %s: coordinator %s: %w", s.name(), c.Node, err)
	}
	err = s.followBy(limited, vol, c, next)
	s.remote = next // also after an error: the volume may have attached some images there
	if was != nil {
		err = errors.Join(err, was.close())
	}
	return err
}

// is tells whether it is the way to that coordinator, under that incarnation of this node.
func (r *remote) is(c cluster.Coordinator, incarnation uint64) bool {
	return r != nil && r.node == c.Node && r.epoch == c.Epoch && r.incarnation == incarnation
}

func (s *seat) followBy(ctx context.Context, vol *volume.Volume, c cluster.Coordinator, r *remote) error {
	err := vol.Follow(ctx, r.calls)
	s.countedOut(err, c)
	return err
}

// whileSeen is a context that ends when another coordinator is heard of.
func (s *seat) whileSeen(ctx context.Context, c cluster.Coordinator) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, followLimit)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.Coordinator == nil || s.seen.Coordinator.Epoch != c.Epoch {
		cancel()
	}
	s.interrupt = cancel
	return ctx, cancel
}

// countedOutAfter is how long a coordinator may refuse this node, while it is the coordinator, before this
// node takes it that it was expelled.
const countedOutAfter = 3 * time.Second

// countedOut begins another incarnation of this node when the present coordinator has expelled the last one.
func (s *seat) countedOut(err error, c cluster.Coordinator) {
	if !errors.Is(err, protocol.ErrStale) || s.knownEpoch() != c.Epoch {
		s.refused = time.Time{}
		return
	}
	if s.refused.IsZero() {
		s.refused = time.Now()
	}
	if time.Since(s.refused) > countedOutAfter {
		s.refused = time.Time{}
		s.node.membership.Load().session.Renew("the coordinator of volume " + s.name() + " has expelled it")
	}
}

// unfollow closes the way to another node's coordinator.
func (s *seat) unfollow() {
	if s.remote == nil {
		return
	}
	if err := s.remote.close(); err != nil {
		s.log.Warn("the connection to the coordinator was not closed", "node", s.remote.node, "error", err)
	}
	s.remote = nil
}
