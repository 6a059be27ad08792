package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

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
	node  string
	epoch uint64
	calls *wire.Client
	data  *nbd.DataPath
}

// dial makes the way to a coordinator; it connects by itself.
func (n *Node) dial(volumeID string, c cluster.Coordinator, address string) (_ *remote, err error) {
	r := &remote{node: c.Node, epoch: c.Epoch}
	tls, err := n.db.ClientTLS(c.Node)
	if err != nil {
		return nil, err
	}
	self, incarnation := protocol.NodeID(n.name), n.incarnation.Load()
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
	})
	if err != nil {
		return nil, errors.Join(err, r.data.Close())
	}
	return r, nil
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
	case s.remote != nil && s.remote.epoch == c.Epoch && p.vol.Status().Epoch == c.Epoch && !p.vol.Status().Orphan:
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
	next, err := s.node.dial(s.v.record.ID, c, address)
	if err != nil {
		return fmt.Errorf("volume %s: coordinator %s: %w", s.name(), c.Node, err)
	}
	limited, cancel := s.whileSeen(ctx, c)
	defer cancel()
	err = vol.Follow(limited, next.calls)
	was := s.remote
	s.remote = next // also after an error: the volume may have attached some images there
	if was != nil {
		err = errors.Join(err, was.close())
	}
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
