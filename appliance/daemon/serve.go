package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/wire"
	"lunar/datapath/wire/nbd"
)

// serve answers other nodes' calls to this node's coordinators.
func (m *membership) serve(ctx context.Context) error {
	tls, err := m.node.db.ServerTLS()
	if err != nil {
		return err
	}
	m.layouts, err = wire.NewServer(wire.ServerOptions{TLS: tls, Lookup: m.node.lookup, Sentinels: coordinator.Sentinels(), Log: m.node.log})
	if err != nil {
		return err
	}
	m.redirected, err = nbd.NewServer(nbd.Options{TLS: tls, RequireTLS: true, Open: m.node.openExport, Log: m.node.log})
	if err != nil {
		return err
	}
	if err := m.listen(ctx, layoutPort, m.layouts.Serve); err != nil {
		return err
	}
	return m.listen(ctx, nbdPort, m.redirected.Serve)
}

// listen has a server accept on the cluster address, as one of the tasks.
func (m *membership) listen(ctx context.Context, port int, serve func(net.Listener) error) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(m.node.db.Address(), strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("listen for other nodes: %w", err)
	}
	m.tasks.Go(func() {
		if err := serve(l); err != nil && !errors.Is(err, nbd.ErrStopped) {
			m.node.log.Error("a server for other nodes ended", "address", l.Addr(), "error", err)
		}
	})
	return nil
}

func (m *membership) stopServing(ctx context.Context) error {
	var errs []error
	if m.layouts != nil {
		errs = append(errs, m.layouts.Stop(ctx))
	}
	if m.redirected != nil {
		errs = append(errs, m.redirected.Stop(ctx))
	}
	return errors.Join(errs...)
}

// endServing ends what other nodes have under way with a term that is over.
func (n *Node) endServing(volumeID string, epoch uint64) {
	if m := n.membership.Load(); m != nil && m.layouts != nil {
		m.layouts.End(volumeID, epoch)
	}
}

// lookup is the coordinator that another node means.
func (n *Node) lookup(volumeID string, epoch uint64) (wire.Coordinator, error) {
	c, err := n.coordinator(volumeID, epoch)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// coordinator is this node's own for a volume; epoch 0 means the present one.
func (n *Node) coordinator(volumeID string, epoch uint64) (*coordinator.Coordinator, error) {
	v := n.volumeByID(volumeID)
	if v == nil {
		return nil, fmt.Errorf("volume %s is not here yet: %w", volumeID, protocol.ErrUnreachable)
	}
	s := v.seat.Load()
	if s == nil {
		return nil, fmt.Errorf("volume %s is off line here: %w", volumeID, protocol.ErrUnreachable)
	}
	if c := s.coordinator(epoch); c != nil {
		return c, nil
	}
	if epoch > s.knownEpoch() || s.mounting() {
		return nil, fmt.Errorf("volume %s: epoch %d is not known here yet: %w", volumeID, epoch, protocol.ErrUnreachable)
	}
	return nil, fmt.Errorf("volume %s: epoch %d is over: %w", volumeID, epoch, protocol.ErrStale)
}

// openExport is the image that an NBD connection asks for. Nodes name the epoch that they mean; people's
// tools get the image as long as some node has it open.
func (n *Node) openExport(_ context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	parsed, err := nbd.ParseName(name)
	if err != nil {
		return nil, err
	}
	if parsed.Node != "" && string(parsed.Node) != peer.Name {
		return nil, fmt.Errorf("node %s asks in the name of node %s: %w", peer.Name, parsed.Node, unix.EACCES)
	}
	c, err := n.coordinator(parsed.Volume, parsed.Epoch)
	if err != nil {
		return nil, err
	}
	call := protocol.Call{Image: parsed.Image, Epoch: c.Epoch()}
	first, err := c.Layout(call)
	if err != nil {
		return nil, err
	}
	present := func() *layout.Layout {
		if l, err := c.Layout(call); err == nil {
			return l
		}
		return first // the term is over: every request will be told
	}
	carry := func(done func([]*protocol.Transfer)) nbd.Carrier {
		if k := c.Carrier(call, done); k != nil {
			return k
		}
		return nil
	}
	return &nbd.Image{To: c, Call: call, Layout: present, Carry: carry, About: nbd.Info{Block: 512}}, nil
}
