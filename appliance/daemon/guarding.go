package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strconv"
	"time"

	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
	"lunar/datapath/device"
)

// How often the guard's credentials are compared with the cluster's, and how often it is asked to let the deadline pass.
const (
	equipInterval = 5 * time.Second
	disarmPause   = 5 * time.Millisecond
)

// guardLingers is how much longer than a takeover by lease waits a guard answers after its daemon's end: the others may
// have to choose a leader of their database first. A restarted daemon's guard replaces it at once.
const guardLingers = 15 * time.Second

// startGuard begins a guard that knows of nothing yet but this node's deadline, in place of one that has ended.
func (m *membership) startGuard(ctx context.Context) error {
	options := m.node.guardOptions
	options.Linger = m.ttl + m.node.inFlight + guardLingers
	g, err := guard.Start(ctx, options)
	if err != nil {
		return err
	}
	m.renewing.Lock()
	defer m.renewing.Unlock()
	if m.unguarded.Load() {
		return g.Close()
	}
	if old := m.guard.Swap(g); old != nil {
		m.inherit(g, old.Deadline())
		_ = old.Close() // said where it was seen to have ended
	}
	return nil
}

// inherit tells a new guard of the session. It keeps to the deadline of the one before it also when the session was lost
// meanwhile, since there may be mounts still.
func (m *membership) inherit(g *guard.Guard, was time.Duration) {
	if m.guarded != 0 {
		g.Present(m.guarded)
	}
	at := was
	if !m.owes {
		at = max(at, time.Duration(m.session.Deadline()))
	}
	if at != 0 {
		if err := g.Renew(at); err != nil {
			m.node.log.Error("the new guard process was not told of the session", "error", err)
		}
	}
}

// guardedAs is an incarnation as fence.Node has it.
func guardedAs(incarnation uint64) uint64 { return uint64(uint32(incarnation)) }

// guardAgain is the pause after a guard that could not be started.
const guardAgain = time.Second

// keepGuard starts another guard when this one has ended by itself, until ctx ends. Until then nothing is mounted
// here, since the mount could not be handed over, and what is mounted goes on: the deadline binds the daemon too.
func (m *membership) keepGuard(ctx context.Context) {
	for {
		g := m.guard.Load()
		select {
		case <-g.Done():
		case <-ctx.Done():
			return
		}
		if ctx.Err() != nil || m.wasLetGo() {
			return
		}
		m.node.log.Error("the guard process has ended: another one is started", "pid", g.PID())
		for err := m.startGuard(ctx); err != nil; err = m.startGuard(ctx) {
			m.node.log.Error("the guard process was not started: what this node coordinates is handed over", "error", err)
			m.node.resignAll(ctx, "its guard process cannot be started")
			if pause(ctx, guardAgain) != nil {
				return
			}
		}
		for err := m.tellGuard(); err != nil; err = m.tellGuard() {
			m.node.log.Error("the new guard process does not answer other nodes: it does not know all devices", "error", err)
			if pause(ctx, guardAgain) != nil {
				return
			}
		}
		m.known.Store(m.guard.Load())
		select {
		case m.equipNow <- struct{}{}:
		default:
		}
		m.node.log.Info("another guard process watches this node", "pid", m.guard.Load().PID())
	}
}

func (m *membership) wasLetGo() bool {
	m.renewing.Lock() // who lets it go has it
	defer m.renewing.Unlock()
	return m.unguarded.Load()
}

// tellGuard gives a new guard what the one before it had.
func (m *membership) tellGuard() error {
	var errs []error
	for _, v := range m.node.sortedVolumes() {
		p, release := v.borrow()
		if p == nil {
			continue
		}
		_ = m.guard.Load().Forget(v.id) // a volume that came on line meanwhile is known already
		errs = append(errs, m.node.watchDevice(v.id, p.dev))
		release()
		if s := v.seat.Load(); s != nil {
			s.regard.Store(true)
			s.kick()
		}
	}
	return errors.Join(errs...)
}

// resignAll hands all volumes over that this node coordinates.
func (n *Node) resignAll(ctx context.Context, reason string) {
	for _, v := range n.sortedVolumes() {
		if s := v.seat.Load(); s != nil {
			n.noPath(v)
			if err := s.resign(ctx, reason); err != nil {
				n.log.Error("a volume was not handed over", "volume", s.name(), "error", err)
			}
		}
	}
}

// equip gives the guard what it needs to answer other nodes; was is what it has.
func (m *membership) equip(g *guard.Guard, was guard.Credentials) (guard.Credentials, error) {
	c, err := m.node.db.Credentials()
	if err != nil {
		return was, err
	}
	now := guard.Credentials{
		Address:     net.JoinHostPort(m.node.db.Address(), strconv.Itoa(guard.Port)),
		Certificate: c.Certificate, Key: c.Key, CA: c.CA, Revoked: c.Revoked,
	}
	if reflect.DeepEqual(was, now) {
		return was, nil
	}
	if err := g.Serve(now); err != nil {
		return was, err
	}
	return now, nil
}

// keepEquipped follows renewed and revoked certificates, until ctx ends. Without it takeovers from this node wait
// for longer, and nothing else.
func (m *membership) keepEquipped(ctx context.Context) {
	tick := time.NewTicker(equipInterval)
	defer tick.Stop()
	var has guard.Credentials
	var g *guard.Guard
	for !m.unguarded.Load() {
		if now := m.known.Load(); now != g { // a new one has none
			g, has = now, guard.Credentials{}
		}
		var err error
		if has, err = m.equip(g, has); err != nil && !m.unguarded.Load() {
			m.node.log.Error("the guard process does not answer other nodes as it should", "error", err)
		}
		select {
		case <-tick.C:
		case <-m.equipNow:
		case <-ctx.Done():
			return
		}
	}
}

// disarm lets the deadline pass when nothing of this node can write any more: its I/O waits, and its volumes are
// unmounted. It tries until they are, or until the session is renewed.
func (m *membership) disarm(ctx context.Context) {
	for ctx.Err() == nil && !m.unguarded.Load() && m.deadline.isOver() {
		if done, _ := m.tryDisarm(); done { // it is refused until all is unmounted, and fails until a lost guard is replaced
			m.node.log.Info("the guard lets this node's deadline pass: all its I/O waits, and nothing is mounted")
			return
		}
		select {
		case <-time.After(disarmPause):
		case <-ctx.Done():
		}
	}
}

func (m *membership) tryDisarm() (done bool, err error) {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	if m.unguarded.Load() || !m.deadline.isOver() { // a session that was renewed has told so before it renews the guard
		return false, guard.ErrLost
	}
	g := m.guard.Load()
	was, err := g.Deadline(), m.node.mountedByAnother(0)
	if err == nil {
		err = g.Disarm()
	}
	if err != nil {
		return false, err
	}
	if m.node.mountedByAnother(0) != nil { // begun meanwhile
		return false, g.Renew(was)
	}
	return true, nil
}

// mountedByAnother says which mount of another incarnation than the one given may be there.
func (n *Node) mountedByAnother(incarnation uint64) error {
	for _, v := range n.sortedVolumes() {
		if by := v.mountedBy.Load(); by != 0 && by != incarnation {
			return fmt.Errorf("%w: volume %s is not unmounted yet by incarnation %d", guard.ErrRefused, v.name(), by)
		}
	}
	return nil
}

// isOver tells that I/O is stopped and goes on under no present session.
func (d *deadline) isOver() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped && d.near()
}

// watchDevice tells the guard of a device before the first I/O to it.
func (n *Node) watchDevice(volumeID string, dev *device.Device) error {
	g := n.guardProcess()
	if g == nil {
		return nil
	}
	return g.Watch(volumeID, dev.Path, dev.Fd())
}

// forgetDevice is before it is closed. A guard that still has it only looks at a device for nothing.
func (n *Node) forgetDevice(volumeID string) {
	if g := n.guardProcess(); g != nil {
		if err := g.Forget(volumeID); err != nil {
			n.log.Warn("the guard process does not forget a device", "volume", volumeID, "error", err)
		}
	}
}

// askGuard has the guard of another node end it, and prove that.
func (n *Node) askGuard(ctx context.Context, victim fence.Node) (words string, err error) {
	address, ok := n.addressOf(victim.Name)
	if !ok {
		return "", fmt.Errorf("node %s is no member", victim.Name)
	}
	tls, err := n.db.ClientTLS(victim.Name)
	if err != nil {
		return "", err
	}
	return guard.Ask(ctx, net.JoinHostPort(address, strconv.Itoa(guard.Port)), tls, uint64(victim.Incarnation), "node "+n.name+" fences it")
}

// unmount takes the mount from the guard, which would keep it alive, and ends it; it may be tried again.
func (s *seat) unmount(ctx context.Context, end func(context.Context) error) error {
	var released error
	if !s.ending.Swap(true) {
		released = s.unguard()
	}
	err := end(ctx)
	s.ending.Store(err != nil)
	if err == nil {
		s.v.mountedBy.Store(0)
	}
	return errors.Join(released, err)
}
